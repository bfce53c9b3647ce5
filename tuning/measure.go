package tuning

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vmferry/vmferry/share"
)

// MeasureOptions is how changes are measured. nil is the default.
type MeasureOptions struct {
	Objective Objective // what counts; that of the plan's class when zero
	// Pairs is how many runs without and with each change there are, 5 when
	// zero, at least 3.
	Pairs int
	// MinGain is what a change must gain to be kept, as a part: 0.02 when
	// zero. The whole confidence interval must lie above it.
	MinGain float64
	Knobs   []Knob // as for Apply
	Log     *slog.Logger
}

// Outcome is what a measurement says of a change.
type Outcome uint8

const (
	_        Outcome = iota
	Kept             // it helps, and stays
	NoEffect         // nothing that rises above the noise; taken back
	Harmful          // it makes things worse; taken back
	Failed           // it could not be applied or measured; taken back
)

var outcomes = []string{"", "kept", "no effect", "harmful", "failed"}

// String is "kept", "no effect", "harmful" or "failed".
func (o Outcome) String() string { return name(outcomes, o) }

// MarshalText is String.
func (o Outcome) MarshalText() ([]byte, error) { return marshalName(outcomes, o) }

// UnmarshalText accepts what MarshalText returns.
func (o *Outcome) UnmarshalText(b []byte) error { return unmarshalName(outcomes, b, o) }

// Verdict is what was measured of one change.
type Verdict struct {
	Step      Step      `json:"step"`
	Outcome   Outcome   `json:"outcome"`
	Objective Objective `json:"objective"`
	// Gain is how much better it became, as a part: 0.1 is 10 % better. Low
	// and High bound it with a confidence of 99 %.
	Gain   float64   `json:"gain"`
	Low    float64   `json:"low"`
	High   float64   `json:"high"`
	Before []Figures `json:"before"`
	After  []Figures `json:"after"`
	Err    string    `json:"error,omitempty"`
}

// String is the verdict on one line.
func (v Verdict) String() string {
	if v.Outcome == Failed {
		return fmt.Sprintf("%v: failed: %s", v.Step, v.Err)
	}
	return fmt.Sprintf("%v: %v, %s %+.1f %% (%+.1f to %+.1f)", v.Step, v.Outcome, v.Objective, 100*v.Gain, 100*v.Low, 100*v.High)
}

