package migrate

import (
	"fmt"
	"math/bits"
	"sync"
)

// fence refuses what is older than what was written: the last line of defence
// against a retry, a duplicate or a slow connection that would put an old block
// over a newer one. Its memory grows with what is written in one epoch.
type fence struct {
	block int64
	mu    sync.Mutex
	epoch uint64
	last  map[int64]*[fenceGroup]uint64 // generations, by block/fenceGroup
}

const fenceGroup = 512

// admit notes that the blocks of r are about to be written with the stamp, or
// returns a *StaleError if one of them has a newer one. A new epoch ends all
// older ones.
func (f *fence) admit(r Range, st Stamp) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if st.Epoch < f.epoch {
		return &StaleError{Off: r.Off, Stamp: st, Newer: Stamp{Epoch: f.epoch}}
	}
	if st.Epoch > f.epoch || f.last == nil {
		f.epoch, f.last = st.Epoch, map[int64]*[fenceGroup]uint64{}
	}
	first, last := r.Off/f.block, (r.End()-1)/f.block
	for i := first; i <= last; i++ {
		if group := f.last[i/fenceGroup]; group != nil && group[i%fenceGroup] > st.Generation {
			return &StaleError{Off: i * f.block, Stamp: st, Newer: Stamp{f.epoch, group[i%fenceGroup]}}
		}
	}
	for i := first; i <= last; i++ {
		group := f.last[i/fenceGroup]
		if group == nil {
			group = new([fenceGroup]uint64)
			f.last[i/fenceGroup] = group
		}
		group[i%fenceGroup] = st.Generation
	}
	return nil
}

// StaleError refuses a block that is older than what the destination has.
type StaleError struct {
	Off          int64
	Stamp, Newer Stamp
}

// Is makes the error an [ErrStale].
func (e *StaleError) Is(target error) bool { return target == ErrStale }

func (e *StaleError) Error() string {
	return fmt.Sprintf("the block at %d of epoch %d, generation %d is older than what was written in epoch %d, generation %d",
		e.Off, e.Stamp.Epoch, e.Stamp.Generation, e.Newer.Epoch, e.Newer.Generation)
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

// add adds every block that n bytes from off touch.
func (s *blockSet) add(off, n int64) {
	s.each(off/s.block, (off+n-1)/s.block, func(w *uint64, mask uint64) bool { *w |= mask; return true })
}

// remove takes out every block that n bytes from off touch.
func (s *blockSet) remove(off, n int64) {
	s.each(off/s.block, (off+n-1)/s.block, func(w *uint64, mask uint64) bool { *w &^= mask; return true })
}

// has reports whether all blocks that n bytes from off touch are in the set.
func (s *blockSet) has(off, n int64) bool {
	return s.each(off/s.block, (off+n-1)/s.block, func(w *uint64, mask uint64) bool { return *w&mask == mask })
}

// any reports whether one of the blocks that n bytes from off touch is in the
// set.
func (s *blockSet) any(off, n int64) bool {
	return !s.each(off/s.block, (off+n-1)/s.block, func(w *uint64, mask uint64) bool { return *w&mask == 0 })
}

// missing returns the runs of blocks that are not in the set, in order.
func (s *blockSet) missing() (out []Range) {
	s.mu.Lock()
	defer s.mu.Unlock()
	blocks := (s.size + s.block - 1) / s.block
	for i := int64(0); i < blocks; {
		word := s.words[i>>6] >> (i & 63)
		if run := int64(bits.TrailingZeros64(^word)); run > 0 {
			i += min(run, 64-i&63) // in the set
			continue
		}
		run := min(int64(bits.TrailingZeros64(word)), 64-i&63, blocks-i)
		r := Range{i * s.block, min(run*s.block, s.size-i*s.block)}
		if k := len(out); k > 0 && out[k-1].End() == r.Off {
			out[k-1].Len += r.Len
		} else {
			out = append(out, r)
		}
		i += run
	}
	return out
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
