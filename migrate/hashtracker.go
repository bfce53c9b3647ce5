package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"

	"github.com/vmferry/vmferry/share"
)

// HashTracker is the [Tracker] of a device whose writes nobody sees: it
// remembers for each cursor a hash of every block as its consumer has it, and a
// pass reads the device and leases what differs. A pass costs the reading of
// all data, whatever has changed; a cursor that begins with [FromAll] does not
// read in its first one.
//
// The consumer must read what it leases through [HashTracker.Source], in whole
// blocks. What is remembered is what it has read there, and nothing else would
// do: a block may change between the tracker's look and the consumer's, and
// change back before the next pass, which then would find nothing new in a
// block whose copy is another. Where a block was seen with different contents
// during one lease, nobody knows which of them was copied, and it stays dirty.
//
// [Cursor.Dirty] is what is known to be dirty, or, if that is more, what the last
// pass found and this one has not yet: an estimate.
//
// The hash is BLAKE3-256 cut to 16 bytes. Memory is 16 bytes for each block of
// data and cursor, in groups of 64 blocks, and a third of a byte for each block
// of zeros: 256 MiB for a cursor over 1 TiB full of data, and 6 MiB over 1 TiB
// of zeros, in blocks of 64 KiB. All methods may be called from several
// goroutines at once.
type HashTracker struct {
	dev   share.Device
	size  int64
	block int64
	bufs  *buffers

	mu      sync.Mutex // serialises changes of cursors, and guards them
	cursors map[*hashCursor]bool
	trusted bool
}

// NewHashTracker makes a tracker for d, which stays the caller's. The
// granularity is a power of two from 512 to 64 MiB; 0 means
// [DefaultGranularity]; large blocks take less memory and find more than has
// changed.
func NewHashTracker(d share.Device, granularity int64) (*HashTracker, error) {
	b, err := NewBlockTracker(d.Size(), granularity) // for its checks and default
	if err != nil {
		return nil, err
	}
	block := b.Granularity()
	return &HashTracker{dev: d, size: d.Size(), block: block, bufs: newBuffers(readsUnderWay, max(ChunkSize, block)), cursors: map[*hashCursor]bool{}}, nil
}

// Size is the size of the device.
func (t *HashTracker) Size() int64 { return t.size }

// Granularity is the size of a block.
func (t *HashTracker) Granularity() int64 { return t.block }

// Trust says that [HashTracker.Mark] is told of every change from now on, so
// that passes need not read the device: the hashes are kept for the day when
// what tells of the changes has lost its memory, and [HashTracker.Doubt] is
// called.
func (t *HashTracker) Trust() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trusted = true
}

// Mark makes n bytes from off dirty for every cursor, without a look at them.
// What lies outside the device is passed over. A change is marked before Source
// shows it.
func (t *HashTracker) Mark(off, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.cursors {
		c.inner.t.Mark(off, n)
	}
}

// Doubt says that something may have changed that was not marked: the next pass
// that a cursor begins compares all that is not dirty. Until it does, all of
// the device counts as dirty.
func (t *HashTracker) Doubt() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.cursors {
		c.mu.Lock()
		c.doubt = true
		c.mu.Unlock()
	}
}

func (t *HashTracker) isTrusted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.trusted
}

// NewCursor begins to collect changes; see [Tracker]. With [FromNow] it reads
// the device, and what is written meanwhile may or may not count as seen.
func (t *HashTracker) NewCursor(ctx context.Context, from From) (Cursor, error) {
	if from == FromAll {
		return t.newCursor(from), nil
	}
	return t.NewCursorOf(ctx, t.dev)
}

// NewCursorOf begins to collect changes for a consumer whose copy is held: what
// differs from it is dirty. It reads all of held, which must not change
// meanwhile, and does not keep it. It is how a consumer goes on after its
// tracker lost the thread, and does not begin anew.
func (t *HashTracker) NewCursorOf(ctx context.Context, held share.Device) (Cursor, error) {
	if held.Size() < t.size {
		return nil, fmt.Errorf("%w: a device of %d bytes holds no copy of one of %d", share.ErrInvalid, held.Size(), t.size)
	}
	c := t.newCursor(FromNow)
	runs := runList{dev: held, size: t.size, block: t.block}
	for at := int64(0); at < c.blocks(); {
		end, zero, err := runs.at(ctx, at)
		if err == nil && !zero { // zeros are what a cursor begins with
			err = t.eachHash(ctx, held, at, end, func(int64) uint64 { return ^uint64(0) }, c.hold)
		}
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("hashes of what the consumer has: %w", err)
		}
		at = end
	}
	return c, nil
}

