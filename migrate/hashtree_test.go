package migrate

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The root depends on content and shape alone, not on how it came about.
func TestRootAgainstWholeTree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const block = 512
		size := rapid.Int64Range(0, 3*leafGroup*block+100).Draw(t, "size")
		content := make([]byte, size)
		steps := newHashTree(size, block)
		for off := int64(0); off < size; off += block {
			steps.setZero(off, min(block, size-off))
		}
		for range rapid.IntRange(0, 5).Draw(t, "writes") {
			if size == 0 {
				break
			}
			first := rapid.Int64Range(0, (size-1)/block).Draw(t, "first") * block
			end := min(size, first+rapid.Int64Range(1, 9).Draw(t, "blocks")*block)
			for i := first; i < end; i++ {
				content[i] = byte(rapid.IntRange(0, 1).Draw(t, "byte")) * byte(i)
			}
			steps.setLeaves(first/block, hashBlocks(content[first:end], block))
		}
		whole := newHashTree(size, block)
		whole.setLeaves(0, hashBlocks(content, block))
		require.Equal(t, whole.root(), steps.root())
		if size > 0 {
			i := rapid.Int64Range(0, size-1).Draw(t, "flip")
			content[i] ^= 1
			whole.setLeaves(i/block, hashBlocks(content[i/block*block:min(size, i/block*block+block)], block))
			require.NotEqual(t, whole.root(), steps.root(), "a flipped bit at %d", i)
		}
	})
}

// Zeros of different lengths are different devices.
func TestRootKnowsTheShape(t *testing.T) {
	seen := map[string]bool{}
	for _, size := range []int64{0, 1, 511, 512, 513, 512 * leafGroup, 512*leafGroup + 1} {
		tree := newHashTree(size, 512)
		tree.setZero(0, size)
		seen[tree.root()] = true
	}
	require.Len(t, seen, 7)
	require.NotEqual(t, newHashTree(4096, 512).root(), newHashTree(4096, 1024).root())
}

// The tree over an empty device of 1 TiB takes little memory and time.
func BenchmarkRootOfEmptyTiB(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		newHashTree(1<<40, DefaultGranularity).root()
	}
}

func TestFenceRefusesOlder(t *testing.T) {
	f := fence{block: 512}
	require.NoError(t, f.admit(Range{0, 2048}, Stamp{1, 2}))
	require.NoError(t, f.admit(Range{512, 512}, Stamp{1, 5}))
	var stale *StaleError
	require.ErrorAs(t, f.admit(Range{0, 2048}, Stamp{1, 4}), &stale)
	require.Equal(t, int64(512), stale.Off)
	require.NoError(t, f.admit(Range{0, 512}, Stamp{1, 3}), "a refusal changes nothing")
	require.NoError(t, f.admit(Range{512, 512}, Stamp{1, 5}), "a repetition is not older")
	require.NoError(t, f.admit(Range{512, 512}, Stamp{2, 1}), "a new epoch is newer")
	require.ErrorAs(t, f.admit(Range{1 << 30, 512}, Stamp{1, 99}), &stale, "an old epoch is over everywhere")
}

func TestBlockSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const block = 512
		size := rapid.Int64Range(1, 300*block).Draw(t, "size")
		s := newBlockSet(size, block)
		in := map[int64]bool{}
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			off := rapid.Int64Range(0, size-1).Draw(t, "off")
			n := rapid.Int64Range(1, size-off).Draw(t, "n")
			add := rapid.Bool().Draw(t, "add")
			all := true
			for i := off / block; i <= (off+n-1)/block; i++ {
				all = all && in[i]
			}
			require.Equal(t, all, s.has(off, n))
			for i := off / block; i <= (off+n-1)/block; i++ {
				in[i] = add
			}
			if add {
				s.add(off, n)
			} else {
				s.remove(off, n)
			}
		}
		want := map[int64]bool{}
		for i := range (size + block - 1) / block {
			if !in[i] {
				want[i] = true
			}
		}
		got, end := map[int64]bool{}, int64(-1)
		for _, r := range s.missing() {
			require.Greater(t, r.Off, end)
			require.LessOrEqual(t, r.End(), size)
			end = r.End()
			for off := r.Off; off < r.End(); off += block {
				got[off/block] = true
			}
		}
		require.Equal(t, want, got)
	})
}
