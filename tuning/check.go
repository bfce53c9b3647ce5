package tuning

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmferry/vmferry/share"
)

// CheckOptions say what a machine is for, and what to look for. The zero value
// is a machine of many guests, and everything that the package knows.
type CheckOptions struct {
	Class Class  // Mixed when zero
	Knobs []Knob // Knobs() when nil
	Myths []Myth // Myths() when nil
}

// Check reads a machine's settings and says which are right for its class of
// work, which are not, and why. It changes nothing, needs no privilege, and
// calls unsure what it may not read. Knobs and myths come in the order of their
// tables.
//
// It fails only where ctx ends, or options are wrong: everything else is a
// finding.
func Check(ctx context.Context, sys System, opts *CheckOptions) (*Report, error) {
	began := time.Now()
	o := CheckOptions{}
	if opts != nil {
		o = *opts
	}
	if o.Class == 0 {
		o.Class = Mixed
	}
	if _, err := o.Class.MarshalText(); err != nil {
		return nil, err
	}
	if o.Knobs == nil {
		o.Knobs = Knobs()
	}
	if o.Myths == nil {
		o.Myths = myths
	}
	finder, err := newMythFinder(o.Myths)
	if err != nil {
		return nil, fmt.Errorf("table of myths %w: %w", share.ErrInvalid, err)
	}
	cached := newCache(sys)
	r := &Report{System: sys.Name(), Class: o.Class, Features: map[string]Probed{}}
	if id, err := identify(ctx, cached); err == nil {
		r.Machine, r.Boot = id.Machine, id.Boot
	} else {
		r.Findings = append(r.Findings, Finding{State: Unsure, ID: "boot", Path: bootIDFile, Reason: err.Error() + "; without it nothing can be applied", Severity: Note})
	}
	for i := range o.Knobs {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("check %s: %w", sys.Name(), context.Cause(ctx))
		}
		r.Findings = append(r.Findings, judge(ctx, cached, &o.Knobs[i], o.Class)...)
	}
	r.Findings = append(r.Findings, lookForMyths(ctx, cached, finder)...)
	for _, f := range Features() {
		r.Features[f.ID] = ProbeFeature(ctx, cached, f)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("check %s: %w", sys.Name(), context.Cause(ctx))
	}
	r.Took = time.Since(began)
	return r, nil
}

// judge is what there is to say of one knob: a finding for each object.
func judge(ctx context.Context, sys System, k *Knob, class Class) (out []Finding) {
	base := Finding{ID: k.ID, Scope: k.Scope, Title: k.Title, Source: k.Source, Risk: k.Risk, Verify: k.Verify, Effect: k.Effect, Severity: Note, Path: k.At.Path}
	if k.At.Syntax == XMLPath || k.At.Syntax == Parameter {
		return nil // of a guest or a move, not of a machine
	}
	found, err := readings(ctx, sys, k)
	if err != nil {
		base.State, base.Reason = Unsure, err.Error()
		return []Finding{base}
	}
	if len(found) == 0 {
		base.State, base.Reason = Absent, "nothing at "+k.where()
		return []Finding{base}
	}
	for _, r := range found {
		f := base
		f.Object, f.Path, f.Line, f.Current = r.Object, r.Path, r.Line, r.Value
		if r.Err != nil {
			f.State, f.Reason = Unsure, r.Err.Error()
			if errors.Is(r.Err, share.ErrInvalid) {
				f.State = Malformed
			}
			out = append(out, f)
			continue
		}
		a := k.advice(class, func(conds []Cond) bool { return holds(ctx, sys, conds, r.Object) })
		a = limited(ctx, sys, k, a, r)
		f.Writable = k.Writable()
		if f.Reason = a.Why; f.Reason == "" {
			f.Reason = k.Why
		}
		if f.Reason == "" {
			f.Reason = k.Title
		}
		ok, want := a.satisfied(r.Value)
		f.State = Good
		if !ok {
			f.State, f.Recommended, f.Severity = Differs, want, k.Severity
			if !f.Writable {
				f.Remedy = strings.NewReplacer("OBJECT", r.Object, "VALUE", want).Replace(k.At.Set)
			}
		}
		out = append(out, f)
	}
	return out
}

// limited keeps advice to what the object takes: its limit, and the words that
// it offers.
func limited(ctx context.Context, sys System, k *Knob, a Advice, r reading) Advice {
	if k.At.Limit != "" && (a.How == AtLeast || a.How == Exactly) {
		b, err := sys.ReadFile(ctx, strings.Replace(k.At.Limit, "*", r.Object, 1))
		most, err2 := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		want, err3 := strconv.ParseInt(a.Value, 10, 64)
		if err == nil && err2 == nil && err3 == nil && most < want {
			a.Value = strconv.FormatInt(most, 10)
		}
	}
	if k.At.Syntax == Choice && a.How == Exactly && r.Choices != nil && len(r.Choices) > 1 {
		offered := false
		for _, c := range r.Choices {
			offered = offered || c == a.Value
		}
		if !offered {
			return Advice{How: Leave, Why: a.Value + " would be better, but is not offered here"}
		}
	}
	return a
}

