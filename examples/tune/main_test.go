package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/internal/lab"
)

// build makes the example as its users run it.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "tune")
	out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return bin
}

// tune runs it and returns its figures and what it said.
func tune(t *testing.T, bin string, ok bool, args ...string) (fig figures, said string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, append([]string{"-json"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	require.Equal(t, ok, err == nil, "%v: %s", err, &errs)
	require.NoError(t, json.Unmarshal(out.Bytes(), &fig), "%s", &out)
	require.NotContains(t, errs.String(), "\x1b", "colours only on a terminal")
	return fig, errs.String()
}

func TestTune(t *testing.T) {
	bin := build(t)
	root, journal := t.TempDir(), filepath.Join(t.TempDir(), "state", "journal")
	for name, content := range map[string]string{
		"proc/sys/kernel/random/boot_id": "b\n", "etc/machine-id": "m\n",
		"proc/sys/vm/swappiness": "60\n", "proc/sys/net/ipv4/tcp_sack": "0\n",
		"sys/block/vda/queue/rotational": "0\n", "sys/block/vda/queue/read_ahead_kb": "128\n",
		"etc/sysctl.d/99-fast.conf": "net.ipv4.tcp_sack = 0\n",
	} {
		p := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		require.NoError(t, os.WriteFile(p, []byte(content), 0o644))
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		return string(b)
	}
	args := []string{"-root", root, "-journal", journal, "-class", "throughput"}

	fig, said := tune(t, bin, true, args...)
	require.True(t, fig.Verified)
	require.Equal(t, 3, fig.Planned)
	require.Equal(t, 1, fig.Myths)
	require.Contains(t, said, "99-fast.conf:1")
	require.Contains(t, said, "would be applied with -apply")
	require.NoFileExists(t, journal)
	require.Equal(t, "60\n", read("proc/sys/vm/swappiness"))

	fig, _ = tune(t, bin, true, append(args, "-apply")...)
	require.True(t, fig.Verified)
	require.Equal(t, 3, fig.Applied)
	require.Equal(t, "10\n", read("proc/sys/vm/swappiness"))
	require.Equal(t, "4096\n", read("sys/block/vda/queue/read_ahead_kb"))

	fig, _ = tune(t, bin, true, append(args, "-revert")...)
	require.True(t, fig.Verified)
	require.Equal(t, 3, fig.Reverted)
	require.Equal(t, "60\n", read("proc/sys/vm/swappiness"))
	require.Equal(t, "128\n", read("sys/block/vda/queue/read_ahead_kb"))

	fig, said = tune(t, bin, false, "-root", filepath.Join(root, "none"))
	require.False(t, fig.Verified)
	require.Contains(t, said, "no such file")
	_, _ = tune(t, bin, false, "-class", "fast")
	_, _ = tune(t, bin, false, "-apply", "-revert")
}

func TestAdvice(t *testing.T) {
	bin := build(t)
	file := filepath.Join(t.TempDir(), "a.xml")
	require.NoError(t, os.WriteFile(file, []byte(`<domain type='kvm'><name>a</name><devices><disk type='file' device='disk'><driver name='qemu' type='raw' cache='unsafe'/><source file='/a'/><target dev='vda' bus='virtio'/></disk></devices></domain>`), 0o600))
	out, err := exec.Command(bin, "-xml", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "flushes")
	require.Contains(t, string(out), "cache=\"none\"")
}

func TestLab(t *testing.T) {
	lab.Require(t)
	fig, said := tune(t, build(t), true, "-lab", "-class", "throughput")
	require.True(t, fig.Verified, said)
	require.Positive(t, fig.Applied)
	require.Equal(t, fig.Applied, fig.Reverted)
	require.Zero(t, fig.Left)
}
