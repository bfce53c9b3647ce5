package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/migratetest"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// cutAfter ends connections when so many bytes went over all of them.
type cutAfter struct {
	net.Conn
	left *atomic.Int64
}

func (c *cutAfter) Write(p []byte) (int, error) {
	if c.left.Add(-int64(len(p))) < 0 {
		c.Conn.Close()
		return 0, errors.New("cut")
	}
	return c.Conn.Write(p)
}

// The link is cut at random, and with it, by turns, the receiver's host loses
// power: what it had not flushed is gone, kept or torn, as the seed says. Each
// time the move is resumed, until it is done; then nothing that was acknowledged
// is missing, and the writer goes on at the destination.
func TestCutsAndPowerLosses(t *testing.T) {
	for seed := range seeds() / 10 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			rng := rand.New(rand.NewPCG(seed, 3))
			r := newRig(t, seed, sharetest.NewDeviceID(diskSize+512, "to"))
			to := r.to.(*sharetest.MemDevice)
			r.write()
			store := migratetest.NewStore(nil)
			journal, err := migrate.OpenJournal(filepath.Join(t.TempDir(), "journal"))
			require.NoError(t, err)
			defer journal.Close()
			r.move.ID, r.move.Authority, r.move.Journal = "move", store, journal

			begin, cuts := migrate.Start, 0
			for {
				gate, err := migrate.NewGate("guest", []*migrate.TrackedDevice{r.tracked}, []share.Device{to})
				require.NoError(t, err)
				r.move.Guest = gate
				receiver, remote := receive(t, to, &migrate.ReceiverOptions{ReadBack: rng.IntN(2) == 0})
				var left atomic.Int64
				left.Store(rng.Int64N(600 << 10))
				if cuts >= 6 {
					left.Store(1 << 40) // enough is enough
				}
				remote.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
					c, err := new(net.Dialer).DialContext(ctx, network, address)
					return &cutAfter{c, &left}, err
				}
				d := &r.move.Disks[0]
				d.Destination, d.Remote, d.DestinationID = nil, remote, "to"
				job, err := begin(ctx, r.move, &migrate.Options{Window: migrate.ChunkSize})
				require.NoError(t, err)
				res, err := r.wait(job)
				if err == nil {
					require.Equal(t, migrate.PhaseDone, res.Phase)
					break
				}
				require.Equal(t, migrate.PhaseFailed, res.Phase, "%v", err)
				cuts++
				r.stillWrites()
				require.NoError(t, receiver.Close())
				if cuts%2 == 1 {
					to = to.Crash(rng.Uint64())
				}
				begin = migrate.Resume
			}
			r.stillWrites()
			require.NoError(t, r.stop())
			require.NoError(t, r.writer.Check(ctx, to))
			t.Logf("%d cuts", cuts)
		})
	}
}

// A destination that acknowledges a flush and forgets what it held is found out
// by its root where the receiver reads back, and before authority moves.
func TestForgetfulDisk(t *testing.T) {
	inner := sharetest.NewDeviceID(diskSize+512, "to")
	to := newHook(inner)
	r := newRig(t, 1, to)
	r.toRemote(&migrate.ReceiverOptions{ReadBack: true})
	r.write()
	to.onRead = func(p []byte) error { clear(p); return nil }
	_, err := r.wait(r.start(nil))
	var d *migrate.DivergedError
	require.ErrorAs(t, err, &d)
	r.stillWrites()
}
