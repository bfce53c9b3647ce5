package migrate

import (
	"fmt"

	"github.com/vmferry/vmferry/share"
)

// Base is a ticket back, or on: it stands for a device that holds what another
// one held at a known moment, and for all that was written to the other one
// since. A move that is given one sends the difference only.
//
// A move leaves one for each disk with [DiskMove].Return, made while the guest
// stood still: the old home holds what the new one begins with. It is good for
// one move, and must be closed if it is not used. It lives as long as this
// program.
type Base struct {
	cursor Cursor
	tree   *hashTree
	size   int64
	used   bool
}

// Dirty is what a move with this base would have to send now, in bytes.
func (b *Base) Dirty() int64 { return b.cursor.Dirty() + b.cursor.Leased() }

// Close ends the counting. A second Close returns nil.
func (b *Base) Close() error { return b.cursor.Close() }

// take hands the base to a move over a disk of that size and block.
func (b *Base) take(size, block int64) (Cursor, *hashTree, error) {
	switch {
	case b.used:
		return nil, nil, fmt.Errorf("%w: the base was used by an earlier move", share.ErrInvalid)
	case b.size != size || b.tree.block != block:
		return nil, nil, fmt.Errorf("%w: the base is of a disk of %d bytes in blocks of %d, not of %d in %d", share.ErrInvalid, b.size, b.tree.block, size, block)
	}
	b.used = true
	return b.cursor, b.tree, nil
}
