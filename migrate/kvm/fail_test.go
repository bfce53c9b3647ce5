package kvm_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"libvirt.org/go/libvirt"

	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/kvm"
	"github.com/vmferry/vmferry/share"
)

// worker is a guest that writes disk and memory all the time.
func worker() lab.GuestOptions {
	return lab.GuestOptions{Dirty: 10 << 20, Disks: []lab.Disk{disk("a.raw", "raw")}}
}

func TestCancel(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		name string
		at   func(migrate.Event) bool
	}{
		{"at once", func(e migrate.Event) bool { return e.Phase == migrate.PhaseCopying }},
		{"in pre-copy", copying},
		{"in the second pass", func(e migrate.Event) bool { return e.Kind == migrate.RoundEnded && e.Progress.Round >= 2 }},
		{"at the switchover", pausing},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := r.with(t)
			g := r.start(0, worker())
			was := r.before(g, 0)
			job := r.begin(g, 0, kvm.MigrateOptions{Bandwidth: 3 * slow})
			r.await(job, c.at)
			began := time.Now()
			job.Cancel()
			res, err := job.Wait(r.ctx())
			t.Logf("%v after %v: %v", res.Phase, time.Since(began).Round(time.Millisecond), err)
			if res.Phase == migrate.PhaseDone {
				require.Equal(t, "at the switchover", c.name, "only there it may be too late")
				require.NoError(t, err)
				r.runsOn(1, g)
				return
			}
			require.Equal(t, migrate.PhaseCancelled, res.Phase)
			require.ErrorIs(t, err, migrate.ErrCancelled)
			r.untouched(g, 0, was)

			// A second attempt succeeds.
			r.there(g, 0, kvm.MigrateOptions{})
			r.runsOn(1, g)
		})
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.start(0, worker())
	was := r.before(g, 0)
	ctx, cancel := context.WithTimeout(r.ctx(), 2*time.Second)
	defer cancel()
	job, err := kvm.Migrate(ctx, r.guest(0, g), r.hosts[1], &kvm.MigrateOptions{Plaintext: true, Bandwidth: slow})
	require.NoError(t, err)
	res, err := job.Wait(r.ctx())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, migrate.PhaseFailed, res.Phase)
	r.untouched(g, 0, was)
}

func TestDestinationQEMUKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.start(0, worker())
	was := r.before(g, 0)
	job := r.begin(g, 0, kvm.MigrateOptions{Bandwidth: slow})
	r.await(job, copying)
	require.NoError(t, r.lab.Host(1).KillQEMU(r.ctx(), g))
	r.failed(job)
	r.untouched(g, 0, was)
}

// failed waits for a job that must fail with the guest at the source.
func (r *rig) failed(job *migrate.Job) error {
	r.Helper()
	began := time.Now()
	res, err := job.Wait(r.ctx())
	r.Logf("%v after %v: %v", res.Phase, time.Since(began).Round(time.Millisecond), err)
	require.Error(r, err)
	require.Equal(r, migrate.PhaseFailed, res.Phase)
	return err
}

func TestDestinationPoweredOff(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.start(0, worker())
	was := r.before(g, 0)
	job := r.begin(g, 0, kvm.MigrateOptions{Bandwidth: slow, Stall: 5 * time.Second, Patience: 5 * time.Second})
	r.await(job, copying)
	r.lab.Host(1).PowerOff()
	err := r.failed(job)
	require.ErrorIs(t, err, share.ErrUnavailable)
	r.runsOn(0, g)

	// What the dead host holds is known from the guest's note.
	require.Contains(t, r.before(g, 0).live, r.lab.Host(1).ImagePath("a.raw"))
	_, err = kvm.Migrate(r.ctx(), r.guest(0, g), r.hosts[1], &kvm.MigrateOptions{Plaintext: true})
	require.Error(t, err)
	require.NoError(t, r.lab.Host(1).PowerOn(r.ctx()))
	_, err = kvm.Migrate(r.ctx(), r.guest(0, g), r.hosts[1], &kvm.MigrateOptions{Plaintext: true})
	require.ErrorIs(t, err, share.ErrInUse)
	require.ErrorContains(t, err, "Settle")
	at, err := kvm.Settle(r.ctx(), g.Name, r.hosts[0], r.hosts[1])
	require.NoError(t, err)
	require.Equal(t, r.hosts[0], at.Host())
	r.untouched(g, 0, was)
	r.there(g, 0, kvm.MigrateOptions{})
	r.runsOn(1, g)
}

