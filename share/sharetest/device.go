package sharetest

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// RunDevice checks that devices keep the contract of [share.Device] and of the
// optional interfaces that they have. New returns a device of 1 MiB or more
// that is all zeros, may be written, and is used by the check alone.
func RunDevice(t *testing.T, newDevice func(t testing.TB) share.Device) {
	for _, c := range deviceChecks {
		t.Run(c.name, func(t *testing.T) { c.on(t, newDevice(t)) })
	}
}

// deviceCheck is one promise of a device.
type deviceCheck struct {
	name string
	run  func(e *deviceEnv)
}

type deviceEnv struct {
	testing.TB
	ctx  context.Context
	d    share.Device
	size int64
	unit int64 // the least that a request may move
}

func (c deviceCheck) on(t testing.TB, d share.Device) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	t.Cleanup(func() { _ = d.Close() })
	unit := max(1, share.SizesOf(d).Minimum)
	require.GreaterOrEqual(t, d.Size(), int64(share.MiB), "the device is too small for the checks")
	c.run(&deviceEnv{TB: t, ctx: ctx, d: d, size: d.Size(), unit: unit})
}

// onShare runs a device's check on a disk of a share.
func onShare(t testing.TB, h *Harness, c deviceCheck) {
	e := newEnv(t, h)
	e.need(share.CanOpenDevice)
	e.createDisk("d")
	c.on(t, e.openDisk(e.s, "d", nil))
}

// at rounds n down to what a request may begin or end at.
func (e *deviceEnv) at(n int64) int64 { return n / e.unit * e.unit }

