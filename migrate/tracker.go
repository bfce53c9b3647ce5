package migrate

import (
	"context"
	"fmt"
	"io"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/vmferry/vmferry/share"
)

// Tracker knows which blocks of a device changed. Each consumer, such as a
// migration or a backup, has a [Cursor] of its own, and takes nothing away from
// the others.
type Tracker interface {
	// Size is the size of the tracked device in bytes.
	Size() int64
	// Granularity is the size of a block in bytes, a power of two.
	Granularity() int64
	// NewCursor begins to collect changes for one consumer. Every write that
	// begins after NewCursor returned is seen.
	NewCursor(ctx context.Context, from From) (Cursor, error)
}

// From says what counts as dirty when a cursor begins.
type From uint8

const (
	// FromAll: every block is dirty, because the consumer has nothing yet.
	FromAll From = iota
	// FromNow: only what changes from now on, because the consumer has the
	// rest.
	FromNow
)

// Cursor hands dirty blocks to one consumer. A block is in one of three
// states: clean, dirty, or leased. Lease takes dirty blocks out; Ack makes them
// clean; Nack, or never answering, leaves them dirty. A leased block that is
// written to again is dirty as well, and is not leased again before the first
// lease is answered: two generations of one block are never under way at once.
//
// All methods may be called from several goroutines at once.
type Cursor interface {
	// Lease takes up to max bytes of dirty blocks, at least one block, in
	// ascending order from where the last lease ended. When it has gone over
	// all of the device it returns io.EOF, which ends a pass; the next Lease
	// begins another. Blocks that are leased are passed over. A cursor may go
	// over the device more than once in a pass, to keep blocks for the end
	// that are likely to be written again.
	Lease(ctx context.Context, max int64) (*Lease, error)
	// Ack says that the consumer holds the content of the lease durably: read
	// after the lease was given, written, and flushed.
	Ack(l *Lease) error
	// Nack says that it does not, or may not. The blocks are dirty again.
	Nack(l *Lease) error
	// Dirty is the number of bytes that are dirty and not leased.
	Dirty() int64
	// Leased is the number of bytes under lease.
	Leased() int64
	// Close ends the collecting. Leases not answered are forgotten. A second
	// Close returns nil.
	Close() error
}

// Range is a run of bytes of a device.
type Range struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// End is the offset behind the range.
func (r Range) End() int64 { return r.Off + r.Len }

// Lease is a batch of dirty blocks given to a consumer.
type Lease struct {
	// Generation counts a cursor's leases from 1. A block leased later has a
	// greater one.
	Generation uint64
	// Ranges are in ascending order, do not touch, begin at multiples of the
	// granularity, and end there or at the end of the device.
	Ranges []Range
}

// Bytes is the sum of the ranges' lengths.
func (l *Lease) Bytes() int64 {
	var n int64
	for _, r := range l.Ranges {
		n += r.Len
	}
	return n
}

// DefaultGranularity is the block size of trackers that are not told another
// one: 64 KiB, QEMU's own.
const DefaultGranularity = 64 << 10

// BlockTracker is the [Tracker] of a device whose writes pass through this
// program; see [Track]. Its memory is four bits a block and cursor: 8 MiB for a
// cursor over 1 TiB at 64 KiB.
type BlockTracker struct {
	size  int64
	shift uint
	mu    sync.Mutex // serialises changes of cursors
	// cursors is replaced as a whole, so that Mark reads it without a lock.
	cursors atomic.Pointer[[]*blockCursor]
}

// NewBlockTracker makes a tracker for a device of size bytes. The granularity
// is a power of two from 512 to 64 MiB; 0 means [DefaultGranularity].
func NewBlockTracker(size, granularity int64) (*BlockTracker, error) {
	if granularity == 0 {
		granularity = DefaultGranularity
	}
	if size < 0 || granularity < 512 || granularity > 64<<20 || granularity&(granularity-1) != 0 {
		return nil, fmt.Errorf("%w: a tracker of %d bytes with a granularity of %d; it is a power of two from 512 to 64 MiB", share.ErrInvalid, size, granularity)
	}
	t := &BlockTracker{size: size, shift: uint(bits.TrailingZeros64(uint64(granularity)))}
	t.cursors.Store(new([]*blockCursor))
	return t, nil
}

// Size is the size of the tracked device.
func (t *BlockTracker) Size() int64 { return t.size }

// Granularity is the size of a block.
func (t *BlockTracker) Granularity() int64 { return 1 << t.shift }

// Mark makes n bytes from off dirty for every cursor. What lies outside the
// device is passed over. Call it before a write is submitted, so that the write
// is known whatever comes of it, and again when it has ended, before that is
// told to anyone: a lease in between may have read the old bytes.
func (t *BlockTracker) Mark(off, n int64) {
	if off < 0 {
		off, n = 0, n+off
	}
	n = min(n, t.size-off)
	if n <= 0 {
		return
	}
	first, last := off>>t.shift, (off+n-1)>>t.shift
	for _, c := range *t.cursors.Load() {
		if first == last {
			c.dirty.mark(first)
		} else {
			c.dirty.markRange(first, last)
		}
	}
}

