package migrate

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmferry/vmferry/share"
)

// diskCopy makes one destination equal to its source, a lease at a time:
//
//	lease → read → hash → write → flush → read back → compare → acknowledge
//
// The order is what makes a clean block mean something: the content was read
// after the lease, so a later write is a new mark; and the lease is answered
// only when the destination has flushed, and has given back, what was written.
type diskCopy struct {
	DiskMove
	opts   Options
	target target
	cursor Cursor
	block  int64
	epoch  uint64
	bufs   *buffers
	// sent are the hashes of what was read from the source.
	sent *hashTree
	// suspects are the blocks that the destination may have from an earlier
	// attempt: they are compared before they are sent. Where something is known
	// to have arrived, more has that nobody wrote down.
	suspects *blockSet
	// arrived is called with what the destination has durably.
	arrived func([]Range)
	// unwritten are the blocks that the destination is known to read as zeros,
	// because it says so and nothing was written to them.
	unwritten *blockSet

	takenBytes, sentBytes, zeroBytes, sameBytes atomic.Int64
	back                                        *Base        // the ticket that is left in the result
	told                                        atomic.Int64 // when the figures were brought up to date, in nanoseconds
	// hurry: the guest stands still, and no throttle counts.
	hurry atomic.Bool
}

// leasesUnderWay lets one lease be read and written while the one before it is
// flushed and read back.
const leasesUnderWay = 2

func newDiskCopy(d DiskMove, o Options) *diskCopy {
	block, size := d.Tracker.Granularity(), d.Source.Size()
	return &diskCopy{DiskMove: d, opts: o, block: block, bufs: newBuffers(o.Streams, max(ChunkSize, block)),
		sent: newHashTree(size, block), unwritten: newBlockSet(size, block), suspects: newBlockSet(size, block)}
}

// reach opens the way to the destination, and makes sure that it is the right
// one: sizes and identities are compared again, because time has passed.
func (c *diskCopy) reach(ctx context.Context, attempt uint64) error {
	c.epoch = attempt
	if c.Remote == nil {
		c.target = newDeviceTarget(c.Destination, c.Source.Size(), c.block, !c.opts.NoReadBack)
		return c.checkDestination(c.Destination.Size(), c.destinationID())
	}
	t, err := c.Remote.dial(ctx, c.Source.Size(), c.block, c.epoch)
	if err != nil {
		return err
	}
	c.target = t
	return c.checkDestination(t.welcome.Size, c.destinationID())
}

// destinationID is the identity of what was reached.
func (c *diskCopy) destinationID() string {
	if t, ok := c.target.(*remoteTarget); ok {
		return t.welcome.Identity
	}
	return share.IdentityOf(c.Destination)
}

// open begins to track, and asks the destination what it need not be told.
func (c *diskCopy) open(ctx context.Context) error {
	blank, err := c.target.blank(ctx)
	if err != nil {
		return err
	}
	if size := c.Source.Size(); size > 0 && c.suspects.any(0, size) {
		c.suspects.add(0, size)
	}
	for _, r := range blank {
		c.unwritten.add(r.Off, r.Len)
		c.suspects.remove(r.Off, r.Len)
	}
	if c.Base != nil {
		cursor, tree, err := c.Base.take(c.Source.Size(), c.block)
		if err == nil {
			c.cursor, c.sent = cursor, tree
		}
		return err
	}
	c.cursor, err = c.Tracker.NewCursor(ctx, FromAll)
	return err
}

// leaveBase makes the ticket back. The guest stands still, so that what it
// writes at the destination is all that the source lacks.
func (c *diskCopy) leaveBase(ctx context.Context) error {
	if !c.Return || c.back != nil {
		return nil
	}
	cursor, err := c.Tracker.NewCursor(ctx, FromNow)
	if err != nil {
		return fmt.Errorf("disk %s: ticket back: %w", c.Name, err)
	}
	c.back = &Base{cursor: cursor, tree: c.sent, size: c.Source.Size()}
	return nil
}

// proof says what the roots stand on.
func (c *diskCopy) proof() string {
	switch {
	case c.target == nil:
		return "none"
	case c.Base != nil && c.target.proof() != "none":
		return "difference"
	}
	return c.target.proof()
}

// tellEvery is how often the figures are brought up to date: counting what is
// dirty costs in proportion to the disk.
const tellEvery = 50 * time.Millisecond

