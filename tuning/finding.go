package tuning

import (
	"fmt"
	"time"
)

// State is what was found.
type State uint8

const (
	_         State = iota
	Good            // as recommended, or to be left alone
	Differs         // another value is recommended
	Mythical        // a configured setting that does nothing, or harm
	Absent          // the machine has no such thing
	Unsure          // it could not be found out
	Malformed       // a line, or a file, that is not understood
)

// String is the state's name.
func (s State) String() string { return name(states, s) }

// MarshalText is String.
func (s State) MarshalText() ([]byte, error) { return marshalName(states, s) }

// UnmarshalText accepts what MarshalText returns.
func (s *State) UnmarshalText(b []byte) error { return unmarshalName(states, b, s) }

var states = []string{"", "good", "differs", "myth", "absent", "unsure", "malformed"}

// Finding is one thing that [Check] found.
type Finding struct {
	State       State    `json:"state"`
	ID          string   `json:"id,omitempty"` // of the knob, or the myth
	Scope       Scope    `json:"scope,omitempty"`
	Object      string   `json:"object,omitempty"` // "vda"; empty where there is one of its kind
	Path        string   `json:"path,omitempty"`
	Line        int      `json:"line,omitempty"`
	Title       string   `json:"title,omitempty"`
	Current     string   `json:"current,omitempty"`
	Recommended string   `json:"recommended,omitempty"`
	Reason      string   `json:"reason"`
	Source      string   `json:"source,omitempty"`
	Risk        string   `json:"risk,omitempty"`
	Verify      string   `json:"verify,omitempty"`
	Severity    Severity `json:"severity"`
	Effect      Effect   `json:"effect,omitempty"`
	Writable    bool     `json:"writable,omitempty"` // Apply can do it
	Remedy      string   `json:"remedy,omitempty"`   // what the administrator does where it cannot
}

// String is the finding on one line.
func (f Finding) String() string {
	s := f.ID
	if f.Object != "" {
		s += " " + quoteIfOdd(f.Object)
	}
	if f.State == Mythical || f.State == Malformed {
		s += " " + f.Path
		if f.Line > 0 {
			s += fmt.Sprintf(":%d", f.Line)
		}
	}
	if f.Current != "" {
		s += " = " + quoteIfOdd(f.Current)
	}
	if f.State == Differs {
		s += ", better " + f.Recommended
	}
	return s + ": " + f.Reason
}

// quoteIfOdd leaves plain words alone: what a file holds may not control a
// terminal.
func quoteIfOdd(s string) string {
	for _, r := range s {
		if r < ' ' || r > '~' {
			return quote(s)
		}
	}
	if len(s) > 200 {
		return quote(s)
	}
	return s
}

// Report is what a check found.
type Report struct {
	System   string            `json:"system"`
	Machine  string            `json:"machine"`        // its machine id
	Boot     string            `json:"boot,omitempty"` // empty where it could not be read: no plan can be made
	Class    Class             `json:"class"`
	Took     time.Duration     `json:"took_ns"`
	Findings []Finding         `json:"findings"`
	Features map[string]Probed `json:"features"`
}

// Select are the findings of the given states.
func (r *Report) Select(states ...State) (out []Finding) {
	for _, f := range r.Findings {
		for _, s := range states {
			if f.State == s {
				out = append(out, f)
			}
		}
	}
	return out
}
