package migrate

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrCancelled is wrapped by the error of a job that its caller cancelled. The
// guest runs at the source.
var ErrCancelled = errors.New("migration cancelled")

// IndeterminateError ends a job that can neither go on nor go back by itself:
// who may run the guest is not known for sure, so nobody resumes it. The guest
// is paused or its side is lost; no acknowledged write is.
type IndeterminateError struct {
	Guest string
	Epoch uint64 // the last epoch known
	// Invariant is the rule that forbids to go on.
	Invariant string
	// Check says what to look at, in this order.
	Check []string
	Err   error // what happened
}

func (e *IndeterminateError) Error() string {
	s := fmt.Sprintf("guest %q, epoch %d: it is not known who may run it (%s): %v", e.Guest, e.Epoch, e.Invariant, e.Err)
	if len(e.Check) > 0 {
		s += "; check " + strings.Join(e.Check, "; ")
	}
	return s
}

// Unwrap returns Err.
func (e *IndeterminateError) Unwrap() error { return e.Err }

// NotConvergingError says in numbers why a copy cannot end: the guest writes
// faster than the destination takes.
type NotConvergingError struct {
	Rounds int
	// Remaining is what was dirty at the end of the last round, in bytes.
	Remaining int64
	// Rate and DirtyRate are bytes per second.
	Rate, DirtyRate int64
	// Predicted is the downtime that a switchover now would cost, Allowed what
	// the policy allows.
	Predicted, Allowed time.Duration
}

func (e *NotConvergingError) Error() string {
	return fmt.Sprintf("does not converge: after %d rounds %d bytes are dirty; the guest dirties %d B/s and %d B/s are copied; "+
		"a switchover now costs %v of downtime, and %v is allowed: allow more downtime, slow the guest down or give the copy a faster link",
		e.Rounds, e.Remaining, e.DirtyRate, e.Rate, e.Predicted.Round(time.Millisecond), e.Allowed)
}

// DivergedError says that the destination does not hold what was sent to it.
type DivergedError struct {
	Disk string
	Off  int64 // of the first range that differs
	Len  int64
}

func (e *DivergedError) Error() string {
	return fmt.Sprintf("disk %q: the destination does not hold what it acknowledged at %d+%d", e.Disk, e.Off, e.Len)
}
