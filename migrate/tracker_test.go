package migrate

import (
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/vmferry/vmferry/share"
)

// take leases all that is dirty in one pass, and acknowledges it.
func drain(t require.TestingT, c Cursor) (blocks map[int64]bool) {
	blocks = map[int64]bool{}
	for {
		l, err := c.Lease(context.Background(), 1<<20)
		if err == io.EOF {
			return blocks
		}
		require.NoError(t, err)
		for _, r := range l.Ranges {
			for off := r.Off; off < r.End(); off += 512 {
				blocks[off/512] = true
			}
		}
		require.NoError(t, c.Ack(l))
	}
}

// A cursor is compared with a map under any order of calls.
func TestCursorAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const block = 512
		size := rapid.Int64Range(0, 200_000).Draw(t, "size")
		blocks := (size + block - 1) / block
		tr, err := NewBlockTracker(size, block)
		require.NoError(t, err)
		c, err := tr.NewCursor(context.Background(), rapid.SampledFrom([]From{FromAll, FromNow}).Draw(t, "from"))
		require.NoError(t, err)

		dirty := map[int64]bool{}
		leased := map[int64]bool{}
		var open []*Lease
		if c.Dirty() > 0 {
			require.Equal(t, size, c.Dirty())
			for i := range blocks {
				dirty[i] = true
			}
		}
		bytes := func(set map[int64]bool) (n int64) {
			for i := range set {
				n += min(block, size-i*block)
			}
			return n
		}
		t.Repeat(map[string]func(*rapid.T){
			"mark": func(t *rapid.T) {
				off := rapid.Int64Range(-1000, size+1000).Draw(t, "off")
				n := rapid.Int64Range(0, 70_000).Draw(t, "n")
				tr.Mark(off, n)
				for i := range blocks {
					if lo, hi := i*block, min((i+1)*block, size); max(lo, off) < min(hi, off+n) {
						dirty[i] = true
					}
				}
			},
			"lease": func(t *rapid.T) {
				most := rapid.Int64Range(0, 50_000).Draw(t, "max")
				l, err := c.Lease(context.Background(), most)
				if err == io.EOF {
					return
				}
				require.NoError(t, err)
				require.LessOrEqual(t, l.Bytes(), max(most, block))
				last := int64(-1)
				for _, r := range l.Ranges {
					require.Greater(t, r.Off, last)
					require.Zero(t, r.Off%block)
					last = r.End()
					for off := r.Off; off < r.End(); off += block {
						require.True(t, dirty[off/block], "block %d was not dirty", off/block)
						require.False(t, leased[off/block], "block %d is leased twice", off/block)
						delete(dirty, off/block)
						leased[off/block] = true
					}
				}
				open = append(open, l)
			},
			"answer": func(t *rapid.T) {
				if len(open) == 0 {
					return
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "lease")
				l := open[i]
				open = append(open[:i], open[i+1:]...)
				nack := rapid.Bool().Draw(t, "nack")
				if nack {
					require.NoError(t, c.Nack(l))
				} else {
					require.NoError(t, c.Ack(l))
				}
				require.ErrorIs(t, c.Ack(l), share.ErrInvalid, "answered twice")
				for _, r := range l.Ranges {
					for off := r.Off; off < r.End(); off += block {
						delete(leased, off/block)
						if nack {
							dirty[off/block] = true
						}
					}
				}
			},
			"": func(t *rapid.T) {
				require.Equal(t, bytes(dirty), c.Dirty())
				require.Equal(t, bytes(leased), c.Leased())
			},
		})
		for _, l := range open {
			require.NoError(t, c.Nack(l))
			for _, r := range l.Ranges {
				for off := r.Off; off < r.End(); off += block {
					dirty[off/block] = true
				}
			}
		}
		got := drain(t, c)
		for i := range drain(t, c) { // the hand may have been in the middle
			got[i] = true
		}
		require.Equal(t, dirty, got)
	})
}

// However marks and leases interleave, a mark is leased after it was made.
func TestNoMarkIsLost(t *testing.T) {
	const blocks = 1 << 16
	tr, err := NewBlockTracker(blocks*512, 512)
	require.NoError(t, err)
	c, err := tr.NewCursor(context.Background(), FromNow)
	require.NoError(t, err)

	// version[i] counts the writes to block i; seen[i] is what a lease read.
	version, seen := make([]atomic.Int64, blocks), make([]int64, blocks)
	var writers sync.WaitGroup
	for seed := range uint64(4) {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 0))
			for range 200_000 {
				i := rng.Int64N(blocks)
				if rng.IntN(2) == 0 {
					i %= 256
				}
				tr.Mark(i*512, 1)
				version[i].Add(1)
				tr.Mark(i*512, 1)
			}
		})
	}
	stop := make(chan struct{})
	go func() { writers.Wait(); close(stop) }()
	pass := func() {
		for {
			l, err := c.Lease(context.Background(), 64*512)
			if err == io.EOF {
				return
			}
			require.NoError(t, err)
			for _, r := range l.Ranges {
				for i := r.Off / 512; i < r.End()/512; i++ {
					seen[i] = version[i].Load()
				}
			}
			require.NoError(t, c.Ack(l))
		}
	}
	for running := true; running; {
		select {
		case <-stop:
			running = false
		default:
		}
		pass()
	}
	pass()
	require.Zero(t, c.Dirty())
	for i := range seen {
		require.Equal(t, version[i].Load(), seen[i], "block %d", i)
	}
}

