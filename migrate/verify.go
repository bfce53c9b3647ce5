package migrate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Verify compares a device with the disk at a receiver, by exchanging hashes
// only, and returns the ranges that differ, in whole blocks. It disturbs nothing
// that arrives there. Both sides should stand still; what is written meanwhile
// may show up as different. A disk there that is larger is compared as far as d
// goes.
func Verify(ctx context.Context, d share.Device, there *Remote, opts *VerifyOptions) ([]Range, error) {
	block := opts.block()
	t, err := there.dialReader(ctx, d.Size(), block)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return compare(ctx, newDeviceTarget(d, d.Size(), block, false), t, d.Size(), block)
}

// VerifyDevices compares two devices that this program has open. The second may
// be larger, and is compared as far as the first goes.
func VerifyDevices(ctx context.Context, a, b share.Device, opts *VerifyOptions) ([]Range, error) {
	if b.Size() < a.Size() {
		return nil, fmt.Errorf("%w: compare %d bytes with %d", share.ErrInvalid, a.Size(), b.Size())
	}
	block := opts.block()
	return compare(ctx, newDeviceTarget(a, a.Size(), block, false), newDeviceTarget(b, a.Size(), block, false), a.Size(), block)
}

// VerifyOptions change how [Verify] works; nil is the zero value.
type VerifyOptions struct {
	// Block is the size in which differences are told, a power of two from 512
	// to 4 MiB; the default is [DefaultGranularity].
	Block int64
}

func (o *VerifyOptions) block() int64 {
	if o == nil || o.Block == 0 {
		return DefaultGranularity
	}
	return o.Block
}

// comparePart is how much is hashed at once on each side.
const comparePart = 64 << 20

func compare(ctx context.Context, a, b target, size, block int64) ([]Range, error) {
	if block < 512 || block > 4<<20 || block&(block-1) != 0 {
		return nil, fmt.Errorf("%w: a block of %d bytes", share.ErrInvalid, block)
	}
	var out []Range
	for off := int64(0); off < size; off += comparePart {
		r := Range{off, min(comparePart, size-off)}
		type side struct {
			leaves []hash
			err    error
		}
		far := make(chan side, 1)
		go func() {
			leaves, err := b.hashes(ctx, r)
			far <- side{leaves, err}
		}()
		near, err := a.hashes(ctx, r)
		other := <-far
		if err != nil || other.err != nil {
			return nil, fmt.Errorf("hashes at %d: %w", off, cmp.Or(err, other.err))
		}
		for i := range near {
			if near[i] == other.leaves[i] {
				continue
			}
			d := Range{off + int64(i)*block, min(block, size-off-int64(i)*block)}
			if k := len(out); k > 0 && out[k-1].End() == d.Off {
				out[k-1].Len += d.Len
			} else {
				out = append(out, d)
			}
		}
	}
	return out, nil
}

// Receipt says what a move brought where, so that it can be stored and checked
// later. It is plain data and marshals to JSON.
type Receipt struct {
	Job   string    `json:"job"`
	Guest string    `json:"guest"`
	From  string    `json:"from"`
	To    string    `json:"to"`
	Epoch uint64    `json:"epoch"` // of the guest's authority at the destination
	Began time.Time `json:"began"`
	Ended time.Time `json:"ended"`
	// Disks hold the roots at the switchover: later writes of the guest change
	// the disks, and not the receipt.
	Disks []ReceiptDisk `json:"disks"`
}

// ReceiptDisk is one disk of a [Receipt].
type ReceiptDisk struct {
	Name  string `json:"name"`
	Size  int64  `json:"size_bytes"`
	Block int64  `json:"block_bytes"`
	Root  string `json:"root"`
	Proof string `json:"proof"` // what the root stands on; see [DiskResult]
}

// maxReceipt bounds what ParseReceipt reads.
const maxReceipt = 1 << 20

// ParseReceipt reads a receipt that was stored as JSON.
func ParseReceipt(b []byte) (*Receipt, error) {
	var r Receipt
	if len(b) > maxReceipt {
		return nil, fmt.Errorf("%w: a receipt of %d bytes", share.ErrInvalid, len(b))
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%w: receipt: %w", share.ErrInvalid, err)
	}
	for _, d := range r.Disks {
		if d.Size < 0 || d.Block < 512 || d.Block > 64<<20 || d.Block&(d.Block-1) != 0 || len(d.Root) != 64 {
			return nil, fmt.Errorf("%w: receipt: disk %q of %d bytes in blocks of %d with the root %q", share.ErrInvalid, d.Name, d.Size, d.Block, d.Root)
		}
	}
	return &r, nil
}

// Check reads a device and compares it with what the receipt says of a disk. A
// device that differs is [share.ErrCorrupt]; a disk that the receipt does not
// name, or that it has no root of, is [share.ErrNotExist].
func (r *Receipt) Check(ctx context.Context, disk string, d share.Device) error {
	for _, rd := range r.Disks {
		if rd.Name != disk || rd.Root == "" {
			continue
		}
		if d.Size() < rd.Size {
			return fmt.Errorf("disk %s has %d bytes, and had %d at the move: it %w", disk, d.Size(), rd.Size, share.ErrCorrupt)
		}
		root, err := RootOf(ctx, d, rd.Size, rd.Block)
		if err != nil {
			return err
		}
		if root != rd.Root {
			return fmt.Errorf("disk %s has the root %s, and had %s at the move: it %w", disk, root, rd.Root, share.ErrCorrupt)
		}
		return nil
	}
	return fmt.Errorf("a root of disk %q %w in the receipt of move %s", disk, share.ErrNotExist, r.Job)
}

// RootOf reads the first size bytes of a device and returns the root of the hash
// tree over its blocks, in hexadecimal digits. Ranges that the device reports as
// zeros are not read.
func RootOf(ctx context.Context, d share.Device, size, block int64) (string, error) {
	if err := share.CheckRange(d.Size(), 0, size); err != nil {
		return "", err
	}
	t := newDeviceTarget(d, size, block, false)
	if _, err := t.blank(ctx); err != nil {
		return "", err
	}
	return t.root(ctx)
}
