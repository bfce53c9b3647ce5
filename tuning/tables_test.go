package tuning

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The tables hold together: whatever is recommended can be applied.
func TestKnobs(t *testing.T) {
	knobs := Knobs()
	require.Greater(t, len(knobs), 80)
	ids := map[string]bool{}
	scopes := map[Scope]int{}
	writable := 0
	for _, k := range knobs {
		require.False(t, ids[k.ID], k.ID)
		ids[k.ID] = true
		scopes[k.Scope]++
		require.NotEmpty(t, k.Title, k.ID)
		require.NotEmpty(t, k.Source, k.ID)
		require.NotEmpty(t, k.Risk, k.ID)
		require.NotEmpty(t, k.Verify, k.ID)
		require.NotEmpty(t, k.Effect, k.ID)
		require.NotEmpty(t, k.Advice, k.ID)
		require.NotZero(t, k.Severity, k.ID)
		require.NotZero(t, k.At.Syntax, k.ID)
		require.LessOrEqual(t, strings.Count(k.At.Path, "*"), 1, k.ID)
		if k.Writable() {
			writable++
			require.True(t, kernelFile(k.path("x")), k.ID)
		} else {
			require.NotEmpty(t, k.At.Set, k.ID)
			require.Zero(t, k.Keep, k.ID)
		}
		for _, a := range k.Advice {
			require.NotZero(t, a.How, k.ID)
			if a.How == Leave {
				require.True(t, a.Why != "" || k.Why != "", k.ID)
				continue
			}
			require.NotEmpty(t, a.Value, k.ID)
			if a.How == OneOf {
				continue
			}
			if k.Range.Words != nil && a.How != Exactly { // a version, say
				continue
			}
			require.NoError(t, k.CheckValue(a.Value), k.ID)
		}
		for _, d := range k.Disturbs {
			other, ok := FindKnob(knobs, d)
			require.True(t, ok, d)
			require.Equal(t, k.Scope, other.Scope)
		}
	}
	for _, s := range []Scope{Host, BlockDevice, NIC, GuestXML, NFSClient, NFSServer, ISCSINode, ISCSITarget, CephClient, CephPool, GlusterVolume, Migration} {
		require.NotZero(t, scopes[s], s)
	}
	t.Logf("%d knobs, %d that can be written, %d myths", len(knobs), writable, len(Myths()))
}

func TestCheckValue(t *testing.T) {
	for _, c := range []struct{ knob, good, bad string }{
		{"vm.swappiness", "0 10 200", "-1 201 010 1.5 x"},
		{"block.scheduler", "none mq-deadline bfq kyber", "noop cfq NONE [none]"},
		{"block.wbt", "-1 0 2000", "-2"},
		{"cpu.resume-latency", "0 3 n/a", "a"},
		{"net.tcp-congestion-control", "bbr cubic", "a/b\nc"},
	} {
		k, ok := FindKnob(Knobs(), c.knob)
		require.True(t, ok, c.knob)
		for v := range strings.SplitSeq(c.good, " ") {
			require.NoError(t, k.CheckValue(v), "%s %q", c.knob, v)
		}
		for v := range strings.SplitSeq(c.bad, " ") {
			require.Error(t, k.CheckValue(v), "%s %q", c.knob, v)
		}
		for _, v := range []string{"", " 1", "1 ", "1\n", "1\x00", strings.Repeat("1", 5000)} {
			require.Error(t, k.CheckValue(v), "%s %q", c.knob, v)
		}
	}
	k, _ := FindKnob(Knobs(), "net.tcp-rmem")
	require.NoError(t, k.CheckValue("4096 131072 16777216"))
	for _, v := range []string{"4096", "4096 131072", "4096 131072 16777216 1", "4096  131072 16777216", "1 2 3"} {
		require.Error(t, k.CheckValue(v), v)
	}
}

