package tuning

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/vmferry/vmferry/share"
)

// undoTime is how long taking back may take after the caller has gone.
const undoTime = 30 * time.Second

// RevertOptions choose what is reverted. The zero value is everything.
type RevertOptions struct {
	Knobs []string // IDs; nil: all
	Log   *slog.Logger
}

// Reverted is what [Revert] did.
type Reverted struct {
	Restored []Held // their original values are there
	Left     []Left // they are not ours any more, and were not touched
}

// Left is a value that was not restored.
type Left struct {
	Held
	Have string // what is there; empty where nothing is
	Why  string
}

// Revert restores the original value of everything that the journal holds of
// this machine, where what is there is still ours. A value that was changed by
// somebody else since is left alone and forgotten, and so is what a reboot or a
// device's end has undone. It works after a crash of [Apply] or of Revert at any
// point, and may be repeated.
//
// Values of other machines in the journal stay. Where some cannot be restored,
// the others are, and the error joins the reasons; the journal holds on to them.
func Revert(ctx context.Context, sys System, j *Journal, opts *RevertOptions) (Reverted, error) {
	o := RevertOptions{}
	if opts != nil {
		o = *opts
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	j.work.Lock()
	defer j.work.Unlock()
	id, err := identify(ctx, sys)
	if err != nil {
		return Reverted{}, err
	}
	var todo []undoing
	var out Reverted
	for _, h := range j.Held() {
		switch {
		case h.Machine != id.Machine || o.Knobs != nil && !slices.Contains(o.Knobs, h.Knob):
		case h.Boot != id.Boot:
			if err := j.add(leave(h, "rebooted")); err != nil {
				return out, err
			}
			out.Left = append(out.Left, Left{Held: h, Why: "the machine was rebooted since, which has undone it"})
		default:
			todo = append(todo, undoing{Held: h, target: h.Original})
		}
	}
	done, err := undo(ctx, sys, j, todo, o.Log)
	out.Restored, out.Left = append(out.Restored, done.Restored...), append(out.Left, done.Left...)
	if h := j.Interrupted(); err == nil && h != "" && o.Knobs == nil {
		err = j.add(record{Op: opEnd, Plan: h, Machine: id.Machine, Boot: id.Boot})
	}
	return out, err
}

// undoing is a held value and what it is to become.
type undoing struct {
	Held
	target    string
	disturbed bool // another value is restored before it, and resets it
}

// undo restores values that are still ours. Those that the kernel resets along
// with others come last, and the journal says so before those are written.
func undo(ctx context.Context, sys System, j *Journal, todo []undoing, log *slog.Logger) (out Reverted, err error) {
	slices.SortStableFunc(todo, func(a, b undoing) int { return cmp.Compare(a.rank, b.rank) })
	var errs []error
	var ours []undoing
	for _, u := range todo {
		have, err := current(ctx, sys, u.Held)
		switch {
		case errors.Is(err, share.ErrNotExist):
			errs = append(errs, j.add(leave(u.Held, "gone")))
			out.Left = append(out.Left, Left{u.Held, "", "it is gone"})
		case err != nil:
			errs = append(errs, fmt.Errorf("revert %s: %w", u.Path, err))
		case have == u.target || u.owns(have):
			u.disturbed = u.rank > 0 && slices.ContainsFunc(ours, func(o undoing) bool { return o.rank == 0 && o.Scope == u.Scope && o.Object == u.Object })
			ours = append(ours, u)
		default:
			errs = append(errs, j.add(leave(u.Held, "foreign")))
			out.Left = append(out.Left, Left{u.Held, have, "somebody else has changed it since"})
		}
	}
	for _, u := range ours {
		if u.disturbed {
			if err := j.add(u.record(opUndo)); err != nil {
				return out, errors.Join(append(errs, err)...)
			}
		}
	}
	for _, u := range ours {
		if err := u.restore(ctx, sys, j); err != nil {
			errs = append(errs, fmt.Errorf("revert %s to %s: %w", u.Path, quoteIfOdd(u.target), err))
			continue
		}
		out.Restored = append(out.Restored, u.Held)
		log.InfoContext(ctx, "tuning: reverted", "system", sys.Name(), "knob", u.Knob, "object", u.Object, "from", u.Ours, "to", u.target)
	}
	return out, errors.Join(errs...)
}

// owns reports whether what is there was put there by us, or by the kernel on
// our account. Of a number that a crash came upon, the kernel may have taken
// less than was asked for.
func (u undoing) owns(have string) bool {
	switch {
	case have == u.Ours:
		return true
	case !u.Unsettled:
		return false
	}
	return u.loose || have == u.prev || u.Syntax == Number && between(have, u.prev, u.Ours)
}

// restore writes the target unless it is there already, and reads it back. A
// journal that cannot be written does not keep it from that: a value found as
// it was is nothing to revert.
func (u undoing) restore(ctx context.Context, sys System, j *Journal) error {
	have, err := current(ctx, sys, u.Held)
	if err != nil {
		return err
	}
	if have != u.target {
		if !u.disturbed && !u.owns(have) {
			return fmt.Errorf("it became %s meanwhile: %w", quoteIfOdd(have), share.ErrInUse)
		}
		if err := sys.SetFile(ctx, u.Path, []byte(u.target+"\n")); err != nil {
			return err
		}
		if have, err = current(ctx, sys, u.Held); err != nil {
			return err
		}
		if have != u.target {
			return fmt.Errorf("read back %s: %w", quoteIfOdd(have), share.ErrInvalid)
		}
	}
	return j.add(u.record(opUndone))
}

func (u undoing) record(op string) record {
	return record{Op: op, Machine: u.Machine, Boot: u.Boot, Knob: u.Knob, Scope: u.Scope, Object: u.Object, Path: u.Path, Old: u.Ours, New: u.target}
}

func leave(h Held, why string) record {
	return record{Op: opLeft, Machine: h.Machine, Boot: h.Boot, Knob: h.Knob, Object: h.Object, Path: h.Path, Why: why}
}

// current is the value that is there now.
func current(ctx context.Context, sys System, h Held) (string, error) {
	if !kernelFile(h.Path) {
		return "", fmt.Errorf("journal: path %s %w", quote(h.Path), share.ErrCorrupt)
	}
	b, err := sys.ReadFile(ctx, h.Path)
	if err != nil {
		return "", err
	}
	v, _, err := parseValue(h.Syntax, string(b))
	if err != nil {
		return "", fmt.Errorf("%s: %w", h.Path, err)
	}
	return v, nil
}
