// Package record holds the two formats that the lab's guests speak: the block
// that the workload writes to a disk, and the heartbeat that it sends out. The
// workload in the guest encodes them, the lab outside decodes them.
//
// The package uses the standard library alone, because the lab builds the
// workload from embedded sources without a module cache.
package record

import (
	"encoding/binary"
	"hash/crc32"
)

// MinBlock is the smallest block: what O_DIRECT aligns to.
const MinBlock = 4096

const (
	blockMagic  = 0x766d666572727931 // "vmferry1"
	blockHeader = 8 + 4 + 4 + 8 + 8 + 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Block is what a written block says of itself.
type Block struct {
	Disk     uint32 // DiskID of the disk it was meant for
	Sequence uint64
	Time     uint64 // the guest's clock in nanoseconds
	Instance uint64 // the boot that wrote it
}

// DiskID is the identity of a disk by its serial.
func DiskID(serial string) uint32 { return crc32.Checksum([]byte(serial), castagnoli) }

// Encode fills p with b: a header, then a pattern that follows from the
// sequence. The CRC covers all of p, so that a torn block shows.
func (b Block) Encode(p []byte) {
	binary.LittleEndian.PutUint64(p[0:], blockMagic)
	binary.LittleEndian.PutUint32(p[8:], 0)
	binary.LittleEndian.PutUint32(p[12:], b.Disk)
	binary.LittleEndian.PutUint64(p[16:], b.Sequence)
	binary.LittleEndian.PutUint64(p[24:], b.Time)
	binary.LittleEndian.PutUint64(p[32:], b.Instance)
	Fill(p[blockHeader:], b.Sequence^uint64(b.Disk)<<32)
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, castagnoli))
}

// State is what a block on a disk turned out to be.
type State int

const (
	Unknown State = iota
	Blank         // never written: all zero
	Whole         // a block of the workload, checksum right
	Torn          // anything else
)

// Decode reads a block. Only a Whole one has a meaning.
func Decode(p []byte) (Block, State) {
	if len(p) < MinBlock {
		return Block{}, Torn
	}
	if binary.LittleEndian.Uint64(p) != blockMagic {
		for _, c := range p {
			if c != 0 {
				return Block{}, Torn
			}
		}
		return Block{}, Blank
	}
	sum := crc32.Update(0, castagnoli, p[:8])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	sum = crc32.Update(sum, castagnoli, p[12:])
	if sum != binary.LittleEndian.Uint32(p[8:]) {
		return Block{}, Torn
	}
	return Block{
		Disk:     binary.LittleEndian.Uint32(p[12:]),
		Sequence: binary.LittleEndian.Uint64(p[16:]),
		Time:     binary.LittleEndian.Uint64(p[24:]),
		Instance: binary.LittleEndian.Uint64(p[32:]),
	}, Whole
}

// Fill writes the pattern of seed: words of a linear generator, neither
// compressible nor equal from block to block. len(p) is a multiple of 8.
func Fill(p []byte, seed uint64) {
	x := seed*0x9e3779b97f4a7c15 | 1
	for i := 0; i+8 <= len(p); i += 8 {
		x = x*0xd1342543de82ef95 + 0x2545f4914f6cdd1d
		binary.LittleEndian.PutUint64(p[i:], x)
	}
}
