// Package show is how the examples talk to a person, or to a program with
// -json: a progress line on a terminal, plain lines elsewhere, and one JSON
// object at the end.
package show

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
)

// Screen draws progress: on a terminal as one line that is drawn again, else as
// a line at each phase and each second.
type Screen struct {
	out      io.Writer
	terminal int // the file descriptor, -1 if there is none
	drawn    bool
	last     time.Time
	// goal is the most that was ever to be sent: the guest makes work while
	// it is done, and the bar must not run backwards for that.
	goal, done int64
}

// NewScreen draws on out.
func NewScreen(out io.Writer) *Screen {
	s := &Screen{out: out, terminal: -1}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.terminal = int(f.Fd())
	}
	return s
}

// Say writes a line of its own.
func (s *Screen) Say(format string, args ...any) {
	if s.drawn {
		fmt.Fprint(s.out, "\r\x1b[K")
		s.drawn = false
	}
	fmt.Fprintf(s.out, format+"\n", args...)
}

// Draw shows an event of a job.
func (s *Screen) Draw(e migrate.Event) {
	p := e.Progress
	s.goal = max(s.goal, p.Remaining()+p.Sent())
	switch e.Kind {
	case migrate.Warned:
		s.Say("  warning: %v", e.Err)
	case migrate.PhaseEntered:
		if e.Phase == migrate.PhasePreparing {
			s.goal, s.done = 0, 0
		}
		if s.terminal < 0 {
			s.Say("  %8.2fs  %s", p.Elapsed.Seconds(), e.Phase)
			s.last = time.Now()
			return
		}
	case migrate.JobEnded:
		if s.drawn {
			s.Say("%s", s.line(e.Phase, p))
		}
		return
	}
	if s.terminal < 0 {
		if e.Kind == migrate.Progressed && p.Sent() > 0 && time.Since(s.last) >= time.Second {
			s.last = time.Now()
			s.Say("  %8.2fs  %s", p.Elapsed.Seconds(), s.figures(p))
		}
		return
	}
	line := s.line(e.Phase, p)
	if width, _, err := term.GetSize(s.terminal); err == nil && width > 1 {
		if r := []rune(line); len(r) >= width {
			line = string(r[:width-1])
		}
	}
	fmt.Fprintf(s.out, "\r%s\x1b[K", line)
	s.drawn = true
}

const barWidth = 24

func (s *Screen) line(phase migrate.Phase, p migrate.Progress) string {
	part := 0.0
	switch {
	case phase == migrate.PhaseDone:
		part = 1
	case s.goal > 0:
		s.done = max(s.done, min(s.goal-p.Remaining(), s.goal*99/100))
		part = float64(s.done) / float64(s.goal)
	}
	full := int(part * barWidth)
	return fmt.Sprintf("  %s%s %3.0f%%  %-10s %6.1fs  %s", strings.Repeat("█", full), strings.Repeat("░", barWidth-full), 100*part, phase, p.Elapsed.Seconds(), s.figures(p))
}

func (s *Screen) figures(p migrate.Progress) string {
	parts := []string{fmt.Sprintf("%v sent", share.Bytes(p.Sent()))}
	if p.Rate > 0 && !p.Phase.Ended() {
		parts = append(parts, fmt.Sprintf("%v/s", share.Bytes(p.Rate)))
	}
	if p.DirtyRate > 0 && !p.Phase.Ended() {
		parts = append(parts, fmt.Sprintf("guest dirties %v/s", share.Bytes(p.DirtyRate)))
	}
	if p.Round > 0 {
		parts = append(parts, fmt.Sprintf("pass %d", p.Round))
	}
	if p.Finish.P50 > 0 && !p.Phase.Ended() {
		parts = append(parts, fmt.Sprintf("%v to go", p.Finish.P50.Round(time.Second/10)))
	}
	if p.Downtime > 0 {
		parts = append(parts, fmt.Sprintf("downtime %v", p.Downtime.Round(time.Millisecond)))
	}
	return strings.Join(parts, ", ")
}

// JSON writes v as one object.
func JSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
