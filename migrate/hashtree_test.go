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
			steps.set(first, content[first:end])
		}
		whole := newHashTree(size, block)
		whole.set(0, content)
		require.Equal(t, whole.root(), steps.root())
		if size > 0 {
			i := rapid.Int64Range(0, size-1).Draw(t, "flip")
			content[i] ^= 1
			whole.set(i/block*block, content[i/block*block:min(size, i/block*block+block)])
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
	g := generations{block: 512}
	require.NoError(t, g.admit(Range{0, 2048}, 2))
	require.NoError(t, g.admit(Range{512, 512}, 5))
	var stale *StaleError
	require.ErrorAs(t, g.admit(Range{0, 2048}, 4), &stale)
	require.Equal(t, int64(512), stale.Off)
	require.NoError(t, g.admit(Range{0, 512}, 3), "a refusal changes nothing")
	require.NoError(t, g.admit(Range{512, 512}, 5), "a repetition is not older")
	require.NoError(t, g.admit(Range{1 << 40, 512}, 1))
}

func TestBlockSet(t *testing.T) {
	s := newBlockSet(10*512+100, 512)
	s.addWithin(100, 1000) // only block 1 lies within
	require.True(t, s.has(512, 512))
	require.False(t, s.has(0, 512))
	require.False(t, s.has(1024, 1))
	s.addWithin(0, 10*512+100) // the short last block too
	require.True(t, s.has(0, 10*512+100))
	s.remove(1000, 100)
	require.False(t, s.has(512, 1))
	require.False(t, s.has(1024, 1))
	require.True(t, s.has(1536, 512))
}
