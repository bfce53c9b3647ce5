package migrate

import (
	"cmp"
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/vmferry/vmferry/share"
)

// target is the far end of the copy of one disk: a device that this program
// has open, or a [Receiver] on another host. Offsets and lengths are whole
// blocks, except at the end of the disk. All methods may be called from several
// goroutines at once, but never with ranges that overlap.
type target interface {
	// blank returns the blocks that read as zeros and need not be told so.
	blank(ctx context.Context) ([]Range, error)
	// write puts p at off; leaves are its blocks' hashes. Older than what is
	// there is a [*StaleError].
	write(ctx context.Context, st Stamp, off int64, p []byte, leaves []hash) error
	// zero makes a range zero.
	zero(ctx context.Context, st Stamp, r Range) error
	// commit makes durable, and proves as far as the target can, what was
	// written to the ranges before.
	commit(ctx context.Context, written []Range) error
	// hashes returns the hashes of the blocks of r as the disk holds them now.
	hashes(ctx context.Context, r Range) ([]hash, error)
	// root returns the root of the hash tree over the disk: of what was read
	// back where that is done, else of what was written.
	root(ctx context.Context) (string, error)
	// proof says what root stands on, for the result: "read back", "received".
	proof() string
}

// Stamp orders writes to one disk. The epoch counts the attempts to copy it,
// the generation a cursor's leases within one.
type Stamp struct{ Epoch, Generation uint64 }

// deviceTarget is the target that is a device open in this program. The
// receiver uses it for the disks that it receives, too.
type deviceTarget struct {
	dev         share.Device
	size, block int64
	readBack    bool
	// bufs are the target's own: a caller may hold one of its own while it
	// waits for one of these.
	bufs  *buffers
	fence fence

	// zeros are the blocks that are known to read as zeros; known those whose
	// leaf in held is true.
	zeros, known *blockSet
	held         *hashTree
}

// readsUnderWay is how many reads of a target are under way at once, for
// hashing and for reading back.
const readsUnderWay = 8

// newDeviceTarget makes the target of the first size bytes of dev.
func newDeviceTarget(dev share.Device, size, block int64, readBack bool) *deviceTarget {
	return &deviceTarget{dev: dev, size: size, block: block, readBack: readBack, bufs: newBuffers(readsUnderWay, max(ChunkSize, block)), fence: fence{block: block},
		zeros: newBlockSet(size, block), known: newBlockSet(size, block), held: newHashTree(size, block)}
}

func (t *deviceTarget) proof() string {
	if t.readBack {
		return "read back"
	}
	return "none"
}

func (t *deviceTarget) blank(ctx context.Context) ([]Range, error) {
	extents, err := share.ListExtents(ctx, t.dev, 0, t.size)
	if err != nil {
		return nil, fmt.Errorf("extents of the destination: %w", err)
	}
	var out []Range
	for _, e := range extents {
		first, end := roundUp(e.Off, t.block), e.End()/t.block*t.block
		if e.End() == t.size {
			end = t.size
		}
		if e.State.Zero() && end > first {
			out = append(out, Range{first, end - first})
			t.held.setZero(first, end-first)
			t.zeros.add(first, end-first)
			t.known.add(first, end-first)
		}
	}
	return out, nil
}

func (t *deviceTarget) write(ctx context.Context, st Stamp, off int64, p []byte, leaves []hash) error {
	r := Range{off, int64(len(p))}
	if err := t.begin(st, r); err != nil {
		return err
	}
	if err := t.dev.WriteAt(ctx, p, off); err != nil {
		return fmt.Errorf("write the destination at %d: %w", off, err)
	}
	t.held.setLeaves(off/t.block, leaves)
	t.known.add(r.Off, r.Len)
	return nil
}

