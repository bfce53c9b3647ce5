package lab_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmferry/vmferry/internal/lab"
)

func TestPowerOff(t *testing.T) {
	l := lab.Start(t, nil)
	ctx := testContext(t)
	h, peer := l.Host(0), l.Host(1)
	g, err := l.StartGuest(ctx, h, &lab.GuestOptions{Disks: []lab.Disk{
		{Path: "a.raw", Format: "raw", Size: 64 << 20, Writes: 200},
		{Path: "b.qcow2", Format: "qcow2", Size: 64 << 20, Writes: 200},
	}})
	require.NoError(t, err)
	written := func(n uint64) func(lab.Arrival) bool {
		return func(a lab.Arrival) bool { return min(a.Disks[0].Acked, a.Disks[1].Acked) >= n }
	}
	_, err = g.Watch().Until(ctx, written(100))
	require.NoError(t, err)
	near, far := connect(t, ctx, peer, h)

	began := time.Now()
	h.PowerOff()
	t.Logf("power off in %v", time.Since(began))
	require.False(t, passes(t, near, far, 200*time.Millisecond))
	require.NoError(t, near.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	_, err = near.Read(make([]byte, 1))
	require.ErrorContains(t, err, "timeout", "no peer hears of it")
	processes, err := l.Processes(g)
	require.NoError(t, err)
	require.Empty(t, processes)
	hosts, err := l.Running(ctx, g)
	require.NoError(t, err)
	require.Empty(t, hosts)
	_, err = h.Dial(ctx, "tcp", peer.Addr()+":16509")
	require.ErrorIs(t, err, lab.ErrPoweredOff)
	require.ErrorIs(t, h.Command(ctx, "true").Run(), lab.ErrPoweredOff)
	require.ErrorIs(t, h.KillLibvirtd(ctx), lab.ErrPoweredOff)
	before := g.Watch().Acked()
	_, err = g.Verify(ctx, h)
	require.NoError(t, err)
	h.PowerOff() // twice is once

	began = time.Now()
	require.NoError(t, h.PowerOn(ctx))
	t.Logf("power on in %v", time.Since(began))
	require.NoError(t, h.PowerOn(ctx))
	// The guest is defined there still, and its sequences go on.
	require.NoError(t, g.Boot(ctx, h))
	_, err = g.Watch().Until(ctx, written(before[0].Sequence+100))
	require.NoError(t, err)
	_, err = g.Verify(ctx, h)
	require.NoError(t, err)
	require.NoError(t, g.Watch().Healthy())
}

func TestKillsAndCuts(t *testing.T) {
	l := lab.Start(t, nil)
	ctx := testContext(t)
	h := l.Host(0)
	g, err := l.StartGuest(ctx, h, &lab.GuestOptions{Name: "victim"})
	require.NoError(t, err)
	beats := func() {
		t.Helper()
		n := g.Watch().Beats()
		_, err := g.Watch().Until(ctx, func(lab.Arrival) bool { return g.Watch().Beats() > n+5 })
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool {
		_, err := h.Virsh(ctx, "qemu-agent-command", g.UUID, `{"execute":"guest-ping"}`)
		return err == nil
	}, 10*time.Second, 50*time.Millisecond, "the guest agent answers")

	require.NoError(t, h.KillLibvirtd(ctx))
	_, err = h.Virsh(ctx, "list")
	require.Error(t, err)
	beats()
	require.ErrorContains(t, h.KillLibvirtd(ctx), "does not run")
	require.NoError(t, h.StartLibvirtd(ctx))
	require.Error(t, h.StartLibvirtd(ctx), "twice")
	hosts, err := l.Running(ctx, g)
	require.NoError(t, err)
	require.Equal(t, []*lab.Host{h}, hosts)

	// A host that is cut off is still watched.
	require.NoError(t, l.Cut(ctx, h, nil))
	beats()
	require.NoError(t, l.Heal(ctx, h, nil))

	// Paused is not running.
	_, err = h.Virsh(ctx, "suspend", g.UUID)
	require.NoError(t, err)
	hosts, err = l.Running(ctx, g)
	require.NoError(t, err)
	require.Empty(t, hosts)
	_, err = h.Virsh(ctx, "resume", g.UUID)
	require.NoError(t, err)
	beats()

	require.NoError(t, h.KillQEMU(ctx, g))
	require.ErrorContains(t, h.KillQEMU(ctx, g), "no QEMU process")
	require.Error(t, l.Host(1).KillQEMU(ctx, g))
	require.NoError(t, g.Watch().Healthy())
}
