package tuning

import (
	"context"
	"errors"
	"strings"

	"github.com/vmferry/vmferry/share"
)

// Answer is what a probe says.
type Answer uint8

const (
	Inconclusive Answer = iota // it could not be found out, say for want of privilege
	Yes
	No // the machine has none
)

// String is "yes", "no" or "inconclusive".
func (a Answer) String() string { return name(answers, a) }

// MarshalText is String.
func (a Answer) MarshalText() ([]byte, error) { return marshalName(answers, a) }

// UnmarshalText accepts what MarshalText returns.
func (a *Answer) UnmarshalText(b []byte) error { return unmarshalName(answers, b, a) }

var answers = []string{"inconclusive", "yes", "no"}

// Probed is a probe's answer and the reason for it.
type Probed struct {
	Answer Answer `json:"answer"`
	Reason string `json:"reason"`
}

// Probe asks whether the machine has the knob, by looking for it and never by a
// version. It reads only.
func Probe(ctx context.Context, sys System, k Knob) Probed {
	if k.At.Syntax == XMLPath || k.At.Syntax == Parameter {
		return Probed{Inconclusive, "it belongs to a guest, not to a machine"}
	}
	found, err := readings(ctx, sys, &k)
	switch {
	case len(found) > 0:
		return Probed{Yes, found[0].Path}
	case err != nil:
		return Probed{Inconclusive, err.Error()}
	}
	return Probed{No, "nothing at " + k.where()}
}

// where is the knob's place, for people.
func (k *Knob) where() string {
	switch {
	case len(k.At.Command) > 0:
		return strings.Join(k.At.Command[:min(4, len(k.At.Command))], " ") + " (" + k.At.Key + ")"
	case k.At.Key != "" && k.At.Path != "":
		return k.At.Path + " (" + k.At.Key + ")"
	case k.At.Path == "":
		return k.At.Key
	}
	return k.At.Path
}

// A Feature is something that a machine has or has not, beside knobs.
type Feature struct {
	ID, Title string
	Path      string // a file, or a pattern of files
	Has       string // a word of its content; empty: being there is enough
	Not       string // a content that means no
}

// Features are those that this package asks for.
func Features() []Feature {
	return []Feature{
		{ID: "cgroup-io", Title: "limits for daemons (cgroup v2, io)", Path: "/sys/fs/cgroup/cgroup.controllers", Has: "io"},
		{ID: "bbr", Title: "congestion control bbr", Path: "/proc/sys/net/ipv4/tcp_available_congestion_control", Has: "bbr"},
		{ID: "io_uring", Title: "io_uring for all programs", Path: "/proc/sys/kernel/io_uring_disabled", Has: "0"},
		{ID: "userfaultfd", Title: "post-copy for programs without privilege", Path: "/proc/sys/vm/unprivileged_userfaultfd", Has: "1"},
		{ID: "hugepages", Title: "static huge pages", Path: "/proc/sys/vm/nr_hugepages", Not: "0"},
		{ID: "numa", Title: "more than one NUMA node", Path: "/sys/devices/system/node/node1/meminfo"},
		{ID: "psi", Title: "pressure figures", Path: "/proc/pressure/io"},
		{ID: "multipath", Title: "multipath maps", Path: "/sys/block/dm-*/dm/uuid", Has: "mpath-"},
	}
}

// ProbeFeature looks for a feature. It reads only.
func ProbeFeature(ctx context.Context, sys System, f Feature) Probed {
	paths := []string{f.Path}
	if strings.Contains(f.Path, "*") {
		var err error
		if paths, err = sys.Glob(ctx, f.Path); err != nil {
			return Probed{Inconclusive, err.Error()}
		}
	}
	unsure := ""
	for _, p := range paths {
		b, err := sys.ReadFile(ctx, p)
		switch {
		case errors.Is(err, share.ErrNotExist):
			continue
		case err != nil:
			unsure = err.Error()
			continue
		}
		content := strings.TrimSpace(string(b))
		has := f.Has == ""
		for w := range strings.FieldsSeq(content) {
			has = has || w == f.Has || strings.HasSuffix(f.Has, "-") && strings.HasPrefix(w, f.Has)
		}
		if has && (f.Not == "" || content != f.Not) {
			return Probed{Yes, p}
		}
	}
	if unsure != "" {
		return Probed{Inconclusive, unsure}
	}
	return Probed{No, "nothing fitting at " + f.Path}
}
