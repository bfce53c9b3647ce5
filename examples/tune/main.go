// Command tune checks a host or a guest, shows what it would change and why,
// and with -apply changes it; with -revert everything is as it was.
//
// Without flags that say otherwise it reads, and nothing else.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/vmferry/vmferry/examples/internal/show"
	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/tuning"
	"github.com/vmferry/vmferry/tuning/domain"
	"github.com/vmferry/vmferry/tuning/kvm"
)

// figures are what the program says at the end.
type figures struct {
	// Verified: after applying, every value was read again and is as planned;
	// after reverting, every value is as it was before; without either, every
	// value was read again and is unchanged.
	Verified bool    `json:"verified"`
	System   string  `json:"system"`
	Class    string  `json:"class"`
	Checked  int     `json:"checked"` // values that were read
	Good     int     `json:"good"`
	Differs  int     `json:"differs"`
	Myths    int     `json:"myths"`
	Unsure   int     `json:"unsure"`
	Planned  int     `json:"planned"`
	Applied  int     `json:"applied"`
	Kept     int     `json:"kept,omitempty"` // by measuring
	Reverted int     `json:"reverted"`
	Left     int     `json:"left"` // changed by somebody else since, and left alone
	Plan     string  `json:"plan,omitempty"`
	Seconds  float64 `json:"seconds"`
}

// options are the flags.
type options struct {
	class                  string
	connect, guest, root   string
	apply, revert, lab     bool
	asJSON, all            bool
	journal, only, measure string
	xml                    string
}

const help = `tune checks a host or a guest: which settings are right for its work, which are
not, and which of those that guides repeat do nothing or harm. It shows what it
would change, with reasons, and changes nothing.

  tune                              this host, for many guests of all kinds
  tune -class latency               this host, for databases
  tune -guest db -class guest       a running guest, through its agent
  tune -apply                       do what was shown; needs root
  tune -measure /dev/vdb -apply     do it one by one, keep what fio finds to help
  tune -revert                      everything as it was before -apply
  tune -xml db.xml                  a better definition, as a diff with reasons
  tune -lab                         all of it in a guest of the laboratory

What was changed is in a journal, also after a crash. A value that somebody else
has changed since is left alone. The exit status is 0 only if all went well.

`

func main() {
	lab.Init()
	var o options
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), help)
		flag.PrintDefaults()
	}
	flag.StringVar(&o.class, "class", "", "workload: latency, throughput, mixed, files, guest (default mixed, of a guest guest)")
	flag.StringVar(&o.connect, "connect", "qemu:///system", "libvirt `URI` of the guest's host")
	flag.StringVar(&o.guest, "guest", "", "`name` or UUID of a running guest with an agent; empty: this host")
	flag.StringVar(&o.root, "root", "", "`directory` to take for /, a copy of another machine's /proc, /sys and /etc")
	flag.BoolVar(&o.apply, "apply", false, "apply what is shown")
	flag.BoolVar(&o.revert, "revert", false, "revert what -apply has changed")
	flag.BoolVar(&o.lab, "lab", false, "start a laboratory, and apply and revert in a guest of its")
	flag.StringVar(&o.journal, "journal", "/var/lib/vmferry/tune.journal", "`file` that remembers what was changed")
	flag.StringVar(&o.only, "only", "", "`knobs`, with commas between, that a plan is limited to")
	flag.StringVar(&o.measure, "measure", "", "`file` or device that fio reads; with -apply, what does not help is taken back")
	flag.StringVar(&o.xml, "xml", "", "advise on a domain XML `file` instead")
	flag.BoolVar(&o.all, "all", false, "show also what is good, absent or unsure")
	flag.BoolVar(&o.asJSON, "json", false, "end with one JSON object of the figures on standard output")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	out := os.Stdout
	if o.asJSON {
		out = os.Stderr
	}
	p := &printer{w: out, colours: term.IsTerminal(int(out.Fd())) && os.Getenv("NO_COLOR") == ""}
	fig, err := run(ctx, &o, p)
	if o.asJSON {
		err = errors.Join(err, show.JSON(os.Stdout, fig))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tune:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options, p *printer) (fig figures, err error) {
	began := time.Now()
	defer func() { fig.Seconds = time.Since(began).Seconds() }()
	switch {
	case flag.NArg() > 0:
		return fig, fmt.Errorf("%s: no such thing; see -h", flag.Arg(0))
	case o.apply && o.revert:
		return fig, errors.New("-apply or -revert, not both")
	case o.root != "" && o.guest != "":
		return fig, errors.New("-root or -guest, not both")
	}
	class := tuning.Mixed
	if o.guest != "" || o.lab {
		class = tuning.InGuest
	}
	if o.class != "" {
		if class, err = tuning.ParseClass(o.class); err != nil {
			return fig, err
		}
	}
	if o.xml != "" {
		return fig, adviseOn(o.xml, class, p)
	}
	if o.lab {
		return runLab(ctx, o, class, p)
	}
	sys, end, err := open(ctx, o)
	if err != nil {
		return fig, err
	}
	defer end()
	s := &session{sys: sys, class: class, o: o, p: p}
	if err := s.check(ctx); err != nil {
		return s.fig, err
	}
	switch {
	case o.revert:
		err = s.withJournal(func(j *tuning.Journal) error { return s.revert(ctx, j) })
	case o.apply:
		err = s.withJournal(func(j *tuning.Journal) error { return s.apply(ctx, j) })
	default:
		err = s.unchanged(ctx)
	}
	return s.fig, err
}

