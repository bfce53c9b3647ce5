package migrate_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/migratetest"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

const diskSize = 4 << 20

var seedsFlag = flag.Uint64("seeds", 1000, "number of seeded courses with faults; a tenth of it with -short")

// seeds is how many courses with random faults are tried.
func seeds() uint64 {
	if testing.Short() {
		return *seedsFlag / 10
	}
	return *seedsFlag
}

// rig is a writer on a tracked disk in memory that can move to a second one.
type rig struct {
	t        *testing.T
	from, to share.Device
	tracked  *migrate.TrackedDevice
	writer   *migratetest.Writer
	gate     *migrate.Gate
	move     migrate.Move
	stop     func() error
}

func newRig(t *testing.T, seed uint64, to share.Device) *rig {
	r := &rig{t: t, from: sharetest.NewDevice(diskSize + 512), to: to}
	if to == nil {
		r.to = sharetest.NewDevice(diskSize + 512)
	}
	var err error
	r.tracked, err = migrate.Track(r.from, 4096)
	require.NoError(t, err)
	r.gate, err = migrate.NewGate("guest", []*migrate.TrackedDevice{r.tracked}, []share.Device{r.to})
	require.NoError(t, err)
	r.writer = migratetest.NewWriter(seed, diskSize)
	r.move = migrate.Move{ID: t.Name(), Guest: r.gate, Source: "a", Destination: "b",
		Disks: []migrate.DiskMove{{Name: "vda", Source: r.from, Tracker: r.tracked.Tracker(), Destination: r.to}}}
	return r
}

// write lets the writer run until the test stops it.
func (r *rig) write() {
	for range 500 { // something to move
		require.NoError(r.t, r.writer.Step(context.Background(), r.tracked))
	}
	ctx, cancel := context.WithCancel(context.Background())
	end := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := r.writer.Step(ctx, r.tracked); err != nil && ctx.Err() == nil {
				end <- err
				return
			}
			time.Sleep(100 * time.Microsecond)
		}
		end <- nil
	}()
	r.stop = sync.OnceValue(func() error { cancel(); return <-end })
	r.t.Cleanup(func() { _ = r.stop() })
}

func (r *rig) start(opts *migrate.Options) *migrate.Job {
	job, err := migrate.Start(context.Background(), r.move, opts)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = job.Close() })
	return job
}

// wait is the end of the job, which comes.
func (r *rig) wait(job *migrate.Job) (migrate.Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	res, err := job.Wait(ctx)
	require.NoError(r.t, ctx.Err(), "the job did not end")
	return res, err
}

// stillWrites shows that the writer gets writes through.
func (r *rig) stillWrites() {
	r.t.Helper()
	before := r.writer.Acknowledged()
	require.Eventually(r.t, func() bool { return r.writer.Acknowledged() > before }, 10*time.Second, time.Millisecond, "the writer hangs")
}

func TestMoveWhileWriting(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := newRig(t, seed, nil)
			r.write()
			job := r.start(nil)
			res, err := r.wait(job)
			require.NoError(t, err)
			r.stillWrites()
			require.NoError(t, r.stop())

			ctx := context.Background()
			require.NoError(t, r.writer.Check(ctx, r.to), "an acknowledged write is missing at the destination")
			require.Error(t, r.writer.Check(ctx, r.from), "the writer went on at the source")
			require.Equal(t, migrate.PhaseDone, res.Phase)
			require.Equal(t, uint64(2), res.Epoch)
			require.Positive(t, res.Sent)
			require.Positive(t, res.Rounds)
			require.Positive(t, res.Downtime)
			require.Len(t, res.Disks, 1)
			require.Equal(t, "read back", res.Disks[0].Proof)
			require.NotEmpty(t, res.Disks[0].Root)
		})
	}
}

// A second hop moves all that the first one brought.
func TestSecondHop(t *testing.T) {
	r := newRig(t, 1, nil)
	r.write()
	_, err := r.wait(r.start(nil))
	require.NoError(t, err)

	third := sharetest.NewDevice(diskSize + 512)
	gate, err := migrate.NewGate("guest", []*migrate.TrackedDevice{r.tracked}, []share.Device{third})
	require.NoError(t, err)
	r.move.ID, r.move.Guest, r.move.Source, r.move.Destination = "hop 2", gate, "b", "c"
	r.move.Disks[0].Source, r.move.Disks[0].Destination = r.to, third
	res, err := r.wait(r.start(nil))
	require.NoError(t, err)
	require.NoError(t, r.stop())
	require.NoError(t, r.writer.Check(context.Background(), third))
	require.Positive(t, res.Sent)
}

