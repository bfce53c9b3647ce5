package share

import (
	"context"
	"errors"
	"fmt"
)

// zeroChunk is the most that ZeroRange writes at once where it has to write
// zeros: large enough to be cheap, small enough to heed a cancellation.
const zeroChunk = 256 << 10

var zeros [zeroChunk]byte

// ZeroRange makes n bytes from off read as zeros, with [Zeroer] where d has
// it, else by writing zeros. With [ZeroFast] it does not write zeros, and
// returns an error wrapping errors.ErrUnsupported instead.
func ZeroRange(ctx context.Context, d Device, off, n int64, flags ZeroFlags) error {
	if err := CheckRange(d.Size(), off, n); err != nil {
		return err
	}
	if z, ok := DeviceAs[Zeroer](d); ok {
		err := z.Zero(ctx, off, n, flags)
		if err == nil || flags&ZeroFast != 0 || !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	if flags&ZeroFast != 0 {
		return fmt.Errorf("fast zeroing: %w", errors.ErrUnsupported)
	}
	chunk := int64(zeroChunk)
	if m := SizesOf(d).Maximum; m > 0 {
		chunk = min(chunk, m)
	}
	for n > 0 {
		k := min(n, chunk)
		if err := d.WriteAt(ctx, zeros[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// DiscardRange gives the space of n bytes from off back where d can, and does
// nothing where it cannot: a discard is a hint.
func DiscardRange(ctx context.Context, d Device, off, n int64) error {
	if err := CheckRange(d.Size(), off, n); err != nil {
		return err
	}
	if t, ok := DeviceAs[Discarder](d); ok {
		if err := t.Discard(ctx, off, n); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	return nil
}

// ListExtents describes all n bytes from off, neighbours of one state merged.
// A device that cannot tell is all data. What a device answers is checked: a
// gap, an overlap or an empty extent is an error, never a skipped range.
func ListExtents(ctx context.Context, d Device, off, n int64) ([]Extent, error) {
	if err := CheckRange(d.Size(), off, n); err != nil {
		return nil, err
	}
	l, ok := DeviceAs[ExtentLister](d)
	if !ok {
		return dataExtent(off, n), nil
	}
	var all []Extent
	for start, end := off, off+n; off < end; {
		part, err := l.Extents(ctx, off, end-off)
		if errors.Is(err, errors.ErrUnsupported) && off == start {
			return dataExtent(off, n), nil
		}
		if err != nil {
			return nil, err
		}
		if len(part) == 0 {
			return nil, fmt.Errorf("extents of %d+%d: the device described nothing", off, end-off)
		}
		for _, e := range part {
			if e.Off != off || e.Len <= 0 || e.Len > end-off {
				return nil, fmt.Errorf("extents of %d+%d: the device answered %v", off, end-off, e)
			}
			off = e.End()
			if k := len(all); k > 0 && all[k-1].State == e.State {
				all[k-1].Len += e.Len
				continue
			}
			all = append(all, e)
		}
	}
	return all, nil
}

func dataExtent(off, n int64) []Extent {
	if n == 0 {
		return nil
	}
	return []Extent{{Off: off, Len: n}}
}
