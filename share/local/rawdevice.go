package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
)

// rawDevice is an open raw image: bytes of the file are bytes of the disk.
//
// It goes through the page cache. A write is durable after Flush, fdatasync(2).
// A call whose context can end copies its data once more than one under
// context.Background, because the kernel cannot be made to let go of a buffer.
type rawDevice struct {
	file     *os.File
	id       string
	size     int64
	readOnly bool
	calls    *calls
	onClose  func()
	close    sync.Once

	// lost is the error of the first flush that failed. The kernel may then
	// have dropped what it could not write, and the next fdatasync would
	// succeed without it: so no later flush does.
	lost atomic.Pointer[error]

	// stall is called before each system call. Tests hang there.
	stall func()
}

var (
	_ share.Device       = (*rawDevice)(nil)
	_ share.Zeroer       = (*rawDevice)(nil)
	_ share.Discarder    = (*rawDevice)(nil)
	_ share.ExtentLister = (*rawDevice)(nil)
	_ share.Identifier   = (*rawDevice)(nil)
)

// piece is the most that one system call moves where the data is copied: small
// enough to be let go of soon, large enough to be cheap.
const piece = 1 << 20

var pieces = sync.Pool{New: func() any { return new([piece]byte) }}

func newRawDevice(f *os.File, r *record, readOnly bool, onClose func()) *rawDevice {
	d := &rawDevice{file: f, id: r.ID, size: int64(r.Size), readOnly: readOnly, onClose: onClose, stall: func() {}}
	d.calls = newCalls(func() { _ = f.Close() })
	return d
}

func (d *rawDevice) Size() int64      { return d.size }
func (d *rawDevice) Identity() string { return d.id }

func (d *rawDevice) Close() error {
	d.close.Do(func() {
		d.calls.close()
		d.onClose()
	})
	return nil
}

func (d *rawDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := share.CheckRange(d.size, off, int64(len(p))); err != nil {
		return err
	}
	if ctx.Done() == nil {
		return d.fail("read", d.calls.do(ctx, false, func() error { return d.readFull(p, off) }))
	}
	for first := true; first || len(p) > 0; first = false {
		buf := pieces.Get().(*[piece]byte)
		part := buf[:min(piece, len(p))]
		if err := d.calls.do(ctx, false, func() error { return d.readFull(part, off) }); err != nil {
			return d.fail("read", err) // the buffer may still be read into
		}
		copy(p, part)
		pieces.Put(buf)
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

func (d *rawDevice) readFull(p []byte, off int64) error {
	d.stall()
	_, err := d.file.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the image %w: it became shorter than the disk", share.ErrCorrupt)
	}
	return err
}

func (d *rawDevice) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := d.mayWrite(off, int64(len(p))); err != nil {
		return err
	}
	if ctx.Done() == nil {
		return d.fail("write", d.calls.do(ctx, true, func() error { return d.writeFull(p, off) }))
	}
	for first := true; first || len(p) > 0; first = false {
		buf := pieces.Get().(*[piece]byte)
		part := buf[:copy(buf[:], p)]
		if err := d.calls.do(ctx, true, func() error { return d.writeFull(part, off) }); err != nil {
			return d.fail("write", err) // the buffer may still be written from
		}
		pieces.Put(buf)
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

func (d *rawDevice) writeFull(p []byte, off int64) error {
	d.stall()
	_, err := d.file.WriteAt(p, off) // an error if it is short
	return err
}

func (d *rawDevice) Flush(ctx context.Context) error {
	if lost := d.lost.Load(); lost != nil {
		return *lost
	}
	return d.fail("flush", d.calls.do(ctx, true, func() error {
		d.stall()
		err := control(d.file, unix.Fdatasync)
		if err != nil {
			lost := fmt.Errorf("flush: %w; what was written since the last flush may be lost: close the device and write it again", kindOf(err))
			d.lost.CompareAndSwap(nil, &lost)
		}
		return err
	}))
}

// Zero implements [share.Zeroer]: fallocate(2) with FALLOC_FL_PUNCH_HOLE, or
// FALLOC_FL_ZERO_RANGE where the space is to be kept.
func (d *rawDevice) Zero(ctx context.Context, off, n int64, flags share.ZeroFlags) error {
	if err := d.mayWrite(off, n); err != nil {
		return err
	}
	modes := []uint32{unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE}
	if flags&share.ZeroKeepAllocated != 0 {
		modes = modes[1:]
	}
	var err error
	for _, mode := range modes {
		if err = d.fallocate(ctx, mode, off, n); !notSupported(err) {
			return d.fail("zero", err)
		}
	}
	if flags&share.ZeroFast != 0 {
		return fmt.Errorf("zero: %w: %w", errors.ErrUnsupported, err)
	}
	for zeros := make([]byte, min(n, piece)); n > 0; {
		k := min(n, piece)
		if err := d.WriteAt(ctx, zeros[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Discard implements [share.Discarder]: fallocate(2) with FALLOC_FL_PUNCH_HOLE,
// and nothing where the file system has none.
func (d *rawDevice) Discard(ctx context.Context, off, n int64) error {
	if err := d.mayWrite(off, n); err != nil {
		return err
	}
	if err := d.fallocate(ctx, unix.FALLOC_FL_PUNCH_HOLE, off, n); !notSupported(err) {
		return d.fail("discard", err)
	}
	return nil
}

func (d *rawDevice) fallocate(ctx context.Context, mode uint32, off, n int64) error {
	return d.calls.do(ctx, true, func() error {
		d.stall()
		if n == 0 {
			return nil // fallocate refuses it
		}
		return control(d.file, func(fd int) error { return unix.Fallocate(fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, n) })
	})
}

func (d *rawDevice) Extents(ctx context.Context, off, n int64) ([]share.Extent, error) {
	if err := share.CheckRange(d.size, off, n); err != nil {
		return nil, err
	}
	var out []share.Extent
	err := d.calls.do(ctx, false, func() error {
		found, err := fileExtents(d.file, off, n)
		if err == nil {
			out = found
		}
		return err
	})
	if err != nil {
		return nil, d.fail("extents", err)
	}
	return out, nil
}

func (d *rawDevice) mayWrite(off, n int64) error {
	if d.readOnly {
		return fmt.Errorf("the device is open read-only: writing %w", share.ErrDenied)
	}
	return share.CheckRange(d.size, off, n)
}

func (d *rawDevice) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", op, kindOf(err))
}
