package record

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBlockRoundTripAndDamage(t *testing.T) {
	p := make([]byte, MinBlock)
	_, state := Decode(p)
	require.Equal(t, Blank, state)

	want := Block{Disk: DiskID("root"), Sequence: 42, Time: 7, Instance: 9}
	want.Encode(p)
	got, state := Decode(p)
	require.Equal(t, Whole, state)
	require.Equal(t, want, got)

	for _, at := range []int{0, 8, 12, 16, 24, 32, 40, 512, len(p) - 1} {
		p[at] ^= 1
		_, state := Decode(p)
		require.Equal(t, Torn, state, "byte %d", at)
		p[at] ^= 1
	}
}

func TestRingDue(t *testing.T) {
	r, err := NewRing(100*MinBlock, MinBlock, 7)
	require.NoError(t, err)
	require.Equal(t, Ring{Block: MinBlock, Slots: 7, Stride: 14 * MinBlock}, r)
	for highest := uint64(0); highest < 40; highest++ {
		want := map[uint32]uint64{}
		for s := uint64(1); s <= highest; s++ {
			want[r.Slot(s)] = s
		}
		for slot := range r.Slots {
			require.Equal(t, want[slot], r.Due(slot, highest), "slot %d of %d", slot, highest)
		}
	}
	small, err := NewRing(3*MinBlock, MinBlock, 7)
	require.NoError(t, err)
	require.EqualValues(t, 3, small.Slots)
	_, err = NewRing(MinBlock-1, MinBlock, 7)
	require.Error(t, err)
	_, err = NewRing(1<<20, 5000, 7)
	require.Error(t, err)
}

func TestBeatRoundTrip(t *testing.T) {
	want := Beat{
		Guest: [16]byte{1, 2, 3}, Instance: 4, Number: 5, Uptime: time.Second,
		Memory: Memory{Errors: 6, Stamped: 7, Checked: 8},
		Disks: []Disk{
			{Serial: "a", Ring: Ring{MinBlock, 9, 10}, Acked: 11, Errors: 12},
			{Serial: "bb", Ring: Ring{MinBlock, 13, 14}, Acked: 15},
		},
	}
	p := want.Append(nil)
	got, err := ParseBeat(p)
	require.NoError(t, err)
	require.Equal(t, want, got)
	for i := range p {
		p[i] ^= 0x10
		_, err := ParseBeat(p)
		require.ErrorIs(t, err, ErrNotBeat, "byte %d", i)
		p[i] ^= 0x10
	}
}

func FuzzParseBeat(f *testing.F) {
	b := Beat{Disks: []Disk{{Serial: "a"}}}
	f.Add(b.Append(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		b, err := ParseBeat(p)
		if err == nil && len(b.Disks) < 256 {
			again, err := ParseBeat(b.Append(nil))
			require.NoError(t, err)
			require.Equal(t, b, again)
		}
	})
}