// Nothing is sent that the destination has by itself.
func TestBlankIsNotSent(t *testing.T) {
	ctx := context.Background()
	r := newRig(t, 1, nil)
	require.NoError(t, r.tracked.WriteAt(ctx, []byte("one block"), 1<<20))
	res, err := r.wait(r.start(nil))
	require.NoError(t, err)
	require.Equal(t, int64(4096), res.Sent)
	require.Equal(t, int64(diskSize+512-4096), res.Disks[0].Zero)
}

// What the destination held before is gone where the source has zeros.
func TestDirtyDestinationIsZeroed(t *testing.T) {
	ctx := context.Background()
	r := newRig(t, 1, nil)
	junk := make([]byte, diskSize+512)
	for i := range junk {
		junk[i] = 0xa5
	}
	require.NoError(t, r.to.WriteAt(ctx, junk, 0))
	r.write()
	_, err := r.wait(r.start(nil))
	require.NoError(t, err)
	require.NoError(t, r.stop())
	require.NoError(t, r.writer.Check(ctx, r.to))
	tail := make([]byte, 512)
	require.NoError(t, r.to.ReadAt(ctx, tail, diskSize))
	require.Equal(t, make([]byte, 512), tail)
}

func TestCancelWhileCopying(t *testing.T) {
	to := newHook(sharetest.NewDevice(diskSize + 512))
	r := newRig(t, 1, to)
	undone := 0
	r.move.Disks[0].Undo = func(context.Context) error { undone++; return nil }
	r.write()
	job := r.start(nil)
	to.onWrite(func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) })
	require.Eventually(t, func() bool { return to.count() > 0 || job.Progress().Phase.Ended() }, 10*time.Second, time.Millisecond)
	job.Cancel()
	res, err := r.wait(job)
	require.ErrorIs(t, err, migrate.ErrCancelled)
	require.Equal(t, migrate.PhaseCancelled, res.Phase)
	require.Equal(t, 1, undone)
	r.stillWrites()
	require.NoError(t, r.stop())
	require.NoError(t, r.writer.Check(context.Background(), r.from))
}

// The destination fails in every way that a device has; the guest stays.
func TestDestinationFails(t *testing.T) {
	for name, tc := range map[string]struct {
		break_ func(*hook)
		want   error
	}{
		"disk full": {func(h *hook) {
			h.onWrite(func(context.Context) error { return fmt.Errorf("write: %w", share.ErrNoSpace) })
		}, share.ErrNoSpace},
		"flush fails": {func(h *hook) {
			h.onFlush = func() error { return fmt.Errorf("flush: %w", share.ErrUnavailable) }
		}, share.ErrUnavailable},
		"read back fails": {func(h *hook) { h.onRead = func([]byte) error { return share.ErrUnavailable } }, share.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			to := newHook(sharetest.NewDevice(diskSize + 512))
			tc.break_(to)
			r := newRig(t, 1, to)
			r.write()
			res, err := r.wait(r.start(nil))
			require.ErrorIs(t, err, tc.want)
			require.Equal(t, migrate.PhaseFailed, res.Phase)
			r.stillWrites()
			require.NoError(t, r.stop())
			require.NoError(t, r.writer.Check(context.Background(), r.from))
		})
	}
}

// A destination that flips one bit of what it stores is found out.
func TestLyingDestination(t *testing.T) {
	to := newHook(sharetest.NewDevice(diskSize + 512))
	to.onRead = func(p []byte) error { p[len(p)/2] ^= 4; return nil }
	r := newRig(t, 1, to)
	r.write()
	res, err := r.wait(r.start(nil))
	var d *migrate.DivergedError
	require.ErrorAs(t, err, &d)
	require.Equal(t, "vda", d.Disk)
	require.Equal(t, migrate.PhaseFailed, res.Phase)
	r.stillWrites()
}

// A write that slips in although the guest is paused forbids the switchover.
func TestWriteBehindThePause(t *testing.T) {
	to := newHook(sharetest.NewDevice(diskSize + 512))
	r := newRig(t, 1, to)
	require.NoError(t, r.tracked.WriteAt(context.Background(), []byte("data"), 0))
	to.onFlush = func() error { r.tracked.Tracker().Mark(0, 1); return nil }
	authority := migratetest.NewStore(nil)
	guest := migratetest.NewGuest("guest", "a", "b", authority, nil)
	r.move.Guest, r.move.Authority = guest, authority
	res, err := r.wait(r.start(&migrate.Options{NotConverging: migrate.SwitchIfNotConverging, StallRounds: 1, MaxDowntime: time.Nanosecond}))
	require.ErrorContains(t, err, "something else writes")
	require.Equal(t, migrate.PhaseFailed, res.Phase)
	require.Equal(t, []string{"a"}, guest.Running())
	require.Empty(t, guest.Violations())
}

