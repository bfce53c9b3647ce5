package migrate

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/vmferry/vmferry/share"
)

// TraceWrite is one write of a recorded trace.
type TraceWrite struct {
	// At is the time since the trace began.
	At  time.Duration `json:"at_ns"`
	Off int64         `json:"off"`
	Len int64         `json:"len"`
}

// Scenario is a copy that is not made: [WhatIf] says how it would go.
type Scenario struct {
	// Size is the disk's size, and Allocated how much of it holds data, in
	// bytes; 0 means all.
	Size, Allocated int64
	// Trace are the writes, in the order of time. A trace that is over begins
	// again, so that some minutes of a guest's day stand for hours.
	Trace []TraceWrite
	// Rate is how many bytes a second go over the link. Required.
	Rate int64
	// RoundTrip is what a flush at the destination costs.
	RoundTrip time.Duration
	// Granularity of the tracker; 0 is [DefaultGranularity].
	Granularity int64
	// Limit ends the play; the default is 24 h of virtual time.
	Limit time.Duration
}

// WhatIfResult is how a [Scenario] would go.
type WhatIfResult struct {
	// Converges: the switchover comes, within Options.MaxDowntime.
	Converges bool          `json:"converges"`
	Total     time.Duration `json:"total_ns"`
	Downtime  time.Duration `json:"downtime_ns"`
	Rounds    int           `json:"rounds"`
	Sent      int64         `json:"sent_bytes"`
	// Why says in numbers why it does not converge.
	Why *NotConvergingError `json:"why,omitempty"`
}

// WhatIf plays a copy against a recorded trace of writes, in virtual time, with
// the tracker, the order of blocks and the rule of convergence of the real one.
// It reads and writes nothing, and takes seconds for hours. Of the options,
// MaxDowntime, StallRounds, NotConverging and Window count.
func WhatIf(ctx context.Context, s Scenario, opts *Options) (WhatIfResult, error) {
	o := opts.orDefault()
	setDefault(&s.Limit, 24*time.Hour)
	setDefault(&s.Allocated, s.Size)
	if s.Size <= 0 || s.Rate <= 0 || s.RoundTrip < 0 || s.Allocated < 0 || s.Allocated > s.Size {
		return WhatIfResult{}, fmt.Errorf("%w: what if: a size and a rate are needed, and no more allocated than there is", share.ErrInvalid)
	}
	if !slices.IsSortedFunc(s.Trace, func(a, b TraceWrite) int { return int(a.At - b.At) }) {
		return WhatIfResult{}, fmt.Errorf("%w: what if: the trace is not in the order of time", share.ErrInvalid)
	}
	t, err := NewBlockTracker(s.Size, s.Granularity)
	if err != nil {
		return WhatIfResult{}, err
	}
	c, err := t.NewCursor(ctx, FromNow)
	if err != nil {
		return WhatIfResult{}, err
	}
	defer c.Close()
	t.Mark(0, s.Allocated)
	p := &play{Scenario: s, tracker: t, cursor: c}
	return p.run(ctx, o)
}

// play is a scenario under way.
type play struct {
	Scenario
	tracker *BlockTracker
	cursor  Cursor
	now     time.Duration
	next    int           // the write of the trace that comes next
	lap     time.Duration // when the trace under way began
	sent    int64
	pace    pace
}

func (p *play) run(ctx context.Context, o Options) (WhatIfResult, error) {
	for p.now < p.Limit {
		begin, before, dirty := p.now, p.sent, p.cursor.Dirty()
		if err := p.pass(ctx, o.Window); err != nil {
			return WhatIfResult{}, err
		}
		p.pace.roundEnded(dirty, p.sent-before, p.sent-before, p.cursor.Dirty(), p.now-begin)
		fits := p.pace.downtime() <= o.MaxDowntime
		stalled := p.pace.stalled >= o.StallRounds
		if fits || stalled && o.NotConverging == SwitchIfNotConverging {
			return p.result(fits), nil
		}
		if stalled && o.NotConverging == FailIfNotConverging {
			break
		}
	}
	r := p.result(false)
	r.Downtime = 0
	r.Why = p.pace.explain(o.MaxDowntime)
	return r, nil
}

// result ends the play with a switchover: the guest stands still while the rest
// goes over.
func (p *play) result(converges bool) WhatIfResult {
	left := p.cursor.Dirty()
	down := p.seconds(left) + p.RoundTrip
	return WhatIfResult{Converges: converges, Total: p.now + down, Downtime: down, Rounds: p.pace.rounds, Sent: p.sent + left}
}

func (p *play) seconds(n int64) time.Duration {
	return time.Duration(float64(n) / float64(p.Rate) * float64(time.Second))
}

// pass sends what is dirty, and lets the guest write meanwhile.
func (p *play) pass(ctx context.Context, window int64) error {
	for {
		l, err := p.cursor.Lease(ctx, window)
		if err == io.EOF {
			p.advance(p.now + max(p.RoundTrip, time.Millisecond)) // a round takes some time even if it is empty
			return nil
		}
		if err != nil {
			return err
		}
		n := l.Bytes()
		p.sent += n
		p.advance(p.now + p.seconds(n) + p.RoundTrip)
		if err := p.cursor.Ack(l); err != nil {
			return err
		}
	}
}

// advance lets time pass, and the writes of that time happen.
func (p *play) advance(to time.Duration) {
	p.now = to
	if len(p.Trace) == 0 {
		return
	}
	length := p.Trace[len(p.Trace)-1].At + time.Millisecond
	for {
		if p.next == len(p.Trace) {
			p.next, p.lap = 0, p.lap+length
		}
		w := p.Trace[p.next]
		if p.lap+w.At > to {
			return
		}
		p.tracker.Mark(w.Off, w.Len)
		p.next++
	}
}

// Record calls f for each write, zero and discard from now on, with the time
// since this call; nil ends it. f is called by several goroutines, before the
// write is submitted, and must be quick: it is for recording traces for
// [WhatIf].
func (d *TrackedDevice) Record(f func(TraceWrite)) {
	if f == nil {
		d.recorder.Store(nil)
		return
	}
	begin := time.Now()
	g := func(off, n int64) { f(TraceWrite{At: time.Since(begin), Off: off, Len: n}) }
	d.recorder.Store(&g)
}