// Measure measures each step of a plan by itself, one after the other, on top
// of those that were kept: the workload runs without the change and with it,
// in turns, each pair the other way round than the one before it. A change is
// kept where the objective gains more than the noise, and MinGain; otherwise it
// is taken back. What is kept is held in the journal, for [Revert].
//
// Runs are in pairs so that what drifts (a cache that fills, another's load)
// does not pass for a gain. Five pairs at 99 % call about one placebo in two
// hundred a gain, of those few that reach MinGain by chance.
//
// A step that cannot be applied or measured is Failed, and the others go on.
// Measure itself fails where ctx ends, or a change could not be taken back; the
// verdicts up to then are returned.
func Measure(ctx context.Context, sys System, j *Journal, plan Plan, w Workload, opts *MeasureOptions) ([]Verdict, error) {
	o := MeasureOptions{}
	if opts != nil {
		o = *opts
	}
	if o.Objective == 0 {
		o.Objective = ObjectiveOf(plan.Class)
	}
	if o.Pairs == 0 {
		o.Pairs = 5
	}
	if o.MinGain == 0 {
		o.MinGain = 0.02
	}
	if o.Pairs < 3 || o.Pairs > 100 || !(o.MinGain > 0) || o.MinGain > 10 {
		return nil, fmt.Errorf("%d pairs, least gain %v %w; take 3 to 100 pairs, and a gain above 0", o.Pairs, o.MinGain, share.ErrInvalid)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := plan.Check(o.Knobs); err != nil {
		return nil, err
	}
	// The first run of all finds cold caches, and does not count.
	if _, err := w.Run(ctx, sys); err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("measure %s: %w", sys.Name(), context.Cause(ctx))
	}
	var out []Verdict
	for i, s := range plan.Steps {
		if s.Follows { // with the step that it follows
			continue
		}
		m := &measuring{sys: sys, j: j, w: w, o: &o, plan: plan.only(i, o.Knobs)}
		v, err := m.step(ctx, s)
		out = append(out, v)
		o.Log.InfoContext(ctx, "tuning: measured", "system", sys.Name(), "knob", s.Knob, "object", s.Object, "outcome", v.Outcome, "gain", v.Gain)
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// only is the plan of one step and of what follows it.
func (p Plan) only(i int, knobs []Knob) Plan {
	if knobs == nil {
		knobs = Knobs()
	}
	s := p.Steps[i]
	k, _ := FindKnob(knobs, s.Knob)
	p.Steps = append([]Step{s}, follows(p.Steps, &k, s)...)
	p.Hash = p.sum()
	return p
}

func follows(steps []Step, k *Knob, of Step) (out []Step) {
	for _, s := range steps {
		for _, d := range k.Disturbs {
			if s.Follows && s.Knob == d && s.Object == of.Object {
				out = append(out, s)
			}
		}
	}
	return out
}

// measuring is the measurement of one step.
type measuring struct {
	sys  System
	j    *Journal
	w    Workload
	o    *MeasureOptions
	plan Plan
	on   bool
}

func (m *measuring) step(ctx context.Context, s Step) (Verdict, error) {
	v := Verdict{Step: s, Objective: m.o.Objective}
	before, after, err := m.pairs(ctx, &v)
	if err == nil {
		e := compare(before, after, m.o.Objective.lowerIsBetter())
		v.Gain, v.Low, v.High = e.gain, e.low, e.high
		switch {
		case e.low > m.o.MinGain:
			v.Outcome = Kept
		case e.high < -m.o.MinGain:
			v.Outcome = Harmful
		default:
			v.Outcome = NoEffect
		}
	} else {
		v.Outcome, v.Err = Failed, err.Error()
	}
	// Taking back must not fail because the caller has gone.
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if err := m.set(back, v.Outcome == Kept); err != nil {
		v.Outcome, v.Err = Failed, err.Error()
		return v, fmt.Errorf("measure %s: %w", s.Knob, err)
	}
	if ctx.Err() != nil {
		return v, fmt.Errorf("measure %s: %w", s.Knob, context.Cause(ctx))
	}
	return v, nil
}

func (m *measuring) pairs(ctx context.Context, v *Verdict) (before, after []float64, err error) {
	for i := range m.o.Pairs {
		for half := range 2 {
			with := (half == 1) != (i%2 == 1)
			f, err := m.run(ctx, with)
			if err != nil {
				return nil, nil, err
			}
			x, err := m.o.Objective.of(f)
			if err != nil {
				return nil, nil, err
			}
			if with {
				v.After, after = append(v.After, f), append(after, x)
			} else {
				v.Before, before = append(v.Before, f), append(before, x)
			}
		}
	}
	return before, after, nil
}

// run runs the workload with the change or without it.
func (m *measuring) run(ctx context.Context, with bool) (Figures, error) {
	if err := m.set(ctx, with); err != nil {
		return Figures{}, err
	}
	began := time.Now()
	f, err := m.w.Run(ctx, m.sys)
	if err != nil {
		return f, fmt.Errorf("after %v: %w", time.Since(began).Round(time.Millisecond), err)
	}
	return f, nil
}

// set applies the change, or takes it back to what it was before the plan.
func (m *measuring) set(ctx context.Context, on bool) error {
	if on == m.on {
		return nil
	}
	if on {
		if _, err := Apply(ctx, m.sys, m.j, m.plan, &ApplyOptions{Knobs: m.o.Knobs}); err != nil {
			return err
		}
		m.on = true
		return nil
	}
	m.j.work.Lock()
	defer m.j.work.Unlock()
	id, err := identify(ctx, m.sys)
	if err != nil {
		return err
	}
	knobs := m.o.Knobs
	if knobs == nil {
		knobs = Knobs()
	}
	a := &applying{sys: m.sys, j: m.j, id: id, knobs: knobs, log: slog.New(slog.DiscardHandler)}
	left, err := a.takeBack(ctx, m.plan.Steps)
	if err == nil && len(left) > 0 {
		err = errors.New(left[0].Path + ": " + left[0].Why)
	}
	if err == nil {
		m.on = false
	}
	return err
}
