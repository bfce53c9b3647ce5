// Package show is how the examples talk to a person, or to a program with
// -json: a progress line on a terminal, plain lines elsewhere, and one JSON
// object at the end.
package show

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
)

// Progress draws a job's events on f until there are no more: on a terminal as
// a line that is drawn again, elsewhere as a line for each phase and round.
func Progress(f *os.File, events iter.Seq[migrate.Event]) {
	p := printer{w: f, live: term.IsTerminal(int(f.Fd()))}
	for e := range events {
		p.show(e)
	}
	p.endLine()
}

// printer writes what happens.
type printer struct {
	w    io.Writer
	live bool
	open bool // a progress line stands there
	last time.Time
}

// redraw is how often a progress line is drawn again at most.
const redraw = 100 * time.Millisecond

func (p *printer) show(e migrate.Event) {
	switch e.Kind {
	case migrate.Progressed:
		if p.live && time.Since(p.last) >= redraw {
			p.last = time.Now()
			p.open = true
			fmt.Fprintf(p.w, "\r\x1b[K%s", Line(e.Progress))
		}
		return
	case migrate.PhaseEntered, migrate.RoundEnded, migrate.Warned, migrate.GuestPaused, migrate.GuestResumed:
		p.endLine()
		mark := " "
		if e.Kind == migrate.Warned {
			mark = "!"
		}
		fmt.Fprintf(p.w, "%7.2fs %s %s\n", e.Progress.Elapsed.Seconds(), mark, e.Text)
	}
}

func (p *printer) endLine() {
	if p.open {
		p.open = false
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

// barWidth is the width of the bar in characters.
const barWidth = 28

// Line is one line about where a job stands.
func Line(p migrate.Progress) string {
	var total int64
	for _, d := range p.Disks {
		total += d.Total
	}
	if p.Memory != nil {
		total += p.Memory.Total
	}
	part := 0.0
	if total > 0 {
		part = min(1, max(0, 1-float64(p.Remaining())/float64(total)))
	}
	full := int(part * barWidth)
	return fmt.Sprintf("%-13s [%s%s] %3.0f%%  %v left  %v sent", p.Phase, strings.Repeat("#", full), strings.Repeat(".", barWidth-full),
		part*100, share.Bytes(p.Remaining()), share.Bytes(p.Sent()))
}

// JSON writes v as one object on one line.
func JSON(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}
