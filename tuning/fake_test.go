package tuning

import (
	"context"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// tree is a machine of files.
var machine = map[string]string{
	bootIDFile:    "11111111-2222-3333-4444-555555555555\n",
	machineIDFile: "0123456789abcdef0123456789abcdef\n",

	"/proc/sys/vm/dirty_ratio":                               "20\n",
	"/proc/sys/vm/dirty_bytes":                               "0\n",
	"/proc/sys/vm/dirty_background_ratio":                    "10\n",
	"/proc/sys/vm/dirty_background_bytes":                    "0\n",
	"/proc/sys/vm/swappiness":                                "60\n",
	"/proc/sys/vm/nr_hugepages":                              "0\n",
	"/proc/sys/net/ipv4/tcp_rmem":                            "4096\t131072\t6291456\n",
	"/proc/sys/net/ipv4/tcp_sack":                            "1\n",
	"/sys/kernel/mm/transparent_hugepage/enabled":            "[always] madvise never\n",
	"/sys/devices/virtual/block/vda/size":                    "2048\n",
	"/sys/devices/virtual/block/vda/serial":                  "disk-0\n",
	"/sys/devices/virtual/block/vda/queue/rotational":        "0\n",
	"/sys/devices/virtual/block/vda/queue/scheduler":         "none [mq-deadline] bfq\n",
	"/sys/devices/virtual/block/vda/queue/nr_requests":       "77\n",
	"/sys/devices/virtual/block/vda/queue/read_ahead_kb":     "128\n",
	"/sys/devices/virtual/block/vda/queue/max_sectors_kb":    "64\n",
	"/sys/devices/virtual/block/vda/queue/max_hw_sectors_kb": "512\n",
	"/sys/devices/virtual/block/vda/queue/nomerges":          "2\n",
	"/sys/devices/virtual/block/loop0/queue/read_ahead_kb":   "128\n",
	"/sys/class/net/eth0/device/uevent":                      "\n",
	"/sys/class/net/eth0/speed":                              "1000\n",
	"/sys/class/net/eth0/tx_queue_len":                       "100\n",
	"/sys/class/net/br0/tx_queue_len":                        "100\n",
	"/etc/sysctl.d/README":                                   "\n",
	"/etc/udev/rules.d/README":                               "\n",
	"/etc/tmpfiles.d/README":                                 "\n",
}

// plant writes a machine below a directory, with /sys/block of links as the
// kernel has it.
func plant(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		require.NoError(t, os.WriteFile(p, []byte(content), 0o644))
	}
	devices, err := filepath.Glob(filepath.Join(dir, "sys/devices/virtual/block/*"))
	require.NoError(t, err)
	for _, d := range devices {
		block := filepath.Join(dir, "sys/block")
		require.NoError(t, os.MkdirAll(block, 0o755))
		require.NoError(t, os.Symlink("../devices/virtual/block/"+filepath.Base(d), filepath.Join(block, filepath.Base(d))))
	}
}

// contents are all files below a directory.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		out[strings.TrimPrefix(p, dir)] = string(b)
		return err
	}))
	return out
}

// kernel is a tree of files that does what the kernel does: it shows choices
// with brackets, sets the queue anew with another scheduler, refuses and rounds.
type kernel struct {
	*Local
	at     func(point string)
	refuse map[string]error
	round  map[string]string // what it makes of a value, by path
}

func (k *kernel) pass(point string) {
	if k.at != nil {
		k.at(point)
	}
}

func (k *kernel) SetFile(ctx context.Context, p string, data []byte) error {
	k.pass("before write " + p)
	defer k.pass("after write " + p)
	if err := k.refuse[p]; err != nil {
		return fileError("write", p, err)
	}
	if r := k.round[p]; r != "" {
		data = []byte(r)
	}
	old, err := k.ReadFile(ctx, p)
	if err != nil {
		return err
	}
	if _, choices, err := parseValue(Choice, string(old)); err == nil && len(choices) > 1 {
		v := strings.TrimSpace(string(data))
		if !slices.Contains(choices, v) {
			return fileError("write", p, os.ErrInvalid)
		}
		for i, c := range choices {
			if c == v {
				choices[i] = "[" + c + "]"
			}
		}
		data = []byte(strings.Join(choices, " ") + "\n")
		if path.Base(p) == "scheduler" {
			if err := k.Local.SetFile(ctx, path.Dir(p)+"/nr_requests", []byte("256\n")); err != nil {
				return err
			}
		}
	}
	if strings.HasSuffix(p, "tcp_rmem") {
		data = []byte(strings.ReplaceAll(string(data), " ", "\t"))
	}
	return k.Local.SetFile(ctx, p, data)
}

// newKernel plants a machine, changed by edits ("" removes a file).
func newKernel(t testing.TB, edits map[string]string) (*kernel, string) {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{}
	for n, c := range machine {
		files[n] = c
	}
	for n, c := range edits {
		if files[n] = c; c == "" {
			delete(files, n)
		}
	}
	plant(t, dir, files)
	return openKernel(t, dir), dir
}

func openKernel(t testing.TB, dir string) *kernel {
	t.Helper()
	l, err := OpenLocal(&LocalOptions{Root: dir, Name: "fake"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return &kernel{Local: l}
}

func openJournal(t testing.TB, path string) *Journal {
	t.Helper()
	j, err := OpenJournal(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, j.Close()) })
	return j
}

// planFor checks the machine and plans what differs, and the changes.
func planFor(t testing.TB, sys System, class Class, changes ...Change) Plan {
	t.Helper()
	r, err := Check(context.Background(), sys, &CheckOptions{Class: class})
	require.NoError(t, err)
	p, err := r.Plan(&PlanOptions{Set: changes})
	require.NoError(t, err)
	return p
}