// NewCursor begins to collect changes; see [Tracker].
func (t *BlockTracker) NewCursor(_ context.Context, from From) (Cursor, error) {
	blocks := (t.size + 1<<t.shift - 1) >> t.shift
	words := (blocks + 63) / 64
	c := &blockCursor{t: t, dirty: newDirtySet(blocks), leased: make([]uint64, words), open: map[*Lease]bool{},
		before: passSet{words: make([]uint64, words)}, now: passSet{words: make([]uint64, words)}}
	if from == FromAll && blocks > 0 {
		c.dirty.markRange(0, blocks-1)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	list := append(append([]*blockCursor(nil), *t.cursors.Load()...), c)
	t.cursors.Store(&list)
	return c, nil
}

func (t *BlockTracker) remove(c *blockCursor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*blockCursor
	for _, o := range *t.cursors.Load() {
		if o != c {
			list = append(list, o)
		}
	}
	t.cursors.Store(&list)
}

// blockCursor is a [Cursor] of a [BlockTracker].
type blockCursor struct {
	t     *BlockTracker
	dirty *dirtySet // marked without a lock

	mu     sync.Mutex
	leased []uint64 // a bit a block, as in dirty's level 0
	open   map[*Lease]bool
	under  int64 // bytes leased
	hand   int64 // the block at which the next lease begins
	gen    uint64
	closed bool

	// A block that was leased in the pass before, and is dirty again, is hot:
	// it will be written once more, and the later it goes the less often it
	// goes. So a pass takes the others first.
	before, now passSet
	hotOnes     bool // the pass has come to the hot ones
}

// passSet are the blocks that were leased in a pass.
type passSet struct {
	words []uint64
	used  []int64 // the words that are not zero, so that clearing costs no more
}

func (p *passSet) add(w int64, set uint64) {
	if p.words[w] == 0 && set != 0 {
		p.used = append(p.used, w)
	}
	p.words[w] |= set
}

func (p *passSet) clear() {
	for _, w := range p.used {
		p.words[w] = 0
	}
	p.used = p.used[:0]
}

func (c *blockCursor) Lease(ctx context.Context, max int64) (*Lease, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("cursor %w", share.ErrClosed)
	}
	want := max >> c.t.shift
	if want < 1 {
		want = 1
	}
	l := &Lease{}
	c.collect(l, want)
	if len(l.Ranges) == 0 && !c.hotOnes {
		c.hotOnes, c.hand = true, 0
		c.collect(l, want)
	}
	if len(l.Ranges) == 0 {
		c.hotOnes, c.hand = false, 0
		c.before, c.now = c.now, c.before
		c.now.clear()
		return nil, io.EOF
	}
	c.gen++
	l.Generation = c.gen
	c.under += l.Bytes()
	c.open[l] = true
	return l, nil
}

// collect adds up to want dirty blocks, from the hand on, to l.
func (c *blockCursor) collect(l *Lease, want int64) {
	for w := c.dirty.next(c.hand >> 6); w >= 0 && want > 0; w = c.dirty.next(w + 1) {
		mask := ^c.leased[w]
		if c.hotOnes {
			mask &= c.before.words[w]
		} else {
			mask &^= c.before.words[w]
		}
		if w == c.hand>>6 {
			mask &= ^uint64(0) << (c.hand & 63)
		}
		mask &= c.dirty.levels[0][w].Load()
		for int64(bits.OnesCount64(mask)) > want { // keep the lowest
			mask &^= 1 << (63 - bits.LeadingZeros64(mask))
		}
		got := c.dirty.take(w, mask)
		c.leased[w] |= got
		c.now.add(w, got)
		want -= int64(bits.OnesCount64(got))
		l.add(c.t, w<<6, got)
		if got != 0 {
			c.hand = w<<6 + int64(64-bits.LeadingZeros64(got))
		}
	}
}

// add appends the blocks first+i for each bit i of set.
func (l *Lease) add(t *BlockTracker, first int64, set uint64) {
	for set != 0 {
		lo := bits.TrailingZeros64(set)
		run := bits.TrailingZeros64(^(set >> lo))
		off := (first + int64(lo)) << t.shift
		end := min(off+int64(run)<<t.shift, t.size)
		if k := len(l.Ranges); k > 0 && l.Ranges[k-1].End() == off {
			l.Ranges[k-1].Len = end - l.Ranges[k-1].Off
		} else {
			l.Ranges = append(l.Ranges, Range{off, end - off})
		}
		if lo+run == 64 {
			return
		}
		set &^= (1<<run - 1) << lo
	}
}

func (c *blockCursor) Ack(l *Lease) error { return c.answer(l, false) }

func (c *blockCursor) Nack(l *Lease) error { return c.answer(l, true) }

func (c *blockCursor) answer(l *Lease, dirty bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("cursor %w", share.ErrClosed)
	}
	if !c.open[l] {
		return fmt.Errorf("%w: the lease is not under way; it was answered, or is another cursor's", share.ErrInvalid)
	}
	delete(c.open, l)
	for _, r := range l.Ranges {
		first, last := r.Off>>c.t.shift, (r.End()-1)>>c.t.shift
		if dirty {
			c.dirty.markRange(first, last)
		}
		for w := first >> 6; w <= last>>6; w++ {
			c.leased[w] &^= wordMask(w, first, last)
		}
		c.under -= r.Len
	}
	return nil
}

func (c *blockCursor) Dirty() int64 {
	n := c.dirty.count() << c.t.shift
	// The last block may be short.
	if tail := c.t.size & (1<<c.t.shift - 1); tail != 0 {
		i := c.t.size >> c.t.shift
		if c.dirty.levels[0][i>>6].Load()&(1<<(i&63)) != 0 {
			n -= 1<<c.t.shift - tail
		}
	}
	return n
}

func (c *blockCursor) Leased() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.under
}

func (c *blockCursor) Close() error {
	c.mu.Lock()
	done := c.closed
	c.closed = true
	c.mu.Unlock()
	if !done {
		c.t.remove(c)
	}
	return nil
}
