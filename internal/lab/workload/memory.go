//go:build linux

package main

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	pageSize  = 4096
	pageWords = pageSize / 8
	lineWords = 64 / 8
	tick      = 5 * time.Millisecond
	// idleCheck is the part of memory that is verified each second, whole
	// pages, beyond the stamps that are verified before they are rewritten.
	idleCheck = 4 << 20
)

// memory is the region under test. Each page is filled with a pattern once.
// From then on the first word of each cache line is a stamp that follows from
// page, line and the page's generation, so that rewriting a page is cheap under
// emulation, and every part of a page that fell back to an older content, or
// came from another page, is found.
type memory struct {
	words       []uint64
	generations []uint32 // beside the region, not in it
	dirty       uint64
}

// memoryState is what the heartbeat says of memory.
type memoryState struct{ errors, stamped, checked atomic.Uint64 }

func newMemory(c *config) (*memory, error) {
	m := &memory{dirty: c.dirty, generations: make([]uint32, c.memory/pageSize)}
	if len(m.generations) == 0 {
		return m, nil
	}
	region, err := syscall.Mmap(-1, 0, len(m.generations)*pageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("%d bytes of memory under test: %w", c.memory, err)
	}
	m.words = unsafe.Slice((*uint64)(unsafe.Pointer(&region[0])), len(region)/8)
	for i := range m.generations {
		m.restore(i)
	}
	return m, nil
}

func (m *memory) page(i int) []uint64 { return m.words[i*pageWords : (i+1)*pageWords] }

// pattern is word w of page i, where no stamp is.
func pattern(i, w int) uint64 { return (uint64(i)<<9 | uint64(w)) * 0x9e3779b97f4a7c15 }

// stamp begins the page's next generation.
func (m *memory) stamp(i int) {
	m.generations[i]++
	p, v := m.page(i), m.stampOf(i)
	for w := 0; w < pageWords; w += lineWords {
		p[w] = v ^ uint64(w)
	}
}

// stampOf is what the stamps of page i are made of; a line's own differs by
// its place.
func (m *memory) stampOf(i int) uint64 {
	return (uint64(m.generations[i])<<32 | uint64(i)) * 0xd1342543de82ef95
}

// restore writes the whole page.
func (m *memory) restore(i int) {
	p := m.page(i)
	for w := range p {
		p[w] = pattern(i, w)
	}
	m.stamp(i)
}

// check verifies the stamps of page i, all of it when deep. What it finds it
// reports once, and mends.
func (m *memory) check(i int, deep bool, s *memoryState) {
	s.checked.Add(1)
	p, v := m.page(i), m.stampOf(i)
	step := lineWords
	if deep {
		step = 1
	}
	for w := 0; w < pageWords; w += step {
		want := v ^ uint64(w)
		if w%lineWords != 0 {
			want = pattern(i, w)
		}
		if p[w] != want {
			if s.errors.Add(1) == 1 {
				say("memory: page %d of generation %d: word %d is %#x, want %#x", i, m.generations[i], w, p[w], want)
			}
			m.restore(i)
			return
		}
	}
}

func (m *memory) run(s *memoryState) {
	n := len(m.generations)
	if n == 0 {
		return
	}
	var checked, stamped, toCheck, toStamp uint64
	for last := time.Now(); ; {
		time.Sleep(tick)
		// What is due since the last round, but never a burst.
		passed := min(time.Since(last), 4*tick)
		last = time.Now()
		toCheck += idleCheck * uint64(passed) / uint64(time.Second)
		toStamp += m.dirty * uint64(passed) / uint64(time.Second)
		for ; toCheck >= pageSize; toCheck -= pageSize {
			m.check(int(checked%uint64(n)), true, s)
			checked++
		}
		for ; toStamp >= pageSize; toStamp -= pageSize {
			i := int(stamped % uint64(n))
			m.check(i, false, s)
			m.stamp(i)
			stamped++
			s.stamped.Add(1)
		}
	}
}
