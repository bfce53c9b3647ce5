package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// Port is the UDP port that heartbeats go to.
const Port = 7707

// Interval is the time between two heartbeats.
const Interval = 10 * time.Millisecond

const beatMagic = 0x766d6265 // "vmbe"

// Beat is one heartbeat.
type Beat struct {
	Guest    [16]byte // UUID of the domain
	Instance uint64   // random, drawn at boot: travels with the memory
	Number   uint64   // counts the beats of the instance from 1
	Uptime   time.Duration
	Memory   Memory
	Disks    []Disk
}

// Memory is the state of the memory check.
type Memory struct {
	Errors  uint64 // pages found with a wrong generation or content
	Stamped uint64 // pages written
	Checked uint64 // pages verified
}

// Disk is the state of one disk.
type Disk struct {
	Serial string
	Ring   Ring
	Acked  uint64 // every sequence up to this one was written and flushed
	Errors uint64 // writes that failed
}

// ErrNotBeat says that a datagram is no whole heartbeat.
var ErrNotBeat = errors.New("record: not a heartbeat")

// Append encodes b behind p.
func (b *Beat) Append(p []byte) []byte {
	start := len(p)
	le := binary.LittleEndian
	p = le.AppendUint32(p, beatMagic)
	p = append(p, b.Guest[:]...)
	for _, v := range []uint64{b.Instance, b.Number, uint64(b.Uptime), b.Memory.Errors, b.Memory.Stamped, b.Memory.Checked} {
		p = le.AppendUint64(p, v)
	}
	p = append(p, byte(len(b.Disks)))
	for i := range b.Disks {
		d := &b.Disks[i]
		p = append(p, byte(len(d.Serial)))
		p = append(p, d.Serial...)
		p = le.AppendUint32(p, d.Ring.Block)
		p = le.AppendUint32(p, d.Ring.Slots)
		p = le.AppendUint64(p, d.Ring.Stride)
		p = le.AppendUint64(p, d.Acked)
		p = le.AppendUint64(p, d.Errors)
	}
	return le.AppendUint32(p, crc32.Checksum(p[start:], castagnoli))
}

// ParseBeat decodes a heartbeat.
func ParseBeat(p []byte) (Beat, error) {
	var b Beat
	le := binary.LittleEndian
	const fixed = 4 + 16 + 6*8 + 1
	if len(p) < fixed+4 || le.Uint32(p) != beatMagic {
		return b, ErrNotBeat
	}
	if body := p[:len(p)-4]; crc32.Checksum(body, castagnoli) != le.Uint32(p[len(body):]) {
		return b, fmt.Errorf("%w: wrong checksum", ErrNotBeat)
	}
	copy(b.Guest[:], p[4:])
	word := func(i int) uint64 { return le.Uint64(p[20+8*i:]) }
	b.Instance, b.Number, b.Uptime = word(0), word(1), time.Duration(word(2))
	b.Memory = Memory{Errors: word(3), Stamped: word(4), Checked: word(5)}
	rest := p[fixed : len(p)-4]
	for range p[fixed-1] {
		if len(rest) < 1 || len(rest) < 1+int(rest[0])+32 {
			return b, fmt.Errorf("%w: cut short", ErrNotBeat)
		}
		n := int(rest[0])
		d := Disk{Serial: string(rest[1 : 1+n])}
		f := rest[1+n:]
		d.Ring = Ring{Block: le.Uint32(f), Slots: le.Uint32(f[4:]), Stride: le.Uint64(f[8:])}
		d.Acked, d.Errors = le.Uint64(f[16:]), le.Uint64(f[24:])
		b.Disks = append(b.Disks, d)
		rest = f[32:]
	}
	return b, nil
}
