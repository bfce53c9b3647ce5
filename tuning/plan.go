package tuning

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/vmferry/vmferry/share"
)

// Plan is what [Apply] does, nothing more and nothing less. It can be shown,
// stored and sent; its hash is over all of it.
type Plan struct {
	System  string `json:"system"`
	Machine string `json:"machine"`
	Boot    string `json:"boot"`
	Class   Class  `json:"class"`
	Steps   []Step `json:"steps"`
	Hash    string `json:"hash"`
}

// Step is one value that is written.
type Step struct {
	Knob   string `json:"knob"`
	Scope  Scope  `json:"scope"`
	Object string `json:"object,omitempty"`
	Path   string `json:"path"`
	From   string `json:"from"`
	To     string `json:"to"`
	// Follows is a value that the kernel may set anew when another step is
	// done. It is not written, only remembered, to be reverted with that step;
	// To is From.
	Follows bool `json:"follows,omitempty"`
}

// String is the step on one line.
func (s Step) String() string {
	what := s.Knob
	if s.Object != "" {
		what += " " + s.Object
	}
	if s.Follows {
		return fmt.Sprintf("%s: %s, which the kernel may set anew", what, s.From)
	}
	return fmt.Sprintf("%s: %s -> %s", what, s.From, s.To)
}

// Change asks for a value of the caller's own.
type Change struct {
	Knob   string
	Object string // empty: every object
	Value  string
}

// PlanOptions choose what goes into a plan. The zero value takes everything that
// differs and can be written.
type PlanOptions struct {
	Only []string // IDs of knobs; nil: all that differ
	// Set are values beside, or in place of, those recommended. With Only
	// empty and OnlySet nothing else is in the plan.
	Set     []Change
	OnlySet bool
	Knobs   []Knob // the table that the check was made with; Knobs() when nil
}

// Plan makes a plan of what the check found. A value out of its knob's range
// and a knob that the check did not find are [share.ErrInvalid].
func (r *Report) Plan(opts *PlanOptions) (Plan, error) {
	o := PlanOptions{}
	if opts != nil {
		o = *opts
	}
	if o.Knobs == nil {
		o.Knobs = Knobs()
	}
	p := Plan{System: r.System, Machine: r.Machine, Boot: r.Boot, Class: r.Class}
	if r.Boot == "" {
		return p, fmt.Errorf("plan for %s %w: the check could not read %s", r.System, share.ErrInvalid, bootIDFile)
	}
	for _, id := range o.Only {
		if _, ok := FindKnob(o.Knobs, id); !ok {
			return p, fmt.Errorf("knob %s %w: there is none", quote(id), share.ErrInvalid)
		}
	}
	want, err := r.wanted(&o)
	if err != nil {
		return p, err
	}
	for _, f := range r.Findings {
		value, ok := want[f.ID+"\x00"+f.Object]
		if !ok || !f.Writable || value == f.Current {
			continue
		}
		k, ok := FindKnob(o.Knobs, f.ID)
		if !ok {
			return p, fmt.Errorf("knob %s %w: it is not in the table", f.ID, share.ErrInvalid)
		}
		p.Steps = append(p.Steps, Step{Knob: f.ID, Scope: f.Scope, Object: f.Object, Path: f.Path, From: f.Current, To: value})
		for _, d := range k.Disturbs { // what the kernel resets along with it
			for _, g := range r.Findings {
				if _, own := want[d+"\x00"+g.Object]; g.ID == d && g.Object == f.Object && g.Writable && !own {
					p.Steps = append(p.Steps, Step{Knob: d, Scope: g.Scope, Object: g.Object, Path: g.Path, From: g.Current, To: g.Current, Follows: true})
				}
			}
		}
	}
	p.Steps = ordered(o.Knobs, p.Steps)
	p.Hash = p.sum()
	return p, p.Check(o.Knobs)
}

