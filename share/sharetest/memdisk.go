package sharetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/vmferry/vmferry/share"
)

// A memDisk is what a MemDevice's handles have in common: the medium. Chunks
// that were never written, or were zeroed as a whole, take no memory.
//
// Besides the content it knows which writes no flush has covered yet, so that
// a power cut can lose them.
type memDisk struct {
	mu     sync.RWMutex
	size   int64
	chunks map[int64]*chunk

	// pending are the writes since the last flush, in order; before holds, for
	// each chunk that they touch, what it was then (nil: absent).
	pending      []memWrite
	pendingBytes int64
	before       map[int64]*chunk

	epoch int // counts power cuts; a handle of an older epoch is dead
}

const (
	chunkSize  = 64 << 10
	sectorSize = 512 // what a power cut does not tear
	// pendingMost bounds the memory spent on crash tracking. Beyond it the
	// disk writes back on its own, as real ones do.
	pendingMost = 64 << 20
)

// chunk is immutable while shared: a snapshot or the crash log holds it too.
type chunk struct {
	data   [chunkSize]byte
	shared bool
}

// memWrite is one write, or one zero or discard (data nil).
type memWrite struct {
	off, n int64
	data   []byte
	keep   bool // a zero that keeps the space
}

func newMemDisk(size int64) *memDisk {
	return &memDisk{size: size, chunks: map[int64]*chunk{}, before: map[int64]*chunk{}}
}

// gate refuses what a handle of that epoch may not do. The caller holds mu.
func (d *memDisk) gate(epoch int, off, n int64) error {
	if epoch != d.epoch {
		return fmt.Errorf("memory device %w: its power was cut", share.ErrClosed)
	}
	return share.CheckRange(d.size, off, n)
}

// read fills p.
func (d *memDisk) read(epoch int, p []byte, off int64) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.gate(epoch, off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		i, at := off/chunkSize, off%chunkSize
		k := min(int64(len(p)), chunkSize-at)
		if c := d.chunks[i]; c != nil {
			copy(p[:k], c.data[at:])
		} else {
			clear(p[:k])
		}
		p, off = p[k:], off+k
	}
	return nil
}

// write applies w and remembers it until the next flush.
func (d *memDisk) write(epoch int, w memWrite) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.gate(epoch, w.off, w.n); err != nil || w.n == 0 {
		return err
	}
	for i := w.off / chunkSize; i*chunkSize < w.off+w.n; i++ {
		if _, seen := d.before[i]; !seen {
			c := d.chunks[i]
			if c != nil {
				c.shared = true
			}
			d.before[i] = c
		}
	}
	if w.data != nil {
		w.data = slices.Clone(w.data)
	}
	d.apply(w)
	d.pending = append(d.pending, w)
	d.pendingBytes += int64(len(w.data)) + 64
	if d.pendingBytes > pendingMost {
		d.settle()
	}
	return nil
}

// apply changes the content. The caller holds mu.
func (d *memDisk) apply(w memWrite) {
	for n, off, data := w.n, w.off, w.data; n > 0; {
		i, at := off/chunkSize, off%chunkSize
		k := min(n, chunkSize-at)
		whole := k == chunkSize || at == 0 && off+k == d.size
		switch {
		case data != nil:
			copy(d.own(i).data[at:at+k], data)
			data = data[k:]
		case whole && !w.keep:
			delete(d.chunks, i)
		case d.chunks[i] != nil || w.keep:
			clear(d.own(i).data[at : at+k])
		}
		n, off = n-k, off+k
	}
}

// own returns chunk i for writing: made, or copied, if it must be.
func (d *memDisk) own(i int64) *chunk {
	c := d.chunks[i]
	switch {
	case c == nil:
		c = &chunk{}
	case c.shared:
		c = &chunk{data: c.data}
	default:
		return c
	}
	d.chunks[i] = c
	return c
}

// flush makes everything durable.
func (d *memDisk) flush(epoch int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.gate(epoch, 0, 0); err != nil {
		return err
	}
	d.settle()
	return nil
}

