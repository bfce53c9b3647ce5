package migrate_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
)

// There and back: the way back sends what was written at the other side, and
// its cost can be asked for beforehand.
func TestWayBack(t *testing.T) {
	ctx := context.Background()
	r := newRig(t, 1, nil)
	for range 500 {
		require.NoError(t, r.writer.Step(ctx, r.tracked))
	}
	r.move.Disks[0].Return = true
	there, err := r.wait(r.start(nil))
	require.NoError(t, err)
	base := there.Return["vda"]
	require.NotNil(t, base)
	require.Zero(t, base.Dirty())

	// The guest writes at its new home.
	for range 20 {
		require.NoError(t, r.writer.Step(ctx, r.tracked))
	}
	cost := base.Dirty()
	require.Positive(t, cost)
	require.LessOrEqual(t, cost, int64(20*4096))

	gate, err := migrate.NewGate("guest", []*migrate.TrackedDevice{r.tracked}, []share.Device{r.from})
	require.NoError(t, err)
	back := migrate.Move{ID: "back", Guest: gate, Source: "b", Destination: "a", Disks: []migrate.DiskMove{{Name: "vda",
		Source: r.to, Tracker: r.tracked.Tracker(), Destination: r.from, Base: base, Return: true}}}
	job, err := migrate.Start(ctx, back, nil)
	require.NoError(t, err)
	res, err := r.wait(job)
	require.NoError(t, err)
	require.LessOrEqual(t, res.Sent, cost)
	require.Less(t, res.Sent, there.Sent/2)
	require.Equal(t, "difference", res.Disks[0].Proof)
	require.NoError(t, r.writer.Check(ctx, r.from))
	// The root was carried on through the difference, and is that of the disk.
	require.NoError(t, res.Receipt.Check(ctx, "vda", r.from))

	// A third move, without a base, moves all of it.
	require.NoError(t, res.Return["vda"].Close())
	require.NoError(t, res.Return["vda"].Close())

	// A base is good for one move.
	back.ID = "again"
	job, err = migrate.Start(ctx, back, nil)
	require.NoError(t, err)
	_, err = r.wait(job)
	require.ErrorIs(t, err, share.ErrInvalid)
}
