package nbd_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
)

func TestDevice(t *testing.T) {
	const size = 8<<20 + 512
	mem := newMemory(size)
	_, uri := serve(t, nbd.Export{Device: mem, Description: "a disk"}, nil)
	c := dial(t, uri, &nbd.ClientOptions{MaxRequest: 64 << 10, Identity: "me"})
	ctx := timed(t)
	require.EqualValues(t, size, c.Size())
	require.Equal(t, "me", share.IdentityOf(c))
	require.Equal(t, "a disk", c.Info().Description)
	require.Equal(t, []string{nbd.ContextAllocation}, c.Info().Contexts)

	want := make([]byte, size)
	same(t, want, read(t, c, 0, size))
	for _, r := range []struct{ off, n int64 }{{0, 1}, {511, 3}, {4096, 64 << 10}, {100, 1 << 20}, {size - 700, 700}, {3 << 20, 3}} {
		pattern(want[r.off:r.off+r.n], r.off, 7)
		require.NoError(t, c.WriteAt(ctx, want[r.off:r.off+r.n], r.off))
		same(t, want, read(t, c, 0, size))
	}
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, c.Zero(ctx, 8192, 100<<10, share.ZeroKeepAllocated))
	clear(want[8192 : 8192+100<<10])
	require.NoError(t, c.Zero(ctx, 5<<20, 1<<20, share.ZeroFast))
	clear(want[5<<20 : 6<<20])
	require.NoError(t, c.Discard(ctx, 4096, 4096))
	clear(want[4096:8192])
	same(t, want, read(t, c, 0, size))
	require.Equal(t, 1, mem.count("zero1"))
	require.Equal(t, 1, mem.count("zero2"))
	require.Equal(t, 1, mem.count("discard"))

	mine, err := share.ListExtents(ctx, mem, 0, size)
	require.NoError(t, err)
	theirs, err := share.ListExtents(ctx, c, 0, size)
	require.NoError(t, err)
	require.Equal(t, mine, theirs)
}

func TestDeviceErrors(t *testing.T) {
	mem := newMemory(1 << 20)
	_, uri := serve(t, nbd.Export{Device: mem}, nil)
	c := dial(t, uri, nil)
	ctx := timed(t)
	b := make([]byte, 4096)
	for i, k := range []struct {
		give, want error
		code       nbd.Errno
	}{
		{errBroken, nil, nbd.EIO},
		{share.ErrDenied, share.ErrDenied, nbd.EPERM},
		{share.ErrNoSpace, share.ErrNoSpace, nbd.ENOSPC},
		{share.ErrInvalid, share.ErrInvalid, nbd.EINVAL},
		{errors.ErrUnsupported, errors.ErrUnsupported, nbd.ENOTSUP},
		{share.ErrClosed, share.ErrUnavailable, nbd.ESHUTDOWN},
		{&nbd.Error{Code: nbd.ENOMEM}, nil, nbd.ENOMEM},
	} {
		off := int64(i) * 4096
		mem.fail(off, k.give)
		for _, err := range []error{c.ReadAt(ctx, b, off), c.WriteAt(ctx, b, off)} {
			var e *nbd.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, k.code, e.Code)
			if k.want != nil {
				require.ErrorIs(t, err, k.want)
			}
		}
	}
	require.NoError(t, c.ReadAt(ctx, b, 512<<10), "the connection goes on after errors")

	require.ErrorIs(t, c.ReadAt(ctx, b, 1<<20-1), share.ErrInvalid)
	require.ErrorIs(t, c.WriteAt(ctx, b, -1), share.ErrInvalid)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, c.ReadAt(ended, b, 0), context.Canceled)
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	require.ErrorIs(t, c.ReadAt(ctx, b, 0), share.ErrClosed)
	require.ErrorIs(t, c.Flush(ctx), share.ErrClosed)
}

// TestConcurrent has many goroutines write and check parts of their own, over
// several connections.
func TestConcurrent(t *testing.T) {
	const part, parts = 1 << 20, 16
	mem := newMemory(part * parts)
	_, uri := serve(t, nbd.Export{Device: mem}, nil)
	c := dial(t, uri, &nbd.ClientOptions{Connections: 3, MaxRequest: 32 << 10, MaxInFlight: 256 << 10})
	g, ctx := errgroup.WithContext(timed(t))
	for w := range parts {
		g.Go(func() error {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			base := int64(w) * part
			model := make([]byte, part)
			for range 200 {
				off, n := r.Int64N(part), r.Int64N(100<<10)+1
				n = min(n, part-off)
				switch r.IntN(4) {
				case 0:
					if err := c.Zero(ctx, base+off, n, 0); err != nil {
						return err
					}
					clear(model[off : off+n])
				case 1, 2:
					pattern(model[off:off+n], off, byte(r.Uint32()))
					if err := c.WriteAt(ctx, model[off:off+n], base+off); err != nil {
						return err
					}
				}
				got := make([]byte, n)
				if err := c.ReadAt(ctx, got, base+off); err != nil {
					return err
				}
				if string(got) != string(model[off:off+n]) {
					return errors.New("read other bytes than were written")
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
}
