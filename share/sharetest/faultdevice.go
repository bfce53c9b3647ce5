package sharetest

import (
	"context"

	"github.com/vmferry/vmferry/share"
)

// FaultyDevice returns d with faults. It forwards every optional interface of
// package share through the schedule, and has no Unwrap: nothing goes past it.
// What d cannot do is errors.ErrUnsupported; a discard then does nothing.
func FaultyDevice(d share.Device, s *Schedule) share.Device { return &faultyDevice{d, s} }

type faultyDevice struct {
	d share.Device
	s *Schedule
}

var (
	_ share.Zeroer       = (*faultyDevice)(nil)
	_ share.Discarder    = (*faultyDevice)(nil)
	_ share.ExtentLister = (*faultyDevice)(nil)
	_ share.BlockSizer   = (*faultyDevice)(nil)
	_ share.Identifier   = (*faultyDevice)(nil)
)

// call is faulty for calls that return nothing but an error.
func (f *faultyDevice) call(ctx context.Context, op string, do func() error, partly func(Fault) error) error {
	_, err := faulty(ctx, f.s, op, func() (struct{}, error) { return struct{}{}, do() }, partly)
	return err
}

func (f *faultyDevice) Size() int64 { return f.d.Size() }

func (f *faultyDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	return f.call(ctx, "read", func() error { return f.d.ReadAt(ctx, p, off) }, nil)
}

func (f *faultyDevice) WriteAt(ctx context.Context, p []byte, off int64) error {
	return f.call(ctx, "write", func() error { return f.d.WriteAt(ctx, p, off) }, func(fault Fault) error {
		return f.some(fault, off, int64(len(p)), func(at, n int64) error { return f.d.WriteAt(ctx, p[at-off:][:n], at) })
	})
}

func (f *faultyDevice) Flush(ctx context.Context) error {
	return f.call(ctx, "flush", func() error { return f.d.Flush(ctx) }, nil)
}

func (f *faultyDevice) Close() error {
	return f.call(context.Background(), "close", f.d.Close, nil)
}

func (f *faultyDevice) Zero(ctx context.Context, off, n int64, flags share.ZeroFlags) error {
	z, ok := share.DeviceAs[share.Zeroer](f.d)
	if !ok {
		return &share.UnsupportedError{What: "zero", Reason: "the device beneath cannot"}
	}
	return f.call(ctx, "zero", func() error { return z.Zero(ctx, off, n, flags) }, func(fault Fault) error {
		return f.some(fault, off, n, func(at, n int64) error { return z.Zero(ctx, at, n, flags) })
	})
}

func (f *faultyDevice) Discard(ctx context.Context, off, n int64) error {
	return f.call(ctx, "discard", func() error { return share.DiscardRange(ctx, f.d, off, n) }, func(fault Fault) error {
		return f.some(fault, off, n, func(at, n int64) error { return share.DiscardRange(ctx, f.d, at, n) })
	})
}

func (f *faultyDevice) Extents(ctx context.Context, off, n int64) ([]share.Extent, error) {
	l, ok := share.DeviceAs[share.ExtentLister](f.d)
	if !ok {
		return nil, &share.UnsupportedError{What: "extents", Reason: "the device beneath cannot"}
	}
	return faulty(ctx, f.s, "extents", func() ([]share.Extent, error) { return l.Extents(ctx, off, n) }, nil)
}

func (f *faultyDevice) BlockSizes() share.BlockSizes { return share.SizesOf(f.d) }
func (f *faultyDevice) Identity() string             { return share.IdentityOf(f.d) }

// some does a part of a range: its beginning, or some of its sectors.
func (f *faultyDevice) some(fault Fault, off, n int64, do func(at, n int64) error) error {
	if err := share.CheckRange(f.d.Size(), off, n); err != nil {
		return err
	}
	if !fault.Torn {
		return do(off, min(fault.Part, n))
	}
	for end := off + n; off < end; {
		k := min(sectorSize-off%sectorSize, end-off)
		if f.s.tears() {
			if err := do(off, k); err != nil {
				return err
			}
		}
		off += k
	}
	return nil
}
