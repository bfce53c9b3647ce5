package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// follower is a consumer of a hash tracker, with its copy.
type follower struct {
	Cursor
	source share.Device
	copied []byte
	open   []*Lease
	read   map[*Lease]bool
}

func newFollower(t require.TestingT, tr *HashTracker, c Cursor) *follower {
	return &follower{Cursor: c, source: tr.Source(), copied: make([]byte, tr.Size()), read: map[*Lease]bool{}}
}

// fetch copies what is leased, as the engine does: zeros by what the extents
// say, and the rest by reading.
func (f *follower) fetch(t require.TestingT, l *Lease, block int64) {
	ctx := context.Background()
	for _, r := range l.Ranges {
		extents, err := share.ListExtents(ctx, f.source, r.Off, r.Len)
		require.NoError(t, err)
		at := r.Off
		read := func(end int64) {
			if end > at {
				require.NoError(t, f.source.ReadAt(ctx, f.copied[at:end], at))
				at = end
			}
		}
		for _, z := range wholeZeros(extents, block, r.End()) {
			read(z.Off)
			clear(f.copied[z.Off:z.End()])
			at = z.End()
		}
		read(r.End())
	}
	f.read[l] = true
}

func (f *follower) take(i int) *Lease {
	l := f.open[i]
	f.open = append(f.open[:i], f.open[i+1:]...)
	return l
}

// pass leases, copies and acknowledges until a pass ends, and returns how many
// bytes that were.
func (f *follower) pass(t require.TestingT, block int64) (n int64) {
	for {
		l, err := f.Lease(context.Background(), 16*block)
		if err == io.EOF {
			return n
		}
		require.NoError(t, err)
		f.fetch(t, l, block)
		require.NoError(t, f.Ack(l))
		n += l.Bytes()
	}
}

// Whatever is written in whatever moment, contents that come back included:
// when the writer stops, the next pass makes every consumer's copy equal, and
// the one after it finds nothing.
func TestHashTrackerAgainstModel(t *testing.T) {
	ctx := context.Background()
	rapid.Check(t, func(t *rapid.T) {
		const block = 512
		size := rapid.Int64Range(1, 150*block).Draw(t, "size")
		dev := sharetest.NewDevice(size)
		write := func(t *rapid.T) {
			off := rapid.Int64Range(0, size-1).Draw(t, "off")
			n := min(size-off, rapid.SampledFrom([]int64{1, 512, 3000}).Draw(t, "n"))
			// Few contents, so that they come back.
			what := byte(rapid.IntRange(0, 2).Draw(t, "what"))
			require.NoError(t, dev.WriteAt(ctx, bytes.Repeat([]byte{what}, int(n)), off))
		}
		for range rapid.IntRange(0, 3).Draw(t, "before") {
			write(t)
		}
		tr, err := NewHashTracker(dev, block)
		require.NoError(t, err)
		var all []*follower
		for range rapid.IntRange(1, 3).Draw(t, "consumers") {
			from := rapid.SampledFrom([]From{FromAll, FromNow}).Draw(t, "from")
			c, err := tr.NewCursor(ctx, from)
			require.NoError(t, err)
			f := newFollower(t, tr, c)
			if from == FromNow {
				require.NoError(t, dev.ReadAt(ctx, f.copied, 0))
				require.Zero(t, c.Dirty())
			} else {
				require.Equal(t, size, c.Dirty())
			}
			all = append(all, f)
		}
		pick := func(t *rapid.T) *follower { return rapid.SampledFrom(all).Draw(t, "who") }
		t.Repeat(map[string]func(*rapid.T){
			"write": write,
			"discard": func(t *rapid.T) {
				off := rapid.Int64Range(0, size-1).Draw(t, "off")
				require.NoError(t, dev.Zero(ctx, off, min(size-off, 5000), 0))
			},
			"lease": func(t *rapid.T) {
				f := pick(t)
				most := rapid.Int64Range(0, 40*block).Draw(t, "max")
				l, err := f.Lease(ctx, most)
				if err == io.EOF {
					return
				}
				require.NoError(t, err)
				require.LessOrEqual(t, l.Bytes(), max(most, block))
				for _, o := range f.open {
					for _, a := range o.Ranges {
						for _, b := range l.Ranges {
							require.False(t, a.Off < b.End() && b.Off < a.End(), "leased twice")
						}
					}
				}
				f.open = append(f.open, l)
			},
			"fetch": func(t *rapid.T) {
				if f := pick(t); len(f.open) > 0 {
					f.fetch(t, rapid.SampledFrom(f.open).Draw(t, "lease"), block)
				}
			},
			"answer": func(t *rapid.T) {
				f := pick(t)
				if len(f.open) == 0 {
					return
				}
				l := f.take(rapid.IntRange(0, len(f.open)-1).Draw(t, "lease"))
				if rapid.Bool().Draw(t, "ack") && f.read[l] {
					require.NoError(t, f.Ack(l))
				} else {
					require.NoError(t, f.Nack(l))
					for _, r := range l.Ranges { // and nobody knows what it holds
						clear(f.copied[r.Off:r.End()])
					}
				}
				require.ErrorIs(t, f.Ack(l), share.ErrInvalid)
			},
		})
		want := make([]byte, size)
		require.NoError(t, dev.ReadAt(ctx, want, 0))
		for _, f := range all {
			for len(f.open) > 0 {
				require.NoError(t, f.Nack(f.take(0)))
			}
			f.pass(t, block) // the one under way
			f.pass(t, block)
			require.Zero(t, f.pass(t, block))
			require.Zero(t, f.Dirty())
			require.Zero(t, f.Leased())
			require.True(t, bytes.Equal(want, f.copied))
			require.NoError(t, f.Close())
			require.NoError(t, f.Close())
		}
	})
}

