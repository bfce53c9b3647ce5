package local

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vmferry/vmferry/share"
)

// The parts of a qcow2 image that are looked at before QEMU's tools see it:
// enough to refuse one that leads to other files, and to list its snapshots.
// The layout is that of docs/interop/qcow2 of QEMU. All numbers in it are
// bounded before they are used: the image may have come from anywhere.

const (
	qcow2Magic = 0x514649fb // "QFI\xfb"

	// incompatible features, of which a reader must know each
	qcow2Dirty       = 1 << 0
	qcow2Corrupt     = 1 << 1
	qcow2DataFile    = 1 << 2
	qcow2Compression = 1 << 3
	qcow2ExtendedL2  = 1 << 4
	qcow2Known       = qcow2Dirty | qcow2Corrupt | qcow2DataFile | qcow2Compression | qcow2ExtendedL2

	maxSnapshots     = 65536
	maxSnapshotTable = 64 << 20
)

// qcow2Header is what a header says.
type qcow2Header struct {
	Size            share.Bytes // of the disk
	snapshots       int
	snapshotsOffset int64
}

// readQcow2 reads and judges a header. What it refuses is ErrCorrupt: no image
// that this package made is like that.
func readQcow2(f io.ReaderAt) (*qcow2Header, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("the qcow2 image %w: %s", share.ErrCorrupt, fmt.Sprintf(format, args...))
	}
	var b [104]byte
	if n, err := f.ReadAt(b[:], 0); err != nil && (!errors.Is(err, io.EOF) || n < 72) {
		if errors.Is(err, io.EOF) {
			return nil, bad("it is too short for a header")
		}
		return nil, err
	}
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32(b[at:]) }
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(b[at:]) }
	version, features := u32(4), uint64(0)
	if version == 3 {
		features = u64(72)
	}
	switch {
	case u32(0) != qcow2Magic:
		return nil, bad("it has no qcow2 header")
	case version != 2 && version != 3:
		return nil, bad("version %d", version)
	case u64(8) != 0 || u32(16) != 0:
		return nil, bad("it has a backing file, and this share made none")
	case features&qcow2DataFile != 0:
		return nil, bad("it has an external data file, and this share made none")
	case features&qcow2Corrupt != 0:
		return nil, bad("QEMU has marked it so; see qemu-img check")
	case features&^uint64(qcow2Known) != 0:
		return nil, bad("it has unknown features %#x", features)
	case u32(32) != 0:
		return nil, bad("it is encrypted, and this share made none such")
	case u32(20) < 9 || u32(20) > 21:
		return nil, bad("clusters of 2^%d bytes", u32(20))
	case u64(24) == 0 || u64(24) > 1<<62 || u64(24)%512 != 0:
		return nil, bad("a size of %d bytes", u64(24))
	case u32(60) > maxSnapshots:
		return nil, bad("%d snapshots", u32(60))
	case u64(64) > 1<<62:
		return nil, bad("snapshots at %#x", u64(64))
	}
	return &qcow2Header{Size: share.Bytes(u64(24)), snapshots: int(u32(60)), snapshotsOffset: int64(u64(64))}, nil
}

// qcow2Snapshot is one internal snapshot.
type qcow2Snapshot struct {
	id, name string
	size     share.Bytes
	created  time.Time
}

// readSnapshots reads the table of snapshots, the oldest first.
func (h *qcow2Header) readSnapshots(f io.ReaderAt) ([]qcow2Snapshot, error) {
	bad := func(what string) error {
		return fmt.Errorf("the snapshots of the qcow2 image %w: %s", share.ErrCorrupt, what)
	}
	r := io.NewSectionReader(f, h.snapshotsOffset, maxSnapshotTable)
	all := make([]qcow2Snapshot, 0, min(h.snapshots, 64))
	for range h.snapshots {
		var b [40]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, bad("the table ends early")
		}
		idLen, nameLen := int(binary.BigEndian.Uint16(b[12:])), int(binary.BigEndian.Uint16(b[14:]))
		extraLen := int(binary.BigEndian.Uint32(b[36:]))
		if extraLen > 1024 {
			return nil, bad("an entry is too long")
		}
		rest := make([]byte, extraLen+idLen+nameLen)
		if _, err := io.ReadFull(r, rest); err != nil {
			return nil, bad("the table ends early")
		}
		// Entries begin at multiples of 8; the last one may end the file.
		if _, err := r.Seek(int64(-(len(b)+len(rest))&7), io.SeekCurrent); err != nil {
			return nil, err
		}
		s := qcow2Snapshot{
			size:    h.Size,
			id:      string(rest[extraLen:][:idLen]),
			name:    string(rest[extraLen+idLen:][:nameLen]),
			created: time.Unix(int64(binary.BigEndian.Uint32(b[16:])), int64(binary.BigEndian.Uint32(b[20:]))),
		}
		if extraLen >= 16 {
			size := binary.BigEndian.Uint64(rest[8:])
			if size == 0 || size > 1<<62 {
				return nil, bad(fmt.Sprintf("%q has a size of %d bytes", s.name, size))
			}
			s.size = share.Bytes(size)
		}
		all = append(all, s)
	}
	return all, nil
}