// holds reports whether all conditions are met. What cannot be read is not met.
func holds(ctx context.Context, sys System, conds []Cond, object string) bool {
	for _, c := range conds {
		paths := []string{c.Path}
		if c.Any {
			var err error
			if paths, err = sys.Glob(ctx, c.Path); err != nil {
				return false
			}
		} else {
			paths[0] = strings.Replace(c.Path, "*", object, 1)
		}
		met := false
		for _, p := range paths {
			b, err := sys.ReadFile(ctx, p)
			if err != nil {
				continue
			}
			text := strings.TrimSpace(string(b))
			n, notNumber := strconv.ParseInt(text, 10, 64)
			if (c.Is == "" || text == c.Is) && strings.HasPrefix(text, c.Has) && (c.Min == 0 || notNumber == nil && n >= c.Min) {
				met = true
				break
			}
		}
		if !met {
			return false
		}
	}
	return true
}

// lookForMyths reads what administrators have configured.
func lookForMyths(ctx context.Context, sys System, finder *mythFinder) (out []Finding) {
	for _, place := range places {
		paths := []string{place.pattern}
		if strings.Contains(place.pattern, "*") {
			var err error
			if paths, err = sys.Glob(ctx, place.pattern); err != nil {
				out = append(out, Finding{State: Unsure, ID: string(place.kind), Path: place.pattern, Reason: err.Error(), Severity: Note})
				continue
			}
		}
		for _, p := range paths {
			out = append(out, mythsIn(ctx, sys, finder, place.kind, place.ending, p)...)
		}
	}
	return out
}

func mythsIn(ctx context.Context, sys System, finder *mythFinder, k kind, ending, file string) (out []Finding) {
	say := func(s State, line int, reason string) {
		out = append(out, Finding{State: s, ID: string(k), Path: file, Line: line, Reason: reason, Severity: Note})
	}
	if !strings.HasSuffix(file, ending) {
		if !strings.HasPrefix(path.Base(file), "README") && !strings.HasPrefix(path.Base(file), ".") {
			say(Malformed, 0, "nobody reads it: its name does not end in "+ending)
		}
		return out
	}
	b, err := sys.ReadFile(ctx, file)
	switch {
	case errors.Is(err, share.ErrNotExist):
		return nil
	case errors.Is(err, share.ErrInvalid):
		say(Malformed, 0, err.Error()) // a directory or a FIFO among files
		return out
	case err != nil:
		say(Unsure, 0, err.Error())
		return out
	}
	p := parse(k, string(b))
	for _, s := range p.settings {
		for _, m := range finder.find(k, s) {
			out = append(out, Finding{State: Mythical, ID: m.ID, Path: file, Line: s.Line, Title: s.Key, Current: s.Value, Reason: m.Reason, Source: m.Source, Severity: m.Severity})
		}
	}
	for _, n := range p.malformed {
		say(Malformed, n, "a line that is not "+string(k))
	}
	return out
}

// cache remembers what a system said, for one check: conditions of many knobs
// look at the same files.
type cache struct {
	System
	mu    sync.Mutex
	files map[string]func() ([]byte, error)
	globs map[string]func() ([]string, error)
	runs  map[string]func() ([]byte, error)
}

func newCache(sys System) *cache {
	return &cache{System: sys, files: map[string]func() ([]byte, error){}, globs: map[string]func() ([]string, error){}, runs: map[string]func() ([]byte, error){}}
}

func (c *cache) ReadFile(ctx context.Context, path string) ([]byte, error) {
	return once(&c.mu, c.files, path, func() ([]byte, error) { return c.System.ReadFile(ctx, path) })
}

func (c *cache) Glob(ctx context.Context, pattern string) ([]string, error) {
	return once(&c.mu, c.globs, pattern, func() ([]string, error) { return c.System.Glob(ctx, pattern) })
}

func (c *cache) Run(ctx context.Context, argv ...string) ([]byte, error) {
	r, ok := c.System.(Runner)
	if !ok {
		return nil, &share.UnsupportedError{What: "running " + argv[0], Reason: c.Name() + " runs no programs"}
	}
	// A check is fast: a cluster that does not answer is one finding.
	return once(&c.mu, c.runs, strings.Join(argv, "\x00"), func() ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return r.Run(ctx, argv...)
	})
}

func once[T any](mu *sync.Mutex, m map[string]func() (T, error), key string, f func() (T, error)) (T, error) {
	mu.Lock()
	g, ok := m[key]
	if !ok {
		g = sync.OnceValues(f)
		m[key] = g
	}
	mu.Unlock()
	return g()
}
