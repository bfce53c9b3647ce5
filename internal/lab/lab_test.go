package lab_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmferry/vmferry/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

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
	ctx := testContext(t)
	out, err := l.Host(0).Command(ctx, "ping", "-c1", "-W1", l.Host(1).Addr()).CombinedOutput()
	t.Logf("%s %v", out, err)
	for _, h := range l.Hosts() {
		out, err := h.Virsh(ctx, "hostname")
		require.NoError(t, err)
		require.Equal(t, h.Name(), out)
	}
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
