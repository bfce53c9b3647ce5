package migrate

import (
	"encoding/hex"
	"sync"

	"github.com/zeebo/blake3"
)

// hash is the BLAKE3-256 digest of a block or of an inner node.
type hash [32]byte

// hashTree keeps a hash of every block of a device and makes the root of the
// tree over them. Blocks of zeros take no memory, wherever they lie together.
//
// A leaf is the digest of a block's bytes; a node is the digest of its two
// children; a node without a right child is its left one. The root is the
// digest of the device's size, the block size and the top node, so that trees
// of different shape never have the same root.
type hashTree struct {
	size, block int64
	zero        hash // of a whole block of zeros

	mu     sync.Mutex
	leaves []*[leafGroup]hash // nil: all zeros
}

// leafGroup is how many leaves are allocated together.
const leafGroup = 1 << 10

func newHashTree(size, block int64) *hashTree {
	groups := (size/block + leafGroup) / leafGroup
	return &hashTree{size: size, block: block, zero: blake3.Sum256(make([]byte, block)), leaves: make([]*[leafGroup]hash, groups)}
}

// hashBlocks returns the hashes of p's blocks; the last one may be short.
func hashBlocks(p []byte, block int64) []hash {
	out := make([]hash, 0, (int64(len(p))+block-1)/block)
	for len(p) > 0 {
		k := min(int64(len(p)), block)
		out = append(out, blake3.Sum256(p[:k]))
		p = p[k:]
	}
	return out
}

// setLeaves takes the hashes as those of the blocks from first on.
func (t *hashTree) setLeaves(first int64, leaves []hash) {
	for i, h := range leaves {
		t.setLeaf(first+int64(i), h)
	}
}

// setZero takes n zeros as the content from off on. It begins at a block's
// start and ends at one's end or at the end of the device.
func (t *hashTree) setZero(off, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for end := off + n; off < end; {
		i := off / t.block
		if end-off < t.block { // the short last block
			t.put(i, blake3.Sum256(make([]byte, end-off)))
			return
		}
		g := t.leaves[i/leafGroup]
		k := min(leafGroup-i%leafGroup, (end-off)/t.block) // leaves of this group
		if g != nil {
			for j := range k {
				g[i%leafGroup+j] = t.zero
			}
		}
		off += k * t.block
	}
}

func (t *hashTree) setLeaf(i int64, h hash) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.put(i, h)
}

// put is setLeaf under the lock.
func (t *hashTree) put(i int64, h hash) {
	g := t.leaves[i/leafGroup]
	if g == nil {
		if h == t.zero {
			return
		}
		g = new([leafGroup]hash)
		for k := range g {
			g[k] = t.zero
		}
		t.leaves[i/leafGroup] = g
	}
	g[i%leafGroup] = h
}

// leaf returns the hash of block i.
func (t *hashTree) leaf(i int64) hash {
	t.mu.Lock()
	defer t.mu.Unlock()
	if g := t.leaves[i/leafGroup]; g != nil {
		return g[i%leafGroup]
	}
	return t.zero
}

// root returns the root of the tree in hexadecimal digits. It costs in
// proportion to the groups that are not all zeros.
func (t *hashTree) root() string {
	blocks := (t.size + t.block - 1) / t.block
	// level[i] is the top of a subtree of leafGroup leaves; a whole one of
	// zeros is computed once.
	var level []hash
	var zeroGroup *hash
	for first := int64(0); first < blocks; first += leafGroup {
		n := min(leafGroup, blocks-first)
		if t.isZero(first) && n == leafGroup && zeroGroup != nil {
			level = append(level, *zeroGroup)
			continue
		}
		nodes := make([]hash, n)
		for i := range nodes {
			nodes[i] = t.leaf(first + int64(i))
		}
		top := fold(nodes)
		if t.isZero(first) && n == leafGroup {
			zeroGroup = &top
		}
		level = append(level, top)
	}
	h := blake3.New()
	var shape [16]byte
	for i := range 8 {
		shape[i], shape[8+i] = byte(t.size>>(8*i)), byte(t.block>>(8*i))
	}
	_, _ = h.Write(shape[:]) // it never fails
	if len(level) > 0 {
		top := fold(level)
		_, _ = h.Write(top[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (t *hashTree) isZero(first int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.leaves[first/leafGroup] == nil
}

// fold reduces a row of nodes to the one above them all. It overwrites row.
func fold(row []hash) hash {
	for len(row) > 1 {
		for i := 0; i < len(row); i += 2 {
			if i+1 < len(row) {
				var pair [64]byte
				copy(pair[:32], row[i][:])
				copy(pair[32:], row[i+1][:])
				row[i/2] = blake3.Sum256(pair[:])
			} else {
				row[i/2] = row[i]
			}
		}
		row = row[:(len(row)+1)/2]
	}
	return row[0]
}
