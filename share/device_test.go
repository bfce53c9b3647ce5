package share_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/vmferry/vmferry/share"
)

// plain is a device of the least kind.
type plain struct {
	data   []byte
	writes []int
	sizes  share.BlockSizes
}

func (d *plain) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := share.CheckRange(d.Size(), off, int64(len(p))); err != nil {
		return err
	}
	copy(p, d.data[off:])
	return nil
}

func (d *plain) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := share.CheckRange(d.Size(), off, int64(len(p))); err != nil {
		return err
	}
	d.writes = append(d.writes, len(p))
	copy(d.data[off:], p)
	return nil
}

func (d *plain) Flush(context.Context) error { return nil }
func (d *plain) Size() int64                 { return int64(len(d.data)) }
func (d *plain) Close() error                { return nil }

type sized struct{ *plain }

func (d sized) BlockSizes() share.BlockSizes { return d.sizes }

// able has every optional interface, answered by functions.
type able struct {
	*plain
	zero    func(off, n int64, flags share.ZeroFlags) error
	discard func(off, n int64) error
	extents func(off, n int64) ([]share.Extent, error)
}

func (d able) Zero(_ context.Context, off, n int64, f share.ZeroFlags) error {
	return d.zero(off, n, f)
}
func (d able) Discard(_ context.Context, off, n int64) error { return d.discard(off, n) }
func (d able) Extents(_ context.Context, off, n int64) ([]share.Extent, error) {
	return d.extents(off, n)
}
func (d able) Identity() string { return "me" }

type wrapped struct{ share.Device }

func (w wrapped) Unwrap() share.Device { return w.Device }

func ones(n int) *plain { return &plain{data: bytes.Repeat([]byte{1}, n)} }

func TestCheckRange(t *testing.T) {
	for _, c := range []struct {
		size, off, n int64
		ok           bool
	}{
		{10, 0, 10, true}, {10, 10, 0, true}, {0, 0, 0, true}, {10, 9, 1, true},
		{10, 0, 11, false}, {10, 11, 0, false}, {10, -1, 1, false}, {10, 0, -1, false},
		{10, 5, math.MaxInt64, false}, {10, math.MaxInt64, math.MaxInt64, false}, {10, math.MinInt64, 1, false},
	} {
		err := share.CheckRange(c.size, c.off, c.n)
		require.Equal(t, c.ok, err == nil, "%+v", c)
		if err != nil {
			require.ErrorIs(t, err, share.ErrInvalid)
		}
	}
}

func TestZeroRangeWritesZeros(t *testing.T) {
	ctx := t.Context()
	d := ones(1 << 20)
	require.NoError(t, share.ZeroRange(ctx, d, 7, 600<<10, 0))
	want := bytes.Repeat([]byte{1}, 1<<20)
	clear(want[7:][:600<<10])
	require.True(t, bytes.Equal(want, d.data))
	require.Equal(t, []int{256 << 10, 256 << 10, 88 << 10}, d.writes)

	d = ones(1 << 10)
	d.sizes.Maximum = 300
	require.NoError(t, share.ZeroRange(ctx, sized{d}, 0, 1<<10, share.ZeroKeepAllocated))
	require.Equal(t, []int{300, 300, 300, 124}, d.writes)

	d = ones(10)
	require.ErrorIs(t, share.ZeroRange(ctx, d, 0, 10, share.ZeroFast), errors.ErrUnsupported)
	require.ErrorIs(t, share.ZeroRange(ctx, d, 0, 11, 0), share.ErrInvalid)
	require.NoError(t, share.ZeroRange(ctx, d, 10, 0, 0))
	require.Empty(t, d.writes)

	gone, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, share.ZeroRange(gone, d, 0, 10, 0), context.Canceled)
}

