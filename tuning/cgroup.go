package tuning

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/vmferry/vmferry/share"
)

// Cgroup limits what the processes of a control group may do with a device, by
// io.max of cgroup v2: a daemon that exports disks, a backup. It is [Disks],
// with devices named by their numbers, "253:0"; [LimitDisk] and
// [MeasurePlateau] work on it. It needs root, or a delegated group.
//
// There are limits for reading and for writing, and neither bursts nor limits
// for both together: those are errors.ErrUnsupported.
type Cgroup struct {
	sys System
	dir string
}

const cgroupRoot = "/sys/fs/cgroup"

// NewCgroup is the group at a path below the mount of cgroup v2, such as
// "/system.slice/nfs-ganesha.service". Where the group is not there or its
// parent has not the io controller, calls fail.
func NewCgroup(sys System, path string) (*Cgroup, error) {
	if err := checkPath(path); err != nil || path == "/" {
		return nil, fmt.Errorf("control group %s %w; it is a path below %s", quote(path), share.ErrInvalid, cgroupRoot)
	}
	return &Cgroup{sys, cgroupRoot + path}, nil
}

var deviceNumbers = regexp.MustCompile(`^[0-9]{1,4}:[0-9]{1,7}$`)

// Limit implements [Disks].
func (c *Cgroup) Limit(ctx context.Context, device string) (l DiskLimit, err error) {
	values, err := c.values(ctx, device, "io.max")
	if err != nil {
		return l, err
	}
	for key, v := range values {
		if v == "max" {
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return l, fmt.Errorf("%s/io.max: %s=%s %w", c.dir, quoteIfOdd(key), quote(v), share.ErrInvalid)
		}
		switch key {
		case "rbps":
			l.ReadBytesPerSecond = share.Bytes(n)
		case "wbps":
			l.WriteBytesPerSecond = share.Bytes(n)
		case "riops":
			l.ReadIOPS = n
		case "wiops":
			l.WriteIOPS = n
		}
	}
	return l, nil
}

// SetLimit implements [Disks].
func (c *Cgroup) SetLimit(ctx context.Context, device string, l DiskLimit) error {
	if err := l.Check(); err != nil {
		return err
	}
	if !deviceNumbers.MatchString(device) {
		return fmt.Errorf("device %s %w; write major:minor", quote(device), share.ErrInvalid)
	}
	only := DiskLimit{ReadBytesPerSecond: l.ReadBytesPerSecond, WriteBytesPerSecond: l.WriteBytesPerSecond, ReadIOPS: l.ReadIOPS, WriteIOPS: l.WriteIOPS}
	if l != only {
		return &share.UnsupportedError{What: "this limit by io.max", Reason: "it has limits for reading and for writing, without bursts"}
	}
	limit := func(n int64) string {
		if n == 0 {
			return "max"
		}
		return strconv.FormatInt(n, 10)
	}
	line := fmt.Sprintf("%s rbps=%s wbps=%s riops=%s wiops=%s\n", device,
		limit(int64(l.ReadBytesPerSecond)), limit(int64(l.WriteBytesPerSecond)), limit(l.ReadIOPS), limit(l.WriteIOPS))
	if err := c.sys.SetFile(ctx, c.dir+"/io.max", []byte(line)); err != nil {
		return c.explain(err)
	}
	return nil
}

// Count implements [Disks]. Latencies are not known to control groups.
func (c *Cgroup) Count(ctx context.Context, device string) (n DiskCount, err error) {
	values, err := c.values(ctx, device, "io.stat")
	if err != nil {
		return n, err
	}
	for key, to := range map[string]*int64{"rbytes": &n.ReadBytes, "wbytes": &n.WriteBytes, "rios": &n.Reads, "wios": &n.Writes} {
		if v, ok := values[key]; ok {
			if *to, err = strconv.ParseInt(v, 10, 64); err != nil {
				return n, fmt.Errorf("%s/io.stat: %s %w", c.dir, key, share.ErrInvalid)
			}
		}
	}
	return n, nil
}

// values are the words behind a device's numbers in a file of the group.
func (c *Cgroup) values(ctx context.Context, device, file string) (map[string]string, error) {
	if !deviceNumbers.MatchString(device) {
		return nil, fmt.Errorf("device %s %w; write major:minor", quote(device), share.ErrInvalid)
	}
	b, err := c.sys.ReadFile(ctx, c.dir+"/"+file)
	if err != nil {
		return nil, c.explain(err)
	}
	return parseCgroup(string(b), device), nil
}

func parseCgroup(text, device string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != device {
			continue
		}
		for _, w := range f[1:] {
			if key, value, ok := strings.Cut(w, "="); ok {
				out[key] = value
			}
		}
	}
	return out
}

func (c *Cgroup) explain(err error) error {
	if errors.Is(err, share.ErrNotExist) {
		return fmt.Errorf("%w; is there cgroup v2, and +io in the parent's cgroup.subtree_control?", err)
	}
	return err
}
