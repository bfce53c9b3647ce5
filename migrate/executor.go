package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vmferry/vmferry/share"
)

// steps does what the phases are there for. Each call is one effect: it heeds
// its context, may be repeated, and says how it ended. The error goes with an
// outcome other than ok.
type steps interface {
	do(ctx context.Context, s state) (ended, error)
}

// executor walks a move through the machine: it journals a state before its
// effect, runs the effect under a watchdog, and feeds the outcome back.
type executor struct {
	steps   steps
	report  *Reporter
	log     *slog.Logger
	journal func(ctx context.Context, s state) error
	// timeout bounds the effect of a phase; 0 for none.
	timeout func(Phase) time.Duration
	// grace is how long an effect may go on when its context has ended, before
	// it is abandoned as wedged.
	grace time.Duration
}

// trouble is what went wrong on the way, with the phase it went wrong in.
type trouble struct {
	phase Phase
	err   error
}

// run goes on from s until the move has ended. It returns the last state and
// the first thing that went wrong.
func (x *executor) run(ctx context.Context, s state, in input) (state, *trouble) {
	var first *trouble
	s, todo := step(s, in)
	for len(todo) > 0 {
		x.report.Enter(s.Phase)
		x.log.InfoContext(ctx, "migration phase", "phase", s.Phase, "epoch", s.Epoch)
		var e ended
		err := x.record(ctx, s)
		if err != nil && s.Phase <= PhaseSwapping {
			// What is not in the journal is not done. Later phases only lead
			// where the store says anyway.
			e.Outcome, err = refused, fmt.Errorf("journal: %w", err)
		} else {
			if err != nil {
				x.warn(ctx, fmt.Errorf("journal: %w", err))
			}
			s, e, err = x.effect(ctx, s)
		}
		if err != nil {
			if first == nil {
				first = &trouble{s.Phase, err}
			} else {
				x.warn(ctx, fmt.Errorf("%s: %w", s.Phase, err))
			}
		}
		s, todo = step(s, e)
	}
	x.report.Enter(s.Phase)
	if err := x.record(ctx, s); err != nil {
		x.warn(ctx, fmt.Errorf("journal: %w", err))
	}
	x.log.InfoContext(ctx, "migration ended", "phase", s.Phase, "epoch", s.Epoch)
	return s, first
}

func (x *executor) warn(ctx context.Context, err error) {
	x.report.Warn(err)
	x.log.WarnContext(ctx, "migration", "error", err)
}

func (x *executor) record(ctx context.Context, s state) error {
	if x.journal == nil {
		return nil
	}
	// The journal is written also when the caller has gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.timeout(PhaseUnknown))
	defer cancel()
	return x.journal(ctx, s)
}

// effect runs the effect of s.Phase. The caller's wish to stop reaches it
// through the machine, which knows where there is a way back.
func (x *executor) effect(ctx context.Context, s state) (state, ended, error) {
	run, interrupt := context.WithCancelCause(context.WithoutCancel(ctx))
	defer interrupt(nil)
	var expired <-chan time.Time
	if d := x.timeout(s.Phase); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		expired = t.C
	}
	type result struct {
		e   ended
		err error
	}
	done := make(chan result, 1)
	go func(s state) {
		e, err := x.steps.do(run, s)
		done <- result{e, err}
	}(s)
	asked := ctx.Done()
	var wedged <-chan time.Time
	for {
		select {
		case r := <-done:
			if r.e.Outcome != ok && r.err == nil {
				r.err = errors.New("no reason was given")
			}
			return s, r.e, r.err
		case <-asked:
			asked = nil
			var todo []effect
			if s, todo = step(s, cancelAsked{}); len(todo) > 0 {
				interrupt(context.Cause(ctx))
				wedged = time.After(x.grace)
			}
		case <-expired:
			interrupt(fmt.Errorf("%s took longer than %v: %w", s.Phase, x.timeout(s.Phase), context.DeadlineExceeded))
			wedged = time.After(x.grace)
		case <-wedged:
			return s, ended{Outcome: unknown}, fmt.Errorf("%s %w: it does not end although it was told to", s.Phase, share.ErrWedged)
		}
	}
}
