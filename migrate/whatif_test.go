package migrate_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// trace writes 64 KiB to one of so many blocks, rate times a second.
func trace(seed uint64, blocks int64, rate int, length time.Duration) (out []migrate.TraceWrite) {
	rng := rand.New(rand.NewPCG(seed, 0))
	for at := time.Duration(0); at < length; at += time.Second / time.Duration(rate) {
		out = append(out, migrate.TraceWrite{At: at, Off: rng.Int64N(blocks) << 16, Len: 4096})
	}
	return out
}

func TestWhatIf(t *testing.T) {
	ctx := context.Background()
	const disk = 10 << 30
	quiet := migrate.Scenario{Size: disk, Rate: 100 << 20, RoundTrip: 5 * time.Millisecond, Trace: trace(1, disk>>16, 100, time.Minute)}
	res, err := migrate.WhatIf(ctx, quiet, nil)
	require.NoError(t, err)
	require.True(t, res.Converges)
	// 102.4 s for the disk, and the rounds after it.
	require.InDelta(t, 110, res.Total.Seconds(), 12)
	require.LessOrEqual(t, res.Downtime, 350*time.Millisecond)
	again, err := migrate.WhatIf(ctx, quiet, nil)
	require.NoError(t, err)
	require.Equal(t, res, again, "the same scenario goes the same way")

	// 3,000 blocks a second are 187 MiB/s to copy: too much for the link.
	busy := quiet
	busy.Trace = trace(1, disk>>16, 3000, time.Minute)
	res, err = migrate.WhatIf(ctx, busy, nil)
	require.NoError(t, err)
	require.False(t, res.Converges)
	require.NotNil(t, res.Why)
	require.Greater(t, res.Why.DirtyRate, int64(90<<20))
	// Unless they go to few blocks.
	busy.Trace = trace(1, 200, 3000, time.Minute)
	res, err = migrate.WhatIf(ctx, busy, nil)
	require.NoError(t, err)
	require.True(t, res.Converges)
	// Or the link is faster, or the downtime may be longer.
	busy.Trace, busy.Rate = trace(1, disk>>16, 3000, time.Minute), 1<<30
	res, err = migrate.WhatIf(ctx, busy, nil)
	require.NoError(t, err)
	require.True(t, res.Converges)

	sparse := migrate.Scenario{Size: 1 << 40, Allocated: 1 << 30, Rate: 100 << 20}
	res, err = migrate.WhatIf(ctx, sparse, nil)
	require.NoError(t, err)
	require.InDelta(t, 10.24, res.Total.Seconds(), 0.5)

	for _, bad := range []migrate.Scenario{{}, {Size: 1}, {Size: 1, Rate: 1, Allocated: 2},
		{Size: 1, Rate: 1, Trace: []migrate.TraceWrite{{At: 2}, {At: 1}}}} {
		_, err := migrate.WhatIf(ctx, bad, nil)
		require.ErrorIs(t, err, share.ErrInvalid)
	}
}

// What a tracked device records can be played.
func TestRecord(t *testing.T) {
	ctx := context.Background()
	d, err := migrate.Track(sharetest.NewDevice(1<<20), 0)
	require.NoError(t, err)
	var mu sync.Mutex
	var got []migrate.TraceWrite
	d.Record(func(w migrate.TraceWrite) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, w)
	})
	require.NoError(t, d.WriteAt(ctx, make([]byte, 100), 5000))
	require.NoError(t, d.Zero(ctx, 0, 4096, 0))
	require.NoError(t, d.Flush(ctx))
	d.Record(nil)
	require.NoError(t, d.Discard(ctx, 0, 4096))
	require.Len(t, got, 2)
	require.Equal(t, int64(5000), got[0].Off)
	require.Equal(t, int64(100), got[0].Len)
	require.Less(t, got[0].At, got[1].At)
	res, err := migrate.WhatIf(ctx, migrate.Scenario{Size: 1 << 20, Rate: 1 << 20, Trace: got}, nil)
	require.NoError(t, err)
	require.Positive(t, res.Total)
}
