package domain

import "strings"

// Line is a line of a diff.
type Line struct {
	Op      string   `json:"op"` // " ", "-" or "+"
	Text    string   `json:"text"`
	Reasons []string `json:"reasons,omitempty"` // of a "+"
}

// text is a definition by lines, which remember where they come from and why
// they are there.
type text struct {
	original []string
	lines    []line
}

type line struct {
	text    string
	from    int // of original; -1 for a new one
	reasons []string
}

func newText(s string) *text {
	t := &text{original: strings.Split(s, "\n")}
	for i, l := range t.original {
		t.lines = append(t.lines, line{text: l, from: i})
	}
	return t
}

func (t *text) String() string {
	var b strings.Builder
	for i, l := range t.lines {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(l.text)
	}
	return b.String()
}

// become exchanges the lines that differ in s, which is one change away: those
// between what is equal at the beginning and at the end. New lines have the
// reasons of those that they stand for, and this one.
func (t *text) become(s, reason string) {
	now := strings.Split(s, "\n")
	head := 0
	for head < len(now) && head < len(t.lines) && now[head] == t.lines[head].text {
		head++
	}
	tail := 0
	for tail < len(now)-head && tail < len(t.lines)-head && now[len(now)-1-tail] == t.lines[len(t.lines)-1-tail].text {
		tail++
	}
	old := t.lines[head : len(t.lines)-tail]
	reasons := []string{}
	for _, l := range old {
		reasons = append(reasons, l.reasons...)
	}
	reasons = append(reasons, reason)
	out := append([]line(nil), t.lines[:head]...)
	for _, l := range now[head : len(now)-tail] {
		fresh := line{text: l, from: -1, reasons: reasons}
		for _, o := range old { // moved within the change, not new
			if o.text == l {
				fresh = o
			}
		}
		out = append(out, fresh)
	}
	t.lines = append(out, t.lines[len(t.lines)-tail:]...)
}

// diff are all lines, those that are gone before those that came.
func (t *text) diff() (out []Line) {
	next := 0
	flush := func(until int) {
		for ; next < until; next++ {
			out = append(out, Line{Op: "-", Text: t.original[next]})
		}
	}
	var added []Line
	for _, l := range t.lines {
		if l.from < next || l.from < 0 {
			added = append(added, Line{Op: "+", Text: l.text, Reasons: l.reasons})
			continue
		}
		flush(l.from)
		out = append(append(out, added...), Line{Op: " ", Text: l.text})
		added, next = nil, l.from+1
	}
	flush(len(t.original))
	return append(out, added...)
}
