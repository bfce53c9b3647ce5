package migrate

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Over copies whose speed varies, the end comes before P95 nearly always, and
// about as often before P50 as after it.
func TestForecastHolds(t *testing.T) {
	const runs = 200
	within, early := 0, 0
	for seed := range uint64(runs) {
		rng := rand.New(rand.NewPCG(seed, 7))
		speed := 50e6 + 500e6*rng.Float64()
		left := int64(speed * (10 + 50*rng.Float64()))
		now := time.Unix(0, 0)
		var f forecaster
		var told Forecast
		var toldAt time.Time
		for start := left; left > 0; {
			f.observe(now, left)
			if left < start*2/3 && toldAt.IsZero() {
				told, toldAt = f.forecast(), now
			}
			step := time.Duration(100+rng.IntN(200)) * time.Millisecond
			now = now.Add(step)
			left -= int64(speed * (0.5 + rng.Float64()) * step.Seconds())
		}
		require.Positive(t, told.P50)
		require.GreaterOrEqual(t, told.P95, told.P50)
		if now.Sub(toldAt) <= told.P95 {
			within++
		}
		if now.Sub(toldAt) <= told.P50 {
			early++
		}
	}
	t.Logf("%d of %d within P95, %d within P50", within, runs, early)
	require.Greater(t, within, runs*90/100)
	require.InDelta(t, runs/2, early, runs*0.2)
}

func TestNoForecast(t *testing.T) {
	var f forecaster
	require.Zero(t, f.forecast())
	for i := range 10 { // what is left grows
		f.observe(time.Unix(int64(i), 0), int64(1000+i))
	}
	require.Zero(t, f.forecast())
}
