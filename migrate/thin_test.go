package migrate_test

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/local"
)

// Holes stay holes and discards travel: in whatever format, the copy takes
// little more space than the original.
func TestThin(t *testing.T) {
	for _, f := range [][2]share.Format{{share.Raw, share.Raw}, {share.Qcow2, share.Raw}, {share.Raw, share.Qcow2}, {share.Qcow2, share.Qcow2}} {
		t.Run(string(f[0]+" to "+f[1]), func(t *testing.T) {
			if f[0] == share.Qcow2 || f[1] == share.Qcow2 {
				needs(t, "qemu-img", "qemu-nbd")
			}
			ctx := context.Background()
			const size = 512 << 20
			open := func(format share.Format) (share.Share, share.Device) {
				s, err := local.Open(ctx, t.TempDir(), nil)
				require.NoError(t, err)
				_, err = share.Create(ctx, s, share.Spec{Name: "disk", Kind: share.Disk, Format: format, Size: size})
				require.NoError(t, err)
				d, err := share.OpenDevice(ctx, s, "disk", nil)
				require.NoError(t, err)
				t.Cleanup(func() { d.Close(); s.Close() })
				return s, d
			}
			from, src := open(f[0])
			to, dst := open(f[1])
			tracked, err := migrate.Track(src, 0)
			require.NoError(t, err)
			rng := rand.New(rand.NewPCG(1, 1))
			data := make([]byte, 1<<20)
			for range 64 { // 64 MiB here and there
				for i := range data {
					data[i] = byte(rng.Uint32())
				}
				require.NoError(t, tracked.WriteAt(ctx, data, rng.Int64N(size>>20)<<20))
			}
			// A part is given back while the copy runs.
			gate, err := migrate.NewGate("guest", []*migrate.TrackedDevice{tracked}, []share.Device{dst})
			require.NoError(t, err)
			throttle, err := migrate.NewThrottle(0)
			require.NoError(t, err)
			job, err := migrate.Start(ctx, migrate.Move{ID: "thin", Guest: gate, Source: "a", Destination: "b", Disks: []migrate.DiskMove{
				{Name: "disk", Source: src, Tracker: tracked.Tracker(), Destination: dst}}}, &migrate.Options{Throttle: throttle})
			require.NoError(t, err)
			for job.Progress().Sent() == 0 && !job.Progress().Phase.Ended() {
				time.Sleep(time.Millisecond)
			}
			throttle.Hold()
			require.NoError(t, tracked.Discard(ctx, 0, size/4))
			throttle.Release()
			_, err = job.Wait(ctx)
			require.NoError(t, err)

			differ, err := migrate.VerifyDevices(ctx, src, dst, nil)
			require.NoError(t, err)
			require.Empty(t, differ)
			require.NoError(t, src.Flush(ctx))
			require.NoError(t, dst.Flush(ctx))
			require.NoError(t, src.Close())
			require.NoError(t, dst.Close())
			a, err := from.Stat(ctx, "disk")
			require.NoError(t, err)
			b, err := to.Stat(ctx, "disk")
			require.NoError(t, err)
			t.Logf("%v allocated, then %v", a.Allocated, b.Allocated)
			const tables = 1 << 20 // of qcow2
			require.LessOrEqual(t, float64(b.Allocated), 1.05*float64(a.Allocated)+tables)
			require.Less(t, int64(b.Allocated), int64(70<<20))
		})
	}
}

// needs skips a test for want of a tool, or fails it where all must run.
func needs(t *testing.T, tools ...string) {
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("VMFERRY_LAB") == "required" {
				t.Fatalf("%s is missing: make install", tool)
			}
			t.Skipf("%s is missing: make install", tool)
		}
	}
}
