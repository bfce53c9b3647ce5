package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
)

// openRaw opens a raw disk of that size.
func openRaw(t testing.TB, dir string, size share.Bytes) *device {
	t.Helper()
	s := open(t, dir, nil)
	create(t, s, share.Spec{Name: "v", Kind: share.Disk, Size: size})
	d, err := share.OpenDevice(t.Context(), s, "v", nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d.(*device)
}

// stalling are blocks whose calls are let through by stall.
type stalling struct {
	blocks
	stall func()
}

func (s *stalling) readAt(p []byte, off int64) error  { s.stall(); return s.blocks.readAt(p, off) }
func (s *stalling) writeAt(p []byte, off int64) error { s.stall(); return s.blocks.writeAt(p, off) }

// TestHungFileSystem: a call that the kernel does not let go of ends by its
// context; its buffer is the caller's again, nothing overtakes it, and the
// image stays locked until it ends.
func TestHungFileSystem(t *testing.T) {
	dir := t.TempDir()
	d := openRaw(t, dir, share.MiB)
	var hang atomic.Bool
	release := make(chan struct{})
	d.blocks = &stalling{d.blocks, func() {
		if hang.Load() {
			<-release
		}
	}}
	timeout := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	require.NoError(t, d.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 4096), 0))
	hang.Store(true)
	p := bytes.Repeat([]byte{2}, 4096)
	start := time.Now()
	err := d.WriteAt(timeout(), p, 0)
	require.ErrorIs(t, err, share.ErrWedged)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.False(t, share.Retryable(err))
	require.Less(t, time.Since(start), 3*grace)
	copy(p, bytes.Repeat([]byte{3}, 4096)) // ours again

	q := make([]byte, 4096)
	require.ErrorIs(t, d.ReadAt(timeout(), q, 0), share.ErrWedged)
	hang.Store(false)
	for what, call := range map[string]func() error{
		"write":   func() error { return d.WriteAt(t.Context(), p, 0) },
		"zero":    func() error { return d.Zero(t.Context(), 0, 4096, 0) },
		"discard": func() error { return d.Discard(t.Context(), 0, 4096) },
		"flush":   func() error { return d.Flush(t.Context()) },
	} {
		require.ErrorIs(t, call(), share.ErrWedged, "%s behind a write that has not ended", what)
	}
	require.NoError(t, d.Close(), "Close does not wait for ever")
	s := open(t, dir, nil)
	_, err = share.OpenDevice(t.Context(), s, "v", nil)
	require.ErrorIs(t, err, share.ErrInUse, "the lock is held as long as the write may land")

	close(release)
	require.Eventually(t, func() bool {
		d, err := share.OpenDevice(t.Context(), s, "v", nil)
		if err == nil {
			_ = d.Close()
		}
		return err == nil
	}, 5*time.Second, 5*time.Millisecond)
	require.Equal(t, string(bytes.Repeat([]byte{2}, 4096)), read(t, s, "v", 0, 4096), "the write landed with what it was given")
	require.Equal(t, make([]byte, 4096), q, "a read that was given up wrote into the caller's buffer")
}

func TestWritesGoOnBehindOneThatEnded(t *testing.T) {
	d := openRaw(t, t.TempDir(), share.MiB)
	release := make(chan struct{})
	d.blocks = &stalling{d.blocks, func() { <-release }}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	require.ErrorIs(t, d.WriteAt(ctx, []byte{1}, 0), share.ErrWedged)
	close(release)
	require.Eventually(t, func() bool { return d.WriteAt(t.Context(), []byte{2}, 0) == nil }, 5*time.Second, time.Millisecond)
}

func TestAwaitGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	closed := make(chan struct{})
	time.AfterFunc(10*time.Millisecond, cancel)
	_, err := await(ctx, func(context.Context) (share.Lock, error) {
		<-release
		return closeFunc(func() { close(closed) }), nil
	})
	require.ErrorIs(t, err, share.ErrWedged)
	require.ErrorIs(t, err, context.Canceled)
	close(release)
	<-closed // what nobody takes is closed
}

type closeFunc func()

func (f closeFunc) Close() error   { f(); return nil }
func (f closeFunc) Release() error { return f.Close() }

// TestFlushFailsForGood: after a flush that failed the kernel may have dropped
// what it could not write, and says nothing the next time.
func TestFlushFailsForGood(t *testing.T) {
	d := openRaw(t, t.TempDir(), share.MiB)
	lost := fmt.Errorf("flush: %w", unix.EIO)
	d.blocks.(*rawFile).lost.Store(&lost)
	require.ErrorIs(t, d.Flush(t.Context()), unix.EIO)
	require.ErrorIs(t, d.Flush(t.Context()), unix.EIO)
}

