package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vmferry/vmferry/tuning"
	"github.com/vmferry/vmferry/tuning/domain"
)

// printer shows tables, in colours on a terminal.
type printer struct {
	w       io.Writer
	colours bool
}

const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (p *printer) paint(colour, s string) string {
	if !p.colours || colour == "" {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

func colourOf(f tuning.Finding) string {
	switch {
	case f.State == tuning.Good:
		return green
	case f.Severity == tuning.Harm:
		return red
	case f.State == tuning.Differs || f.State == tuning.Mythical:
		return yellow
	}
	return ""
}

// report is a table of what is worth a look; with all, of everything.
func (p *printer) report(r *tuning.Report, all bool) {
	fmt.Fprintf(p.w, "%s, for %s: %d good, %d would be better, %d myths, checked in %v\n\n", r.System, r.Class,
		len(r.Select(tuning.Good)), len(r.Select(tuning.Differs)), len(r.Select(tuning.Mythical)), r.Took.Round(time.Millisecond))
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	var colours []string
	for _, f := range r.Findings {
		if !all && f.State != tuning.Differs && f.State != tuning.Mythical && f.State != tuning.Malformed {
			continue
		}
		where := f.Object
		if f.State == tuning.Mythical || f.State == tuning.Malformed {
			where = fmt.Sprintf("%s:%d", f.Path, f.Line)
		}
		how := f.Reason
		if f.Remedy != "" {
			how += "; by hand: " + f.Remedy
		}
		better := f.Recommended
		if f.State == tuning.Mythical {
			better = "take it out"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", f.State, clean(f.ID), clean(where), clean(f.Current), clean(better), clean(how))
		colours = append(colours, colourOf(f))
	}
	tw.Flush()
	n := 0
	for line := range strings.Lines(b.String()) { // colours after columns, which they would shift
		fmt.Fprintln(p.w, p.paint(colours[n], strings.TrimRight(line, " \n")))
		n++
	}
	if n > 0 {
		fmt.Fprintln(p.w)
	}
}

// clean keeps what files hold from controlling a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func (p *printer) plan(plan tuning.Plan, apply bool) {
	if len(plan.Steps) == 0 {
		fmt.Fprintln(p.w, "nothing to change")
		return
	}
	what := "would be applied with -apply"
	if apply {
		what = "is applied"
	}
	fmt.Fprintf(p.w, "plan %.12s %s:\n", plan.Hash, what)
	for _, s := range plan.Steps {
		fmt.Fprintln(p.w, " ", clean(s.String()))
	}
}

func (p *printer) verdict(v tuning.Verdict) {
	colour := map[tuning.Outcome]string{tuning.Kept: green, tuning.Harmful: red, tuning.Failed: red}[v.Outcome]
	fmt.Fprintln(p.w, p.paint(colour, clean(v.String())))
}

func (p *printer) diff(l domain.Line) {
	colour := map[string]string{"+": green, "-": red}[l.Op]
	text := l.Op + clean(l.Text)
	if len(l.Reasons) > 0 {
		text += "   # " + strings.Join(l.Reasons, "; ")
	}
	fmt.Fprintln(p.w, p.paint(colour, text))
}