func (d *memDisk) settle() {
	d.pending, d.pendingBytes = nil, 0
	clear(d.before)
}

// crash is a power cut: each write since the last flush is, by seed, kept,
// lost or torn at sectors, independently of the others.
func (d *memDisk) crash(seed uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	rnd := rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15))
	for i, c := range d.before {
		if c == nil {
			delete(d.chunks, i)
		} else {
			d.chunks[i] = c
		}
	}
	pending := d.pending
	d.settle()
	for _, w := range pending {
		switch rnd.IntN(3) {
		case 0: // lost
		case 1:
			d.apply(w)
		case 2:
			d.tear(w, rnd)
		}
	}
	d.epoch++
}

// tear applies some sectors of w.
func (d *memDisk) tear(w memWrite, rnd *rand.Rand) {
	for off, end := w.off, w.off+w.n; off < end; {
		k := min(sectorSize-off%sectorSize, end-off)
		if rnd.IntN(2) == 0 {
			part := memWrite{off: off, n: k, keep: w.keep}
			if w.data != nil {
				part.data = w.data[off-w.off:][:k]
			}
			d.apply(part)
		}
		off += k
	}
}

// extents describes n bytes from off.
func (d *memDisk) extents(epoch int, off, n int64) ([]share.Extent, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.gate(epoch, off, n); err != nil {
		return nil, err
	}
	var out []share.Extent
	for n > 0 {
		k := min(n, chunkSize-off%chunkSize)
		state := share.ExtentData
		if d.chunks[off/chunkSize] == nil {
			state = share.ExtentHole | share.ExtentZero
		}
		if m := len(out); m > 0 && out[m-1].State == state {
			out[m-1].Len += k
		} else {
			out = append(out, share.Extent{Off: off, Len: k, State: state})
		}
		off, n = off+k, n-k
	}
	return out, nil
}

// allocated is the memory that the content takes.
func (d *memDisk) allocated() share.Bytes {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return share.Bytes(len(d.chunks)) * chunkSize
}

// image is the frozen content of a disk.
type image struct {
	size   int64
	chunks map[int64]*chunk
}

// freeze returns the content as it is now; later writes copy what they touch.
func (d *memDisk) freeze() image {
	d.mu.Lock()
	defer d.mu.Unlock()
	im := image{size: d.size, chunks: make(map[int64]*chunk, len(d.chunks))}
	for i, c := range d.chunks {
		c.shared = true
		im.chunks[i] = c
	}
	return im
}

// thaw makes a disk of that content; restore puts it back into d.
func (im image) thaw() *memDisk {
	d := newMemDisk(im.size)
	d.restore(im)
	return d
}

func (d *memDisk) restore(im image) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.size = im.size
	clear(d.chunks)
	for i, c := range im.chunks {
		d.chunks[i] = c // shared since freeze
	}
	d.settle()
}

// resize sets the size; what lies behind it is lost.
func (d *memDisk) resize(size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settle()
	d.size = size
	for i := range d.chunks {
		if i*chunkSize >= size {
			delete(d.chunks, i)
		}
	}
	if at := size % chunkSize; at > 0 && d.chunks[size/chunkSize] != nil {
		clear(d.own(size / chunkSize).data[at:])
	}
}

// changed lists the extents in which two images may differ.
func changed(from, to image) []share.Extent {
	var dirty []int64
	for i, c := range to.chunks {
		if from.chunks[i] != c {
			dirty = append(dirty, i)
		}
	}
	for i := range from.chunks {
		if to.chunks[i] == nil && i*chunkSize < to.size {
			dirty = append(dirty, i)
		}
	}
	slices.Sort(dirty)
	var out []share.Extent
	for _, i := range dirty {
		off := i * chunkSize
		n := min(chunkSize, to.size-off)
		if m := len(out); m > 0 && out[m-1].End() == off {
			out[m-1].Len += n
			continue
		}
		out = append(out, share.Extent{Off: off, Len: n})
	}
	return out
}
