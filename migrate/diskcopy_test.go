package migrate

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share/sharetest"
)

// TestSuspectsAfterACrash: where something is known to have arrived, everything
// that the destination does not call blank is compared, because what arrived
// last was not written down; in a first attempt nothing is.
func TestSuspectsAfterACrash(t *testing.T) {
	const block, size = 64 << 10, 8 * 64 << 10
	for _, resumed := range []bool{false, true} {
		from, to := sharetest.NewDevice(size), sharetest.NewDevice(size)
		require.NoError(t, to.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 3*block), block)) // blocks 1 to 3
		tracker, err := NewBlockTracker(size, block)
		require.NoError(t, err)
		c := newDiskCopy(DiskMove{Name: "vda", Source: from, Tracker: tracker, Destination: to}, (*Options)(nil).orDefault())
		if resumed {
			c.suspects.add(block, block)
		}
		require.NoError(t, c.reach(t.Context(), 1))
		require.NoError(t, c.open(t.Context()))
		defer c.close()
		require.Equal(t, resumed, c.suspects.has(block, 3*block))
		require.False(t, c.suspects.any(4*block, 4*block), "blank")
	}
}