func (t *HashTracker) newCursor(from From) *hashCursor {
	own, _ := NewBlockTracker(t.size, t.block) // checked in NewHashTracker
	inner, _ := own.NewCursor(context.Background(), from)
	c := &hashCursor{t: t, inner: inner.(*blockCursor), turn: make(chan struct{}, 1), read: map[int64]seen{}}
	c.held.init(c.blocks())
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cursors[c] = true
	return c
}

// hashCursor is a [Cursor] of a [HashTracker]. What is known to be dirty, and
// what is leased, is in a cursor over blocks. A pass compares ahead of what it
// leases, and adds to that cursor what it finds.
type hashCursor struct {
	t     *HashTracker
	inner *blockCursor

	turn     chan struct{} // held by who leases
	begun    bool          // under turn: a pass is under way
	compares bool          // under turn: this pass does not rely on marks
	frontier int64         // under turn: the first block that the pass has not compared
	ahead    int64         // under turn: blocks before the frontier that the pass may lease yet

	mu    sync.Mutex     // before inner's
	doubt bool           // the next pass compares
	last  int64          // bytes leased in the last whole pass
	found int64          // bytes leased in this pass
	held  blockHashes    // what the consumer has, of blocks that are neither dirty nor leased
	read  map[int64]seen // what leased blocks were read as
}

// seen is what came of reading a block while it was leased.
type seen struct {
	hash blockHash
	torn bool // it was read twice, with different content
}

func (c *hashCursor) blocks() int64 { return (c.t.size + c.t.block - 1) / c.t.block }

func (c *hashCursor) Lease(ctx context.Context, max int64) (*Lease, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if !c.begun {
		trusted := c.t.isTrusted()
		c.mu.Lock()
		c.begun, c.compares, c.doubt = true, !trusted || c.doubt, false
		c.mu.Unlock()
	}
	if c.compares {
		if err := c.scan(ctx, max/c.t.block); err != nil {
			return nil, err
		}
	}
	l, err := c.inner.Lease(ctx, max)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == io.EOF:
		c.begun, c.frontier, c.ahead = false, 0, 0
		c.last, c.found = c.found, 0
	case err == nil:
		c.found += l.Bytes()
		c.eachBlock(l, func(i int64) {
			c.ahead--
			delete(c.read, i) // an earlier lease's
		})
	}
	return l, err
}

// scan compares blocks until the pass may lease want of them, or the device
// ends. So a lease of that many never goes beyond what is compared.
func (c *hashCursor) scan(ctx context.Context, want int64) error {
	c.ahead = max(0, c.ahead) // what came back by a Nack was not counted
	runs := runList{dev: c.t.dev, size: c.t.size, block: c.t.block}
	for c.ahead < max(1, want) && c.frontier < c.blocks() {
		if c.isClosed() {
			return fmt.Errorf("cursor %w", share.ErrClosed)
		}
		// Blocks that have no hash to be compared with need not be read.
		end := min(c.frontier&^63+64, c.blocks())
		if mask := wordMask(c.frontier>>6, c.frontier, end-1); c.comparable(c.frontier>>6)&mask != 0 {
			var zero bool
			var err error
			if end, zero, err = runs.at(ctx, c.frontier); err != nil {
				return fmt.Errorf("compare by hash: %w", err)
			}
			if zero {
				c.compareZeros(c.frontier, end)
			} else {
				end = min(end, c.frontier+max(1, scanBatch/c.t.block))
				if err := c.t.eachHash(ctx, c.t.dev, c.frontier, end, c.comparable, c.compare); err != nil {
					return fmt.Errorf("compare by hash: %w", err)
				}
			}
		}
		for w := c.frontier >> 6; w <= (end-1)>>6; w++ {
			c.ahead += int64(bits.OnesCount64(c.leasable(w) & wordMask(w, c.frontier, end-1)))
		}
		c.frontier = end
	}
	return nil
}

// scanBatch is how many bytes are compared before they are counted.
const scanBatch = 16 << 20

// leasable has the blocks of word w that are dirty and not leased.
func (c *hashCursor) leasable(w int64) uint64 {
	c.inner.mu.Lock()
	defer c.inner.mu.Unlock()
	return c.inner.dirty.levels[0][w].Load() &^ c.inner.leased[w]
}

