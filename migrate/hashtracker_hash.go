package migrate

import "github.com/zeebo/blake3"

// blockHash is a block's BLAKE3-256 digest, cut to 16 bytes; of a block of
// zeros, whatever its length, it is zeros. Two contents of one block with one
// hash are not to be expected before 2^64 of them were seen.
type blockHash [16]byte

func hashOf(p []byte) (h blockHash) {
	if isZero(p) {
		return h
	}
	sum := blake3.Sum256(p)
	copy(h[:], sum[:])
	return h
}

// blockHashes keeps a hash for each block, all zeros at first. Where 64 blocks
// are zeros they take no more than a pointer.
type blockHashes struct {
	groups []*[64]blockHash
}

func (b *blockHashes) init(blocks int64) { b.groups = make([]*[64]blockHash, (blocks+63)/64) }

func (b *blockHashes) get(i int64) blockHash {
	if g := b.groups[i>>6]; g != nil {
		return g[i&63]
	}
	return blockHash{}
}

func (b *blockHashes) set(i int64, h blockHash) {
	g := b.groups[i>>6]
	if g == nil {
		if h == (blockHash{}) {
			return
		}
		g = new([64]blockHash)
		b.groups[i>>6] = g
	}
	g[i&63] = h
	// Zeros give the memory back; looked for only where it may be so.
	if h == (blockHash{}) && *g == ([64]blockHash{}) {
		b.groups[i>>6] = nil
	}
}
