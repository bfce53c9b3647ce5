package local

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vmferry/vmferry/share"
)

// blocks is what a device does its work with: an image file, or an NBD client.
// Its calls know no context; they are made from several goroutines at once, on
// ranges that have been checked.
type blocks interface {
	readAt(p []byte, off int64) error
	writeAt(p []byte, off int64) error
	flush() error
	// zero and discard may be an errors.ErrUnsupported; nothing was changed.
	zero(off, n int64, flags share.ZeroFlags) error
	discard(off, n int64) error
	extents(off, n int64) ([]share.Extent, error)
	// interrupt ends calls under way, as far as that can be done.
	interrupt()
	// release gives everything back. No call is under way, and none follows.
	release()
}

// device is an open disk. It adds to its blocks what share.Device promises:
// calls that end with their context, of which no write takes effect later,
// behind one that followed; see calls.
//
// A call whose context can end copies its data once more than one under
// context.Background, because neither the kernel nor a server can be made to
// let go of a buffer.
type device struct {
	blocks   blocks
	id       string
	size     int64
	sizes    share.BlockSizes
	readOnly bool
	calls    *calls
	onClose  func()
	once     sync.Once
}

var (
	_ share.Device       = (*device)(nil)
	_ share.Zeroer       = (*device)(nil)
	_ share.Discarder    = (*device)(nil)
	_ share.ExtentLister = (*device)(nil)
	_ share.Identifier   = (*device)(nil)
	_ share.BlockSizer   = (*device)(nil)
)

// newDevice makes the device, and has the share's Close end it.
func (d *dir) newDevice(b blocks, r *record, size int64, sizes share.BlockSizes, readOnly bool) (*device, error) {
	dev := &device{blocks: b, id: r.ID, size: size, sizes: sizes, readOnly: readOnly, calls: newCalls(b.release)}
	dev.onClose = func() { d.drop(dev) }
	if err := d.hold(dev); err != nil {
		_ = dev.Close()
		return nil, err
	}
	return dev, nil
}

func (d *device) Size() int64                  { return d.size }
func (d *device) Identity() string             { return d.id }
func (d *device) BlockSizes() share.BlockSizes { return d.sizes }

func (d *device) Close() error {
	d.once.Do(func() {
		d.calls.close(d.blocks.interrupt)
		d.onClose()
	})
	return nil
}

// piece is the most that one call moves where the data is copied: small enough
// to be let go of soon, large enough to be cheap.
const piece = 1 << 20

var pieces = sync.Pool{New: func() any { return new([piece]byte) }}

func (d *device) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := share.CheckRange(d.size, off, int64(len(p))); err != nil {
		return err
	}
	if ctx.Done() == nil {
		return fail("read", d.calls.do(ctx, false, func() error { return d.blocks.readAt(p, off) }))
	}
	for first := true; first || len(p) > 0; first = false {
		buf := pieces.Get().(*[piece]byte)
		part := buf[:min(piece, len(p))]
		if err := d.calls.do(ctx, false, func() error { return d.blocks.readAt(part, off) }); err != nil {
			return fail("read", err) // the buffer may still be read into
		}
		copy(p, part)
		pieces.Put(buf)
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

func (d *device) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := d.mayWrite(off, int64(len(p))); err != nil {
		return err
	}
	if ctx.Done() == nil {
		return fail("write", d.calls.do(ctx, true, func() error { return d.blocks.writeAt(p, off) }))
	}
	for first := true; first || len(p) > 0; first = false {
		buf := pieces.Get().(*[piece]byte)
		part := buf[:copy(buf[:], p)]
		if err := d.calls.do(ctx, true, func() error { return d.blocks.writeAt(part, off) }); err != nil {
			return fail("write", err) // the buffer may still be written from
		}
		pieces.Put(buf)
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

func (d *device) Flush(ctx context.Context) error {
	return fail("flush", d.calls.do(ctx, true, d.blocks.flush))
}

// Zero implements [share.Zeroer]. Where the blocks cannot, it writes zeros.
func (d *device) Zero(ctx context.Context, off, n int64, flags share.ZeroFlags) error {
	if err := d.mayWrite(off, n); err != nil {
		return err
	}
	err := d.calls.do(ctx, true, func() error { return d.blocks.zero(off, n, flags) })
	if !errors.Is(err, errors.ErrUnsupported) || flags&share.ZeroFast != 0 {
		return fail("zero", err)
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

// Discard implements [share.Discarder]. Where the blocks cannot, it does
// nothing.
func (d *device) Discard(ctx context.Context, off, n int64) error {
	if err := d.mayWrite(off, n); err != nil {
		return err
	}
	err := d.calls.do(ctx, true, func() error { return d.blocks.discard(off, n) })
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return fail("discard", err)
}

func (d *device) Extents(ctx context.Context, off, n int64) ([]share.Extent, error) {
	if err := share.CheckRange(d.size, off, n); err != nil {
		return nil, err
	}
	answer := make(chan []share.Extent, 1) // never read where the call was given up
	err := d.calls.do(ctx, false, func() error {
		found, err := d.blocks.extents(off, n)
		answer <- found
		return err
	})
	if err != nil {
		return nil, fail("extents", err)
	}
	return <-answer, nil
}

func (d *device) mayWrite(off, n int64) error {
	if d.readOnly {
		return fmt.Errorf("the device is open read-only: writing %w", share.ErrDenied)
	}
	return share.CheckRange(d.size, off, n)
}

func fail(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", op, kindOf(err))
}
