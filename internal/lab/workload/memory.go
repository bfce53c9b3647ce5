//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vmferry/vmferry/internal/lab/record"
)

const (
	pageSize = 4096
	tick     = 5 * time.Millisecond
	// idleCheck is the part of memory that is verified each second beyond the
	// pages that are verified before they are rewritten.
	idleCheck = 4 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// memory is the region under test. Each page holds a CRC, its index, its
// generation and a pattern; generations are also kept beside the region, so
// that a page which fell back to an older content is found, not only one with
// a broken checksum.
type memory struct {
	region      []byte
	generations []uint32
	dirty       uint64
}

// memoryState is what the heartbeat says of memory.
type memoryState struct{ errors, stamped, checked atomic.Uint64 }

func newMemory(c *config) (*memory, error) {
	m := &memory{dirty: c.dirty, generations: make([]uint32, c.memory/pageSize)}
	if len(m.generations) == 0 {
		return m, nil
	}
	var err error
	m.region, err = syscall.Mmap(-1, 0, len(m.generations)*pageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("%d bytes of memory under test: %w", c.memory, err)
	}
	for i := range m.generations {
		m.stamp(i)
	}
	return m, nil
}

func (m *memory) page(i int) []byte { return m.region[i*pageSize : (i+1)*pageSize] }

func (m *memory) stamp(i int) {
	m.generations[i]++
	p, gen := m.page(i), m.generations[i]
	binary.LittleEndian.PutUint32(p[4:], uint32(i))
	binary.LittleEndian.PutUint64(p[8:], uint64(gen))
	record.Fill(p[16:], uint64(gen)<<32|uint64(i))
	binary.LittleEndian.PutUint32(p, crc32.Checksum(p[4:], castagnoli))
}

func (m *memory) intact(i int) bool {
	p := m.page(i)
	return binary.LittleEndian.Uint32(p[4:]) == uint32(i) &&
		binary.LittleEndian.Uint64(p[8:]) == uint64(m.generations[i]) &&
		binary.LittleEndian.Uint32(p) == crc32.Checksum(p[4:], castagnoli)
}

func (m *memory) check(i int, s *memoryState) {
	s.checked.Add(1)
	if m.intact(i) {
		return
	}
	if s.errors.Add(1) == 1 {
		say("memory: page %d: want generation %d, holds % x", i, m.generations[i], m.page(i)[:16])
	}
	m.stamp(i) // reported once
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
			m.check(int(checked%uint64(n)), s)
			checked++
		}
		for ; toStamp >= pageSize; toStamp -= pageSize {
			i := int(stamped % uint64(n))
			m.check(i, s)
			m.stamp(i)
			stamped++
			s.stamped.Add(1)
		}
	}
}