// Two consumers do not take anything from each other.
func TestCursorsAreIndependent(t *testing.T) {
	tr, err := NewBlockTracker(100*512, 512)
	require.NoError(t, err)
	ctx := context.Background()
	a, err := tr.NewCursor(ctx, FromNow)
	require.NoError(t, err)
	tr.Mark(0, 512)
	b, err := tr.NewCursor(ctx, FromNow)
	require.NoError(t, err)
	tr.Mark(512, 512)
	require.Len(t, drain(t, a), 2)
	require.Len(t, drain(t, b), 1)
	require.NoError(t, a.Close())
	require.NoError(t, a.Close())
	tr.Mark(0, 512)
	require.Equal(t, int64(512), b.Dirty())
	_, err = a.Lease(ctx, 1)
	require.ErrorIs(t, err, share.ErrClosed)
}

// A leased block that is written again waits for its lease to be answered.
func TestNoTwoGenerationsUnderWay(t *testing.T) {
	tr, err := NewBlockTracker(10*512, 512)
	require.NoError(t, err)
	ctx := context.Background()
	c, err := tr.NewCursor(ctx, FromNow)
	require.NoError(t, err)
	tr.Mark(0, 512)
	first, err := c.Lease(ctx, 512)
	require.NoError(t, err)
	tr.Mark(0, 512)
	_, err = c.Lease(ctx, 512)
	require.Equal(t, io.EOF, err)
	require.NoError(t, c.Ack(first))
	second, err := c.Lease(ctx, 512)
	require.NoError(t, err)
	require.Greater(t, second.Generation, first.Generation)
	require.Equal(t, first.Ranges, second.Ranges)
}

// A block that was leased in the pass before goes last.
func TestHotBlocksGoLast(t *testing.T) {
	tr, err := NewBlockTracker(100*512, 512)
	require.NoError(t, err)
	ctx := context.Background()
	c, err := tr.NewCursor(ctx, FromNow)
	require.NoError(t, err)
	pass := func(mark ...int64) (order []int64) {
		for _, i := range mark {
			tr.Mark(i*512, 1)
		}
		for {
			l, err := c.Lease(ctx, 512)
			if err == io.EOF {
				return order
			}
			require.NoError(t, err)
			order = append(order, l.Ranges[0].Off/512)
			require.NoError(t, c.Ack(l))
		}
	}
	require.Equal(t, []int64{3, 50}, pass(3, 50))
	require.Equal(t, []int64{20, 60, 3}, pass(3, 20, 60))
	require.Equal(t, []int64{50, 3, 20}, pass(3, 20, 50))
	require.Empty(t, pass())
	require.Equal(t, []int64{3, 20, 50}, pass(3, 20, 50), "what rested is cold again")
}

func TestTrackerRefusesBadSizes(t *testing.T) {
	for _, bad := range [][2]int64{{-1, 512}, {1, 100}, {1, 3000}, {1, 128 << 20}} {
		_, err := NewBlockTracker(bad[0], bad[1])
		require.ErrorIs(t, err, share.ErrInvalid, "%v", bad)
	}
}

func TestMarkDoesNotAllocate(t *testing.T) {
	tr, err := NewBlockTracker(1<<40, 0)
	require.NoError(t, err)
	c, err := tr.NewCursor(context.Background(), FromNow)
	require.NoError(t, err)
	off := int64(0)
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		tr.Mark(off, 4096)
		off += 1 << 20
	}))
	require.Positive(t, c.Dirty())
}

// BenchmarkMark is the cost of noting one 4 KiB write on a device of 1 TiB: to
// a block that is dirty already, to clean ones in order, and to clean ones
// anywhere. Clean means clean: the set is emptied, off the clock, before a
// block comes again.
func BenchmarkMark(b *testing.B) {
	const blocks = 1 << 24
	run := func(name string, next func(i int64) int64) {
		b.Run(name, func(b *testing.B) {
			tr, _ := NewBlockTracker(blocks*DefaultGranularity, 0)
			c, _ := tr.NewCursor(context.Background(), FromNow)
			b.ReportAllocs()
			for i := int64(0); b.Loop(); i++ {
				if i%blocks == blocks-1 {
					b.StopTimer()
					_ = c.Close()
					c, _ = tr.NewCursor(context.Background(), FromNow)
					b.StartTimer()
				}
				tr.Mark(next(i)*DefaultGranularity, 4096)
			}
		})
	}
	run("dirty", func(int64) int64 { return 0 })
	run("in-order", func(i int64) int64 { return i % blocks })
	run("anywhere", func(i int64) int64 { return i * 0x9e3779b1 % blocks }) // odd: each block once
}

// BenchmarkDrain leases and acknowledges 1,000 dirty blocks spread over devices
// of two sizes: the cost follows the blocks, not the device.
func BenchmarkDrain(b *testing.B) {
	for _, size := range []int64{16 << 30, 16 << 40} {
		b.Run(share.Bytes(size).String(), func(b *testing.B) {
			tr, _ := NewBlockTracker(size, 0)
			c, _ := tr.NewCursor(context.Background(), FromNow)
			b.ReportAllocs()
			for b.Loop() {
				for i := range int64(1000) {
					tr.Mark(size/1000*i, 1)
				}
				drainBench(b, c)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/block")
		})
	}
}

func drainBench(b *testing.B, c Cursor) {
	for {
		l, err := c.Lease(context.Background(), 64<<20)
		if err == io.EOF {
			return
		}
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Ack(l); err != nil {
			b.Fatal(err)
		}
	}
}
