package kvm_test

import (
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/kvm"
	"github.com/vmferry/vmferry/share"
)

func fileAt(path string, format share.Format) *share.Source {
	return &share.Source{Kind: share.Disk, Format: format, File: &share.FileSource{Path: path}}
}

func TestMirror(t *testing.T) {
	r := newRig(t)
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			r := r.with(t)
			d := disk("a."+format, format)
			g := r.start(0, lab.GuestOptions{Dirty: 10 << 20, Disks: []lab.Disk{d}})
			r.there(g, 0, kvm.MigrateOptions{MaxDowntime: 200 * time.Millisecond, AutoConverge: true, Connections: 2})
			r.runsOn(1, g)

			// The definition went along, and cannot be started at the source.
			out, err := r.lab.Host(0).Virsh(r.ctx(), "list", "--all", "--name")
			require.NoError(t, err)
			require.Empty(t, out)
			d1, err := r.guest(1, g).Describe(r.ctx())
			require.NoError(t, err)
			require.True(t, d1.Persistent)
			require.NotContains(t, r.before(g, 1).live, kvm.Namespace)

			// And back again, over the disk that was left: the second hop
			// moves everything.
			r.there(g, 1, kvm.MigrateOptions{RemoveSource: true, Disks: map[string]kvm.DiskMove{"vda": {Overwrite: true}}})
			r.runsOn(0, g)
			r.nothingOn(1)
		})
	}
}

func TestSharedAndMirroredWithOtherPathAndFormat(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	onShared := disk(r.lab.SharedPath("s.raw"), "raw")
	onShared.Serial = "shared"
	g := r.start(0, lab.GuestOptions{Dirty: 10 << 20, Disks: []lab.Disk{disk("a.qcow2", "qcow2"), disk("b.raw", "raw"), onShared}})
	_, err := r.lab.Host(0).Virsh(ctx, "autostart", g.UUID)
	require.NoError(t, err)
	was := r.before(g, 0)
	_, err = r.move(g, 0, kvm.MigrateOptions{Disks: map[string]kvm.DiskMove{"vdc": {Policy: kvm.Shared}}})
	require.ErrorIs(t, err, share.ErrInvalid, "never unsafe without being asked")
	require.ErrorContains(t, err, "Unsafe")
	r.untouched(g, 0, was)

	other := r.lab.Host(1).ImagePath("other.qcow2")
	r.there(g, 0, kvm.MigrateOptions{Unsafe: true, Disks: map[string]kvm.DiskMove{
		"vdb": {To: fileAt(other, share.Qcow2)},
		"vdc": {Policy: kvm.Shared},
	}})
	disks := []lab.Disk{g.Disks[0], {Path: other, Format: "qcow2", Serial: g.Disks[1].Serial}, onShared}
	r.runsOn(1, g, disks...)
	now := r.before(g, 1)
	require.Contains(t, now.live, other)
	require.Contains(t, now.stored, other, "the stored definition names the new place too")
	d, err := r.guest(1, g).Describe(ctx)
	require.NoError(t, err)
	require.True(t, d.Autostart)

	// All that was received belongs to the second hop.
	r.there(g, 1, kvm.MigrateOptions{Unsafe: true, Disks: map[string]kvm.DiskMove{
		"vda": {To: fileAt(r.lab.Host(0).ImagePath("back.raw"), share.Raw)},
		"vdb": {To: fileAt(r.lab.Host(0).ImagePath("b.raw"), share.Raw), Overwrite: true},
		"vdc": {Policy: kvm.Shared},
	}})
	r.runsOn(0, g, lab.Disk{Path: "back.raw", Format: "raw", Serial: g.Disks[0].Serial}, g.Disks[1], onShared)
}

// A chain of backing files arrives as one plain disk.
func TestBackingChain(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	h := r.lab.Host(0)
	g := r.start(0, lab.GuestOptions{Disks: []lab.Disk{disk("base.qcow2", "qcow2")}})
	_, err := h.Virsh(ctx, "snapshot-create-as", g.UUID, "--disk-only", "--no-metadata", "--diskspec", "vda,file="+h.ImagePath("top.qcow2"))
	require.NoError(t, err)
	d, err := r.guest(0, g).Describe(ctx)
	require.NoError(t, err)
	require.True(t, d.Disks[0].Backed)
	r.there(g, 0, kvm.MigrateOptions{})
	r.runsOn(1, g, lab.Disk{Path: "top.qcow2", Format: "qcow2", Serial: g.Disks[0].Serial})
	d, err = r.guest(1, g).Describe(ctx)
	require.NoError(t, err)
	require.False(t, d.Disks[0].Backed)
}

// A job leaves no goroutine and no descriptor.
func TestNoLeaks(t *testing.T) {
	r := newRig(t)
	g := r.start(0, worker())
	count := func() (goroutines, files int) {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return runtime.NumGoroutine(), len(fds)
	}
	var goroutines, files [4]int
	for i := range goroutines {
		from := i % 2
		r.there(g, from, kvm.MigrateOptions{RemoveSource: true})
		r.runsOn(1-from, g)
		time.Sleep(200 * time.Millisecond)
		goroutines[i], files[i] = count()
	}
	t.Log(goroutines, files)
	require.LessOrEqual(t, goroutines[3], goroutines[1])
	require.LessOrEqual(t, files[3], files[1])
}

// The oracle must be able to say no.
func TestOracleSeesALostWrite(t *testing.T) {
	r := newRig(t)
	g := r.start(0, lab.GuestOptions{Disks: []lab.Disk{disk("a.raw", "raw")}})
	copied, err := r.lab.Host(0).Command(r.ctx(), "cp", r.lab.Host(0).ImagePath("a.raw"), r.lab.Host(0).ImagePath("old.raw")).CombinedOutput()
	require.NoError(t, err, "%s", copied)
	last, _ := g.Watch().Last()
	_, err = g.Watch().Until(r.ctx(), func(a lab.Arrival) bool { return a.Disks[0].Acked > last.Disks[0].Acked+20 })
	require.NoError(t, err)
	_, err = g.Verify(r.ctx(), r.lab.Host(0), lab.Disk{Path: "old.raw", Format: "raw", Serial: g.Disks[0].Serial})
	require.ErrorContains(t, err, "lost write")
}

// Unfenced leaves the resume to libvirt, and is told apart by its downtime.
func TestUnfenced(t *testing.T) {
	r := newRig(t)
	g := r.start(0, lab.GuestOptions{Disks: []lab.Disk{disk("a.raw", "raw")}})
	r.there(g, 0, kvm.MigrateOptions{HandOver: kvm.Unfenced})
	r.runsOn(1, g)
}

// there moves a guest to the other host and logs the figures.
func (r *rig) there(g *lab.Guest, from int, o kvm.MigrateOptions) migrate.Result {
	r.Helper()
	began := time.Now()
	res, err := r.move(g, from, o)
	require.NoError(r, err)
	require.Equal(r, migrate.PhaseDone, res.Phase)
	gap := g.Watch().LongestGap(began).Length()
	require.Less(r, gap, 5*time.Second)
	require.Positive(r, res.Sent)
	require.Positive(r, res.Downtime)
	require.Positive(r, res.Rounds)
	r.Logf("total %v, sent %v, downtime %v as the hosts saw it, %v from outside, %d passes",
		res.Total.Round(time.Millisecond), share.Bytes(res.Sent), res.Downtime.Round(time.Millisecond), gap.Round(time.Millisecond), res.Rounds)
	return res
}
