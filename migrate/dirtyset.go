package migrate

import (
	"math/bits"
	"sync/atomic"
)

// dirtySet is a set of block numbers that any number of goroutines add to and
// one at a time takes from.
//
// It is a bitmap with summaries: a bit of level k+1 says that a word of level k
// may have bits. Finding what is set costs in proportion to that, and adding
// costs one load where the bit is set already, else one atomic or, and a second
// one where its word was empty.
//
// The rule that keeps bits from being lost: who sets a bit in an empty word
// sets the summary afterwards; who finds a word empty clears its summary first
// and looks at the word again. So a bit without its summary exists only while
// the goroutine that will set the summary is still inside mark.
type dirtySet struct {
	blocks int64
	levels [][]atomic.Uint64
}

func newDirtySet(blocks int64) *dirtySet {
	s := &dirtySet{blocks: blocks}
	for n := blocks; ; n = int64(len(s.levels[len(s.levels)-1])) {
		s.levels = append(s.levels, make([]atomic.Uint64, max(1, (n+63)/64)))
		if n <= 64 {
			return s
		}
	}
}

// mark adds block i.
func (s *dirtySet) mark(i int64) {
	s.or(0, i>>6, 1<<(i&63))
}

// markRange adds the blocks from first to last, both included.
func (s *dirtySet) markRange(first, last int64) {
	for w := first >> 6; w <= last>>6; w++ {
		s.or(0, w, wordMask(w, first, last))
	}
}

// wordMask has the bits of word w whose blocks lie from first to last.
func wordMask(w, first, last int64) uint64 {
	mask := ^uint64(0)
	if w == first>>6 {
		mask <<= first & 63
	}
	if w == last>>6 {
		mask &= ^uint64(0) >> (63 - last&63)
	}
	return mask
}

func (s *dirtySet) or(level int, w int64, mask uint64) {
	for {
		word := &s.levels[level][w]
		if word.Load()&mask == mask {
			return
		}
		if word.Or(mask) != 0 || level == len(s.levels)-1 {
			return
		}
		level, w, mask = level+1, w>>6, 1<<(w&63)
	}
}

// next returns the first word of level 0, from w on, that has bits, or -1. It
// takes summaries back that turn out to be empty.
func (s *dirtySet) next(w int64) int64 {
	level := 0
	for {
		// Climb while the rest of this level's word holds nothing.
		for {
			if level == len(s.levels) {
				return -1
			}
			if level == 0 {
				if w >= int64(len(s.levels[0])) {
					return -1
				}
				if s.levels[0][w].Load() != 0 {
					return w
				}
				s.clearSummary(0, w)
				level, w = 1, w+1
				continue
			}
			if w>>6 < int64(len(s.levels[level])) {
				if rest := s.levels[level][w>>6].Load() >> (w & 63); rest != 0 {
					w += int64(bits.TrailingZeros64(rest))
					break
				}
			}
			level, w = level+1, w>>6+1
		}
		// Descend to the word that this bit stands for.
		level--
		if level == 0 {
			continue
		}
		if s.levels[level][w].Load() == 0 {
			s.clearSummary(level, w)
			level, w = level+1, w+1
			continue
		}
		w <<= 6
	}
}

// clearSummary takes back the summary bit of an empty word, and those above
// that become empty by it.
func (s *dirtySet) clearSummary(level int, w int64) {
	for level+1 < len(s.levels) {
		up, bit := &s.levels[level+1][w>>6], uint64(1)<<(w&63)
		if up.Load()&bit == 0 {
			return
		}
		left := up.And(^bit) &^ bit
		if s.levels[level][w].Load() != 0 {
			s.or(level+1, w>>6, bit)
			return
		}
		if left != 0 {
			return
		}
		level, w = level+1, w>>6
	}
}

// take removes the bits of mask from word w of level 0 and returns those that
// were there.
func (s *dirtySet) take(w int64, mask uint64) uint64 {
	word := &s.levels[0][w]
	got := word.And(^mask) & mask
	if word.Load() == 0 {
		s.clearSummary(0, w)
	}
	return got
}

// count returns how many blocks are in the set. It costs in proportion to the
// words that have bits.
func (s *dirtySet) count() int64 {
	var n int64
	for w := s.next(0); w >= 0; w = s.next(w + 1) {
		n += int64(bits.OnesCount64(s.levels[0][w].Load()))
	}
	return n
}