// TestNoSpace: what cannot fit is refused before it takes what is left.
func TestNoSpace(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	s := open(t, dir, nil)
	h, err := share.CheckHealth(ctx, s)
	require.NoError(t, err)
	for _, format := range s.Info().Formats {
		spec := share.Spec{Name: "v", Kind: share.Disk, Format: format, Size: h.Size/512*512 + share.GiB, Preallocate: true}
		_, err = share.Create(ctx, s, spec)
		require.ErrorIs(t, err, share.ErrNoSpace)
		require.ErrorContains(t, err, "are to be allocated")
	}
	_, err = s.Stat(ctx, "v")
	require.ErrorIs(t, err, share.ErrNotExist)
	left, err := os.ReadDir(filepath.Join(dir, storeDir, tmpDir))
	require.NoError(t, err)
	require.Empty(t, left)
	require.NoFileExists(t, filepath.Join(dir, "v"))
	now, err := share.CheckHealth(ctx, s)
	require.NoError(t, err)
	require.InDelta(t, float64(h.Free), float64(now.Free), float64(4*share.GiB))
}

func TestExtentsOfHoles(t *testing.T) {
	ctx := t.Context()
	d := openRaw(t, t.TempDir(), 10*share.MiB+512)
	exts, err := share.ListExtents(ctx, d, 0, d.Size())
	require.NoError(t, err)
	require.Equal(t, []share.Extent{{Off: 0, Len: d.Size(), State: share.ExtentHole | share.ExtentZero}}, exts)
	require.NoError(t, d.WriteAt(ctx, []byte{1}, 5<<20))
	require.NoError(t, d.WriteAt(ctx, []byte{1}, d.Size()-1))
	exts, err = share.ListExtents(ctx, d, 0, d.Size())
	require.NoError(t, err)
	require.Equal(t, share.ExtentData, exts[len(exts)-1].State, "the tail, which is not a whole block")
	require.Equal(t, d.Size(), exts[len(exts)-1].End())
	for _, r := range [][2]int64{{5<<20 - 1, 3}, {1, 1}, {d.Size() - 1, 1}, {d.Size(), 0}} {
		_, err := share.ListExtents(ctx, d, r[0], r[1])
		require.NoError(t, err)
	}
	require.NoError(t, d.Discard(ctx, 0, d.Size()))
	exts, err = share.ListExtents(ctx, d, 0, d.Size())
	require.NoError(t, err)
	require.Equal(t, share.ExtentHole|share.ExtentZero, exts[0].State)
	require.GreaterOrEqual(t, exts[0].Len, int64(10*share.MiB), "all but a tail that is not a whole block")
	var st unix.Stat_t
	require.NoError(t, control(d.blocks.(*rawFile).file, func(fd int) error { return unix.Fstat(fd, &st) }))
	require.Less(t, st.Blocks*512, int64(64<<10), "discard gives the space back")
	require.NoError(t, d.Zero(ctx, 0, int64(share.MiB), share.ZeroKeepAllocated))
	require.NoError(t, control(d.blocks.(*rawFile).file, func(fd int) error { return unix.Fstat(fd, &st) }))
	require.GreaterOrEqual(t, st.Blocks*512, int64(share.MiB), "the space is kept")
}

func TestHealthErrors(t *testing.T) {
	s := open(t, t.TempDir(), nil)
	require.NoError(t, s.Close())
	_, err := share.CheckHealth(t.Context(), s)
	require.ErrorIs(t, err, share.ErrClosed)
	require.False(t, errors.Is(err, share.ErrUnavailable))
}

// The cancellable context is what programs use; context.Background shows the
// cost of being cancellable.
func benchmarkRaw(b *testing.B, size int, write bool) {
	for name, ctx := range map[string]context.Context{"cancellable": b.Context(), "background": context.Background()} {
		b.Run(name, func(b *testing.B) {
			d := openRaw(b, b.TempDir(), 256*share.MiB)
			p := bytes.Repeat([]byte{1}, size)
			for off := int64(0); off < d.Size(); off += int64(size) {
				require.NoError(b, d.WriteAt(ctx, p, off))
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			off := int64(0)
			for b.Loop() {
				var err error
				if write {
					err = d.WriteAt(ctx, p, off)
				} else {
					err = d.ReadAt(ctx, p, off)
				}
				if err != nil {
					b.Fatal(err)
				}
				off = (off + int64(size)) % d.Size()
			}
		})
	}
}

func BenchmarkRawRead4K(b *testing.B)  { benchmarkRaw(b, 4<<10, false) }
func BenchmarkRawRead1M(b *testing.B)  { benchmarkRaw(b, 1<<20, false) }
func BenchmarkRawWrite4K(b *testing.B) { benchmarkRaw(b, 4<<10, true) }
func BenchmarkRawWrite1M(b *testing.B) { benchmarkRaw(b, 1<<20, true) }

// BenchmarkExtents1T describes a disk of 1 TiB with 1000 extents of data.
func BenchmarkExtents1T(b *testing.B) {
	d := openRaw(b, b.TempDir(), share.TiB)
	for i := range int64(1000) {
		require.NoError(b, d.WriteAt(b.Context(), []byte{1}, i*int64(share.GiB)))
	}
	b.ReportAllocs()
	for b.Loop() {
		exts, err := share.ListExtents(b.Context(), d, 0, d.Size())
		if err != nil || len(exts) < 1999 {
			b.Fatal(len(exts), err)
		}
	}
}
