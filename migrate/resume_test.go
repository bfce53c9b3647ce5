package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/migratetest"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// plug is the power of a program under test: after so many calls to the world
// outside it is pulled, and nothing the program does has an effect any more.
type plug struct {
	mu    sync.Mutex
	calls int // until it is pulled; negative: never
	after bool
	done  bool
}

func (p *plug) faults(op string) migratetest.Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	if op == "entries" {
		return migratetest.None
	}
	switch {
	case p.done:
		return migratetest.Before
	case p.calls == 0:
		p.done = true
		if p.after {
			return migratetest.After // it happened, and nobody heard
		}
		return migratetest.Before
	}
	p.calls--
	return migratetest.None
}

func (p *plug) pulled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// plugged is a device that the program reaches only while it has power.
type plugged struct {
	*sharetest.MemDevice
	p *plug
}

var errDead = errors.New("the program is dead")

func (d *plugged) call(op string, f func() error) error {
	fault := d.p.faults(op)
	if fault == migratetest.Before {
		return errDead
	}
	if err := f(); err != nil {
		return err
	}
	if fault == migratetest.After {
		return errDead
	}
	return nil
}

func (d *plugged) WriteAt(ctx context.Context, b []byte, off int64) error {
	return d.call("write", func() error { return d.MemDevice.WriteAt(ctx, b, off) })
}

func (d *plugged) Zero(ctx context.Context, off, n int64, f share.ZeroFlags) error {
	return d.call("zero", func() error { return d.MemDevice.Zero(ctx, off, n, f) })
}

func (d *plugged) Flush(ctx context.Context) error {
	return d.call("flush", func() error { return d.MemDevice.Flush(ctx) })
}

// world is what outlives the program: disks, store, journal, guest, writer.
type world struct {
	t        *testing.T
	from, to *sharetest.MemDevice
	writer   *migratetest.Writer
	store    *migrate.MemAuthority
	file     string
	guest    *migratetest.Guest
}

const smallDisk = 256 << 10

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, from: sharetest.NewDeviceID(smallDisk, "from"), to: sharetest.NewDeviceID(smallDisk, "to"),
		writer: migratetest.NewWriter(seed, smallDisk), store: new(migrate.MemAuthority), file: filepath.Join(t.TempDir(), "journal")}
	for range 100 {
		require.NoError(t, w.writer.Step(context.Background(), w.from))
	}
	return w
}

// attempt is one life of the program: it starts or resumes the move, and ends
// when the move or its power does.
func (w *world) attempt(p *plug, resume bool) (migrate.Result, error) {
	ctx := context.Background()
	file, err := migrate.OpenJournal(w.file)
	require.NoError(w.t, err)
	defer file.Close()
	tracked, err := migrate.Track(w.from, 4096)
	require.NoError(w.t, err)
	if w.guest == nil {
		w.guest = migratetest.NewGuest("guest", "a", "b", w.store, nil)
	}
	guest := w.guest.WithFaults(p.faults)
	m := migrate.Move{ID: "move", Guest: guest, Source: "a", Destination: "b", Authority: migratetest.Unreliable(w.store, p.faults),
		Journal: migratetest.UnreliableJournal(file, p.faults),
		Disks:   []migrate.DiskMove{{Name: "vda", Source: w.from, Tracker: tracked.Tracker(), Destination: &plugged{w.to, p}}}}
	// The guest writes while it runs at the source.
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			w.guest.WhileRunning("a", func() {
				if err := w.writer.Step(ctx, tracked); err != nil {
					w.t.Error(err)
				}
			})
			time.Sleep(50 * time.Microsecond)
		}
	}()
	begin := migrate.Start
	if resume {
		begin = migrate.Resume
	}
	job, err := begin(ctx, m, &migrate.Options{Streams: 2, Window: 1 << 20})
	require.NoError(w.t, err)
	res, err := job.Wait(ctx)
	close(stop)
	<-stopped
	return res, err
}

// check is the oracle: one copy runs, with everything that was acknowledged.
func (w *world) check(res migrate.Result) {
	w.t.Helper()
	require.Empty(w.t, w.guest.Violations())
	disk := w.from
	switch res.Phase {
	case migrate.PhaseDone:
		require.Equal(w.t, []string{"b"}, w.guest.Running())
		disk = w.to
	case migrate.PhaseFailed:
		require.Equal(w.t, []string{"a"}, w.guest.Running())
	default:
		w.t.Fatalf("ended %s", res.Phase)
	}
	require.NoError(w.t, w.writer.Check(context.Background(), disk))
}

