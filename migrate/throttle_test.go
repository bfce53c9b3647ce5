package migrate_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// untilCopying waits until the job copies.
func untilCopying(t *testing.T, job *migrate.Job) {
	t.Helper()
	require.Eventually(t, func() bool { return job.Progress().Phase == migrate.PhaseCopying }, 10*time.Second, time.Millisecond)
}

// A held move stands still and the guest writes; released, it gets done.
func TestHoldAndRelease(t *testing.T) {
	throttle, err := migrate.NewThrottle(0)
	require.NoError(t, err)
	throttle.Hold()
	r := newRig(t, 1, nil)
	r.write()
	job := r.start(&migrate.Options{Throttle: throttle})
	untilCopying(t, job)
	r.stillWrites()
	require.Zero(t, job.Progress().Sent())
	throttle.Release()
	_, err = r.wait(job)
	require.NoError(t, err)
	require.NoError(t, r.stop())
	require.NoError(t, r.writer.Check(context.Background(), r.to))
}

// A limit that is far too low is lifted while the move runs; what was written
// meanwhile comes along.
func TestLimitChanges(t *testing.T) {
	throttle, err := migrate.NewThrottle(1000)
	require.NoError(t, err)
	require.Equal(t, int64(1000), throttle.Limit())
	r := newRig(t, 1, nil)
	r.write()
	job := r.start(&migrate.Options{Throttle: throttle})
	untilCopying(t, job)
	r.stillWrites()
	time.Sleep(200 * time.Millisecond)
	require.Less(t, job.Progress().Sent(), int64(100_000), "the limit does not hold")
	require.NoError(t, throttle.SetLimit(100<<20))
	_, err = r.wait(job)
	require.NoError(t, err)
	require.NoError(t, r.stop())
	require.NoError(t, r.writer.Check(context.Background(), r.to))
}

// A held move can be cancelled.
func TestCancelWhileHeld(t *testing.T) {
	throttle, err := migrate.NewThrottle(0)
	require.NoError(t, err)
	throttle.Hold()
	r := newRig(t, 1, nil)
	r.write()
	job := r.start(&migrate.Options{Throttle: throttle})
	untilCopying(t, job)
	job.Cancel()
	_, err = r.wait(job)
	require.ErrorIs(t, err, migrate.ErrCancelled)
	r.stillWrites()
}

func TestThrottleRefuses(t *testing.T) {
	_, err := migrate.NewThrottle(-1)
	require.ErrorIs(t, err, share.ErrInvalid)
}

// The source's disk fails in the middle: the guest is told by its own writes,
// and the move says what it could not read.
func TestSourceFails(t *testing.T) {
	r := newRig(t, 1, nil)
	from := newHook(r.from.(*sharetest.MemDevice).Reopen())
	r.move.Disks[0].Source = from
	from.onRead = func([]byte) error { return share.ErrUnavailable }
	r.write()
	res, err := r.wait(r.start(nil))
	require.ErrorIs(t, err, share.ErrUnavailable)
	require.ErrorContains(t, err, "read the source")
	require.Equal(t, migrate.PhaseFailed, res.Phase)
	r.stillWrites()
}
