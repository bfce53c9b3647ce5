package lab

import (
	"errors"
	"fmt"
	"io"

	"github.com/vmferry/vmferry/internal/lab/record"
)

// Verdict is what a disk holds, against what was acknowledged.
type Verdict struct {
	Slots  int     // slots read
	Newest uint64  // the newest sequence on the disk
	Faults []Fault // in the order of the slots
}

// Fault is a slot that does not hold what it must.
type Fault struct {
	Kind   FaultKind
	Slot   uint32
	Offset int64
	Want   uint64 // the sequence acknowledged for the slot, 0 for none
	Got    uint64 // the sequence found, 0 for none
}

// FaultKind says what is wrong with a slot.
type FaultKind int

const (
	UnknownFault FaultKind = iota
	// LostWrite: the slot is blank, or holds an older block than was
	// acknowledged.
	LostWrite
	// TornBlock: the slot holds something that is no whole block.
	TornBlock
	// ForeignBlock: the slot holds a whole block that belongs to another
	// slot or another disk.
	ForeignBlock
)

func (k FaultKind) String() string {
	switch k {
	case LostWrite:
		return "lost write"
	case TornBlock:
		return "torn block"
	case ForeignBlock:
		return "foreign block"
	}
	return "unknown fault"
}

func (f Fault) String() string {
	return fmt.Sprintf("%v in slot %d at offset %d: want sequence %d or newer, found %d", f.Kind, f.Slot, f.Offset, f.Want, f.Got)
}

// Err is nil where the disk holds every acknowledged write.
func (v Verdict) Err() error {
	if len(v.Faults) == 0 {
		return nil
	}
	return fmt.Errorf("lab: disk: %v (%d of %d slots are faulty)", v.Faults[0], len(v.Faults), v.Slots)
}

// CheckDisk reads the workload's ring from a disk and looks for acknowledged
// writes that are not there: every slot must hold a whole block of this disk
// and slot, with the sequence that acked demands for it or a newer one. Slots
// that nothing was acknowledged for may be blank. A disk shorter than the ring
// has lost what lies beyond its end; any other failure to read is an error.
//
// A disk that is written meanwhile may be checked against what was
// acknowledged before: a block that seems torn is read again.
func CheckDisk(r io.ReaderAt, acked Acked) (Verdict, error) {
	ring := acked.Ring
	if ring.Slots == 0 || ring.Block < record.MinBlock || ring.Block > record.MaxBlock {
		return Verdict{}, fmt.Errorf("lab: disk %s: no such ring: %+v", acked.Serial, ring)
	}
	var v Verdict
	buf := make([]byte, ring.Block)
	for slot := range ring.Slots {
		f, newest, err := checkSlot(r, acked, slot, buf)
		for try := 0; err == nil && f.Kind == TornBlock && try < 3; try++ {
			f, newest, err = checkSlot(r, acked, slot, buf)
		}
		if err != nil {
			return v, fmt.Errorf("lab: disk %s: read slot %d at %d: %w", acked.Serial, slot, ring.Offset(slot), err)
		}
		v.Slots++
		v.Newest = max(v.Newest, newest)
		if f.Kind != UnknownFault {
			v.Faults = append(v.Faults, f)
		}
	}
	return v, nil
}

func checkSlot(r io.ReaderAt, acked Acked, slot uint32, buf []byte) (f Fault, newest uint64, err error) {
	f = Fault{Slot: slot, Offset: acked.Ring.Offset(slot), Want: acked.Ring.Due(slot, acked.Sequence)}
	clear(buf)
	if n, err := r.ReadAt(buf, f.Offset); err != nil && !errors.Is(err, io.EOF) {
		return f, 0, err
	} else if n < len(buf) {
		clear(buf[n:])
	}
	b, state := record.Decode(buf)
	switch {
	case state == record.Blank:
		if f.Want > 0 {
			f.Kind = LostWrite
		}
	case state != record.Whole:
		f.Kind = TornBlock
	case b.Disk != record.DiskID(acked.Serial) || acked.Ring.Slot(b.Sequence) != slot:
		f.Kind, f.Got = ForeignBlock, b.Sequence
	default:
		newest, f.Got = b.Sequence, b.Sequence
		if b.Sequence < f.Want {
			f.Kind = LostWrite
		}
	}
	return f, newest, nil
}