func mythsOf(t *testing.T, root string) (lines []string, malformed []string) {
	t.Helper()
	l, err := OpenLocal(&LocalOptions{Root: root})
	require.NoError(t, err)
	defer l.Close()
	r, err := Check(context.Background(), l, nil)
	require.NoError(t, err)
	for _, f := range r.Select(Mythical) {
		require.NotEmpty(t, f.Reason)
		require.NotEmpty(t, f.Source)
		require.Positive(t, f.Line, f.Path)
		lines = append(lines, f.ID)
	}
	for _, f := range r.Select(Malformed) {
		malformed = append(malformed, f.Path)
		require.NotContains(t, f.String(), "means nothing", "a line that is not understood may be a secret")
	}
	return lines, malformed
}

// Every line of bad guides is found, and what nobody understands is said.
func TestMyths(t *testing.T) {
	found, malformed := mythsOf(t, "testdata/guide")
	missing := map[string]bool{}
	for _, m := range Myths() {
		missing[m.ID] = true
	}
	for _, id := range found {
		delete(missing, id)
	}
	// Written in no file of the guide; each has its line below.
	for id, c := range map[string]struct {
		k    kind
		text string
	}{
		"tcp-fixed-triple": {sysctlFile, "net.ipv4.tcp_rmem = 16777216 16777216 16777216"},
		"nodatacow":        {fstabFile, "UUID=1 /x btrfs nodatacow 0 0"},
		"nfs-v2":           {fstabFile, "a:/b /b nfs vers=2 0 0"},
		"nfs-async-mount":  {fstabFile, "a:/b /b nfs async 0 0"},
		"smb-nodelay":      {smbFile, "[global]\nsocket options = TCP_NODELAY"},
		"vhost-zerocopy":   {modprobeFile, "options vhost_net experimental_zcopytx=1"},
		"elevator":         {cmdlineFile, "elevator=cfq"},
	} {
		f, err := newMythFinder(Myths())
		require.NoError(t, err)
		var ids []string
		for _, s := range parse(c.k, c.text).settings {
			for _, m := range f.find(c.k, s) {
				ids = append(ids, m.ID)
			}
		}
		require.Contains(t, ids, id)
		delete(missing, id)
	}
	require.Empty(t, missing)
	require.GreaterOrEqual(t, len(found), 45)
	for _, p := range []string{"/etc/sysctl.d/99-fast.conf", "/etc/sysctl.d/fast.backup", "/etc/fstab", "/etc/modprobe.d/fast.conf", "/etc/exports", "/etc/samba/smb.conf", "/etc/libvirt/qemu/broken.xml"} {
		require.Contains(t, malformed, p)
	}
	t.Logf("%d lines", len(found))
}

// What distributions ship raises no alarm.
func TestStockFiles(t *testing.T) {
	for _, d := range []string{"debian12", "rhel9"} {
		found, malformed := mythsOf(t, filepath.Join("testdata/stock", d))
		require.Empty(t, found, d)
		require.Empty(t, malformed, d)
	}
}

// This machine's own files, whatever they are, end in findings and not in
// errors, for an ordinary user too.
func TestThisMachine(t *testing.T) {
	l, err := OpenLocal(nil)
	require.NoError(t, err)
	defer l.Close()
	for _, c := range Classes() {
		r, err := Check(context.Background(), l, &CheckOptions{Class: c})
		require.NoError(t, err)
		require.NotEmpty(t, r.Boot)
		require.NotEmpty(t, r.Select(Good))
		for _, f := range r.Findings {
			require.NotContains(t, f.String(), "\n")
		}
	}
}

// The core reaches no cgo, and nothing of this module but share.
func TestPure(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-f", "{{if .Module}}{{.ImportPath}}{{end}}", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	require.NoError(t, err)
	for p := range strings.FieldsSeq(string(out)) {
		if rest, ours := strings.CutPrefix(p, "github.com/vmferry/vmferry/"); ours {
			require.True(t, slices.Contains([]string{"share", "tuning"}, rest), p)
		}
	}
}