// A block that was one thing when it was leased, another when it was copied,
// and is the first again: its hash is that of the look before the lease, and
// its copy is wrong.
func TestHashTrackerContentThatComesBack(t *testing.T) {
	ctx := context.Background()
	dev := sharetest.NewDevice(4096)
	fill := func(b byte) { require.NoError(t, dev.WriteAt(ctx, bytes.Repeat([]byte{b}, 4096), 0)) }
	tr, err := NewHashTracker(dev, 4096)
	require.NoError(t, err)
	c, err := tr.NewCursor(ctx, FromNow)
	require.NoError(t, err)
	f := newFollower(t, tr, c)

	fill('A')
	l, err := f.Lease(ctx, 4096)
	require.NoError(t, err)
	fill('B')
	f.fetch(t, l, 4096)
	fill('A')
	require.NoError(t, f.Ack(l))
	_, err = f.Lease(ctx, 4096)
	require.Equal(t, io.EOF, err)
	require.Equal(t, int64(4096), f.pass(t, 4096))
	require.Equal(t, byte('A'), f.copied[0])
}

// A block that was read twice during its lease, differently: which of the two
// was copied is not known.
func TestHashTrackerReadTwice(t *testing.T) {
	ctx := context.Background()
	dev := sharetest.NewDevice(4096)
	fill := func(b byte) { require.NoError(t, dev.WriteAt(ctx, bytes.Repeat([]byte{b}, 4096), 0)) }
	tr, err := NewHashTracker(dev, 4096)
	require.NoError(t, err)
	for _, again := range []byte{'A', 'B'} { // what the device is in the end
		c, err := tr.NewCursor(ctx, FromAll)
		require.NoError(t, err)
		f := newFollower(t, tr, c)
		l, err := f.Lease(ctx, 4096)
		require.NoError(t, err)
		fill('A')
		f.fetch(t, l, 4096)
		fill('B')
		f.fetch(t, l, 4096)
		fill(again)
		require.NoError(t, f.Ack(l))
		require.Equal(t, int64(4096), f.Dirty())
		f.pass(t, 4096)
		f.pass(t, 4096)
		require.Equal(t, again, f.copied[0])
	}
}

// Whose consumer reads the device itself is told so, and stays dirty.
func TestHashTrackerNeedsItsSource(t *testing.T) {
	ctx := context.Background()
	tr, err := NewHashTracker(sharetest.NewDevice(4096), 512)
	require.NoError(t, err)
	c, err := tr.NewCursor(ctx, FromAll)
	require.NoError(t, err)
	l, err := c.Lease(ctx, 4096)
	require.NoError(t, err)
	require.ErrorIs(t, c.Ack(l), share.ErrInvalid)
	require.Equal(t, int64(4096), c.Dirty())
	require.Zero(t, c.Leased())
}