var deviceChecks = []deviceCheck{
	{"StartsAsZeros", func(e *deviceEnv) {
		require.NoError(e, hasZeros(e.ctx, e.d, 0, e.size))
	}},

	{"Bounds", func(e *deviceEnv) {
		u := e.unit
		require.NoError(e, fillPattern(e.ctx, e.d, 1))
		for _, r := range []struct{ off, n int64 }{
			{e.size, u}, {e.size - u, 2 * u}, {-u, u}, {-u, 2 * u}, {e.size + u, u}, {math.MaxInt64 - u + 1, u}, {0, e.size + u},
		} {
			p := make([]byte, r.n)
			what := fmt.Sprintf("%d+%d of %d", r.off, r.n, e.size)
			require.ErrorIs(e, e.d.ReadAt(e.ctx, p, r.off), share.ErrInvalid, "read %s", what)
			require.ErrorIs(e, e.d.WriteAt(e.ctx, p, r.off), share.ErrInvalid, "write %s", what)
			if z, ok := share.DeviceAs[share.Zeroer](e.d); ok {
				e.refuses(z.Zero(e.ctx, r.off, r.n, 0), share.ErrInvalid, "zero %s", what)
				e.refuses(z.Zero(e.ctx, 0, -u, 0), share.ErrInvalid, "zero a negative length")
				e.refuses(z.Zero(e.ctx, u, math.MaxInt64-u+1, 0), share.ErrInvalid, "zero a length that overflows")
			}
			if t, ok := share.DeviceAs[share.Discarder](e.d); ok {
				e.refuses(t.Discard(e.ctx, r.off, r.n), share.ErrInvalid, "discard %s", what)
				e.refuses(t.Discard(e.ctx, 0, -u), share.ErrInvalid, "discard a negative length")
			}
			if l, ok := share.DeviceAs[share.ExtentLister](e.d); ok {
				_, err := l.Extents(e.ctx, r.off, r.n)
				e.refuses(err, share.ErrInvalid, "extents of %s", what)
			}
		}
		require.NoError(e, hasPattern(e.ctx, e.d, 0, e.size, 1), "what was refused had an effect")
		require.Equal(e, e.size, e.d.Size())
		for _, off := range []int64{0, e.at(e.size / 2), e.size} {
			require.NoError(e, e.d.ReadAt(e.ctx, nil, off), "an empty read at %d", off)
			require.NoError(e, e.d.WriteAt(e.ctx, nil, off), "an empty write at %d", off)
		}
		require.NoError(e, hasPattern(e.ctx, e.d, 0, e.size, 1))
	}},

	{"ReadWhatWasWritten", func(e *deviceEnv) {
		rnd := rand.New(rand.NewPCG(1, 2))
		model := make([]byte, e.size)
		for range 200 {
			off := e.at(rnd.Int64N(e.size))
			n := min(e.size-off, max(e.unit, e.at(rnd.Int64N(100<<10))))
			p := make([]byte, n)
			pattern(p, off, rnd.Uint64())
			copy(model[off:], p)
			require.NoError(e, e.d.WriteAt(e.ctx, p, off))
			clear(p) // the device has not kept it
		}
		e.isLike(model)
		require.NoError(e, e.d.Flush(e.ctx))
		e.isLike(model)
		// One request for all of it.
		if most := share.SizesOf(e.d).Maximum; most == 0 || most >= e.size {
			all := make([]byte, e.size)
			require.NoError(e, e.d.ReadAt(e.ctx, all, 0))
			require.True(e, bytes.Equal(model, all))
			pattern(all, 0, 9)
			require.NoError(e, e.d.WriteAt(e.ctx, all, 0))
			e.isLike(all)
		}
	}},

	{"Zero", func(e *deviceEnv) {
		require.NoError(e, fillPattern(e.ctx, e.d, 1))
		model := make([]byte, e.size)
		pattern(model, 0, 1)
		for i, r := range []struct{ off, n int64 }{
			{0, 4096}, {8192, 512}, {100 << 10, 300 << 10}, {1000, 3}, {65535, 65538}, {500 << 10, 0}, {e.size - 4096, 4096}, {e.size, 0},
		} {
			off := e.at(r.off)
			n := min(e.size-off, e.at(r.n))
			for _, flags := range []share.ZeroFlags{0, share.ZeroKeepAllocated} {
				pattern(model[off:off+n], off, 1)
				require.NoError(e, e.d.WriteAt(e.ctx, model[off:off+n], off))
				require.NoError(e, share.ZeroRange(e.ctx, e.d, off, n, flags), "range %d, flags %d", i, flags)
				clear(model[off : off+n])
				e.isLike(model)
				if z, ok := share.DeviceAs[share.Zeroer](e.d); ok {
					pattern(model[off:off+n], off, 2)
					require.NoError(e, e.d.WriteAt(e.ctx, model[off:off+n], off))
					err := z.Zero(e.ctx, off, n, flags|share.ZeroFast)
					if !unsupported(err) {
						require.NoError(e, err)
						clear(model[off : off+n])
					}
					e.isLike(model)
				}
			}
		}
	}},

	{"Discard", func(e *deviceEnv) {
		require.NoError(e, fillPattern(e.ctx, e.d, 1))
		from, to := e.at(e.size/4), e.at(e.size/2)
		require.NoError(e, share.DiscardRange(e.ctx, e.d, from, to-from))
		require.NoError(e, hasPattern(e.ctx, e.d, 0, from, 1), "before what was discarded")
		require.NoError(e, hasPattern(e.ctx, e.d, to, e.size-to, 1), "behind what was discarded")
		p := make([]byte, to-from)
		require.NoError(e, e.d.ReadAt(e.ctx, p, from), "what was discarded can be read")
		pattern(p, from, 2)
		require.NoError(e, e.d.WriteAt(e.ctx, p, from))
		require.NoError(e, hasPattern(e.ctx, e.d, from, to-from, 2))
		require.NoError(e, share.DiscardRange(e.ctx, e.d, e.size, 0))
	}},

	{"Extents", func(e *deviceEnv) {
		e.extentsAreTrue()
		chunk := make([]byte, e.at(64<<10))
		model := make([]byte, e.size)
		for _, off := range []int64{0, e.at(200 << 10), e.at(777_777), e.size - int64(len(chunk))} {
			pattern(chunk, off, 1)
			copy(model[off:], chunk)
			require.NoError(e, e.d.WriteAt(e.ctx, chunk, off))
			e.extentsAreTrue()
		}
		require.NoError(e, e.d.Flush(e.ctx))
		e.extentsAreTrue()
		require.NoError(e, share.ZeroRange(e.ctx, e.d, 0, e.at(10_000), 0))
		e.extentsAreTrue()
		clear(model[:e.at(10_000)])
		e.isLike(model)
		// Parts, also unaligned ones, are described as the whole is.
		rnd := rand.New(rand.NewPCG(3, 4))
		for range 50 {
			off := e.at(rnd.Int64N(e.size))
			n := e.at(rnd.Int64N(e.size - off + 1))
			exts, err := share.ListExtents(e.ctx, e.d, off, n)
			require.NoError(e, err)
			at := off
			for _, x := range exts {
				require.Equal(e, at, x.Off)
				at = x.End()
			}
			require.Equal(e, off+n, at, "the description of %d+%d ends elsewhere", off, n)
		}
	}},

	{"Cancelled", func(e *deviceEnv) {
		require.NoError(e, fillPattern(e.ctx, e.d, 1))
		gone, cancel := context.WithCancel(e.ctx)
		cancel()
		p := make([]byte, e.at(64<<10))
		calls := map[string]func() error{
			"read":    func() error { return e.d.ReadAt(gone, p, 0) },
			"write":   func() error { return e.d.WriteAt(gone, p, 0) },
			"flush":   func() error { return e.d.Flush(gone) },
			"zero":    func() error { return share.ZeroRange(gone, e.d, 0, int64(len(p)), 0) },
			"discard": func() error { return share.DiscardRange(gone, e.d, 0, int64(len(p))) },
			"extents": func() error { _, err := share.ListExtents(gone, e.d, 0, e.size); return err },
		}
		if _, ok := share.DeviceAs[share.Discarder](e.d); !ok {
			delete(calls, "discard")
		}
		if _, ok := share.DeviceAs[share.ExtentLister](e.d); !ok {
			delete(calls, "extents")
		}
		for name, call := range calls {
			start := time.Now()
			err := call()
			if name == "discard" && err == nil || name == "extents" && err == nil || unsupported(err) {
				continue // what a device cannot do is made up for without it
			}
			require.ErrorIs(e, err, context.Canceled, name)
			require.Less(e, time.Since(start), 5*time.Second, name)
		}
		require.NoError(e, hasPattern(e.ctx, e.d, 0, e.size, 1), "a cancelled call had an effect")
	}},

	{"Parallel", func(e *deviceEnv) {
		// Each worker has a stripe of its own, and its own model of it; the
		// stripes lie within one another.
		const workers, stripe = 8, 4096
		step := max(e.unit, stripe)
		var wg sync.WaitGroup
		errs := make([]error, workers)
		for w := range workers {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(w), 5))
				model := map[int64]uint64{} // 0: zeros
				for range 60 {
					i := rnd.Int64N(e.size/step/workers)*workers + int64(w)
					off := i * step
					p := make([]byte, step)
					var err error
					switch rnd.IntN(5) {
					case 0:
						err = share.ZeroRange(e.ctx, e.d, off, step, 0)
						model[off] = 0
					case 1:
						err = e.d.Flush(e.ctx)
					case 2, 3:
						seed := rnd.Uint64() | 1
						pattern(p, off, seed)
						err = e.d.WriteAt(e.ctx, p, off)
						model[off] = seed
					case 4:
						if seed := model[off]; seed == 0 {
							err = hasZeros(e.ctx, e.d, off, step)
						} else {
							err = hasPattern(e.ctx, e.d, off, step, seed)
						}
					}
					if err != nil {
						errs[w] = fmt.Errorf("worker %d: %w", w, err)
						return
					}
				}
				for off, seed := range model {
					var err error
					if seed == 0 {
						err = hasZeros(e.ctx, e.d, off, step)
					} else {
						err = hasPattern(e.ctx, e.d, off, step, seed)
					}
					if err != nil {
						errs[w] = fmt.Errorf("worker %d at the end: %w", w, err)
					}
				}
			})
		}
		wg.Wait()
		for _, err := range errs {
			require.NoError(e, err)
		}
	}},

	{"Close", func(e *deviceEnv) {
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				p := make([]byte, e.at(64<<10))
				for i := range 1000 {
					off := e.at(int64(i*4+w) * 4096 % (e.size - int64(len(p))))
					if e.d.WriteAt(e.ctx, p, off) != nil {
						return
					}
				}
			})
		}
		time.Sleep(5 * time.Millisecond)
		require.NoError(e, e.d.Close())
		require.NoError(e, e.d.Close(), "the second Close")
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			e.Fatal("calls under way did not end when the device was closed")
		}
		p := make([]byte, e.unit)
		require.ErrorIs(e, e.d.ReadAt(e.ctx, p, 0), share.ErrClosed, "read after Close")
		require.ErrorIs(e, e.d.WriteAt(e.ctx, p, 0), share.ErrClosed, "write after Close")
		require.ErrorIs(e, e.d.Flush(e.ctx), share.ErrClosed, "flush after Close")
		if z, ok := share.DeviceAs[share.Zeroer](e.d); ok {
			e.refuses(z.Zero(e.ctx, 0, e.unit, 0), share.ErrClosed, "zero after Close")
		}
		if l, ok := share.DeviceAs[share.ExtentLister](e.d); ok {
			_, err := l.Extents(e.ctx, 0, e.unit)
			e.refuses(err, share.ErrClosed, "extents after Close")
		}
		require.Equal(e, e.size, e.d.Size(), "Size after Close")
	}},
}

