package migrate

import (
	"fmt"
	"sync"
)

// generations refuses what is older than what was written: the last line of
// defence against a retry, a duplicate or a slow connection that would put an
// old block over a newer one. Its memory grows with what is written.
type generations struct {
	block int64
	mu    sync.Mutex
	last  map[int64]*[generationGroup]uint64 // by block/generationGroup
}

const generationGroup = 512

// admit notes that the blocks of r are about to be written in generation gen,
// or returns a *StaleError if one of them has a newer one.
func (g *generations) admit(r Range, gen uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	first, last := r.Off/g.block, (r.End()-1)/g.block
	for i := first; i <= last; i++ {
		if group := g.last[i/generationGroup]; group != nil && group[i%generationGroup] > gen {
			return &StaleError{Off: i * g.block, Generation: gen, Newer: group[i%generationGroup]}
		}
	}
	if g.last == nil {
		g.last = map[int64]*[generationGroup]uint64{}
	}
	for i := first; i <= last; i++ {
		group := g.last[i/generationGroup]
		if group == nil {
			group = new([generationGroup]uint64)
			g.last[i/generationGroup] = group
		}
		group[i%generationGroup] = gen
	}
	return nil
}

// StaleError refuses a block that is older than what the destination has.
type StaleError struct {
	Off               int64
	Generation, Newer uint64
}

func (e *StaleError) Error() string {
	return fmt.Sprintf("the block at %d of generation %d is older than generation %d, which was written", e.Off, e.Generation, e.Newer)
}

// blockSet is a set of whole blocks of a device.
type blockSet struct {
	size, block int64
	mu          sync.Mutex
	words       []uint64
}

func newBlockSet(size, block int64) *blockSet {
	blocks := (size + block - 1) / block
	return &blockSet{size: size, block: block, words: make([]uint64, (blocks+63)/64)}
}

// addWithin adds the blocks that lie wholly within n bytes from off.
func (s *blockSet) addWithin(off, n int64) {
	first, end := roundUp(off, s.block)/s.block, (off+n)/s.block
	if off+n == s.size {
		end = (s.size + s.block - 1) / s.block
	}
	s.each(first, end-1, func(w *uint64, mask uint64) bool { *w |= mask; return true })
}

// remove takes out every block that n bytes from off touch.
func (s *blockSet) remove(off, n int64) {
	s.each(off/s.block, (off+n-1)/s.block, func(w *uint64, mask uint64) bool { *w &^= mask; return true })
}

// has reports whether all blocks that n bytes from off touch are in the set.
func (s *blockSet) has(off, n int64) bool {
	return s.each(off/s.block, (off+n-1)/s.block, func(w *uint64, mask uint64) bool { return *w&mask == mask })
}

// each calls f for the words that hold blocks first to last, until it returns
// false, and reports whether it never did.
func (s *blockSet) each(first, last int64, f func(w *uint64, mask uint64) bool) bool {
	if last < first {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := first >> 6; w <= last>>6; w++ {
		if !f(&s.words[w], wordMask(w, first, last)) {
			return false
		}
	}
	return true
}
