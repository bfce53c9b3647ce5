package tuning

import (
	"context"
	"fmt"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Budget is how much latency a migration may add to a guest's disk, and the
// rates between which its copying is held.
type Budget struct {
	Baseline time.Duration // mean latency without the move, measured
	MaxAdded time.Duration
	Least    share.Bytes // copying never falls below it, per second
	Most     share.Bytes // and never rises above
}

// Governor turns latencies that are seen into a rate of copying: down at once in
// proportion to the excess, up in small steps. It is a pure state machine for
// one goroutine; [Govern] feeds it.
type Governor struct {
	b    Budget
	rate share.Bytes
}

// NewGovernor begins in the middle between the budget's rates. A budget that
// cannot be is [share.ErrInvalid].
func NewGovernor(b Budget) (*Governor, error) {
	if b.Baseline < 0 || b.MaxAdded <= 0 || b.Least <= 0 || b.Most < b.Least {
		return nil, fmt.Errorf("latency budget %+v %w; latencies above 0, and 0 < Least <= Most", b, share.ErrInvalid)
	}
	return &Governor{b, b.Least + (b.Most-b.Least)/2}, nil
}

// Rate is how fast may be copied now, bytes per second.
func (g *Governor) Rate() share.Bytes { return g.rate }

// Observe takes the mean latency since the last call, and returns the new rate.
// 0, a disk that did nothing, counts as within the budget.
func (g *Governor) Observe(latency time.Duration) share.Bytes {
	switch added := latency - g.b.Baseline; {
	case added > g.b.MaxAdded:
		part := max(0.25, float64(g.b.MaxAdded)/float64(added)) * 0.9
		g.rate = share.Bytes(float64(g.rate) * part)
	case added < g.b.MaxAdded*8/10:
		g.rate += max(1, (g.b.Most-g.b.Least)/20)
	}
	g.rate = min(max(g.rate, g.b.Least), g.b.Most)
	return g.rate
}

// Govern observes a guest's disk and gives set a rate at each interval, until
// ctx ends, which is no error. It is meant for the throttle of whoever copies:
// the pace of a migration's disks, or of a backup.
func Govern(ctx context.Context, d Disks, disk string, g *Governor, every time.Duration, set func(share.Bytes)) error {
	if every <= 0 {
		return fmt.Errorf("interval of %v %w", every, share.ErrInvalid)
	}
	last, err := d.Count(ctx, disk)
	if err != nil {
		return err
	}
	set(g.Rate())
	for {
		if sleep(ctx, every) != nil {
			return nil
		}
		now, err := d.Count(ctx, disk)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		set(g.Observe(last.until(now, every).Mean))
		last = now
	}
}