// open is the machine that is meant.
func open(ctx context.Context, o *options) (tuning.System, func(), error) {
	if o.guest != "" {
		d, err := kvm.Dial(ctx, o.connect, o.guest)
		if err != nil {
			return nil, nil, err
		}
		return d.System(), func() { d.Close() }, nil
	}
	l, err := tuning.OpenLocal(&tuning.LocalOptions{Root: o.root})
	if err != nil {
		return nil, nil, err
	}
	return l, func() { l.Close() }, nil
}

// adviseOn shows a better definition as a diff.
func adviseOn(file string, class tuning.Class, p *printer) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	a, err := domain.Advise(string(text), &domain.Options{Class: class})
	if err != nil {
		return err
	}
	for _, l := range a.Diff {
		p.diff(l)
	}
	for _, n := range a.Notes {
		fmt.Fprintf(p.w, "# %s: %s instead of %s would be better: %s; %s\n", n.Where, n.To, n.From, n.Reason, n.Risk)
	}
	return nil
}

// runLab applies and reverts in a guest of the laboratory.
func runLab(ctx context.Context, o *options, class tuning.Class, p *printer) (fig figures, err error) {
	if err := lab.Check(ctx); err != nil {
		return fig, err
	}
	fmt.Fprintln(p.w, "starting a laboratory with a guest …")
	l, err := lab.New(ctx, &lab.Options{Hosts: 1})
	if err != nil {
		return fig, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	h := l.Host(0)
	g, err := l.StartGuest(ctx, h, &lab.GuestOptions{Memory: 256, Tools: []string{"busybox"},
		Disks: []lab.Disk{{Path: "disk.raw", Format: "raw", Size: 64 << 20}}})
	if err != nil {
		return fig, err
	}
	d, err := kvm.Dial(ctx, h.URI(), g.UUID)
	if err != nil {
		return fig, err
	}
	defer d.Close()
	s := &session{sys: d.System(), class: class, o: o, p: p}
	s.o.journal = filepath.Join(h.Dir(), "tune.journal")
	if err := s.awaitAgent(ctx); err != nil {
		return fig, err
	}
	err = s.check(ctx)
	if err == nil {
		before := values(s.report)
		err = s.withJournal(func(j *tuning.Journal) error {
			if err := s.apply(ctx, j); err != nil {
				return err
			}
			s.fig.Verified = false
			if err := s.revert(ctx, j); err != nil {
				return err
			}
			s.fig.Verified = false
			again, err := tuning.Check(ctx, s.sys, &tuning.CheckOptions{Class: class})
			if err != nil {
				return err
			}
			return s.same(before, values(again))
		})
	}
	return s.fig, err
}

// awaitAgent waits for the agent of a guest that has just booted.
func (s *session) awaitAgent(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		_, err := s.sys.ReadFile(ctx, "/proc/version")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// values are what a report read, by file.
func values(r *tuning.Report) map[string]string {
	out := map[string]string{}
	for _, f := range r.Findings {
		if f.Writable {
			out[f.Path] = f.Current
		}
	}
	return out
}

func (o *options) knobs() []string {
	if o.only == "" {
		return nil
	}
	return strings.Split(o.only, ",")
}
