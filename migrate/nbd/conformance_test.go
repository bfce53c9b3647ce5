package nbd_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// TestConformance runs the checks of every block device on the client, over
// servers of all kinds.
func TestConformance(t *testing.T) {
	const size = 3 << 20
	for name, start := range map[string]func(t testing.TB) string{
		"ours": func(t testing.TB) string {
			_, uri := serve(t, nbd.Export{Device: sharetest.NewDevice(size)}, nil)
			return uri
		},
		"ours, nothing optional": func(t testing.TB) string {
			_, uri := serve(t, nbd.Export{Device: plain{sharetest.NewDevice(size)}}, nil)
			return uri
		},
		"ours, blocks of 4 KiB": func(t testing.TB) string {
			_, uri := serve(t, nbd.Export{Device: sharetest.NewDevice(size), BlockSizes: blocks(4096, 4096, 64<<10)}, nil)
			return uri
		},
		"nbdkit":                            func(t testing.TB) string { return nbdkit(t, "memory", "3M") },
		"nbdkit without structured replies": func(t testing.TB) string { return nbdkit(t, "--no-sr", "memory", "3M") },
	} {
		t.Run(name, func(t *testing.T) {
			sharetest.RunDevice(t, func(t testing.TB) share.Device { return dial(t, start(t), nil) })
		})
	}
	// Twice over: a client serves as the device of a server.
	t.Run("in series", func(t *testing.T) {
		sharetest.RunDevice(t, func(t testing.TB) share.Device {
			_, first := serve(t, nbd.Export{Device: sharetest.NewDevice(size)}, nil)
			_, second := serve(t, nbd.Export{Device: dial(t, first, nil)}, nil)
			return dial(t, second, nil)
		})
	})
}

// jittery delays each call by chance.
type jittery struct{ share.Device }

func (j jittery) ReadAt(ctx context.Context, p []byte, off int64) error {
	time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
	return j.Device.ReadAt(ctx, p, off)
}

func (j jittery) WriteAt(ctx context.Context, p []byte, off int64) error {
	time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
	return j.Device.WriteAt(ctx, p, off)
}

// TestCancelStorm cancels calls at every point of their way. What succeeds is
// right, and a buffer is left alone once its call has returned.
func TestCancelStorm(t *testing.T) {
	const workers, part = 8, 1 << 20
	dev := sharetest.NewDevice(workers * part)
	want := pattern(make([]byte, workers*part), 0, 5)
	require.NoError(t, dev.WriteAt(timed(t), want, 0))
	_, uri := serve(t, nbd.Export{Device: jittery{dev}}, nil)
	c := dial(t, uri, &nbd.ClientOptions{MaxRequest: 64 << 10, MaxInFlight: 512 << 10})
	g, ctx := errgroup.WithContext(timed(t))
	for w := range workers {
		g.Go(func() error {
			r := rand.New(rand.NewPCG(7, uint64(w)))
			for range 300 {
				off, n := int64(w)*part+r.Int64N(part-200<<10), r.Int64N(200<<10)+1
				p := make([]byte, n)
				short, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(1500))*time.Microsecond)
				var err error
				if r.IntN(2) == 0 {
					if err = c.ReadAt(short, p, off); err == nil {
						same(t, want[off:off+n], p)
					}
				} else {
					copy(p, want[off:off+n])
					err = c.WriteAt(short, p, off) // what is there already
				}
				cancel()
				if err != nil {
					require.ErrorIs(t, err, context.DeadlineExceeded)
					for i := range p {
						p[i] = 0xee
					}
					time.Sleep(time.Millisecond)
					for i := range p {
						if p[i] != 0xee {
							t.Errorf("byte %d of a buffer was written after the call", i)
							break
						}
					}
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	same(t, want, read(t, c, 0, workers*part))
}