func TestZeroRangeAsksTheDevice(t *testing.T) {
	ctx := t.Context()
	d := able{plain: ones(10)}
	var got share.ZeroFlags
	d.zero = func(_, _ int64, f share.ZeroFlags) error { got = f; return nil }
	require.NoError(t, share.ZeroRange(ctx, wrapped{d}, 0, 10, share.ZeroFast|share.ZeroKeepAllocated))
	require.Equal(t, share.ZeroFast|share.ZeroKeepAllocated, got)
	require.Empty(t, d.writes, "the device did it")

	d.zero = func(int64, int64, share.ZeroFlags) error { return fmt.Errorf("x: %w", errors.ErrUnsupported) }
	require.ErrorIs(t, share.ZeroRange(ctx, d, 0, 10, share.ZeroFast), errors.ErrUnsupported)
	require.Empty(t, d.writes)
	require.NoError(t, share.ZeroRange(ctx, d, 0, 10, 0))
	require.Equal(t, make([]byte, 10), d.data)

	broken := errors.New("broken")
	d.zero = func(int64, int64, share.ZeroFlags) error { return broken }
	require.ErrorIs(t, share.ZeroRange(ctx, d, 0, 10, 0), broken, "only a lack is made up for")
}

func TestDiscardRange(t *testing.T) {
	ctx := t.Context()
	require.NoError(t, share.DiscardRange(ctx, ones(10), 0, 10), "a hint")
	require.ErrorIs(t, share.DiscardRange(ctx, ones(10), 5, 6), share.ErrInvalid)
	broken := errors.New("broken")
	for _, c := range []struct{ says, want error }{{nil, nil}, {errors.ErrUnsupported, nil}, {broken, broken}} {
		d := able{plain: ones(10), discard: func(int64, int64) error { return c.says }}
		require.Equal(t, c.want, share.DiscardRange(ctx, wrapped{d}, 0, 10))
	}
}

func TestListExtents(t *testing.T) {
	ctx := t.Context()
	const hz = share.ExtentHole | share.ExtentZero
	all := []share.Extent{{Off: 10, Len: 90}}
	for _, c := range []struct {
		name    string
		answers [][]share.Extent // one for each call; nil is errors.ErrUnsupported
		want    []share.Extent   // nil is an error
	}{
		{"cannot tell", [][]share.Extent{nil}, all},
		{"one", [][]share.Extent{{{10, 90, 0}}}, all},
		{"merged", [][]share.Extent{{{10, 40, hz}, {50, 10, hz}}, {{60, 40, hz}}}, []share.Extent{{10, 90, hz}}},
		{"in parts", [][]share.Extent{{{10, 40, hz}}, {{50, 50, 0}}}, []share.Extent{{10, 40, hz}, {50, 50, 0}}},
		{"nothing", [][]share.Extent{{}}, nil},
		{"nothing later", [][]share.Extent{{{10, 1, 0}}, {}}, nil},
		{"unsupported later", [][]share.Extent{{{10, 1, 0}}, nil}, nil},
		{"starts early", [][]share.Extent{{{0, 100, 0}}}, nil},
		{"starts late", [][]share.Extent{{{11, 89, 0}}}, nil},
		{"too long", [][]share.Extent{{{10, 91, 0}}}, nil},
		{"gap", [][]share.Extent{{{10, 10, hz}, {30, 70, 0}}}, nil},
		{"overlap", [][]share.Extent{{{10, 10, hz}, {15, 85, 0}}}, nil},
		{"empty extent", [][]share.Extent{{{10, 0, 0}, {10, 90, 0}}}, nil},
		{"negative", [][]share.Extent{{{10, -5, 0}}}, nil},
		{"backwards", [][]share.Extent{{{10, 50, 0}}, {{10, 90, 0}}}, nil},
		{"overflow", [][]share.Extent{{{10, math.MaxInt64, hz}}}, nil},
	} {
		calls := 0
		d := able{plain: ones(100), extents: func(int64, int64) ([]share.Extent, error) {
			a := c.answers[calls]
			calls++
			if a == nil {
				return nil, fmt.Errorf("x: %w", errors.ErrUnsupported)
			}
			return a, nil
		}}
		got, err := share.ListExtents(ctx, wrapped{d}, 10, 90)
		if c.want == nil {
			require.Error(t, err, c.name)
			continue
		}
		require.NoError(t, err, c.name)
		require.Equal(t, c.want, got, c.name)
	}
	got, err := share.ListExtents(ctx, ones(100), 0, 100)
	require.NoError(t, err)
	require.Equal(t, []share.Extent{{0, 100, share.ExtentData}}, got, "no lister is all data")
	got, err = share.ListExtents(ctx, ones(100), 100, 0)
	require.NoError(t, err)
	require.Empty(t, got)
	_, err = share.ListExtents(ctx, ones(100), 50, 51)
	require.ErrorIs(t, err, share.ErrInvalid)
}

