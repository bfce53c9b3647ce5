package tuning

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vmferry/vmferry/share"
)

// A value is kept in one canonical text, so that comparing texts compares
// values: integers without leading zeros, one blank between several, a choice
// without its brackets.

// maxValue bounds the text of a value.
const maxValue = 4096

// parseValue reads the content of a file in one of the syntaxes from Number to
// Word. choices are those that a Choice offers.
func parseValue(s Syntax, text string) (value string, choices []string, err error) {
	bad := func(want string) (string, []string, error) {
		return "", nil, fmt.Errorf("%s is not %s: %w", quote(strings.TrimSpace(text)), want, share.ErrInvalid)
	}
	if len(text) > maxValue {
		return bad("a value: it is too long")
	}
	words := strings.Fields(text)
	switch s {
	case Number:
		if len(words) != 1 {
			return bad("one number")
		}
		n, err := strconv.ParseInt(words[0], 10, 64)
		if err != nil {
			return bad("one number")
		}
		return strconv.FormatInt(n, 10), nil, nil
	case Numbers:
		for i, w := range words {
			n, err := strconv.ParseInt(w, 10, 64)
			if err != nil {
				return bad("numbers")
			}
			words[i] = strconv.FormatInt(n, 10)
		}
		if len(words) == 0 {
			return bad("numbers")
		}
		return strings.Join(words, " "), nil, nil
	case Choice:
		for i, w := range words {
			bare := strings.TrimSuffix(strings.TrimPrefix(w, "["), "]")
			if bare == "" || strings.ContainsAny(bare, "[]") {
				return bad("a choice")
			}
			if len(bare) == len(w)-2 {
				if value != "" {
					return bad("a choice with one selected")
				}
				value = bare
			} else if bare != w {
				return bad("a choice")
			}
			words[i] = bare
		}
		if value == "" && len(words) == 1 { // nothing to choose from
			value = words[0]
		}
		if value == "" {
			return bad("a choice with one selected")
		}
		return value, words, nil
	case Word:
		if len(words) != 1 {
			return bad("one word")
		}
		return words[0], nil, nil
	}
	return bad("of a syntax that a file has")
}

// CheckValue returns an error wrapping [share.ErrInvalid] if the knob does not
// take the value, which must be in the form that findings show.
func (k *Knob) CheckValue(value string) error {
	bad := func(want string) error {
		return fmt.Errorf("%s = %s %w; it takes %s", k.ID, quote(value), share.ErrInvalid, want)
	}
	if value == "" || len(value) > maxValue || strings.ContainsAny(value, "\n\r\x00") || strings.TrimSpace(value) != value {
		return bad("one line without blanks around it")
	}
	if slices.Contains(k.Range.Words, value) {
		return nil
	}
	r := k.Range
	if r.Min == 0 && r.Max == 0 && r.Count == 0 { // words only
		if len(r.Words) > 0 {
			return bad(strings.Join(r.Words, ", "))
		}
		if strings.ContainsAny(value, " \t") {
			return bad("one word")
		}
		return nil
	}
	words := strings.Split(value, " ")
	if want := max(1, r.Count); len(words) != want {
		return bad(fmt.Sprintf("%d numbers from %d to %d", want, r.Min, r.Max))
	}
	for _, w := range words {
		n, err := strconv.ParseInt(w, 10, 64)
		if err != nil || n < r.Min || n > r.Max || strconv.FormatInt(n, 10) != w {
			return bad(strings.TrimSpace(fmt.Sprintf("numbers from %d to %d %s", r.Min, r.Max, strings.Join(r.Words, " "))))
		}
	}
	return nil
}

// satisfied reports whether current is as advised, and if not, what to make it.
func (a Advice) satisfied(current string) (ok bool, want string) {
	switch a.How {
	case Exactly:
		return current == a.Value, a.Value
	case OneOf:
		words := strings.Fields(a.Value)
		return slices.Contains(words, current), words[0]
	case AtLeast, AtMost:
		c, err1 := strconv.ParseFloat(current, 64) // versions are 4.2
		w, err2 := strconv.ParseFloat(a.Value, 64)
		if err1 != nil || err2 != nil {
			return current == a.Value, a.Value
		}
		if a.How == AtLeast {
			return c >= w, a.Value
		}
		return c <= w, a.Value
	}
	return true, ""
}

// between reports whether the number v lies strictly between a and b.
func between(v, a, b string) bool {
	n, err1 := strconv.ParseInt(v, 10, 64)
	x, err2 := strconv.ParseInt(a, 10, 64)
	y, err3 := strconv.ParseInt(b, 10, 64)
	return err1 == nil && err2 == nil && err3 == nil && n > min(x, y) && n < max(x, y)
}
