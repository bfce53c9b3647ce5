package migrate_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// dirtyBlocks takes what is dirty.
func dirtyBlocks(t *testing.T, c migrate.Cursor) (off []int64) {
	for {
		l, err := c.Lease(context.Background(), 1)
		if err == io.EOF {
			return off
		}
		require.NoError(t, err)
		off = append(off, l.Ranges[0].Off)
		require.NoError(t, c.Ack(l))
	}
}

// Each kind of write is dirty before it is submitted, and again when it has
// ended, also when it failed.
func TestWritesAreMarked(t *testing.T) {
	ctx := context.Background()
	for name, write := range map[string]func(d *migrate.TrackedDevice) error{
		"write":   func(d *migrate.TrackedDevice) error { return d.WriteAt(ctx, make([]byte, 10), 4096) },
		"zero":    func(d *migrate.TrackedDevice) error { return d.Zero(ctx, 4096, 10, 0) },
		"discard": func(d *migrate.TrackedDevice) error { return d.Discard(ctx, 4096, 10) },
	} {
		for _, fails := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s fails=%v", name, fails), func(t *testing.T) {
				var c migrate.Cursor
				inside := &spy{MemDevice: sharetest.NewDevice(1 << 20)}
				d, err := migrate.Track(inside, 4096)
				require.NoError(t, err)
				c, err = d.Tracker().NewCursor(ctx, migrate.FromNow)
				require.NoError(t, err)
				inside.during = func() error {
					require.Equal(t, []int64{4096}, dirtyBlocks(t, c), "not dirty while the write is under way")
					if fails {
						return io.ErrUnexpectedEOF
					}
					return nil
				}
				err = write(d)
				require.Equal(t, fails, err != nil)
				require.Equal(t, []int64{4096}, dirtyBlocks(t, c), "not dirty after the write")
			})
		}
	}
}

func TestPauseWaitsAndHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		inside := &spy{MemDevice: sharetest.NewDevice(1 << 20)}
		d, err := migrate.Track(inside, 0)
		require.NoError(t, err)

		inside.during = func() error { time.Sleep(time.Second); return nil }
		begin := time.Now()
		go func() { _ = d.WriteAt(ctx, make([]byte, 10), 0) }()
		synctest.Wait()
		require.NoError(t, d.Pause(ctx))
		require.Equal(t, time.Second, time.Since(begin), "pause did not wait for the write under way")

		inside.during = nil
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		require.ErrorIs(t, d.WriteAt(short, make([]byte, 10), 0), context.DeadlineExceeded)
		require.NoError(t, d.ReadAt(ctx, make([]byte, 10), 0), "reads go on")
		written := make(chan error, 1)
		go func() { written <- d.WriteAt(ctx, make([]byte, 10), 0) }()
		synctest.Wait()
		require.Empty(t, written)
		d.Resume()
		require.NoError(t, <-written)
	})
}

// A pause that takes too long is none.
func TestPauseGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inside := &spy{MemDevice: sharetest.NewDevice(1 << 20)}
		d, err := migrate.Track(inside, 0)
		require.NoError(t, err)
		inside.during = func() error { time.Sleep(time.Minute); return nil }
		slow := make(chan error)
		go func() { slow <- d.WriteAt(context.Background(), make([]byte, 10), 0) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		require.ErrorIs(t, d.Pause(ctx), context.DeadlineExceeded)
		inside.during = nil
		require.NoError(t, d.WriteAt(context.Background(), make([]byte, 10), 0))
		require.NoError(t, <-slow)
	})
}

// A write that may still land forbids every pause after it.
func TestWedgedWrite(t *testing.T) {
	ctx := context.Background()
	inside := &spy{MemDevice: sharetest.NewDevice(1 << 20)}
	d, err := migrate.Track(inside, 0)
	require.NoError(t, err)
	inside.during = func() error { return fmt.Errorf("the disk %w", share.ErrWedged) }
	require.Error(t, d.WriteAt(ctx, make([]byte, 10), 0))
	inside.during = nil
	require.ErrorIs(t, d.Pause(ctx), share.ErrWedged)
	require.NoError(t, d.WriteAt(ctx, make([]byte, 10), 0), "the gate stayed shut")
}