// comparable has the blocks of word w that are neither dirty nor leased.
func (c *hashCursor) comparable(w int64) uint64 {
	c.inner.mu.Lock()
	defer c.inner.mu.Unlock()
	return ^(c.inner.dirty.levels[0][w].Load() | c.inner.leased[w])
}

// compare makes block i dirty if h is not what the consumer has.
func (c *hashCursor) compare(i int64, h blockHash) {
	c.mu.Lock()
	same := c.held.get(i) == h
	c.mu.Unlock()
	if !same {
		c.inner.dirty.mark(i)
	}
}

// compareZeros is compare for zeros from block first to before end.
func (c *hashCursor) compareZeros(first, end int64) {
	for w := first >> 6; w <= (end-1)>>6; w++ {
		c.mu.Lock()
		data := c.held.groups[w] != nil
		c.mu.Unlock()
		if !data {
			continue
		}
		for m := c.comparable(w) & wordMask(w, first, end-1); m != 0; m &= m - 1 {
			c.compare(w<<6+int64(bits.TrailingZeros64(m)), blockHash{})
		}
	}
}

// hold takes h as what the consumer has of block i.
func (c *hashCursor) hold(i int64, h blockHash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held.set(i, h)
}

func (c *hashCursor) isClosed() bool {
	c.inner.mu.Lock()
	defer c.inner.mu.Unlock()
	return c.inner.closed
}

// leasedIn reports whether any block from first to last, both included, is
// leased.
func (c *hashCursor) leasedIn(first, last int64) bool {
	c.inner.mu.Lock()
	defer c.inner.mu.Unlock()
	if c.inner.under == 0 {
		return false
	}
	for w := first >> 6; w <= last>>6; w++ {
		if c.inner.leased[w]&wordMask(w, first, last) != 0 {
			return true
		}
	}
	return false
}

// observe notes what a leased block was read as, by whichever consumer.
func (c *hashCursor) observe(i int64, h blockHash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, again := c.read[i]
	if !again {
		s.hash = h
	}
	s.torn = s.torn || s.hash != h
	c.read[i] = s
}

// Ack remembers what the lease's blocks were read as; see [Cursor]. Where one
// was not read through [HashTracker.Source] it is an error wrapping
// [share.ErrInvalid], and the lease is as after Nack.
func (c *hashCursor) Ack(l *Lease) error {
	if !c.isOpen(l) {
		return c.inner.Ack(l) // which knows the error
	}
	if off := c.learn(l); off >= 0 {
		return errors.Join(fmt.Errorf("%w: the block at %d was acknowledged, and not read through the tracker's source", share.ErrInvalid, off), c.inner.Nack(l))
	}
	return c.inner.Ack(l)
}

// learn takes what the blocks of l were read as for what the consumer has, and
// returns the offset of one that was not read, or -1.
func (c *hashCursor) learn(l *Lease) (unread int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	unread = -1
	c.eachBlock(l, func(i int64) {
		s, ok := c.read[i]
		delete(c.read, i)
		switch {
		case !ok:
			unread = i * c.t.block
		case s.torn:
			c.inner.dirty.mark(i)
		default:
			c.held.set(i, s.hash)
		}
	})
	return unread
}

func (c *hashCursor) Nack(l *Lease) error {
	if c.isOpen(l) {
		c.mu.Lock()
		c.eachBlock(l, func(i int64) { delete(c.read, i) })
		c.mu.Unlock()
	}
	return c.inner.Nack(l)
}

func (c *hashCursor) eachBlock(l *Lease, f func(i int64)) {
	for _, r := range l.Ranges {
		for i := r.Off / c.t.block; i*c.t.block < r.End(); i++ {
			f(i)
		}
	}
}

func (c *hashCursor) isOpen(l *Lease) bool {
	c.inner.mu.Lock()
	defer c.inner.mu.Unlock()
	return c.inner.open[l] && !c.inner.closed
}

func (c *hashCursor) Dirty() int64 {
	known, trusted := c.inner.Dirty(), c.t.isTrusted()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.doubt:
		return c.t.size - c.inner.Leased()
	case trusted:
		return known
	}
	return max(known, c.last-c.found)
}

func (c *hashCursor) Leased() int64 { return c.inner.Leased() }

func (c *hashCursor) Close() error {
	c.t.mu.Lock()
	delete(c.t.cursors, c)
	c.t.mu.Unlock()
	return c.inner.Close()
}
