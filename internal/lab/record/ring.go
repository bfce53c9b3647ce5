package record

import "fmt"

// Ring says where the workload writes on a disk: Slots blocks of Block bytes,
// Stride bytes apart, from the disk's beginning. Sequence s, counted from 1,
// goes to slot s mod Slots, so that every block is overwritten again and again
// and the sequence that a slot must hold follows from the highest one written.
type Ring struct {
	Block  uint32
	Slots  uint32
	Stride uint64
}

// MaxBlock is the largest block the workload writes.
const MaxBlock = 1 << 20

// NewRing spreads slots blocks evenly over span bytes. Fewer slots are used
// where span has no room for all of them.
func NewRing(span uint64, block, slots uint32) (Ring, error) {
	if block < MinBlock || block > MaxBlock || block&(block-1) != 0 {
		return Ring{}, fmt.Errorf("record: block of %d bytes is not a power of two between %d and %d", block, MinBlock, MaxBlock)
	}
	if most := span / uint64(block); uint64(slots) > most {
		slots = uint32(most)
	}
	if slots == 0 {
		return Ring{}, fmt.Errorf("record: no block of %d bytes fits into %d bytes", block, span)
	}
	stride := span / uint64(slots)
	return Ring{Block: block, Slots: slots, Stride: stride - stride%uint64(block)}, nil
}

// Slot is the slot that sequence goes to.
func (r Ring) Slot(sequence uint64) uint32 { return uint32(sequence % uint64(r.Slots)) }

// Offset is where slot begins on the disk.
func (r Ring) Offset(slot uint32) int64 { return int64(uint64(slot) * r.Stride) }

// Due is the newest sequence up to highest that went to slot, 0 for none.
func (r Ring) Due(slot uint32, highest uint64) uint64 {
	back := (highest%uint64(r.Slots) + uint64(r.Slots) - uint64(slot)) % uint64(r.Slots)
	if back >= highest {
		return 0
	}
	return highest - back
}