// The program dies at every call that it makes to the world outside, before or
// after its effect, and is started again: the move gets done, and nothing that
// was acknowledged is lost, nor is there ever a second copy.
func TestCrashAtEveryCall(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 0; ; n++ {
			w := newWorld(t, uint64(n))
			p := &plug{calls: n, after: after}
			res, err := w.attempt(p, false)
			if !p.pulled() {
				require.NoError(t, err)
				w.check(res)
				t.Logf("%d calls (after=%v)", n, after)
				require.Greater(t, n, 15)
				break
			}
			// While the program is dead a guest at the source writes on, and
			// nobody marks what.
			w.guest.WhileRunning("a", func() {
				for range 20 {
					require.NoError(t, w.writer.Step(context.Background(), w.from))
				}
			})
			res, err = w.attempt(&plug{calls: -1}, true)
			require.NoError(t, err, "call %d, after=%v", n, after)
			require.Equal(t, migrate.PhaseDone, res.Phase, "call %d, after=%v", n, after)
			w.check(res)
			again, err := w.attempt(&plug{calls: -1}, true)
			require.NoError(t, err, "a move that is done is resumed")
			require.Equal(t, migrate.PhaseDone, again.Phase)
			w.check(again)
		}
	}
}

// It dies twice, at every pair of calls of a coarser grid.
func TestCrashTwice(t *testing.T) {
	step := 3
	if testing.Short() {
		step = 7
	}
	for n := 0; n < 45; n += step {
		for k := 0; k < 45; k += step {
			w := newWorld(t, uint64(n*100+k))
			first, second := &plug{calls: n, after: k%2 == 0}, &plug{calls: k, after: n%2 == 0}
			res, _ := w.attempt(first, false)
			if first.pulled() {
				res, _ = w.attempt(second, true)
			}
			if second.pulled() {
				res, _ = w.attempt(&plug{calls: -1}, true)
			}
			require.Equal(t, migrate.PhaseDone, res.Phase, "calls %d, %d", n, k)
			w.check(res)
		}
	}
}

// What arrived before the crash is not sent again, and what changed since is.
func TestResumeSendsTheDifference(t *testing.T) {
	ctx := context.Background()
	for name, remote := range map[string]bool{"device": false, "receiver": true} {
		t.Run(name, func(t *testing.T) {
			const size = 64 << 20
			from, to := sharetest.NewDeviceID(size, "from"), newHook(sharetest.NewDeviceID(size, "to"))
			p := make([]byte, 1<<20)
			for off := int64(0); off < size; off += 1 << 20 {
				for i := range p {
					p[i] = byte(int64(i) * (off + 1) >> 7)
				}
				p[0] = 1
				require.NoError(t, from.WriteAt(ctx, p, off))
			}
			journal, err := migrate.OpenJournal(filepath.Join(t.TempDir(), "journal"))
			require.NoError(t, err)
			defer journal.Close()
			tracked, err := migrate.Track(from, 0)
			require.NoError(t, err)
			gate, err := migrate.NewGate("guest", []*migrate.TrackedDevice{tracked}, []share.Device{to})
			require.NoError(t, err)
			m := migrate.Move{ID: "move", Guest: gate, Source: "a", Destination: "b", Journal: journal,
				Disks: []migrate.DiskMove{{Name: "vda", Source: from, Tracker: tracked.Tracker(), Destination: to}}}
			if remote {
				_, r := receive(t, to, nil)
				m.Disks[0].Destination, m.Disks[0].Remote = nil, r
			}
			// It fails about half-way.
			to.onWrite(func(context.Context) error {
				if to.count() > size/2>>20 {
					return share.ErrUnavailable
				}
				return nil
			})
			job, err := migrate.Start(ctx, m, &migrate.Options{Window: 4 << 20})
			require.NoError(t, err)
			first, err := job.Wait(ctx)
			require.ErrorIs(t, err, share.ErrUnavailable)
			to.onWrite(nil)
			_, err = migrate.Start(ctx, m, nil)
			require.ErrorIs(t, err, share.ErrExist, "the journal is overwritten")

			require.NoError(t, tracked.WriteAt(ctx, []byte("changed"), 5<<20)) // it had arrived
			job, err = migrate.Resume(ctx, m, &migrate.Options{Window: 4 << 20})
			require.NoError(t, err)
			res, err := job.Wait(ctx)
			require.NoError(t, err)
			require.Positive(t, res.Disks[0].Same)
			t.Logf("first %d, then %d sent and %d the same", first.Sent, res.Sent, res.Disks[0].Same)
			// At most what was under way in two windows goes over twice.
			require.LessOrEqual(t, first.Sent+res.Sent, int64(size+2*4<<20+1<<20))
			a, b := make([]byte, size), make([]byte, size)
			require.NoError(t, from.ReadAt(ctx, a, 0))
			require.NoError(t, to.ReadAt(ctx, b, 0))
			require.True(t, string(a) == string(b))
		})
	}
}