func (t *deviceTarget) zero(ctx context.Context, st Stamp, r Range) error {
	if t.zeros.has(r.Off, r.Len) {
		return nil
	}
	if err := t.begin(st, r); err != nil {
		return err
	}
	if err := share.ZeroRange(ctx, t.dev, r.Off, r.Len, 0); err != nil {
		return fmt.Errorf("zero the destination at %d: %w", r.Off, err)
	}
	t.held.setZero(r.Off, r.Len)
	t.known.add(r.Off, r.Len)
	return nil
}

// begin refuses what is stale, and forgets what was known of the range: from
// here until the write has succeeded nothing is.
func (t *deviceTarget) begin(st Stamp, r Range) error {
	if err := t.fence.admit(r, st); err != nil {
		return err
	}
	t.zeros.remove(r.Off, r.Len)
	t.known.remove(r.Off, r.Len)
	return nil
}

func (t *deviceTarget) commit(ctx context.Context, written []Range) error {
	if err := t.dev.Flush(ctx); err != nil {
		return fmt.Errorf("flush the destination: %w", err)
	}
	if !t.readBack {
		return nil
	}
	return t.eachChunk(ctx, written, func(ctx context.Context, r Range, buf []byte) error {
		if err := t.dev.ReadAt(ctx, buf, r.Off); err != nil {
			return fmt.Errorf("read the destination back at %d: %w", r.Off, err)
		}
		for i, h := range hashBlocks(buf, t.block) {
			off := r.Off + int64(i)*t.block
			if h != t.held.leaf(off/t.block) {
				return &DivergedError{Off: off, Len: min(t.block, r.End()-off)}
			}
		}
		return nil
	})
}

func (t *deviceTarget) hashes(ctx context.Context, r Range) ([]hash, error) {
	out := make([]hash, (r.Len+t.block-1)/t.block)
	err := t.eachChunk(ctx, []Range{r}, func(ctx context.Context, part Range, buf []byte) error {
		if err := t.dev.ReadAt(ctx, buf, part.Off); err != nil {
			return fmt.Errorf("read the destination at %d: %w", part.Off, err)
		}
		copy(out[(part.Off-r.Off)/t.block:], hashBlocks(buf, t.block))
		return nil
	})
	if err != nil {
		return nil, err
	}
	t.held.setLeaves(r.Off/t.block, out)
	t.known.add(r.Off, r.Len)
	return out, nil
}

func (t *deviceTarget) root(ctx context.Context) (string, error) {
	// What nobody has written or asked for is read now.
	for _, r := range t.known.missing() {
		if _, err := t.hashes(ctx, r); err != nil {
			return "", err
		}
	}
	return t.held.root(), nil
}

// eachChunk runs f for the parts of the ranges, several at once, each with a
// buffer of its length.
func (t *deviceTarget) eachChunk(ctx context.Context, ranges []Range, f func(ctx context.Context, r Range, buf []byte) error) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, r := range ranges {
		if err := t.bufs.each(gctx, g, r, func(part Range, buf []byte) error { return f(gctx, part, buf) }); err != nil {
			return cmp.Or(g.Wait(), err)
		}
	}
	return g.Wait()
}

// buffers are the memory that a copy may use for data: as many chunks as may be
// under way at once.
type buffers struct {
	free chan []byte
	size int64
}

func newBuffers(n int, size int64) *buffers {
	b := &buffers{free: make(chan []byte, n), size: size}
	for range n {
		b.free <- nil // made when first used
	}
	return b
}

// each runs f within g for the parts of r, each with a buffer of its length, as
// many at once as there are buffers.
func (b *buffers) each(ctx context.Context, g *errgroup.Group, r Range, f func(part Range, buf []byte) error) error {
	for off := r.Off; off < r.End(); {
		var buf []byte
		select {
		case buf = <-b.free:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if buf == nil {
			buf = make([]byte, b.size)
		}
		part := Range{off, min(b.size, r.End()-off)}
		g.Go(func() error {
			defer func() { b.free <- buf }()
			return f(part, buf[:part.Len])
		})
		off += part.Len
	}
	return nil
}
