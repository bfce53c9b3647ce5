package migrate

import (
	"fmt"
	"time"

	"github.com/vmferry/vmferry/share"
)

// pace follows how fast a copy gets ahead, and tells when it does not.
type pace struct {
	rounds int
	// rate is bytes copied, dirtyRate bytes made dirty, per second, as moving
	// averages over the rounds.
	rate, dirtyRate float64
	// least is the least that was left after a round, stalled how many rounds
	// have passed without getting below it.
	least, remaining int64
	stalled          int
	// fixed is what a round costs beside its bytes, above all the flush: the
	// shortest round that was seen.
	fixed time.Duration
}

// weight of the newest round in the averages.
const weight = 0.5

// shrink is what a round must get below, as a part of the best one before, to
// count as getting ahead.
const shrink = 0.9

// roundEnded takes in a round: before was dirty at its begin, taken was leased
// in it, sent went over, and remaining is dirty now.
func (p *pace) roundEnded(before, taken, sent, remaining int64, took time.Duration) {
	p.rounds++
	seconds := max(took.Seconds(), 1e-6)
	// A round that moved next to nothing says nothing about the speed.
	if sent >= ChunkSize || p.rate == 0 {
		p.rate = average(p.rate, float64(sent)/seconds)
	}
	// Some of what got dirty went over in the same round.
	p.dirtyRate = average(p.dirtyRate, float64(max(0, remaining+taken-before))/seconds)
	if p.rounds == 1 || float64(remaining) < shrink*float64(p.least) {
		p.stalled = 0
	} else {
		p.stalled++
	}
	if p.rounds == 1 || remaining < p.least {
		p.least = remaining
	}
	if p.rounds == 1 || took < p.fixed {
		p.fixed = took
	}
	p.remaining = remaining
}

func average(old, new float64) float64 {
	if old == 0 {
		return new
	}
	return old + weight*(new-old)
}

// downtime is what a switchover now is expected to cost. After the first round
// the fixed part is not known yet, and taken for nothing if a round's bytes
// explain its time.
func (p *pace) downtime() time.Duration {
	if p.remaining == 0 {
		return 0
	}
	bytes := time.Duration(float64(p.remaining) / max(p.rate, 1) * float64(time.Second))
	if p.rounds == 1 {
		return bytes
	}
	return max(bytes, p.fixed)
}

// explain says in numbers why the copy does not come to an end.
func (p *pace) explain(allowed time.Duration) *NotConvergingError {
	return &NotConvergingError{Rounds: p.rounds, Remaining: p.remaining, Rate: int64(p.rate), DirtyRate: int64(p.dirtyRate),
		Predicted: p.downtime(), Allowed: allowed}
}

func (p *pace) String() string {
	return fmt.Sprintf("round %d: %v left, %v/s copied, %v/s made dirty, %v of downtime expected",
		p.rounds, share.Bytes(p.remaining), share.Bytes(p.rate), share.Bytes(p.dirtyRate), p.downtime().Round(time.Millisecond))
}