// wanted are the values that a plan shall have, by knob and object.
func (r *Report) wanted(o *PlanOptions) (map[string]string, error) {
	want := map[string]string{}
	for _, f := range r.Findings {
		if f.State == Differs && f.Writable && !o.OnlySet && (o.Only == nil || slices.Contains(o.Only, f.ID)) {
			want[f.ID+"\x00"+f.Object] = f.Recommended
		}
	}
	for _, c := range o.Set {
		k, ok := FindKnob(o.Knobs, c.Knob)
		if !ok {
			return nil, fmt.Errorf("knob %s %w: there is none", quote(c.Knob), share.ErrInvalid)
		}
		if !k.Writable() {
			return nil, fmt.Errorf("knob %s %w: it is for the administrator: %s", c.Knob, share.ErrInvalid, k.At.Set)
		}
		if err := k.CheckValue(c.Value); err != nil {
			return nil, err
		}
		found := false
		for _, f := range r.Findings {
			if f.ID == c.Knob && f.Writable && f.Current != "" && (c.Object == "" || c.Object == f.Object) {
				want[f.ID+"\x00"+f.Object], found = c.Value, true
			}
		}
		if !found {
			return nil, fmt.Errorf("knob %s of %s %w: the check found none that can be written", c.Knob, quote(c.Object), share.ErrInvalid)
		}
	}
	return want, nil
}

// ordered sorts steps by scope, and within by object, so that those that
// disturb others come before these.
func ordered(knobs []Knob, steps []Step) []Step {
	disturbed := map[string]bool{}
	for _, k := range knobs {
		for _, d := range k.Disturbs {
			disturbed[d] = true
		}
	}
	rank := func(s Step) int {
		if disturbed[s.Knob] {
			return 1
		}
		return 0
	}
	var scopes []Scope
	for _, s := range steps {
		if !slices.Contains(scopes, s.Scope) {
			scopes = append(scopes, s.Scope)
		}
	}
	out := slices.Clone(steps)
	slices.SortStableFunc(out, func(a, b Step) int {
		if a.Scope != b.Scope {
			return slices.Index(scopes, a.Scope) - slices.Index(scopes, b.Scope)
		}
		return rank(a) - rank(b)
	})
	return out
}

// sum is the hash of everything but the hash.
func (p Plan) sum() string {
	p.Hash = ""
	b, err := json.Marshal(p)
	if err != nil { // a class that is none: no hash fits
		return ""
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// Check returns an error wrapping [share.ErrInvalid] if the plan is not one that
// could have been made from the table of knobs: a hash that does not fit, a
// path that is not the knob's, a value out of range. A plan from elsewhere
// can therefore not write to anything but knobs.
func (p Plan) Check(knobs []Knob) error {
	if knobs == nil {
		knobs = Knobs()
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("plan for %s %w: %s", quoteIfOdd(p.System), share.ErrInvalid, fmt.Sprintf(format, args...))
	}
	if sum := p.sum(); sum == "" || p.Hash != sum {
		return bad("its hash does not fit: it was changed after it was shown")
	}
	if p.Boot == "" {
		return bad("it does not say for which boot")
	}
	seen := map[string]bool{}
	for _, s := range p.Steps {
		k, ok := FindKnob(knobs, s.Knob)
		switch {
		case !ok:
			return bad("there is no knob %s", quote(s.Knob))
		case !k.Writable():
			return bad("knob %s is not written by this package", k.ID)
		case s.Scope != k.Scope:
			return bad("knob %s is of scope %s", k.ID, k.Scope)
		case strings.Contains(k.At.Path, "*") != (s.Object != "") || strings.ContainsAny(s.Object, "/*?[\\\x00\n") || s.Object == "." || s.Object == "..":
			return bad("knob %s of object %s", k.ID, quote(s.Object))
		case s.Path != k.path(s.Object) || !kernelFile(s.Path):
			return bad("knob %s is at %s", k.ID, k.path(s.Object))
		case skipped(&k, s.Object):
			return bad("knob %s is not for %s", k.ID, s.Object)
		case seen[s.Path]:
			return bad("%s is written twice", s.Path)
		case s.Follows && s.From != s.To:
			return bad("%s follows, and would be written", s.Path)
		}
		seen[s.Path] = true
		if s.Follows {
			continue // it is there, whatever the range says
		}
		if err := k.CheckValue(s.To); err != nil {
			return fmt.Errorf("plan for %s: %w", quoteIfOdd(p.System), err)
		}
	}
	return nil
}

// kernelFile reports whether path is a file of the kernel's, as only such are
// written.
func kernelFile(path string) bool {
	return checkPath(path) == nil && (strings.HasPrefix(path, "/proc/sys/") || strings.HasPrefix(path, "/sys/") || strings.HasPrefix(path, "/proc/fs/nfsd/"))
}
