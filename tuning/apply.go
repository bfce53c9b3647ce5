package tuning

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/vmferry/vmferry/share"
)

// ApplyOptions is how a plan is applied. nil is the default.
type ApplyOptions struct {
	Knobs []Knob // the table that the plan was made with; Knobs() when nil
	Log   *slog.Logger
}

// StaleError is a [share.ErrInvalid]: a value is not what it was when the plan
// was made. Check again, and plan again.
type StaleError struct {
	Step Step
	Have string
}

func (e *StaleError) Error() string {
	return fmt.Sprintf("%s is %s and no longer %s as the plan has it; check and plan again", e.Step.Path, quoteIfOdd(e.Have), quoteIfOdd(e.Step.From))
}

// Is makes the error a [share.ErrInvalid].
func (e *StaleError) Is(target error) bool { return target == share.ErrInvalid }

// RefusedError says that the kernel made something else of a value that was
// written, without an error. It is a [share.ErrInvalid].
type RefusedError struct {
	Step Step
	Have string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s: wrote %s and read back %s; the kernel takes another value", e.Step.Path, e.Step.To, quoteIfOdd(e.Have))
}

// Is makes the error a [share.ErrInvalid].
func (e *RefusedError) Is(target error) bool { return target == share.ErrInvalid }

// Applied is what [Apply] did.
type Applied struct {
	Done   []Step          // written, read back, held
	Failed map[Scope]error // scopes of which nothing stayed, and why
}

// Apply does what a plan shows: of each step it journals the old value, writes
// the new one and reads it back. Before the first write it compares all values
// with the plan, and refuses it as a whole where one has changed
// ([*StaleError]), the machine was rebooted, or an earlier Apply was
// interrupted and not reverted yet.
//
// Where a step fails, those of its scope are taken back; other scopes are still
// done, and the error joins what happened. It needs root for most knobs.
//
// The journal's file is written before a value is; a power failure at any point
// leaves something that [Revert] brings back to what it was.
func Apply(ctx context.Context, sys System, j *Journal, plan Plan, opts *ApplyOptions) (Applied, error) {
	o := ApplyOptions{}
	if opts != nil {
		o = *opts
	}
	if o.Knobs == nil {
		o.Knobs = Knobs()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := plan.Check(o.Knobs); err != nil {
		return Applied{}, err
	}
	j.work.Lock()
	defer j.work.Unlock()
	if h := j.Interrupted(); h != "" {
		return Applied{}, fmt.Errorf("journal %s %w: applying plan %.12s was interrupted; revert first", j.path, share.ErrInUse, h)
	}
	id, err := identify(ctx, sys)
	if err != nil {
		return Applied{}, err
	}
	if id.Machine != plan.Machine || id.Boot != plan.Boot {
		return Applied{}, fmt.Errorf("plan of %s %w: made for another machine, or before its last boot; check again", quoteIfOdd(plan.System), share.ErrInvalid)
	}
	a := &applying{sys: sys, j: j, id: id, knobs: o.Knobs, log: o.Log}
	for _, s := range plan.Steps {
		if err := a.unchanged(ctx, s); err != nil {
			return Applied{}, err
		}
	}
	if len(plan.Steps) == 0 {
		return Applied{}, nil
	}
	if err := j.add(record{Op: opBegin, Plan: plan.Hash, Machine: id.Machine, Boot: id.Boot}); err != nil {
		return Applied{}, err
	}
	out := Applied{Failed: map[Scope]error{}}
	whole := true
	for _, scope := range scopesOf(plan.Steps) {
		steps := slices.DeleteFunc(slices.Clone(plan.Steps), func(s Step) bool { return s.Scope != scope })
		err := a.scope(ctx, steps)
		if err == nil {
			out.Done = append(out.Done, steps...)
			continue
		}
		whole = whole && !errors.Is(err, errNotUndone)
		out.Failed[scope] = err
	}
	var errs []error
	for _, scope := range scopesOf(plan.Steps) {
		if err := out.Failed[scope]; err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", scope, err))
		}
	}
	if whole { // else the journal goes on saying that a revert is due
		errs = append(errs, j.add(record{Op: opEnd, Plan: plan.Hash, Machine: id.Machine, Boot: id.Boot}))
	}
	return out, errors.Join(errs...)
}

func scopesOf(steps []Step) (out []Scope) {
	for _, s := range steps {
		if !slices.Contains(out, s.Scope) {
			out = append(out, s.Scope)
		}
	}
	return out
}

// applying is one Apply.
type applying struct {
	sys   System
	j     *Journal
	id    identity
	knobs []Knob
	log   *slog.Logger
}

