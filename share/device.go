package share

import (
	"context"
	"fmt"
)

// Device is the block view of a disk volume: bytes at offsets, from 0 to Size.
//
// Every call moves all of its bytes or returns an error; there are no short
// reads or writes. After a failed write the content of the range is unknown:
// it may be old, new or mixed. A write that returned nil is visible to every
// later read through any handle of the same device, and durable after the next
// Flush that returned nil and that began after the write returned.
//
// Ranges outside the device are refused with [ErrInvalid], never clipped. A
// call ends when its context does, with an error that wraps the context's; as
// with any failed write, the outcome of a write cancelled is unknown. It does
// not change any more after the call has returned, unless the error wraps
// [ErrWedged]: such a write may still land, and whoever pauses a writer or hands
// a device on must know.
//
// All methods may be called from several goroutines at once. Calls that
// overlap in range are not ordered against each other by the device.
//
// What a device can do beyond this is found by the optional interfaces
// [Zeroer], [Discarder], [ExtentLister], [BlockSizer] and [Identifier]; the
// functions [ZeroRange], [DiscardRange] and [ListExtents] do the work with any
// device. Wrappers implement Unwrap() Device only if every optional interface
// may pass them by; see [DeviceAs].
type Device interface {
	// ReadAt fills p from off. It corresponds to pread(2).
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt writes all of p at off. It corresponds to pwrite(2).
	// The device does not keep p.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Flush makes durable what was written before it was called.
	// It corresponds to fdatasync(2).
	Flush(ctx context.Context) error
	// Size is the device's length in bytes. It does no I/O.
	Size() int64
	// Close gives the handle back; it does not flush. A second Close returns
	// nil. Calls under way end with an error; later calls too.
	Close() error
}

// ZeroFlags say how a range may be made zero.
type ZeroFlags uint8

const (
	// ZeroKeepAllocated forbids to give the range's space back
	// (NBD_CMD_FLAG_NO_HOLE, fallocate without FALLOC_FL_PUNCH_HOLE).
	ZeroKeepAllocated ZeroFlags = 1 << iota
	// ZeroFast asks for errors.ErrUnsupported instead of an emulation that is
	// no faster than writing zeros (NBD_CMD_FLAG_FAST_ZERO).
	ZeroFast
)

// Zeroer is a [Device] that can make a range read as zeros without the zeros
// being sent: NBD_CMD_WRITE_ZEROES, fallocate(2). A wrapper or a client may find
// that what lies beneath cannot after all: errors.ErrUnsupported, and nothing
// was changed; [ZeroRange] then writes zeros. So too with [Discarder] and
// [ExtentLister].
type Zeroer interface {
	// Zero makes n bytes from off read as zeros. It is a write in all
	// respects. Without [ZeroKeepAllocated] the space may be given back.
	Zero(ctx context.Context, off, n int64, flags ZeroFlags) error
}

// Discarder is a [Device] that can give back the space of a range:
// NBD_CMD_TRIM, FALLOC_FL_PUNCH_HOLE.
type Discarder interface {
	// Discard says that the content of n bytes from off is no longer needed.
	// Afterwards the range reads as anything, and is a changed range for all
	// who track changes. A device may do nothing and return nil.
	Discard(ctx context.Context, off, n int64) error
}

// ExtentState says what is known of an extent. It has the bits of NBD's
// base:allocation, so that the zero value makes no promise: data.
type ExtentState uint8

const (
	// ExtentHole: no space is allocated. Alone it does not say what is read.
	ExtentHole ExtentState = 1 << iota
	// ExtentZero: the extent reads as zeros.
	ExtentZero

	// ExtentData is the absence of the other two: bytes that must be read.
	ExtentData ExtentState = 0
)

// Zero reports whether the extent is known to read as zeros.
func (s ExtentState) Zero() bool { return s&ExtentZero != 0 }

// Hole reports whether the extent has no space allocated.
func (s ExtentState) Hole() bool { return s&ExtentHole != 0 }

// String is data, hole, zero or hole,zero.
func (s ExtentState) String() string {
	switch s {
	case ExtentData:
		return "data"
	case ExtentHole:
		return "hole"
	case ExtentZero:
		return "zero"
	case ExtentHole | ExtentZero:
		return "hole,zero"
	}
	return fmt.Sprintf("ExtentState(%d)", uint8(s))
}

// Extent is a run of bytes in one state.
type Extent struct {
	Off, Len int64
	State    ExtentState
}

// End is the offset behind the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// String is "off+len state".
func (e Extent) String() string { return fmt.Sprintf("%d+%d %s", e.Off, e.Len, e.State) }

// ExtentLister is a [Device] that knows where its data is: lseek(2) with
// SEEK_DATA, NBD_CMD_BLOCK_STATUS with base:allocation.
type ExtentLister interface {
	// Extents describes the n bytes from off in order and without a gap. It
	// may stop early, after at least one extent, where the description would
	// be long; the caller goes on behind the last one. The answer holds for
	// the moment of the call: on a device that is being written it is only a
	// hint, unless the writes are tracked.
	Extents(ctx context.Context, off, n int64) ([]Extent, error)
}

// BlockSizer is a [Device] with limits on the shape of requests, as in NBD's
// block size constraints. Offsets and lengths must be multiples of Minimum
// (except for the tail of a device whose size is not), should be of Preferred,
// and a request moves at most Maximum bytes. All are powers of two, except
// Maximum, a multiple of Minimum. A zero Maximum means no limit.
type BlockSizer interface {
	BlockSizes() BlockSizes
}

// BlockSizes are limits in bytes; see [BlockSizer].
type BlockSizes struct{ Minimum, Preferred, Maximum int64 }

// Identifier is a [Device] that knows which device it is. An identity is the
// volume's [Volume.ID] or another name that stays for the device's life and
// that no other device has. It guards against writing to the wrong one.
type Identifier interface {
	Identity() string
}

// CheckRange returns an error wrapping [ErrInvalid] if n bytes from off do not
// lie within size.
func CheckRange(size, off, n int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%w: range %d+%d lies outside the device of %d bytes", ErrInvalid, off, n, size)
	}
	return nil
}

// SizesOf returns d's block sizes, or {1, 4096, 0} for a device that states
// none.
func SizesOf(d Device) BlockSizes {
	if b, ok := DeviceAs[BlockSizer](d); ok {
		return b.BlockSizes()
	}
	return BlockSizes{Minimum: 1, Preferred: 4096}
}

// IdentityOf returns d's identity, or "" for a device that has none.
func IdentityOf(d Device) string {
	if i, ok := DeviceAs[Identifier](d); ok {
		return i.Identity()
	}
	return ""
}

// DeviceAs finds the optional interface T on d or, through Unwrap() Device,
// on what d wraps.
func DeviceAs[T any](d Device) (T, bool) {
	for d != nil {
		if t, ok := d.(T); ok {
			return t, true
		}
		u, ok := d.(interface{ Unwrap() Device })
		if !ok {
			break
		}
		d = u.Unwrap()
	}
	var none T
	return none, false
}
