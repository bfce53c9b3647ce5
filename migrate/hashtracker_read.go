package migrate

import (
	"context"
	"fmt"
	"math/bits"

	"golang.org/x/sync/errgroup"

	"github.com/vmferry/vmferry/share"
)

// eachHash runs f, in any order and from several goroutines, with the hash of
// each block from first to before end of d; wanted has those of one word that
// are asked for.
func (t *HashTracker) eachHash(ctx context.Context, d share.Device, first, end int64, wanted func(w int64) uint64, f func(i int64, h blockHash)) error {
	g, gctx := errgroup.WithContext(ctx)
	read := func(part Range, buf []byte) error {
		if err := d.ReadAt(gctx, buf, part.Off); err != nil {
			return fmt.Errorf("read at %d: %w", part.Off, err)
		}
		for i := part.Off / t.block; len(buf) > 0; i++ {
			k := min(t.block, int64(len(buf)))
			f(i, hashOf(buf[:k]))
			buf = buf[k:]
		}
		return nil
	}
	var run Range // of wanted blocks, not read yet
	var err error
	flush := func() {
		if err == nil && run.Len > 0 {
			err = t.bufs.each(gctx, g, run, read)
		}
		run = Range{}
	}
	for w := first >> 6; w <= (end-1)>>6; w++ {
		for m := wanted(w) & wordMask(w, first, end-1); m != 0; {
			lo := bits.TrailingZeros64(m)
			n := bits.TrailingZeros64(^(m >> lo))
			off := (w<<6 + int64(lo)) * t.block
			if run.End() != off {
				flush()
				run.Off = off
			}
			run.Len = min(off+int64(n)*t.block, t.size) - run.Off
			if lo+n == 64 {
				break
			}
			m &^= (1<<n - 1) << lo
		}
	}
	flush()
	// Where a read failed, what ended each is only its consequence.
	if failed := g.Wait(); failed != nil {
		return failed
	}
	return err
}

// runList tells data from zeros, with borders at blocks. It remembers what the
// device said last, and so is made anew for each look.
type runList struct {
	dev         share.Device
	size, block int64

	zeros      []Range
	begin, end int64 // the bytes that zeros describe
}

// runWindow is how many bytes are asked for at once.
const runWindow = 1 << 30

// at returns the first block behind the run that block i is in, and whether it
// is zeros.
func (r *runList) at(ctx context.Context, i int64) (end int64, zero bool, err error) {
	off := i * r.block
	if off < r.begin || off >= r.end {
		r.begin, r.end = off, min(off+roundUp(runWindow, r.block), r.size)
		extents, err := share.ListExtents(ctx, r.dev, off, r.end-off)
		if err != nil {
			return 0, false, fmt.Errorf("extents at %d: %w", off, err)
		}
		r.zeros = wholeZeros(extents, r.block, r.end)
	}
	blocks := func(end int64) int64 { return (end + r.block - 1) / r.block }
	for len(r.zeros) > 0 && r.zeros[0].End() <= off {
		r.zeros = r.zeros[1:]
	}
	switch {
	case len(r.zeros) == 0:
		return blocks(r.end), false, nil
	case r.zeros[0].Off <= off:
		return blocks(r.zeros[0].End()), true, nil
	}
	return blocks(r.zeros[0].Off), false, nil
}

// wholeZeros returns the runs of whole blocks that extents say are zeros. A
// block that ends at end is whole.
func wholeZeros(extents []share.Extent, block, end int64) (out []Range) {
	for k := 0; k < len(extents); k++ {
		if !extents[k].State.Zero() {
			continue
		}
		from := roundUp(extents[k].Off, block)
		for k+1 < len(extents) && extents[k+1].State.Zero() { // a hole beside allocated zeros
			k++
		}
		to := extents[k].End()
		if to != end {
			to = to / block * block
		}
		if to > from {
			out = append(out, Range{from, to - from})
		}
	}
	return out
}
