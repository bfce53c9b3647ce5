package tuning

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vmferry/vmferry/share"
)

// WatchOptions is how held values are watched. nil is the default.
type WatchOptions struct {
	Every time.Duration // 10 s when zero
	Knobs []Knob        // as for Apply
	// Stepped is called for each value that was given up; it must not call
	// the journal's owner back.
	Stepped func(Left)
	Log     *slog.Logger
}

// Watch steps back where somebody changes a held value by hand: the value is
// theirs from then on, Revert will not touch it, and the files of [Persist], if
// there are any, are written without it. What a reboot or a vanished device
// ended is forgotten, too. Watch polls until ctx ends, which is no error, and
// reads only, but for its own files.
func Watch(ctx context.Context, sys System, j *Journal, opts *WatchOptions) error {
	o := WatchOptions{}
	if opts != nil {
		o = *opts
	}
	if o.Every == 0 {
		o.Every = 10 * time.Second
	}
	if o.Every < 0 {
		return fmt.Errorf("interval of %v %w", o.Every, share.ErrInvalid)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	for {
		left, err := stepBack(ctx, sys, j)
		for _, l := range left {
			o.Log.InfoContext(ctx, "tuning: stepped back", "system", sys.Name(), "knob", l.Knob, "object", l.Object, "ours", l.Ours, "have", l.Have)
			if o.Stepped != nil {
				o.Stepped(l)
			}
		}
		if err == nil && len(left) > 0 && len(j.kept(left[0].Machine)) > 0 {
			_, err = Persist(ctx, sys, j, o.Knobs)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if sleep(ctx, o.Every) != nil {
			return nil
		}
	}
}

// stepBack gives up what is not ours any more.
func stepBack(ctx context.Context, sys System, j *Journal) (out []Left, err error) {
	j.work.Lock()
	defer j.work.Unlock()
	id, err := identify(ctx, sys)
	if err != nil {
		return nil, err
	}
	for _, h := range j.Held() {
		if h.Machine != id.Machine || h.Unsettled {
			continue
		}
		l := Left{Held: h, Why: "somebody else has changed it since"}
		if h.Boot != id.Boot {
			l.Why = "the machine was rebooted since, which has undone it"
		} else {
			have, err := current(ctx, sys, h)
			if errors.Is(err, share.ErrNotExist) {
				l.Why = "it is gone"
			} else if err != nil {
				return out, err
			}
			if l.Have = have; err == nil && have == h.Ours {
				continue
			}
		}
		if err := j.add(leave(h, l.Why)); err != nil {
			return out, err
		}
		out = append(out, l)
	}
	return out, nil
}
