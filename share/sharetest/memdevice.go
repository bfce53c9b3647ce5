package sharetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/vmferry/vmferry/share"
)

// MemDevice is a disk in memory. It is sparse in chunks of 64 KiB, safe for
// concurrent use, and implements [share.Zeroer], [share.Discarder],
// [share.ExtentLister] and [share.Identifier].
//
// It has the failure model of a disk with a write cache: see [MemDevice.Crash].
// Each call is atomic against the others.
type MemDevice struct {
	disk     *memDisk
	id       string
	readOnly bool

	epoch int

	mu      sync.Mutex
	closed  bool
	onClose func()
}

var (
	_ share.Device       = (*MemDevice)(nil)
	_ share.Zeroer       = (*MemDevice)(nil)
	_ share.Discarder    = (*MemDevice)(nil)
	_ share.ExtentLister = (*MemDevice)(nil)
	_ share.Identifier   = (*MemDevice)(nil)
)

// NewDevice returns a disk of size bytes, all zeros, with an identity of its
// own.
func NewDevice(size int64) *MemDevice {
	return NewDeviceID(size, newID())
}

// NewDeviceID is [NewDevice] with an identity that the caller chooses.
func NewDeviceID(size int64, id string) *MemDevice {
	if size < 0 {
		panic(fmt.Sprintf("sharetest.NewDevice: size %d", size))
	}
	return &MemDevice{disk: newMemDisk(size), id: id}
}

// newID is 32 random hexadecimal digits.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Reopen returns another handle on the same disk, as another process would
// have. It works also after Close.
func (d *MemDevice) Reopen() *MemDevice {
	d.disk.mu.RLock()
	defer d.disk.mu.RUnlock()
	return &MemDevice{disk: d.disk, id: d.id, readOnly: d.readOnly, epoch: d.disk.epoch}
}

// Crash cuts the power: each write, zero and discard since the last Flush is
// kept, lost, or torn at sectors of 512 bytes, as the seed decides for each by
// itself, so that a later one may survive an earlier one. All handles on the
// disk are dead, as if closed; Crash returns a new one.
func (d *MemDevice) Crash(seed uint64) *MemDevice {
	d.disk.crash(seed)
	return d.Reopen()
}

// Unflushed is the number of writes that a Crash may lose now.
func (d *MemDevice) Unflushed() int {
	d.disk.mu.RLock()
	defer d.disk.mu.RUnlock()
	return len(d.disk.pending)
}

// Allocated is the memory that the content takes, in bytes.
func (d *MemDevice) Allocated() share.Bytes { return d.disk.allocated() }

// Size returns the length in bytes.
func (d *MemDevice) Size() int64 {
	d.disk.mu.RLock()
	defer d.disk.mu.RUnlock()
	return d.disk.size
}

// Identity returns the identity, the same for all handles on one disk.
func (d *MemDevice) Identity() string { return d.id }

// ReadAt implements [share.Device].
func (d *MemDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.check(ctx, false); err != nil {
		return err
	}
	return d.disk.read(d.epoch, p, off)
}

// WriteAt implements [share.Device].
func (d *MemDevice) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := d.check(ctx, true); err != nil {
		return err
	}
	return d.disk.write(d.epoch, memWrite{off: off, n: int64(len(p)), data: p})
}

// Zero implements [share.Zeroer]. It is always fast.
func (d *MemDevice) Zero(ctx context.Context, off, n int64, flags share.ZeroFlags) error {
	if err := d.check(ctx, true); err != nil {
		return err
	}
	return d.disk.write(d.epoch, memWrite{off: off, n: n, keep: flags&share.ZeroKeepAllocated != 0})
}

// Discard implements [share.Discarder]. The range reads as zeros afterwards.
func (d *MemDevice) Discard(ctx context.Context, off, n int64) error {
	return d.Zero(ctx, off, n, 0)
}

// Flush implements [share.Device].
func (d *MemDevice) Flush(ctx context.Context) error {
	if err := d.check(ctx, false); err != nil {
		return err
	}
	return d.disk.flush(d.epoch)
}

// Extents implements [share.ExtentLister].
func (d *MemDevice) Extents(ctx context.Context, off, n int64) ([]share.Extent, error) {
	if err := d.check(ctx, false); err != nil {
		return nil, err
	}
	return d.disk.extents(d.epoch, off, n)
}

// Close implements [share.Device].
func (d *MemDevice) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if d.onClose != nil {
		d.onClose()
	}
	return nil
}

// check refuses a call that may not be; the disk checks the range.
func (d *MemDevice) check(ctx context.Context, write bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	closed := d.closed
	d.mu.Unlock()
	switch {
	case closed:
		return fmt.Errorf("memory device %w", share.ErrClosed)
	case write && d.readOnly:
		return fmt.Errorf("memory device is read-only: writing %w", share.ErrDenied)
	}
	return nil
}
