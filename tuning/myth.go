package tuning

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Myth is a setting that guides repeat although it does nothing, or harm. It is
// looked for in configuration, reported, and never applied.
type Myth struct {
	ID       string
	In       []string // kinds of files, as findings show them: "sysctl", "fstab"
	Section  string   // a regular expression for the whole section, such as a file system's type
	Key      string   // a pattern as of path.Match; "|" separates several
	Value    string   // a regular expression for the whole value
	AtMost   int64    // the value's last number is at most this
	Reason   string
	Source   string
	Severity Severity
}

// mythFinder is the table made ready to look with.
type mythFinder struct {
	myths   []Myth
	section []*regexp.Regexp
	value   []*regexp.Regexp
}

func newMythFinder(myths []Myth) (*mythFinder, error) {
	f := &mythFinder{myths: myths}
	for _, m := range myths {
		s, err := whole(m.Section)
		if err != nil {
			return nil, err
		}
		v, err := whole(m.Value)
		if err != nil {
			return nil, err
		}
		f.section, f.value = append(f.section, s), append(f.value, v)
	}
	return f, nil
}

func whole(expr string) (*regexp.Regexp, error) {
	if expr == "" {
		return nil, nil
	}
	return regexp.Compile(`^(?i:` + expr + `)$`)
}

// find are the myths that a setting is.
func (f *mythFinder) find(k kind, s setting) (out []Myth) {
	as := string(k)
	switch { // what a script does counts as what it does
	case k == scriptFile && s.Section == "sysctl":
		as, s.Section = string(sysctlFile), ""
	case k == scriptFile:
		as, s.Section = string(udevFile), ""
	case k == grubFile:
		as = string(cmdlineFile)
	}
	for i, m := range f.myths {
		if !slices.Contains(m.In, as) || !matchKey(m.Key, s.Key) {
			continue
		}
		if f.section[i] != nil && !f.section[i].MatchString(s.Section) || f.value[i] != nil && !f.value[i].MatchString(s.Value) {
			continue
		}
		if m.AtMost != 0 {
			words := strings.FieldsFunc(s.Value, func(r rune) bool { return r == ' ' || r == ',' })
			if len(words) == 0 {
				continue
			}
			if n, err := strconv.ParseInt(words[len(words)-1], 10, 64); err != nil || n > m.AtMost {
				continue
			}
		}
		out = append(out, m)
	}
	return out
}

func matchKey(patterns, key string) bool {
	for p := range strings.SplitSeq(patterns, "|") {
		if p == key {
			return true
		}
		if ok, err := path.Match(p, key); err == nil && ok {
			return true
		}
	}
	return false
}