// Where changes are marked, passes do not read; after a doubt one pass of each
// cursor does, and finds what was not marked.
func TestHashTrackerTrustsMarks(t *testing.T) {
	ctx := context.Background()
	dev := &stuckDevice{Device: sharetest.NewDevice(1 << 20)}
	tr, err := NewHashTracker(dev, 4096)
	require.NoError(t, err)
	tr.Trust()
	var all [2]*follower
	for i := range all {
		c, err := tr.NewCursor(ctx, FromAll)
		require.NoError(t, err)
		all[i] = newFollower(t, tr, c)
		all[i].pass(t, 4096)
		require.Zero(t, c.Dirty())
	}
	write := func(off int64) { require.NoError(t, dev.WriteAt(ctx, []byte{1}, off)) }
	write(5000)
	write(9000) // unmarked
	tr.Mark(5000, 1)
	require.Equal(t, int64(4096), all[0].pass(t, 4096))
	require.Zero(t, all[0].pass(t, 4096))
	tr.Doubt()
	require.Equal(t, int64(1<<20), all[0].Dirty())
	require.Equal(t, int64(4096), all[0].pass(t, 4096))
	require.Zero(t, all[0].Dirty())
	require.Equal(t, int64(8192), all[1].pass(t, 4096), "the marked one, and the other")
	dev.err = errors.New("nobody reads")
	require.Zero(t, all[0].pass(t, 4096))
	require.Zero(t, all[1].pass(t, 4096))
}

// A copy made by other means is compared, and only what differs is leased.
func TestHashTrackerGoesOnWithACopy(t *testing.T) {
	ctx := context.Background()
	dev, held := sharetest.NewDevice(3<<20), sharetest.NewDevice(4<<20)
	for _, d := range []share.Device{dev, held} {
		require.NoError(t, d.WriteAt(ctx, bytes.Repeat([]byte{1}, 1<<20), 1<<20))
	}
	require.NoError(t, dev.WriteAt(ctx, []byte{7}, 2<<20))
	require.NoError(t, held.WriteAt(ctx, []byte{7}, 0))
	tr, err := NewHashTracker(dev, 0)
	require.NoError(t, err)
	c, err := tr.NewCursorOf(ctx, held)
	require.NoError(t, err)
	l, err := c.Lease(ctx, 1<<30)
	require.NoError(t, err)
	require.Equal(t, []Range{{0, 64 << 10}, {2 << 20, 64 << 10}}, l.Ranges)
	_, err = tr.NewCursorOf(ctx, sharetest.NewDevice(4096))
	require.ErrorIs(t, err, share.ErrInvalid)
}

// Writers, two consumers and the race detector.
func TestHashTrackerWhileWritten(t *testing.T) {
	const block, blocks = 512, 2000
	ctx := context.Background()
	dev := sharetest.NewDevice(block * blocks)
	tr, err := NewHashTracker(dev, block)
	require.NoError(t, err)
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	for seed := range uint64(2) {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			for {
				select {
				case <-stop:
					return
				default:
				}
				_ = dev.WriteAt(ctx, bytes.Repeat([]byte{byte(rng.IntN(3))}, block), rng.Int64N(blocks)*block)
			}
		})
	}
	var all [2]*follower
	for i := range all {
		c, err := tr.NewCursor(ctx, FromAll)
		require.NoError(t, err)
		all[i] = newFollower(t, tr, c)
		readers.Go(func() {
			for range 10 {
				all[i].pass(t, block)
			}
		})
	}
	readers.Wait()
	close(stop)
	writers.Wait()
	want := make([]byte, dev.Size())
	require.NoError(t, dev.ReadAt(ctx, want, 0))
	for _, f := range all {
		f.pass(t, block)
		require.Zero(t, f.pass(t, block))
		require.True(t, bytes.Equal(want, f.copied))
	}
}

// A lease ends with its context, and a failed read leases nothing and loses
// nothing.
func TestHashTrackerReadFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		dev := &stuckDevice{Device: sharetest.NewDevice(1 << 20)}
		tr, err := NewHashTracker(dev, 4096)
		require.NoError(t, err)
		c, err := tr.NewCursor(ctx, FromNow)
		require.NoError(t, err)
		require.NoError(t, dev.WriteAt(ctx, []byte{1}, 500_000))

		dev.err = errors.New("medium error")
		_, err = c.Lease(ctx, 1<<20)
		require.ErrorIs(t, err, dev.err)
		dev.err = nil
		dev.stuck = true
		within, cancel := context.WithTimeout(ctx, 1)
		defer cancel()
		_, err = c.Lease(within, 1<<20)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		dev.stuck = false
		l, err := c.Lease(ctx, 1<<20)
		require.NoError(t, err)
		require.Equal(t, []Range{{122 * 4096, 4096}}, l.Ranges)
	})
}

