package local

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// TestLongWritesAndShortOnes: what goes past the page cache and what goes
// through it is one content, in every order and at every offset.
func TestLongWritesAndShortOnes(t *testing.T) {
	dir := t.TempDir()
	d := openRaw(t, dir, 8*share.MiB)
	want := make([]byte, 8<<20)
	for i, w := range []struct{ off, n int }{
		{0, 1 << 20}, {4096, 512 << 10}, {100, 300 << 10}, {4096, bulkWrite}, {0, 512}, {1<<20 - 512, 2<<20 + 1024},
		{2 << 20, bulkWrite + 512}, {8<<20 - bulkWrite, bulkWrite}, {8<<20 - bulkWrite - 1, bulkWrite}, {3 << 20, 3 << 20},
	} {
		p := bytes.Repeat([]byte{byte(i + 1)}, w.n)
		require.NoError(t, d.WriteAt(t.Context(), p, int64(w.off)))
		copy(want[w.off:], p)
		got := make([]byte, len(want))
		require.NoError(t, d.ReadAt(t.Context(), got, 0))
		require.True(t, bytes.Equal(want, got), "after write %d", i)
	}
	require.NoError(t, d.Flush(t.Context()))
	got, err := os.ReadFile(filepath.Join(dir, "v"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}

// TestBulkIsForWhatFits: the shape decides.
func TestBulkIsForWhatFits(t *testing.T) {
	d := openRaw(t, t.TempDir(), 4*share.MiB)
	r := d.blocks.(*rawFile)
	if r.bulk == nil {
		t.Skip("the file system of the temporary directory has no O_DIRECT")
	}
	p := make([]byte, 2<<20)
	p = p[(bulkAlign-int(uintptr(unsafe.Pointer(&p[0]))%bulkAlign))%bulkAlign:][:1<<20]
	for _, c := range []struct {
		name string
		p    []byte
		off  int64
		bulk bool
	}{
		{"aligned", p, 8192, true},
		{"short", p[:bulkWrite-bulkAlign], 0, false},
		{"odd offset", p, 512, false},
		{"odd length", p[:bulkWrite+512], 0, false},
		{"odd memory", p[512 : 512+bulkWrite], 0, false},
	} {
		done, err := r.writeBulk(c.p, c.off)
		require.NoError(t, err, c.name)
		require.Equal(t, c.bulk, done, c.name)
	}
	// Without O_DIRECT everything goes through the cache.
	require.NoError(t, r.bulk.Close())
	r.bulk = nil
	require.NoError(t, r.writeAt(p, 0))
}
