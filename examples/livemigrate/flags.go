package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/vmferry/vmferry/migrate/kvm"
	"github.com/vmferry/vmferry/share"
)

// parse reads the command line. Its errors are for the user's eyes.
func parse(args []string, stderr io.Writer) (*config, error) {
	c := &config{MigrateOptions: kvm.MigrateOptions{Disks: map[string]kvm.DiskMove{}}}
	f := flag.NewFlagSet("livemigrate", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
	}
	f.BoolVar(&c.lab, "lab", false, "run in the laboratory: nothing else is needed, or looked at")
	f.BoolVar(&c.json, "json", false, "write one JSON object to standard output at the end, and the rest to standard error;\n"+
		"\"verified\" is true only if every acknowledged write was looked for, which only -lab can")
	f.StringVar(&c.from, "from", "", "libvirt `URI` of the host that the guest runs on: qemu:///system, qemu+tls://host/system")
	f.StringVar(&c.to, "to", "", "libvirt `URI` of the host that it shall run on")
	f.StringVar(&c.guest, "guest", "", "the guest's `name` or UUID")
	f.DurationVar(&c.connectTimeout, "connect-timeout", 30*time.Second, "how long to wait for the hosts")
	f.Func("shared", "a `disk` (vda) that both hosts reach by the same path: it is not copied; may be repeated", func(v string) error {
		return c.disk(v, func(d *kvm.DiskMove) { d.Policy = kvm.Shared })
	})
	f.Func("at", "`disk=path` of a mirrored disk at the destination; .qcow2 at its end makes it qcow2, anything else raw; may be repeated", func(v string) error {
		disk, p, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("write disk=path")
		}
		format := share.Raw
		if path.Ext(p) == ".qcow2" {
			format = share.Qcow2
		}
		to := &share.Source{Kind: share.Disk, Format: format, File: &share.FileSource{Path: p}}
		if err := to.Check(); err != nil {
			return err
		}
		return c.disk(disk, func(d *kvm.DiskMove) { d.To = to })
	})
	f.Func("overwrite", "a `disk` whose file is at the destination already, and may be overwritten; may be repeated", func(v string) error {
		return c.disk(v, func(d *kvm.DiskMove) { d.Overwrite = true })
	})
	f.BoolVar(&c.Plaintext, "plaintext", false, "send memory and disks unencrypted; the default is TLS, which the hosts need certificates for")
	f.StringVar(&c.Address, "address", "", "`host` name or address by which the source reaches the destination")
	f.Func("bandwidth", "most `bytes` per second for memory and for disks: 100M, 1G", func(v string) (err error) {
		c.Bandwidth, err = share.ParseBytes(v)
		return err
	})
	f.DurationVar(&c.MaxDowntime, "max-downtime", 0, "how long the last pass over the memory may take; 0 is QEMU's 300ms")
	f.BoolVar(&c.AutoConverge, "auto-converge", false, "slow the guest down if the copy does not catch up")
	f.IntVar(&c.Connections, "connections", 1, "connections for the memory")
	f.BoolVar(&c.Unsafe, "unsafe", false, "libvirt does not recognise the shared file system as one, and you know better")
	f.BoolVar(&c.RemoveSource, "remove-source", false, "delete the mirrored disks at the source when the guest runs at the destination")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, errors.New("see livemigrate -h")
	}
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("what is %q? see livemigrate -h", f.Arg(0))
	case c.lab && (c.from != "" || c.to != "" || c.guest != ""):
		return nil, errors.New("-lab has hosts and a guest of its own: leave out -from, -to and -guest")
	case !c.lab && (c.from == "" || c.to == "" || c.guest == ""):
		return nil, errors.New("give -from, -to and -guest, or -lab; see livemigrate -h")
	}
	return c, nil
}

func (c *config) disk(target string, change func(*kvm.DiskMove)) error {
	if target == "" {
		return errors.New("name a disk: vda")
	}
	d := c.Disks[target]
	change(&d)
	c.Disks[target] = d
	return nil
}
