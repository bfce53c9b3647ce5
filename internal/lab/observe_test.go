package lab

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmferry/vmferry/internal/lab/record"
)

func TestWatchFindsSecondCopies(t *testing.T) {
	a, b := &Host{name: "a"}, &Host{name: "b"}
	beat := func(h *Host, instance, number, acked uint64) Arrival {
		return Arrival{At: time.Now(), Host: h, Beat: record.Beat{Instance: instance, Number: number, Uptime: time.Duration(number),
			Disks: []record.Disk{{Serial: "d", Acked: acked}}}}
	}
	later := beat(b, 1, 3, 9)
	later.Uptime++
	for _, c := range []struct {
		name      string
		arrivals  []Arrival
		conflicts int
	}{
		{"moved there and back", []Arrival{beat(a, 1, 1, 1), beat(b, 1, 2, 2), beat(a, 1, 5, 3)}, 0},
		{"rebooted", []Arrival{beat(a, 1, 9, 5), beat(a, 2, 1, 5), beat(a, 2, 2, 6)}, 0},
		{"the same datagram twice", []Arrival{beat(a, 1, 3, 9), beat(b, 1, 3, 9)}, 0},
		{"two copies", []Arrival{beat(a, 1, 2, 8), beat(a, 1, 3, 9), later}, 1},
		{"the slower of two copies", []Arrival{beat(a, 1, 7, 8), beat(b, 1, 6, 7), beat(b, 1, 7, 7)}, 2},
		{"an old boot beats on", []Arrival{beat(a, 1, 7, 8), beat(b, 2, 1, 8), beat(a, 1, 8, 9)}, 1},
		{"a boot from an old disk", []Arrival{beat(a, 1, 7, 8), beat(b, 2, 1, 6)}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWatch()
			for _, v := range c.arrivals {
				w.arrive(v)
			}
			require.Len(t, w.Conflicts(), c.conflicts)
			require.Equal(t, c.conflicts > 0, w.Healthy() != nil)
		})
	}
}

func TestWatchTells(t *testing.T) {
	h := &Host{name: "a"}
	w := newWatch()
	_, ok := w.Last()
	require.False(t, ok)
	began := time.Now().Add(-time.Second)
	for i, ms := range []int{100, 110, 400, 990} {
		w.arrive(Arrival{At: began.Add(time.Duration(ms) * time.Millisecond), Host: h, Beat: record.Beat{Instance: 1, Number: uint64(i + 1),
			Memory: record.Memory{Errors: uint64(i)}, Disks: []record.Disk{{Serial: "d", Acked: uint64(10 * i)}}}})
	}
	require.Equal(t, 590*time.Millisecond, w.LongestGap(began).Length())
	require.Less(t, w.LongestGap(began.Add(990*time.Millisecond)).Length(), 500*time.Millisecond)
	require.Equal(t, 4, w.Beats())
	require.EqualValues(t, 3, w.MemoryErrors())
	require.EqualValues(t, 30, w.Acked()[0].Sequence)
	require.Equal(t, []*Host{h}, w.Hosts(began))
	require.ErrorContains(t, w.Healthy(), "corrupt pages")
}
