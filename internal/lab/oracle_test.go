package lab_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/internal/lab/record"
)

// modelDisk writes as the workload does.
type modelDisk struct {
	acked lab.Acked
	image []byte
}

func newModelDisk(t *testing.T, slots uint32) *modelDisk {
	d := &modelDisk{image: make([]byte, 256<<10)}
	ring, err := record.NewRing(uint64(len(d.image)), 4096, slots)
	require.NoError(t, err)
	d.acked = lab.Acked{Serial: "model", Ring: ring}
	return d
}

func (d *modelDisk) slot(i uint32) []byte {
	at := d.acked.Ring.Offset(i)
	return d.image[at : at+int64(d.acked.Ring.Block)]
}

func (d *modelDisk) write(sequence uint64) {
	b := record.Block{Disk: record.DiskID(d.acked.Serial), Sequence: sequence, Time: 1, Instance: 2}
	b.Encode(d.slot(d.acked.Ring.Slot(sequence)))
}

func (d *modelDisk) writeTo(sequence uint64) {
	for s := d.acked.Sequence + 1; s <= sequence; s++ {
		d.write(s)
	}
	d.acked.Sequence = sequence
}

func TestCheckDisk(t *testing.T) {
	// Ten slots, two and a half times around: slot s%10 holds 16 to 25.
	for _, c := range []struct {
		name   string
		damage func(d *modelDisk)
		want   []lab.Fault // offsets left to the test
		newest uint64
	}{
		{"nothing acknowledged, nothing there", func(d *modelDisk) { d.acked.Sequence = 0; clear(d.image) }, nil, 0},
		{"every write there", func(d *modelDisk) {}, nil, 25},
		{"a write that was not acknowledged yet", func(d *modelDisk) { d.write(26) }, nil, 26},
		{"the newest write lost", func(d *modelDisk) { d.write(15) },
			[]lab.Fault{{Kind: lab.LostWrite, Slot: 5, Want: 25, Got: 15}}, 24},
		{"an old write lost", func(d *modelDisk) { d.write(8) },
			[]lab.Fault{{Kind: lab.LostWrite, Slot: 8, Want: 18, Got: 8}}, 25},
		{"a slot zeroed", func(d *modelDisk) { clear(d.slot(3)) },
			[]lab.Fault{{Kind: lab.LostWrite, Slot: 3, Want: 23}}, 25},
		{"one bit flipped", func(d *modelDisk) { d.slot(0)[4000] ^= 1 },
			[]lab.Fault{{Kind: lab.TornBlock, Slot: 0, Want: 20}}, 25},
		{"half of an overwrite", func(d *modelDisk) {
			old := bytes.Clone(d.slot(4))
			d.write(34)
			copy(d.slot(4)[2048:], old[2048:])
		}, []lab.Fault{{Kind: lab.TornBlock, Slot: 4, Want: 24}}, 25},
		{"a first write torn before its header", func(d *modelDisk) { clear(d.slot(7)[:512]) },
			[]lab.Fault{{Kind: lab.TornBlock, Slot: 7, Want: 17}}, 25},
		{"a write in the wrong place", func(d *modelDisk) { copy(d.slot(2), d.slot(1)) },
			[]lab.Fault{{Kind: lab.ForeignBlock, Slot: 2, Want: 22, Got: 21}}, 25},
		{"a block of another disk", func(d *modelDisk) {
			b := record.Block{Disk: record.DiskID("other"), Sequence: 29}
			b.Encode(d.slot(9))
		}, []lab.Fault{{Kind: lab.ForeignBlock, Slot: 9, Want: 19, Got: 29}}, 25},
		{"the end cut off", func(d *modelDisk) { d.image = d.image[:d.acked.Ring.Offset(8)] }, []lab.Fault{
			{Kind: lab.LostWrite, Slot: 8, Want: 18}, {Kind: lab.LostWrite, Slot: 9, Want: 19}}, 25},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newModelDisk(t, 10)
			d.writeTo(25)
			c.damage(d)
			for i := range c.want {
				c.want[i].Offset = d.acked.Ring.Offset(c.want[i].Slot)
			}
			v, err := lab.CheckDisk(bytes.NewReader(d.image), d.acked)
			require.NoError(t, err)
			require.Equal(t, c.want, v.Faults)
			require.Equal(t, c.newest, v.Newest)
			require.Equal(t, 10, v.Slots)
			require.Equal(t, len(c.want) > 0, v.Err() != nil)
		})
	}
}

type brokenDisk struct{}

var errMedium = errors.New("medium error")

func (brokenDisk) ReadAt([]byte, int64) (int, error) { return 0, errMedium }

func TestCheckDiskNeedsARead(t *testing.T) {
	d := newModelDisk(t, 10)
	_, err := lab.CheckDisk(brokenDisk{}, d.acked)
	require.ErrorIs(t, err, errMedium)
	_, err = lab.CheckDisk(bytes.NewReader(nil), lab.Acked{})
	require.Error(t, err)
}