// inMemory is pre-copy with the disks mirrored and a pass over the memory done.
func inMemory(e migrate.Event) bool {
	return e.Kind == migrate.RoundEnded && e.Phase == migrate.PhaseCopying
}

func TestLinkCut(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, c := range []struct {
		name string
		at   func(migrate.Event) bool
	}{{"while disks are mirrored", copying}, {"while memory goes over", inMemory}} {
		t.Run(c.name, func(t *testing.T) {
			r := r.with(t)
			g := r.start(0, worker())
			was := r.before(g, 0)
			job := r.begin(g, 0, kvm.MigrateOptions{Bandwidth: 3 * slow, Stall: 3 * time.Second, Patience: 15 * time.Second})
			r.await(job, c.at)
			require.NoError(t, r.lab.Cut(r.ctx(), r.lab.Host(0), r.lab.Host(1)))
			began := time.Now()
			err := r.failed(job)
			require.ErrorIs(t, err, share.ErrUnavailable)
			require.Less(t, time.Since(began), 10*time.Second)
			r.untouched(g, 0, was) // with the link still cut
			require.Less(t, g.Watch().LongestGap(began).Length(), time.Second, "the guest worked all the time")
			require.NoError(t, r.lab.Heal(r.ctx(), r.lab.Host(0), r.lab.Host(1)))
			r.there(g, 0, kvm.MigrateOptions{})
			r.runsOn(1, g)
		})
	}
}

// With the guest paused, QEMU itself waits for the dead link, and neither its
// monitor nor libvirt answers until TCP gives up or the link is back.
func TestLinkCutAtSwitchover(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, c := range []struct {
		name    string
		retries string // TCP's, on the source
	}{{"host gives up early", "3"}, {"host waits for a quarter of an hour", "15"}} {
		t.Run(c.name, func(t *testing.T) {
			r := r.with(t)
			out, err := r.lab.Host(0).Command(r.ctx(), "sysctl", "-qw", "net.ipv4.tcp_retries2="+c.retries).CombinedOutput()
			require.NoError(t, err, "%s", out)
			g := r.start(0, worker())
			job := r.begin(g, 0, kvm.MigrateOptions{Bandwidth: 3 * slow, Stall: 3 * time.Second, Patience: 8 * time.Second})
			r.await(job, pausing)
			began := time.Now()
			require.NoError(t, r.lab.Cut(r.ctx(), r.lab.Host(0), r.lab.Host(1)))
			res, err := job.Wait(r.ctx())
			t.Logf("%v after %v: %v", res.Phase, time.Since(began).Round(time.Millisecond), err)
			if res.Phase == migrate.PhaseIndeterminate {
				require.ErrorIs(t, err, share.ErrWedged)
				require.Less(t, time.Since(began), 25*time.Second)
				hosts, err := r.lab.Processes(g)
				require.NoError(t, err)
				require.NotEmpty(t, hosts, "the guest stands, and is not lost")
			}
			require.NoError(t, r.lab.Heal(r.ctx(), r.lab.Host(0), r.lab.Host(1)))
			at, err := kvm.Settle(r.ctx(), g.UUID, r.hosts[0], r.hosts[1])
			require.NoError(t, err)
			t.Logf("settled after %v: the guest runs on %v; gap %v", time.Since(began).Round(time.Millisecond), at.Host(), g.Watch().LongestGap(began).Length())
			if at.Host() == r.hosts[1] {
				r.runsOn(1, g)
				return
			}
			require.NotEqual(t, migrate.PhaseDone, res.Phase)
			r.runsOn(0, g)
			r.nothingOn(1)
			r.there(g, 0, kvm.MigrateOptions{})
			r.runsOn(1, g)
		})
	}
}