func TestRetarget(t *testing.T) {
	ctx := context.Background()
	a, b := sharetest.NewDevice(4096), sharetest.NewDevice(4096)
	d, err := migrate.Track(a, 512)
	require.NoError(t, err)
	require.ErrorIs(t, d.Retarget(b), share.ErrInvalid, "not paused")
	require.NoError(t, d.Pause(ctx))
	require.ErrorIs(t, d.Retarget(sharetest.NewDevice(512)), share.ErrInvalid, "too small")
	require.NoError(t, d.Retarget(b))
	d.Resume()
	require.NoError(t, d.WriteAt(ctx, []byte("new"), 0))
	got := make([]byte, 3)
	require.NoError(t, b.ReadAt(ctx, got, 0))
	require.Equal(t, "new", string(got))
	require.Equal(t, b.Identity(), d.Identity())
	require.NoError(t, d.Close())
	require.NoError(t, d.Close())
	require.ErrorIs(t, d.WriteAt(ctx, got, 0), share.ErrClosed)
	require.ErrorIs(t, d.ReadAt(ctx, got, 0), share.ErrClosed)
}

func TestGateRelinquished(t *testing.T) {
	ctx := context.Background()
	d, err := migrate.Track(sharetest.NewDevice(4096), 512)
	require.NoError(t, err)
	to := sharetest.NewDevice(4096)
	g, err := migrate.NewGate("g", []*migrate.TrackedDevice{d}, []share.Device{to})
	require.NoError(t, err)
	require.Error(t, g.Activate(ctx, 2), "activated without a pause")
	require.NoError(t, g.Pause(ctx))
	require.NoError(t, g.Relinquish(ctx, 1))
	require.ErrorIs(t, g.Resume(ctx, 1), share.ErrDenied)
	require.NoError(t, g.Resume(ctx, 2))
	require.NoError(t, g.Pause(ctx))
	require.NoError(t, g.Activate(ctx, 3))
	require.NoError(t, g.Activate(ctx, 3), "may be repeated")
	require.Equal(t, share.Device(to), d.Target())

	_, err = migrate.NewGate("", nil, nil)
	require.ErrorIs(t, err, share.ErrInvalid)
}

// spy is a device that calls during within each write.
type spy struct {
	*sharetest.MemDevice
	during func() error
}

func (s *spy) act() error {
	if s.during == nil {
		return nil
	}
	return s.during()
}

func (s *spy) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := s.act(); err != nil {
		return err
	}
	return s.MemDevice.WriteAt(ctx, p, off)
}

func (s *spy) Zero(ctx context.Context, off, n int64, f share.ZeroFlags) error {
	if err := s.act(); err != nil {
		return err
	}
	return s.MemDevice.Zero(ctx, off, n, f)
}

func (s *spy) Discard(ctx context.Context, off, n int64) error {
	if err := s.act(); err != nil {
		return err
	}
	return s.MemDevice.Discard(ctx, off, n)
}

// BenchmarkTrackedWrite is a 4 KiB write to a device in memory, bare and
// tracked.
func BenchmarkTrackedWrite(b *testing.B) {
	ctx := context.Background()
	p := make([]byte, 4096)
	run := func(name string, d share.Device) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(4096)
			for i := 0; b.Loop(); i++ {
				if err := d.WriteAt(ctx, p, int64(i%256)*4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	bare := sharetest.NewDevice(1 << 20)
	run("bare", bare)
	tracked, _ := migrate.Track(bare, 0)
	_, _ = tracked.Tracker().NewCursor(ctx, migrate.FromNow)
	run("tracked", tracked)
}
