package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmferry/vmferry/internal/lab"
)

func TestMain(m *testing.M) {
	lab.Init()
	if dir := os.Getenv(victimDir); dir != "" {
		fmt.Fprintln(os.Stderr, beVictim(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestTwoHostsUp(t *testing.T) {
	lab.Require(t)
	began := time.Now()
	l := lab.Start(t, nil)
	t.Logf("two hosts up in %v", time.Since(began))
	require.Less(t, time.Since(began), 5*time.Second)
	ctx := testContext(t)
	for i, h := range l.Hosts() {
		out, err := h.Virsh(ctx, "hostname")
		require.NoError(t, err)
		require.Equal(t, h.Name(), out)
		// A command sees the host's name, files and processes, and no KVM.
		peer := l.Host(1 - i)
		require.NoError(t, os.WriteFile(h.OutsidePath("mine"), []byte(h.Name()), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(l.SharedDir(), "ours"), []byte("ours"), 0o600))
		shell := h.Command(ctx, "sh", "-ec", `hostname; cat "$1"; echo; cat "$2"; echo; test ! -e /dev/kvm; getent hosts "$3" >&2; cat /proc/1/cmdline`,
			"sh", h.ImagePath("mine"), l.SharedPath("ours"), peer.Name())
		text, err := shell.Output()
		require.NoError(t, err, "%s", text)
		require.Equal(t, h.Name()+"\n"+h.Name()+"\nours\nvmferry-lab-host\x00", string(text))
		require.Equal(t, filepath.Join(l.SharedDir(), "ours"), h.OutsidePath(l.SharedPath("ours")))
		_, err = os.Stat(peer.OutsidePath("mine"))
		require.Equal(t, i == 0, errors.Is(err, os.ErrNotExist), "each host has its own images")
		// libvirt reaches the peer by its network.
		_, err = h.Command(ctx, "virsh", "-c", peer.PeerURI(), "list").Output()
		require.NoError(t, err)
	}
	// A command ends with its context, and with its exit code.
	var exit *exec.ExitError
	require.ErrorAs(t, l.Host(0).Command(ctx, "sh", "-c", "exit 7").Run(), &exit)
	require.Equal(t, 7, exit.ExitCode())
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	require.Error(t, l.Host(0).Command(short, "sleep", "1234").Run())
	require.Eventually(t, func() bool {
		return l.Host(0).Command(ctx, "sh", "-c", "ps ax | grep -q '[s]leep 1234'").Run() != nil
	}, 5*time.Second, 20*time.Millisecond, "the command is killed with what entered the host for it")
}

func TestGuestWritesAndBeats(t *testing.T) {
	l := lab.Start(t, &lab.Options{Hosts: 1})
	ctx := testContext(t)
	began := time.Now()
	g, err := l.StartGuest(ctx, l.Host(0), &lab.GuestOptions{Dirty: 20 << 20, Disks: []lab.Disk{
		{Path: "a.raw", Format: "raw", Size: 64 << 20, Writes: 100},
		{Path: "b.qcow2", Format: "qcow2", Size: 64 << 20, Writes: 100},
	}})
	require.NoError(t, err)
	t.Logf("first heartbeat after %v", time.Since(began))
	began = time.Now()
	time.Sleep(3 * time.Second)
	t.Logf("gap %v, acked %+v, %d beats", g.Watch().LongestGap(began).Length(), g.Watch().Acked(), g.Watch().Beats())
	require.NoError(t, g.Watch().Healthy())
	v, err := g.Verify(ctx, l.Host(0))
	require.NoError(t, err)
	t.Logf("%+v", v)
}

func TestMigrateByVirsh(t *testing.T) {
	l := lab.Start(t, nil)
	ctx := testContext(t)
	from, to := l.Host(0), l.Host(1)
	g, err := l.StartGuest(ctx, from, &lab.GuestOptions{Dirty: 20 << 20, Disks: []lab.Disk{
		{Path: "a.raw", Format: "raw", Size: 64 << 20, Writes: 100},
		{Path: "b.qcow2", Format: "qcow2", Size: 64 << 20, Writes: 100},
	}})
	require.NoError(t, err)
	for _, d := range g.Disks {
		require.NoError(t, to.CreateImage(ctx, d.Path, d.Format, d.Size))
	}
	began := time.Now()
	_, err = from.Virsh(ctx, "migrate", "--live", "--p2p", "--persistent", "--undefinesource", "--copy-storage-all", g.UUID, to.PeerURI())
	require.NoError(t, err)
	done := time.Now()
	// It has arrived when it beats and writes from there.
	arrived, err := g.Watch().Until(ctx, func(a lab.Arrival) bool { return a.Host == to })
	require.NoError(t, err)
	_, err = g.Watch().Until(ctx, func(a lab.Arrival) bool { return a.Disks[0].Acked > arrived.Disks[0].Acked+20 })
	require.NoError(t, err)
	t.Logf("migrated in %v, gap %v", done.Sub(began), g.Watch().LongestGap(began).Length())

	hosts, err := l.Running(ctx, g)
	require.NoError(t, err)
	require.Equal(t, []*lab.Host{to}, hosts)
	_, err = g.Verify(ctx, to)
	require.NoError(t, err)
	require.NoError(t, g.Watch().Healthy())
	// The oracle knows the copy that was left behind for what it is.
	_, err = g.Verify(ctx, from)
	require.ErrorContains(t, err, "lost write")
}