// unchanged compares a value with what the plan says it is.
func (a *applying) unchanged(ctx context.Context, s Step) error {
	k, _ := FindKnob(a.knobs, s.Knob)
	r := readOne(ctx, a.sys, &k, s.Object)
	if r.Err != nil {
		return fmt.Errorf("%s: %w", s.Knob, r.Err)
	}
	if r.Value != s.From {
		return &StaleError{s, r.Value}
	}
	return nil
}

// scope does the steps of one scope, or none of them.
func (a *applying) scope(ctx context.Context, steps []Step) error {
	announced := map[string]bool{}
	announce := func(s Step, loose bool) error {
		if announced[s.Path] {
			return nil
		}
		k, _ := FindKnob(a.knobs, s.Knob)
		r := a.record(opIntent, s, &k)
		r.Loose = loose
		if err := a.j.add(r); err != nil {
			return err
		}
		announced[s.Path] = true
		return nil
	}
	var begun []Step
	err := func() error {
		for _, s := range steps {
			k, _ := FindKnob(a.knobs, s.Knob)
			if !announced[s.Path] {
				// A moment has passed since all were compared.
				if err := a.unchanged(ctx, s); err != nil {
					return err
				}
			}
			// What this write resets has to be in the journal before it.
			for _, d := range steps {
				if d.Object == s.Object && slices.Contains(k.Disturbs, d.Knob) {
					begun = append(begun, d)
					if err := announce(d, true); err != nil {
						return err
					}
				}
			}
			if !slices.Contains(begun, s) {
				begun = append(begun, s)
			}
			if err := announce(s, false); err != nil {
				return err
			}
			if err := a.write(ctx, &k, s); err != nil {
				return err
			}
			if err := a.j.add(a.record(opDone, s, &k)); err != nil {
				return err
			}
			if s.Follows {
				continue
			}
			a.log.InfoContext(ctx, "tuning: changed", "system", a.sys.Name(), "knob", s.Knob, "object", s.Object, "from", s.From, "to", s.To)
		}
		return nil
	}()
	if err == nil {
		return nil
	}
	// Taking back must not fail because the caller has gone.
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if _, undoErr := a.takeBack(back, begun); undoErr != nil {
		return fmt.Errorf("%w; %w: %w", err, errNotUndone, undoErr)
	}
	return err
}

var errNotUndone = errors.New("taking the scope's other steps back failed too, revert is due")

func (a *applying) record(op string, s Step, k *Knob) record {
	return record{Op: op, Machine: a.id.Machine, Boot: a.id.Boot, Knob: s.Knob, Scope: s.Scope, Object: s.Object, Path: s.Path, Old: s.From, New: s.To, Syntax: k.At.Syntax, Rank: a.rank(s.Knob)}
}

// rank is 1 for knobs that others disturb: they are written after those.
func (a *applying) rank(id string) int {
	for _, k := range a.knobs {
		if slices.Contains(k.Disturbs, id) {
			return 1
		}
	}
	return 0
}

// takeBack restores what the plan's steps have changed to what was there
// before, which may be a value of ours from an earlier plan.
func (a *applying) takeBack(ctx context.Context, steps []Step) ([]Left, error) {
	var todo []undoing
	held := a.j.Held()
	for _, s := range steps {
		i := slices.IndexFunc(held, func(h Held) bool { return h.Machine == a.id.Machine && h.Boot == a.id.Boot && h.Path == s.Path })
		if i >= 0 {
			todo = append(todo, undoing{Held: held[i], target: s.From})
		}
	}
	out, err := undo(ctx, a.sys, a.j, todo, a.log)
	return out.Left, err
}

// write writes a step's value and reads it back. What the kernel made of it is
// in the journal, so that taking back knows it for ours.
func (a *applying) write(ctx context.Context, k *Knob, s Step) error {
	if !s.Follows {
		if err := a.sys.SetFile(ctx, s.Path, []byte(s.To+"\n")); err != nil {
			return fmt.Errorf("set %s to %s: %w", s.Knob, quoteIfOdd(s.To), err)
		}
	}
	r := readOne(ctx, a.sys, k, s.Object)
	if r.Err != nil {
		return fmt.Errorf("read %s back: %w", s.Knob, r.Err)
	}
	if r.Value == s.To {
		return nil
	}
	seen := a.record(opIntent, s, k)
	seen.New = r.Value
	if err := a.j.add(seen); err != nil || s.Follows {
		return err
	}
	return &RefusedError{s, r.Value}
}
