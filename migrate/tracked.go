package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/vmferry/vmferry/share"
)

// TrackedDevice is a device whose writes are seen by a [BlockTracker], can be
// held back, and can be led to another device: what a program serves to a
// writer whose disk shall move. Zeroing and discarding are writes.
//
// A write that fails is dirty, as one that succeeds is. One that the device
// gave up with [share.ErrWedged] may still land later; from then on the device
// cannot be paused.
type TrackedDevice struct {
	tracker *BlockTracker
	writes  gate
	target  atomic.Pointer[share.Device]
	closed  atomic.Bool
	wedged  atomic.Pointer[error] // the first write that may still land
	// recorder is called with each write; see Record.
	recorder atomic.Pointer[func(off, n int64)]
}

// Track returns d with its writes tracked, in blocks of granularity bytes; see
// [NewBlockTracker]. The caller no longer uses d itself.
func Track(d share.Device, granularity int64) (*TrackedDevice, error) {
	t, err := NewBlockTracker(d.Size(), granularity)
	if err != nil {
		return nil, err
	}
	td := &TrackedDevice{tracker: t}
	td.target.Store(&d)
	return td, nil
}

// Tracker is what sees the writes.
func (d *TrackedDevice) Tracker() *BlockTracker { return d.tracker }

// Target is the device that reads and writes go to.
func (d *TrackedDevice) Target() share.Device { return *d.target.Load() }

// Pause holds back new writes and waits for those under way. Reads go on. If
// ctx ends first, writes are let through again.
func (d *TrackedDevice) Pause(ctx context.Context) error {
	if err := d.writes.close(ctx); err != nil {
		d.writes.open()
		return fmt.Errorf("pause: waiting for writes under way: %w", err)
	}
	if err := d.wedged.Load(); err != nil {
		d.writes.open()
		return fmt.Errorf("pause: an earlier write may still land: %w", *err)
	}
	return nil
}

// Resume lets writes through.
func (d *TrackedDevice) Resume() { d.writes.open() }

// Retarget leads reads and writes to another device of at least the same size
// from now on. The device must be paused, so that no write lies between the
// two; else it is an error. The old device is the caller's again; reads that
// began before may still be under way on it.
func (d *TrackedDevice) Retarget(to share.Device) error {
	if !d.writes.isClosed() {
		return fmt.Errorf("%w: retarget a device that is not paused", share.ErrInvalid)
	}
	if to.Size() < d.tracker.size {
		return fmt.Errorf("%w: retarget a device of %d bytes to one of %d", share.ErrInvalid, d.tracker.size, to.Size())
	}
	d.target.Store(&to)
	return nil
}

// write runs one tracked write of n bytes at off.
func (d *TrackedDevice) write(ctx context.Context, off, n int64, f func(share.Device) error) error {
	if err := share.CheckRange(d.tracker.size, off, n); err != nil {
		return err
	}
	if err := d.writes.enter(ctx); err != nil {
		return err
	}
	defer d.writes.leave()
	if d.closed.Load() {
		return fmt.Errorf("device %w", share.ErrClosed)
	}
	// Before, because a write whose end is never seen must be dirty; after,
	// because a lease in between may have read the old bytes.
	d.tracker.Mark(off, n)
	if r := d.recorder.Load(); r != nil && n > 0 {
		(*r)(off, n)
	}
	err := f(d.Target())
	d.tracker.Mark(off, n)
	if errors.Is(err, share.ErrWedged) {
		first := err // err itself would move to the heap with every write
		d.wedged.CompareAndSwap(nil, &first)
	}
	return err
}

// WriteAt writes p; see [share.Device]. It waits while the device is paused.
func (d *TrackedDevice) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.write(ctx, off, int64(len(p)), func(t share.Device) error { return t.WriteAt(ctx, p, off) })
}

// Zero makes a range zero; see [share.Zeroer].
func (d *TrackedDevice) Zero(ctx context.Context, off, n int64, flags share.ZeroFlags) error {
	return d.write(ctx, off, n, func(t share.Device) error { return share.ZeroRange(ctx, t, off, n, flags) })
}

// Discard gives a range back; see [share.Discarder].
func (d *TrackedDevice) Discard(ctx context.Context, off, n int64) error {
	return d.write(ctx, off, n, func(t share.Device) error { return share.DiscardRange(ctx, t, off, n) })
}

// ReadAt reads from the target; see [share.Device].
func (d *TrackedDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	if d.closed.Load() {
		return fmt.Errorf("device %w", share.ErrClosed)
	}
	if err := share.CheckRange(d.tracker.size, off, int64(len(p))); err != nil {
		return err
	}
	return d.Target().ReadAt(ctx, p, off)
}

// Flush flushes the target. It waits while the device is paused, so that an
// acknowledged flush is one of the device that the guest goes on with.
func (d *TrackedDevice) Flush(ctx context.Context) error {
	return d.write(ctx, 0, 0, func(t share.Device) error { return t.Flush(ctx) })
}

// Extents lists the target's extents; see [share.ExtentLister].
func (d *TrackedDevice) Extents(ctx context.Context, off, n int64) ([]share.Extent, error) {
	return share.ListExtents(ctx, d.Target(), off, n)
}

// BlockSizes are the target's; see [share.BlockSizer].
func (d *TrackedDevice) BlockSizes() share.BlockSizes { return share.SizesOf(d.Target()) }

// Identity is the target's; see [share.Identifier].
func (d *TrackedDevice) Identity() string { return share.IdentityOf(d.Target()) }

// Size is the size of the device that was tracked first.
func (d *TrackedDevice) Size() int64 { return d.tracker.size }

// Close closes the target.
func (d *TrackedDevice) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	return d.Target().Close()
}