// pass sends everything that is dirty once. progress is called now and then
// after a lease, and at the end.
func (c *diskCopy) pass(ctx context.Context, progress func()) error {
	defer progress()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(leasesUnderWay)
	for gctx.Err() == nil {
		l, err := c.cursor.Lease(gctx, c.opts.Window)
		if err == io.EOF {
			break
		}
		if err != nil {
			g.Go(func() error { return err })
			break
		}
		c.takenBytes.Add(l.Bytes())
		g.Go(func() error {
			if err := c.send(gctx, l); err != nil {
				return errors.Join(err, c.cursor.Nack(l))
			}
			defer c.tell(progress)
			if c.arrived != nil {
				c.arrived(l.Ranges)
			}
			return c.cursor.Ack(l)
		})
	}
	if err := cmp.Or(g.Wait(), context.Cause(ctx)); err != nil {
		if d := (*DivergedError)(nil); errors.As(err, &d) {
			d.Disk = c.Name
		}
		return fmt.Errorf("disk %s: %w", c.Name, err)
	}
	return nil
}

// tell calls progress unless it did so just before.
func (c *diskCopy) tell(progress func()) {
	last, now := c.told.Load(), time.Now().UnixNano()
	if now-last >= int64(tellEvery) && c.told.CompareAndSwap(last, now) {
		progress()
	}
}

// send brings one lease to the destination. When it returns nil the
// destination has it durably.
func (c *diskCopy) send(ctx context.Context, l *Lease) error {
	done, err := c.write(ctx, l)
	if err != nil || len(done.ranges) == 0 && !done.compared { // all blank: the destination holds it as it is
		return err
	}
	return c.target.commit(ctx, done.ranges)
}

// write copies the lease's blocks and returns what it did to the destination.
func (c *diskCopy) write(ctx context.Context, l *Lease) (*changes, error) {
	written := new(changes)
	g, gctx := errgroup.WithContext(ctx)
	for _, r := range l.Ranges {
		for _, e := range c.sourceExtents(gctx, r) {
			if e.State.Zero() {
				if err := c.writeZeros(gctx, l.Generation, Range{e.Off, e.Len}, written); err != nil {
					return nil, cmp.Or(g.Wait(), err)
				}
				continue
			}
			err := c.bufs.each(gctx, g, Range{e.Off, e.Len}, func(part Range, buf []byte) error {
				return c.writeChunk(gctx, l.Generation, part, buf, written)
			})
			if err != nil {
				return nil, cmp.Or(g.Wait(), err)
			}
		}
	}
	return written, g.Wait()
}

// changes collects what several goroutines did to the destination.
type changes struct {
	mu     sync.Mutex
	ranges []Range
	// compared: blocks were found equal. The destination may hold them in a
	// cache yet, so it must flush before they count.
	compared bool
}

func (c *changes) add(r Range) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ranges = append(c.ranges, r)
}

func (c *changes) same() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.compared = true
}