func TestDoesNotConverge(t *testing.T) {
	// Flushing takes long enough for the writer to dirty the disk again.
	to := newHook(sharetest.NewDevice(diskSize + 512))
	to.onFlush = func() error { time.Sleep(20 * time.Millisecond); return nil }
	r := newRig(t, 1, to)
	r.write()
	_, err := r.wait(r.start(&migrate.Options{MaxDowntime: time.Microsecond, StallRounds: 3}))
	var n *migrate.NotConvergingError
	require.ErrorAs(t, err, &n)
	require.Positive(t, n.Remaining)
	require.Positive(t, n.DirtyRate)
	require.Greater(t, n.Predicted, n.Allowed)
	r.stillWrites()
}

// Faults at every call of guest, store and journal, by seed: the guest runs
// once, with all that was acknowledged, or the job says that it does not know.
func TestFaultsAtEveryCall(t *testing.T) {
	for seed := range seeds() {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			f := migratetest.Seeded(seed, 4, migratetest.Before, migratetest.After, migratetest.Late)
			store, journal := migratetest.NewStore(f), migratetest.NewJournal(appends(f))
			r := newRig(t, seed, nil)
			ctx := context.Background()
			guest := migratetest.NewGuest("guest", "a", "b", store.Quiet(), f)
			guest.OnPause(func() error { return r.tracked.Pause(ctx) }, func() error { r.tracked.Resume(); return nil })
			r.move.Guest, r.move.Authority, r.move.Journal = guest, store, journal
			r.write()
			res, err := r.wait(r.start(nil))
			store.DeliverLate()

			require.Empty(t, guest.Violations(), "seed %d", seed)
			switch res.Phase {
			case migrate.PhaseDone:
				require.NoError(t, err)
				require.Equal(t, []string{"b"}, guest.Running())
				require.Equal(t, "b", store.Truth("guest").Owner)
				require.NoError(t, r.writer.Check(ctx, r.to))
			case migrate.PhaseFailed:
				require.Error(t, err)
				require.Equal(t, []string{"a"}, guest.Running())
				r.stillWrites()
			case migrate.PhaseIndeterminate:
				var ind *migrate.IndeterminateError
				require.ErrorAs(t, err, &ind)
				require.NotEmpty(t, ind.Check)
				require.LessOrEqual(t, len(guest.Running()), 1)
			default:
				t.Fatalf("ended %s: %v", res.Phase, err)
			}
			for i, e := range journal.Truth() {
				require.LessOrEqual(t, e.Seq, uint64(i+1))
			}
		})
	}
}

// appends are faults of a journal that can be read.
func appends(f migratetest.Faults) migratetest.Faults {
	return func(op string) migratetest.Fault {
		if op != "append" {
			return migratetest.None
		}
		return f(op)
	}
}

func TestStartRefuses(t *testing.T) {
	r := newRig(t, 1, nil)
	smaller, larger := sharetest.NewDevice(diskSize), sharetest.NewDevice(2*diskSize)
	for name, change := range map[string]func(*migrate.Move){
		"no ID":             func(m *migrate.Move) { m.ID = "" },
		"no guest":          func(m *migrate.Move) { m.Guest = nil },
		"no disks":          func(m *migrate.Move) { m.Disks = nil },
		"one host":          func(m *migrate.Move) { m.Destination = m.Source },
		"two of a name":     func(m *migrate.Move) { m.Disks = append(m.Disks, m.Disks[0]) },
		"no tracker":        func(m *migrate.Move) { m.Disks[0].Tracker = nil },
		"too small":         func(m *migrate.Move) { m.Disks[0].Destination = smaller },
		"larger, not asked": func(m *migrate.Move) { m.Disks[0].Destination = larger },
		"onto itself":       func(m *migrate.Move) { m.Disks[0].Destination = m.Disks[0].Source },
		"another tracker": func(m *migrate.Move) {
			m.Disks[0].Tracker, _ = migrate.NewBlockTracker(diskSize, 4096)
		},
	} {
		m := r.move
		m.Disks = append([]migrate.DiskMove(nil), r.move.Disks...)
		change(&m)
		_, err := migrate.Start(context.Background(), m, nil)
		require.ErrorIs(t, err, share.ErrInvalid, name)
	}
	m := r.move
	m.Disks[0].DestinationID = "another"
	_, err := migrate.Start(context.Background(), m, nil)
	require.ErrorIs(t, err, share.ErrWrongDevice)
}