// A journal that does not fit, and devices that were swapped: an error that says
// so, and nothing is written.
func TestResumeRefuses(t *testing.T) {
	ctx := context.Background()
	setUp := func(t *testing.T) (*rig, string, *migrate.FileJournal) {
		r := newRig(t, 1, sharetest.NewDeviceID(diskSize+512, "to"))
		path := filepath.Join(t.TempDir(), "journal")
		j, err := migrate.OpenJournal(path)
		require.NoError(t, err)
		t.Cleanup(func() { j.Close() })
		r.move.ID, r.move.Journal = "move", j
		r.move.Guest = migratetest.NewGuest("guest", "a", "b", new(migrate.MemAuthority), migratetest.Script(map[string][]migratetest.Fault{"pause": {migratetest.Before}}))
		for range 100 {
			require.NoError(t, r.writer.Step(ctx, r.tracked))
		}
		_, err = r.wait(r.start(nil))
		require.Error(t, err)
		return r, path, j
	}
	for name, tc := range map[string]struct {
		change func(*rig)
		want   error
	}{
		"another job":            {func(r *rig) { r.move.ID = "another" }, share.ErrInvalid},
		"another destination":    {func(r *rig) { r.move.Disks[0].Destination = sharetest.NewDeviceID(diskSize+512, "other") }, share.ErrWrongDevice},
		"the disks are swapped":  {func(r *rig) { d := &r.move.Disks[0]; d.Source, d.Destination = d.Destination, d.Source }, share.ErrWrongDevice},
		"another name of a disk": {func(r *rig) { r.move.Disks[0].Name = "vdb" }, share.ErrInvalid},
		"other hosts":            {func(r *rig) { r.move.Destination = "c" }, share.ErrInvalid},
		"no journal":             {func(r *rig) { r.move.Journal = nil }, share.ErrInvalid},
		"another size": {func(r *rig) {
			d := sharetest.NewDeviceID(diskSize, "from")
			tracked, err := migrate.Track(d, 4096)
			require.NoError(t, err)
			r.move.Disks[0].Source, r.move.Disks[0].Tracker, r.move.Disks[0].AllowLarger = d, tracked.Tracker(), true
		}, share.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			r, _, _ := setUp(t)
			require.NoError(t, r.to.Flush(ctx))
			tc.change(r)
			job, err := migrate.Resume(ctx, r.move, nil)
			if err == nil {
				_, err = r.wait(job)
			}
			require.ErrorIs(t, err, tc.want)
			require.Zero(t, r.to.(*sharetest.MemDevice).Unflushed(), "something was written")
		})
	}
	damage := func(name string, want error, f func(lines []string) string) {
		t.Run(name, func(t *testing.T) {
			_, path, j := setUp(t)
			require.NoError(t, j.Close())
			require.NoError(t, j.Close())
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, []byte(f(strings.SplitAfter(string(b), "\n"))), 0o600))
			_, err = migrate.OpenJournal(path)
			var je *migrate.JournalError
			require.ErrorAs(t, err, &je)
			require.ErrorIs(t, err, want)
		})
	}
	damage("a flipped bit", share.ErrCorrupt, func(l []string) string {
		l[2] = strings.Replace(l[2], `"job":"move"`, `"job":"move2"`, 1)
		return strings.Join(l, "")
	})
	damage("another version", errors.ErrUnsupported, func(l []string) string {
		const header = `{"format":"vmferry journal","version":9}`
		return fmt.Sprintf("%08x %s\n", crc32.Checksum([]byte(header), crc32.MakeTable(crc32.Castagnoli)), header)
	})
	damage("another file", share.ErrInvalid, func([]string) string { return "root:x:0:0\n" })
	damage("an empty file", share.ErrInvalid, func([]string) string { return "" })

	t.Run("a torn last line", func(t *testing.T) {
		r, path, j := setUp(t)
		before, err := j.Entries(ctx)
		require.NoError(t, err)
		require.NoError(t, j.Close())
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
		require.NoError(t, os.Truncate(path, st.Size()-5))
		j, err = migrate.OpenJournal(path)
		require.NoError(t, err)
		defer j.Close()
		_, err = migrate.OpenJournal(path)
		require.ErrorIs(t, err, share.ErrInUse)
		after, err := j.Entries(ctx)
		require.NoError(t, err)
		require.Len(t, after, len(before)-1)
		r.move.Journal = j
		job, err := migrate.Resume(ctx, r.move, nil) // it was rolling back: that ends
		require.NoError(t, err)
		_, err = r.wait(job)
		require.ErrorContains(t, err, "earlier attempt")
		job, err = migrate.Resume(ctx, r.move, nil)
		require.NoError(t, err)
		res, err := r.wait(job)
		require.NoError(t, err)
		require.Equal(t, migrate.PhaseDone, res.Phase)
		all, err := j.Entries(ctx)
		require.NoError(t, err)
		require.Equal(t, migrate.PhaseDone, all[len(all)-1].Phase.Phase, fmt.Sprint(all[len(all)-1]))
	})
	t.Run("others may read it", func(t *testing.T) {
		_, path, j := setUp(t)
		require.NoError(t, j.Close())
		require.NoError(t, os.Chmod(path, 0o644))
		_, err := migrate.OpenJournal(path)
		require.ErrorIs(t, err, share.ErrDenied)
	})
}