// TestListExtentsCovers: whatever a device answers, an error or a description
// of the range without gap or overlap comes back.
func TestListExtentsCovers(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.Int64Range(0, 1000).Draw(rt, "size")
		off := rapid.Int64Range(0, size).Draw(rt, "off")
		n := rapid.Int64Range(0, size-off).Draw(rt, "n")
		d := able{plain: ones(int(size)), extents: func(o, n int64) ([]share.Extent, error) {
			var out []share.Extent
			for range rapid.IntRange(0, 4).Draw(rt, "parts") {
				e := share.Extent{Off: o, Len: rapid.Int64Range(1, n+1).Draw(rt, "len"), State: share.ExtentState(rapid.IntRange(0, 3).Draw(rt, "state"))}
				if rapid.IntRange(0, 20).Draw(rt, "lie") == 0 {
					e.Off += rapid.Int64Range(-2, 2).Draw(rt, "by")
				}
				out = append(out, e)
				if o += e.Len; e.Len >= n {
					break
				}
				n -= e.Len
			}
			return out, nil
		}}
		got, err := share.ListExtents(context.Background(), d, off, n)
		if err != nil {
			return
		}
		at := off
		for i, e := range got {
			if e.Off != at || e.Len <= 0 || i > 0 && got[i-1].State == e.State {
				rt.Fatalf("%v", got)
			}
			at = e.End()
		}
		if at != off+n {
			rt.Fatalf("%v ends at %d, not %d", got, at, off+n)
		}
	})
}

func TestDeviceAs(t *testing.T) {
	d := able{plain: ones(10)}
	require.Equal(t, "me", share.IdentityOf(wrapped{wrapped{d}}))
	require.Empty(t, share.IdentityOf(ones(1)))
	require.Equal(t, share.BlockSizes{Minimum: 1, Preferred: 4096}, share.SizesOf(d))
	require.Equal(t, int64(7), share.SizesOf(wrapped{sized{&plain{sizes: share.BlockSizes{Maximum: 7}}}}).Maximum)
	_, ok := share.DeviceAs[share.Zeroer](struct{ share.Device }{d})
	require.False(t, ok, "a wrapper without Unwrap hides what it wraps")
	_, ok = share.DeviceAs[share.Zeroer](nil)
	require.False(t, ok)
}

func TestExtentText(t *testing.T) {
	require.Equal(t, "data", share.ExtentData.String())
	require.Equal(t, "hole,zero", (share.ExtentHole | share.ExtentZero).String())
	require.Equal(t, "hole", share.ExtentHole.String())
	require.Equal(t, "zero", share.ExtentZero.String())
	require.Equal(t, "ExtentState(9)", share.ExtentState(9).String())
	require.Equal(t, "5+3 zero", share.Extent{Off: 5, Len: 3, State: share.ExtentZero}.String())
	require.True(t, share.ExtentZero.Zero() && share.ExtentHole.Hole() && !share.ExtentHole.Zero())
}