// refuses fails unless err is of that kind, or says that the device cannot do
// at all what it was asked for.
func (e *deviceEnv) refuses(err, kind error, format string, args ...any) {
	e.Helper()
	if !unsupported(err) {
		require.ErrorIs(e, err, kind, append([]any{format}, args...)...)
	}
}

// isLike fails unless the device has the content of the model.
func (e *deviceEnv) isLike(model []byte) {
	e.Helper()
	p := make([]byte, 256<<10)
	for off := int64(0); off < e.size; off += int64(len(p)) {
		p = p[:min(int64(len(p)), e.size-off)]
		require.NoError(e, e.d.ReadAt(e.ctx, p, off))
		if !bytes.Equal(p, model[off:][:len(p)]) {
			for i := range p {
				if want := model[off+int64(i)]; p[i] != want {
					e.Fatalf("byte %d is %#x, not %#x", off+int64(i), p[i], want)
				}
			}
		}
	}
}

// extentsAreTrue fails if an extent that is said to be zero is not.
func (e *deviceEnv) extentsAreTrue() {
	e.Helper()
	exts, err := share.ListExtents(e.ctx, e.d, 0, e.size)
	require.NoError(e, err)
	for _, x := range exts {
		if x.State.Zero() {
			require.NoError(e, hasZeros(e.ctx, e.d, x.Off, x.Len), "the extent %v", x)
		}
	}
}