// sourceExtents tells data from zeros in r, with borders at blocks. The source
// is asked after the lease was given, so that a write which comes later makes
// its blocks dirty again. A source that cannot tell is all data.
func (c *diskCopy) sourceExtents(ctx context.Context, r Range) []share.Extent {
	list, err := share.ListExtents(ctx, c.Source, r.Off, r.Len)
	if err != nil {
		return []share.Extent{{Off: r.Off, Len: r.Len}}
	}
	var out []share.Extent
	at := r.Off // everything before is in out
	add := func(end int64, state share.ExtentState) {
		if end > at {
			out = append(out, share.Extent{Off: at, Len: end - at, State: state})
			at = end
		}
	}
	for _, e := range list {
		if !e.State.Zero() {
			continue
		}
		from, to := roundUp(e.Off, c.block), e.End()/c.block*c.block
		if e.End() == r.End() {
			to = r.End()
		}
		if to > from {
			add(from, share.ExtentData)
			add(to, share.ExtentZero)
		}
	}
	add(r.End(), share.ExtentData)
	return out
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// writeChunk reads one part of the source and writes what is neither blank nor
// at the destination already.
func (c *diskCopy) writeChunk(ctx context.Context, gen uint64, part Range, buf []byte, done *changes) error {
	if err := c.Source.ReadAt(ctx, buf, part.Off); err != nil {
		return fmt.Errorf("read the source at %d: %w", part.Off, err)
	}
	there, err := c.there(ctx, part)
	if err != nil {
		return err
	}
	for _, p := range c.sort(part, buf, there) {
		data := buf[p.Off-part.Off : p.End()-part.Off]
		c.suspects.remove(p.Off, p.Len)
		switch p.kind {
		case zeroPiece:
			if err := c.writeZeros(ctx, gen, p.Range, done); err != nil {
				return err
			}
			continue
		case samePiece:
			c.sent.setLeaves(p.Off/c.block, p.leaves)
			c.unwritten.remove(p.Off, p.Len)
			c.sameBytes.Add(p.Len)
			done.same()
			continue
		}
		c.sent.setLeaves(p.Off/c.block, p.leaves)
		c.unwritten.remove(p.Off, p.Len)
		if err := c.mayGo(ctx, p.Len); err != nil {
			return err
		}
		if err := c.target.write(ctx, Stamp{c.epoch, gen}, p.Off, data, p.leaves); err != nil {
			return err
		}
		c.sentBytes.Add(p.Len)
		done.add(p.Range)
	}
	return nil
}

// mayGo waits for the throttle.
func (c *diskCopy) mayGo(ctx context.Context, n int64) error {
	if c.hurry.Load() {
		return nil
	}
	return c.opts.Throttle.wait(ctx, n)
}

// there returns the destination's hashes of the blocks of r if one of them is
// suspected to be there already.
func (c *diskCopy) there(ctx context.Context, r Range) ([]hash, error) {
	if !c.suspects.any(r.Off, r.Len) {
		return nil, nil
	}
	return c.target.hashes(ctx, r)
}

// piece is a run of blocks to be treated alike.
type piece struct {
	Range
	kind   pieceKind
	leaves []hash // not of zeros
}

type pieceKind uint8

const (
	dataPiece pieceKind = iota
	zeroPiece
	samePiece // the destination has it
)

// sort divides what was read into pieces. there are the destination's hashes, or
// nil.
func (c *diskCopy) sort(part Range, buf []byte, there []hash) (pieces []piece) {
	for at := int64(0); at < part.Len; at += c.block {
		p := buf[at:min(at+c.block, part.Len)]
		r := piece{Range: Range{part.Off + at, int64(len(p))}}
		if isZero(p) {
			r.kind = zeroPiece
		} else {
			r.leaves = hashBlocks(p, c.block)
			if there != nil && there[at/c.block] == r.leaves[0] && c.suspects.has(r.Off, r.Len) {
				r.kind = samePiece
			}
		}
		if k := len(pieces); k > 0 && pieces[k-1].kind == r.kind {
			pieces[k-1].Len += r.Len
			pieces[k-1].leaves = append(pieces[k-1].leaves, r.leaves...)
			continue
		}
		pieces = append(pieces, r)
	}
	return pieces
}

// writeZeros makes blocks of the destination zero that are not so already.
func (c *diskCopy) writeZeros(ctx context.Context, gen uint64, r Range, done *changes) error {
	c.sent.setZero(r.Off, r.Len)
	c.zeroBytes.Add(r.Len)
	if c.unwritten.has(r.Off, r.Len) {
		return nil
	}
	c.unwritten.remove(r.Off, r.Len)
	if err := c.target.zero(ctx, Stamp{c.epoch, gen}, r); err != nil {
		return err
	}
	done.add(r)
	return nil
}

// settled returns an error unless nothing is dirty or under way and both sides
// have one root.
func (c *diskCopy) settled(ctx context.Context) error {
	if d, l := c.cursor.Dirty(), c.cursor.Leased(); d != 0 || l != 0 {
		return fmt.Errorf("disk %s: %d bytes are dirty and %d under way although the guest is paused: something else writes to the source", c.Name, d, l)
	}
	if p := c.proof(); p == "none" || p == "difference" { // the rest of the disk was not read
		return nil
	}
	root, err := c.target.root(ctx)
	if err != nil {
		return fmt.Errorf("disk %s: root of the destination: %w", c.Name, err)
	}
	if root != c.sent.root() {
		return fmt.Errorf("disk %s: the roots of source and destination differ: %w", c.Name, share.ErrCorrupt)
	}
	return nil
}

func (c *diskCopy) close() {
	if t, ok := c.target.(*remoteTarget); ok {
		t.close()
	}
	if c.cursor != nil {
		_ = c.cursor.Close() // a cursor's Close cannot fail in a way that matters now
	}
}

func (c *diskCopy) progress() DiskProgress {
	p := DiskProgress{Name: c.Name, Total: c.Source.Size(), Remaining: c.Source.Size(), Sent: c.sentBytes.Load(), Zero: c.zeroBytes.Load(), Same: c.sameBytes.Load()}
	if c.cursor != nil {
		p.Remaining = c.cursor.Dirty() + c.cursor.Leased()
	}
	return p
}

func (c *diskCopy) result() DiskResult {
	r := DiskResult{Name: c.Name, Size: c.Source.Size(), Sent: c.sentBytes.Load(), Zero: c.zeroBytes.Load(), Same: c.sameBytes.Load(), Proof: c.proof()}
	if r.Proof != "none" {
		r.Root = c.sent.root()
	}
	return r
}

var zeroPage [64 << 10]byte

// isZero compares with zeros by the run time's vectorised comparison, which is
// several times faster than a loop over words.
func isZero(p []byte) bool {
	for len(p) > len(zeroPage) {
		if !bytes.Equal(p[:len(zeroPage)], zeroPage[:]) {
			return false
		}
		p = p[len(zeroPage):]
	}
	return bytes.Equal(p, zeroPage[:len(p)])
}
