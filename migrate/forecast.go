package migrate

import (
	"math"
	"time"
)

// Forecast is a prediction as an interval: with even odds it takes no longer
// than P50, and in nineteen of twenty cases no longer than P95. Zero values are
// not known: at the beginning, or because no end is in sight.
type Forecast struct {
	P50, P95 time.Duration
}

// forecaster predicts when nothing will be left, from how what is left shrinks.
// It smooths the speed and its deviation as TCP does the round-trip time
// (RFC 6298).
type forecaster struct {
	at        time.Time
	remaining int64
	speed     float64 // by how much what is left shrinks, in bytes per second
	deviation float64
	samples   int
}

const (
	// sampleEvery is how far apart samples are.
	sampleEvery = 200 * time.Millisecond
	// fewest is how many samples a forecast needs.
	fewest = 3
)

// observe takes in what is left now.
func (f *forecaster) observe(now time.Time, remaining int64) {
	if f.at.IsZero() {
		f.at, f.remaining = now, remaining
		return
	}
	took := now.Sub(f.at)
	if took < sampleEvery {
		return
	}
	speed := float64(f.remaining-remaining) / took.Seconds()
	f.at, f.remaining = now, remaining
	if f.samples == 0 {
		f.speed, f.deviation = speed, math.Abs(speed)/2
	} else {
		f.deviation += (math.Abs(speed-f.speed) - f.deviation) / 4
		f.speed += (speed - f.speed) / 8
	}
	f.samples++
}

// forecast predicts how long it takes from the last sample on.
func (f *forecaster) forecast() Forecast {
	if f.samples < fewest || f.remaining == 0 {
		return Forecast{}
	}
	at := func(speed float64) time.Duration {
		seconds := float64(f.remaining) / speed
		if speed <= 0 || seconds > (1000*time.Hour).Seconds() {
			return 0
		}
		return time.Duration(seconds * float64(time.Second))
	}
	// Two mean deviations are about 1.6 standard deviations of a normal one.
	return Forecast{P50: at(f.speed), P95: at(f.speed - 2*f.deviation)}
}
