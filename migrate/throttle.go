package migrate

import (
	"context"
	"fmt"

	"golang.org/x/time/rate"

	"github.com/vmferry/vmferry/share"
)

// Throttle limits how fast copies go, and holds them, while they run. Several
// moves may share one, to stay below what a link may carry together. Blocks that
// read as zeros or are found equal by their hashes do not count.
//
// The switchover does not heed it: a guest that stands still is not made to wait.
// All methods may be called from several goroutines at once.
type Throttle struct {
	limiter *rate.Limiter
	hold    gate
}

// NewThrottle makes a throttle of so many bytes per second; 0 is no limit.
func NewThrottle(bytesPerSecond int64) (*Throttle, error) {
	t := &Throttle{limiter: rate.NewLimiter(rate.Inf, 1)}
	return t, t.SetLimit(bytesPerSecond)
}

// SetLimit changes the limit, in bytes per second; 0 is none. It holds from the
// next chunk on.
func (t *Throttle) SetLimit(bytesPerSecond int64) error {
	switch {
	case bytesPerSecond < 0:
		return fmt.Errorf("%w: a limit of %d bytes per second", share.ErrInvalid, bytesPerSecond)
	case bytesPerSecond == 0:
		t.limiter.SetLimit(rate.Inf)
	default:
		t.limiter.SetBurst(slice(bytesPerSecond))
		t.limiter.SetLimit(rate.Limit(bytesPerSecond))
	}
	return nil
}

// Limit is the limit in bytes per second; 0 is none.
func (t *Throttle) Limit() int64 {
	if l := t.limiter.Limit(); l != rate.Inf {
		return int64(l)
	}
	return 0
}

// Hold lets nothing more begin until Release. What is under way ends. The guest
// runs, and what it writes is tracked.
func (t *Throttle) Hold() { t.hold.shutNow() }

// Release lets copies go on.
func (t *Throttle) Release() { t.hold.open() }

// wait lets n bytes pass, or returns the cause of ctx.
func (t *Throttle) wait(ctx context.Context, n int64) error {
	if t == nil {
		return nil
	}
	if err := t.hold.enter(ctx); err != nil {
		return err
	}
	t.hold.leave()
	for n > 0 && t.limiter.Limit() != rate.Inf {
		// Who waits does not notice that the limit changes, so the waits are
		// short.
		k := min(n, int64(t.limiter.Burst()))
		if err := t.limiter.WaitN(ctx, int(k)); err != nil {
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case k > int64(t.limiter.Burst()):
				continue // it was just made smaller
			}
			return err // the deadline would pass before it is our turn
		}
		n -= k
	}
	return nil
}

// slice is how many bytes pass in a tenth of a second.
func slice(bytesPerSecond int64) int { return int(max(1, min(bytesPerSecond/10, ChunkSize))) }