// Another host holds the guest: nothing is begun.
func TestNotTheOwner(t *testing.T) {
	r := newRig(t, 1, nil)
	store := new(migrate.MemAuthority)
	require.NoError(t, store.Swap(context.Background(), "guest", migrate.Record{}, migrate.Record{Guest: "guest", Epoch: 5, Owner: "z"}))
	r.move.Authority = store
	res, err := r.wait(r.start(nil))
	require.ErrorIs(t, err, share.ErrDenied)
	require.Equal(t, migrate.PhaseFailed, res.Phase)
	require.NoError(t, r.tracked.WriteAt(context.Background(), []byte("x"), 0))
}

// A guest that cannot be paused in time goes on where it is.
func TestSwitchoverTimeout(t *testing.T) {
	r := newRig(t, 1, nil)
	store := migratetest.NewStore(nil)
	guest := migratetest.NewGuest("guest", "a", "b", store, migratetest.Script(map[string][]migratetest.Fault{"pause": {migratetest.Hang}}))
	r.move.Guest, r.move.Authority = guest, store
	res, err := r.wait(r.start(&migrate.Options{SwitchoverTimeout: 20 * time.Millisecond}))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, migrate.PhaseFailed, res.Phase)
	require.Equal(t, []string{"a"}, guest.Running())
}

// Events tell the whole course, in order, to a reader who comes late too.
func TestEvents(t *testing.T) {
	r := newRig(t, 1, nil)
	r.write()
	job := r.start(nil)
	_, err := r.wait(job)
	require.NoError(t, err)
	var phases []migrate.Phase
	var kinds []migrate.EventKind
	last := uint64(0)
	for e := range job.Events(context.Background()) {
		require.Greater(t, e.Seq, last)
		last = e.Seq
		kinds = append(kinds, e.Kind)
		if e.Kind == migrate.PhaseEntered {
			phases = append(phases, e.Phase)
		}
	}
	require.Equal(t, []migrate.Phase{migrate.PhasePreparing, migrate.PhaseCopying, migrate.PhasePausing, migrate.PhaseFinishing,
		migrate.PhaseVerifying, migrate.PhaseRelinquishing, migrate.PhaseSwapping, migrate.PhaseActivating, migrate.PhaseCompleting,
		migrate.PhaseDone}, phases)
	require.Contains(t, kinds, migrate.RoundEnded)
	require.Contains(t, kinds, migrate.GuestPaused)
	require.Contains(t, kinds, migrate.GuestResumed)
	require.Equal(t, migrate.JobEnded, kinds[len(kinds)-1])
}

// A journal that cannot be written stops a move before anything happens.
func TestJournalFails(t *testing.T) {
	r := newRig(t, 1, nil)
	r.move.Journal = migratetest.NewJournal(appends(func(string) migratetest.Fault { return migratetest.Before }))
	_, err := r.wait(r.start(nil))
	var injected *migratetest.InjectedError
	require.True(t, errors.As(err, &injected))
	require.NoError(t, r.tracked.WriteAt(context.Background(), []byte("x"), 0))
}

// hook is a device whose calls a test can change.
type hook struct {
	*sharetest.MemDevice
	mu      sync.Mutex
	write   func(context.Context) error
	writes  int
	onFlush func() error
	onRead  func([]byte) error
}

func newHook(d *sharetest.MemDevice) *hook { return &hook{MemDevice: d} }

func (h *hook) onWrite(f func(context.Context) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.write = f
}

func (h *hook) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.writes
}

func (h *hook) WriteAt(ctx context.Context, p []byte, off int64) error {
	h.mu.Lock()
	f := h.write
	h.writes++
	h.mu.Unlock()
	if f != nil {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return h.MemDevice.WriteAt(ctx, p, off)
}

func (h *hook) Flush(ctx context.Context) error {
	if h.onFlush != nil {
		if err := h.onFlush(); err != nil {
			return err
		}
	}
	return h.MemDevice.Flush(ctx)
}

func (h *hook) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := h.MemDevice.ReadAt(ctx, p, off); err != nil || h.onRead == nil {
		return err
	}
	return h.onRead(p)
}
