package sharetest

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

func TestMemDeviceReadsWhatWasWritten(t *testing.T) {
	ctx := t.Context()
	d := NewDevice(3*chunkSize + 1000)
	p := bytes.Repeat([]byte("0123456789"), 10000)
	require.NoError(t, d.WriteAt(ctx, p, chunkSize-77))
	got := make([]byte, len(p))
	require.NoError(t, d.Reopen().ReadAt(ctx, got, chunkSize-77))
	require.True(t, bytes.Equal(p, got))
	require.ErrorIs(t, d.WriteAt(ctx, p, 3*chunkSize), share.ErrInvalid)

	exts, err := share.ListExtents(ctx, d, 0, d.Size())
	require.NoError(t, err)
	require.Equal(t, []share.Extent{
		{Off: 0, Len: 3 * chunkSize},
		{Off: 3 * chunkSize, Len: 1000, State: share.ExtentHole | share.ExtentZero},
	}, exts)
	require.NoError(t, d.Close())
	require.NoError(t, d.Close())
	require.ErrorIs(t, d.Flush(ctx), share.ErrClosed)
}

// TestCrash: what was flushed stays, what was not is old or new sector by
// sector, every outcome happens, and one seed gives one outcome.
func TestCrash(t *testing.T) {
	ctx := t.Context()
	run := func(seed uint64) (string, *MemDevice) {
		d := NewDevice(chunkSize * 2)
		require.NoError(t, d.WriteAt(ctx, bytes.Repeat([]byte{'a'}, 4096), 0))
		require.NoError(t, d.Flush(ctx))
		require.NoError(t, d.WriteAt(ctx, bytes.Repeat([]byte{'b'}, 1024), 0))
		require.NoError(t, d.WriteAt(ctx, bytes.Repeat([]byte{'c'}, 512), 1024))
		require.NoError(t, d.Zero(ctx, 2048, 512, 0))
		require.Equal(t, 3, d.Unflushed())
		after := d.Crash(seed)
		require.ErrorIs(t, d.Flush(ctx), share.ErrClosed, "a handle from before the crash")
		require.Zero(t, after.Unflushed())
		p := make([]byte, 4096)
		require.NoError(t, after.ReadAt(ctx, p, 0))
		out := ""
		for i := 0; i < len(p); i += 512 {
			require.Equal(t, bytes.Repeat(p[i:i+1], 512), p[i:i+512], "a torn sector")
			out += string(p[i])
		}
		return out, after
	}
	seen := map[string]bool{}
	for seed := range uint64(1000) {
		got, _ := run(seed)
		again, _ := run(seed)
		require.Equal(t, got, again)
		require.Equal(t, "aaa", got[5:])
		seen[got] = true
	}
	require.Len(t, seen, 4*2*2, "every combination: two sectors torn, one, one")
}

func TestMemSnapshotsShareNothing(t *testing.T) {
	ctx := t.Context()
	m := NewMem(nil)
	_, err := share.Create(ctx, m, share.Spec{Name: "d", Kind: share.Disk, Size: share.MiB})
	require.NoError(t, err)
	d, err := share.OpenDevice(ctx, m, "d", nil)
	require.NoError(t, err)
	require.NoError(t, d.WriteAt(ctx, []byte("one"), 0))
	_, err = share.TakeSnapshot(ctx, m, "d", "s1")
	require.NoError(t, err)
	require.NoError(t, d.WriteAt(ctx, []byte("two"), 0))
	s, err := share.OpenDevice(ctx, m, "d", &share.OpenOptions{Snapshot: "s1"})
	require.NoError(t, err)
	p := make([]byte, 3)
	require.NoError(t, s.ReadAt(ctx, p, 0))
	require.Equal(t, "one", string(p))
	ch, err := share.Changes(ctx, m, "d", "s1", "")
	require.NoError(t, err)
	require.Equal(t, []share.Extent{{Off: 0, Len: chunkSize}}, ch)
	require.NoError(t, m.Close())
	require.ErrorIs(t, d.Flush(ctx), share.ErrClosed)
	require.NoError(t, share.CheckCapabilities(m))
}