// The answer that the guest has arrived does not come: libvirt resumes the guest
// at the source, and the copy at the destination must not have run.
func TestDestinationHangsAtSwitchover(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.start(0, worker())
	was := r.before(g, 0)
	signal := func(s string) {
		out, err := r.lab.Host(1).Command(r.ctx(), "sh", "-c", "kill -"+s+" $(cat /run/libvirtd.pid)").CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	job := r.begin(g, 0, kvm.MigrateOptions{Patience: 5 * time.Second})
	r.await(job, pausing)
	signal("STOP")
	r.failed(job)
	hosts, err := r.lab.Processes(g)
	require.NoError(t, err)
	t.Logf("%d processes", len(hosts))
	signal("CONT")
	at, err := kvm.Settle(r.ctx(), g.UUID, r.hosts[0], r.hosts[1])
	require.NoError(t, err)
	require.Equal(t, r.hosts[0], at.Host())
	r.untouched(g, 0, was)
}

func TestSourceLibvirtdKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.start(0, worker())
	job := r.begin(g, 0, kvm.MigrateOptions{Bandwidth: slow, Stall: 5 * time.Second, Patience: 4 * time.Second})
	r.await(job, copying)
	require.NoError(t, r.lab.Host(0).KillLibvirtd(r.ctx()))
	res, err := job.Wait(r.ctx())
	t.Logf("%v: %v", res.Phase, err)
	require.Equal(t, migrate.PhaseIndeterminate, res.Phase)
	var ind *migrate.IndeterminateError
	require.True(t, errors.As(err, &ind))
	require.NotEmpty(t, ind.Check)

	// The guest has not noticed, and libvirtd ends the job when it is back.
	require.NoError(t, r.lab.Host(0).StartLibvirtd(r.ctx()))
	at, err := kvm.Settle(r.ctx(), g.UUID, r.hosts[0], r.hosts[1])
	require.NoError(t, err)
	require.Equal(t, r.hosts[0], at.Host())
	r.runsOn(0, g)
	r.nothingOn(1)
	require.NotContains(t, r.before(g, 0).live, kvm.Namespace)
	r.there(g, 0, kvm.MigrateOptions{})
	r.runsOn(1, g)
}

func TestDestinationDiskFull(t *testing.T) {
	r := newRig(t)
	h := r.lab.Host(1)
	small := h.ImagePath("small")
	out, err := h.Command(r.ctx(), "sh", "-c", "mkdir "+small+" && mount -t tmpfs -o size=1m small "+small).CombinedOutput()
	require.NoError(t, err, "%s", out)
	g := r.start(0, worker())
	was := r.before(g, 0)
	job := r.begin(g, 0, kvm.MigrateOptions{Disks: map[string]kvm.DiskMove{"vda": {To: fileAt(small+"/a.raw", share.Raw)}}})
	err = r.failed(job)
	require.ErrorIs(t, err, share.ErrNoSpace)
	out, err = h.Command(r.ctx(), "sh", "-c", "umount "+small+" && rmdir "+small).CombinedOutput()
	require.NoError(t, err, "%s", out)
	r.untouched(g, 0, was)
}

// The guest dies by itself during the move: no copy is made to run instead.
func TestGuestEnds(t *testing.T) {
	r := newRig(t)
	g := r.start(0, worker())
	job := r.begin(g, 0, kvm.MigrateOptions{Bandwidth: slow})
	r.await(job, copying)
	require.NoError(t, r.lab.Host(0).KillQEMU(r.ctx(), g))
	err := r.failed(job)
	require.ErrorIs(t, err, share.ErrNotExist)
	processes, err := r.lab.Processes(g)
	require.NoError(t, err)
	require.Empty(t, processes)
	r.nothingOn(1)
}

// Libvirt's own error stays within reach.
func TestNativeError(t *testing.T) {
	r := newRig(t)
	_, err := r.hosts[0].Guest(r.ctx(), "nobody")
	require.ErrorIs(t, err, share.ErrNotExist)
	require.ErrorIs(t, err, libvirt.ERR_NO_DOMAIN)
	var native libvirt.Error
	require.True(t, errors.As(err, &native))
}
