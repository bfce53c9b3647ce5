package migratetest

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"

	"github.com/vmferry/vmferry/share"
)

// SlotSize is the size of one record of a [Writer] in bytes.
const SlotSize = 4096

// Writer writes numbered records to random slots of a device and remembers
// what was promised to it: the oracle of "no acknowledged write is lost". It
// also zeroes and discards slots where the device can. One goroutine writes;
// Check may run when it has stopped.
type Writer struct {
	rng   *rand.Rand
	slots int64

	mu  sync.Mutex
	seq uint64
	// done is the last acknowledged content of a slot by its number, tried what
	// was submitted since and not acknowledged.
	done  map[int64]record
	tried map[int64][]record
}

// record is the content of a slot: a number, or zeros for 0. Discarded says
// that it may be anything.
type record struct {
	seq       uint64
	discarded bool
}

// NewWriter makes a writer over the first size bytes of a device. The seed
// decides where it writes.
func NewWriter(seed uint64, size int64) *Writer {
	return &Writer{rng: rand.New(rand.NewPCG(seed, 2)), slots: size / SlotSize, done: map[int64]record{}, tried: map[int64][]record{}}
}

// Step writes, zeroes or discards one slot of d, and sometimes flushes.
func (w *Writer) Step(ctx context.Context, d share.Device) error {
	slot := w.rng.Int64N(w.slots)
	if w.rng.IntN(2) == 0 { // half of the writes go to few slots
		slot = w.rng.Int64N(min(w.slots, 8))
	}
	r := record{}
	var do func() error
	off := slot * SlotSize
	switch w.rng.IntN(10) {
	case 0:
		do = func() error { return share.ZeroRange(ctx, d, off, SlotSize, 0) }
	case 1:
		r.discarded = true
		do = func() error { return share.DiscardRange(ctx, d, off, SlotSize) }
	default:
		w.seq++
		r.seq = w.seq
		p := encode(slot, r.seq)
		do = func() error { return d.WriteAt(ctx, p, off) }
	}
	w.mu.Lock()
	w.tried[slot] = append(w.tried[slot], r)
	w.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	w.mu.Lock()
	w.done[slot] = r
	delete(w.tried, slot)
	w.mu.Unlock()
	if w.rng.IntN(16) == 0 {
		return d.Flush(ctx)
	}
	return nil
}

// Run steps until ctx ends and returns nil, or the first other error.
func (w *Writer) Run(ctx context.Context, d share.Device) error {
	for ctx.Err() == nil {
		if err := w.Step(ctx, d); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// Acknowledged is the number of records that were acknowledged.
func (w *Writer) Acknowledged() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var n uint64
	for _, r := range w.done {
		n = max(n, r.seq)
	}
	return n
}

// Check compares every slot of d with what the writer was promised: the last
// acknowledged record, or one submitted after it.
func (w *Writer) Check(ctx context.Context, d share.Device) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := make([]byte, SlotSize)
	for slot := range w.slots {
		if err := d.ReadAt(ctx, p, slot*SlotSize); err != nil {
			return err
		}
		want, fine := w.done[slot], false
		for _, r := range append([]record{want}, w.tried[slot]...) {
			fine = fine || r.discarded || r.matches(slot, p)
		}
		if !fine {
			return fmt.Errorf("slot %d holds %s, and record %d was acknowledged", slot, describe(slot, p), want.seq)
		}
	}
	return nil
}

func (r record) matches(slot int64, p []byte) bool {
	if r.seq == 0 {
		for _, b := range p {
			if b != 0 {
				return false
			}
		}
		return true
	}
	return string(p) == string(encode(slot, r.seq))
}

// encode makes a record: number, slot, a pattern from both, and a checksum.
func encode(slot int64, seq uint64) []byte {
	p := make([]byte, SlotSize)
	x := seq*0x9e3779b97f4a7c15 + uint64(slot)
	for i := 16; i < SlotSize-8; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x)
	}
	binary.LittleEndian.PutUint64(p, seq)
	binary.LittleEndian.PutUint64(p[8:], uint64(slot))
	binary.LittleEndian.PutUint32(p[SlotSize-8:], crc32.ChecksumIEEE(p[:SlotSize-8]))
	return p
}

func describe(slot int64, p []byte) string {
	if (record{}).matches(slot, p) {
		return "zeros"
	}
	seq := binary.LittleEndian.Uint64(p)
	if (record{seq: seq}).matches(slot, p) {
		return fmt.Sprintf("record %d", seq)
	}
	return "no whole record"
}