type stuckDevice struct {
	share.Device
	stuck bool
	err   error
}

func (d *stuckDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	if d.err != nil {
		return d.err
	}
	if d.stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	return d.Device.ReadAt(ctx, p, off)
}

// The engine moves a disk by it, zeros and all, while it is written.
func TestHashTrackerInTheEngine(t *testing.T) {
	ctx := context.Background()
	src, dst := sharetest.NewDevice(8<<20), sharetest.NewDevice(8<<20)
	for i := range int64(32) {
		require.NoError(t, src.WriteAt(ctx, bytes.Repeat([]byte{byte(i)}, 4096), i*100_000))
	}
	tr, err := NewHashTracker(src, 0)
	require.NoError(t, err)
	c := newDiskCopy(DiskMove{Name: "vda", Source: tr.Source(), Tracker: tr, Destination: dst}, (*Options)(nil).orDefault())
	defer c.close()
	require.NoError(t, c.reach(ctx, 1))
	require.NoError(t, c.open(ctx))
	for round := range byte(4) {
		require.NoError(t, c.pass(ctx, func() {}))
		if round < 2 {
			require.NoError(t, src.WriteAt(ctx, []byte{round + 1}, int64(round)<<20))
		}
	}
	require.NoError(t, c.settled(ctx))
	require.Less(t, c.sentBytes.Load(), int64(6<<20))
	a, b := make([]byte, 8<<20), make([]byte, 8<<20)
	require.NoError(t, src.ReadAt(ctx, a, 0))
	require.NoError(t, dst.ReadAt(ctx, b, 0))
	require.True(t, bytes.Equal(a, b))
}

// A cursor over zeros takes next to nothing, and blocks that become zeros give
// their memory back.
func TestBlockHashesOfZerosAreFree(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	tr, err := NewHashTracker(holes(1<<40), 0)
	require.NoError(t, err)
	c, err := tr.NewCursor(context.Background(), FromNow)
	require.NoError(t, err)
	_, err = c.Lease(context.Background(), 1<<20)
	require.Equal(t, io.EOF, err)
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(10<<20))
	runtime.KeepAlive(c)

	var b blockHashes
	b.init(100)
	b.set(70, blockHash{1})
	require.Equal(t, blockHash{1}, b.get(70))
	b.set(70, blockHash{})
	require.Nil(t, b.groups[1])
}

// holes is a device of that size without any data.
type holes int64

func (d holes) Size() int64                                       { return int64(d) }
func (d holes) ReadAt(_ context.Context, p []byte, _ int64) error { clear(p); return nil }
func (d holes) WriteAt(context.Context, []byte, int64) error      { return share.ErrDenied }
func (d holes) Flush(context.Context) error                       { return nil }
func (d holes) Close() error                                      { return nil }
func (d holes) Extents(_ context.Context, off, n int64) ([]share.Extent, error) {
	return []share.Extent{{Off: off, Len: n, State: share.ExtentHole | share.ExtentZero}}, nil
}

// BenchmarkHashPass is a pass over data of which one block in a thousand has
// changed, and over a tebibyte of holes.
func BenchmarkHashPass(b *testing.B) {
	ctx := context.Background()
	run := func(dev share.Device, change func(i int)) {
		b.Run(fmt.Sprint(share.Bytes(dev.Size())), func(b *testing.B) {
			tr, _ := NewHashTracker(dev, 0)
			c, err := tr.NewCursor(ctx, FromNow)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			source := tr.Source()
			b.SetBytes(dev.Size())
			b.ReportAllocs()
			buf := make([]byte, 64<<20)
			for i := 0; b.Loop(); i++ {
				change(i)
				for {
					l, err := c.Lease(ctx, 64<<20)
					if err == io.EOF {
						break
					}
					for _, r := range l.Ranges {
						if err := source.ReadAt(ctx, buf[:r.Len], r.Off); err != nil {
							b.Fatal(err)
						}
					}
					if err := c.Ack(l); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
	dev := sharetest.NewDevice(256 << 20)
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	for off := int64(0); off < dev.Size(); off += 1 << 20 {
		if err := dev.WriteAt(ctx, noise, off); err != nil {
			b.Fatal(err)
		}
	}
	run(dev, func(i int) {
		for k := range int64(4) {
			_ = dev.WriteAt(ctx, []byte{byte(i), byte(i >> 8)}, k<<26+int64(i%1000)<<16)
		}
	})
	run(holes(1<<40), func(int) {})
}
