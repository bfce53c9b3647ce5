package migrate

import (
	"fmt"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Phase is where a job stands. The comments say who may run the guest in it.
type Phase uint8

const (
	PhaseUnknown Phase = iota

	// The guest runs at the source; giving up leaves it there untouched.

	PhasePreparing // facts are checked, the destination is made ready
	PhaseCopying   // disks and memory go over, round after round

	// The guest is paused at the source; giving up resumes it there.

	PhasePausing   // the guest stops
	PhaseFinishing // the last dirty blocks go over and are flushed
	PhaseVerifying // nothing is dirty, and both sides are equal; of a guest: both hosts are asked

	// The source has given the guest up for its epoch. Who may run it is what
	// the authority store says.

	PhaseRelinquishing // the source records that it gives the guest up
	PhaseSwapping      // authority goes to the destination
	PhaseReading       // the outcome of a swap is unknown: the store is read
	PhaseReclaiming    // the source takes authority back under a new epoch

	// The destination has authority, and runs the guest.

	PhaseActivating // the destination opens the disks for writing and resumes
	PhaseCompleting // what served the move is removed from the source

	// The source has authority.

	PhaseResuming    // the guest resumes at the source
	PhaseRollingBack // what was made for the move is removed

	// The job has ended.

	PhaseDone          // the guest runs at the destination
	PhaseFailed        // the guest is at the source as before, or has ended by itself
	PhaseCancelled     // the same, by the caller's wish
	PhaseIndeterminate // nobody may resume the guest before someone has looked; see [IndeterminateError]

	phaseCount
)

var phaseNames = [phaseCount]string{"unknown", "preparing", "copying", "pausing", "finishing", "verifying",
	"relinquishing", "swapping", "reading", "reclaiming", "activating", "completing", "resuming", "rolling back",
	"done", "failed", "cancelled", "indeterminate"}

// String is the phase's name in lower case.
func (p Phase) String() string {
	if p < phaseCount {
		return phaseNames[p]
	}
	return fmt.Sprintf("Phase(%d)", uint8(p))
}

// MarshalText is String.
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText accepts what MarshalText returns.
func (p *Phase) UnmarshalText(b []byte) error {
	for i, name := range phaseNames {
		if name == string(b) {
			*p = Phase(i)
			return nil
		}
	}
	return fmt.Errorf("%w: phase %q", share.ErrInvalid, b)
}

// Ended reports whether a job in this phase does nothing more by itself.
func (p Phase) Ended() bool { return p >= PhaseDone && p < phaseCount }

// EventKind says what an [Event] reports.
type EventKind uint8

const (
	UnknownEvent EventKind = iota
	PhaseEntered           // the job entered Event.Phase
	RoundEnded             // a round of copying ended; Progress has its figures
	Progressed             // figures changed
	Warned                 // something is wrong that does not end the job; see Err
	GuestPaused            // the guest stopped: downtime begins
	GuestResumed           // the guest runs again: downtime ends
	JobEnded               // the last event of a job; Err is Wait's
	eventKindCount
)

var eventKindNames = [eventKindCount]string{"unknown", "phase", "round", "progress", "warning", "paused", "resumed", "ended"}

// String is the kind's name in lower case.
func (k EventKind) String() string {
	if k < eventKindCount {
		return eventKindNames[k]
	}
	return fmt.Sprintf("EventKind(%d)", uint8(k))
}

// MarshalText is String.
func (k EventKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText accepts what MarshalText returns.
func (k *EventKind) UnmarshalText(b []byte) error {
	for i, name := range eventKindNames {
		if name == string(b) {
			*k = EventKind(i)
			return nil
		}
	}
	return fmt.Errorf("%w: event kind %q", share.ErrInvalid, b)
}

// Event is one thing that happened in a job.
type Event struct {
	// Seq counts a job's events from 1. A reader that was too slow sees a gap:
	// the oldest events that it had not read were dropped.
	Seq  uint64
	Time time.Time
	Kind EventKind
	// Phase is the job's phase when it happened.
	Phase Phase
	// Progress holds the figures at that moment.
	Progress Progress
	// Text says it in words, for a log.
	Text string
	// Err is set for Warned and JobEnded, where there is one.
	Err error
}

// Progress holds a job's figures at one moment. Sizes are bytes, rates bytes
// per second.
type Progress struct {
	Phase   Phase
	Elapsed time.Duration
	// Round counts the passes over what is dirty; the first, over everything,
	// is 1.
	Round int
	// Disks are the disks that are copied, in the order of the request.
	Disks []DiskProgress
	// Memory is set where a guest's memory moves.
	Memory *MemoryProgress
	// Rate is the speed of the copy, and DirtyRate that of the guest's writes
	// which must be copied again, both as moving averages.
	Rate, DirtyRate int64
	// Expected is what a switchover now is expected to cost in downtime; 0
	// where it is not known.
	Expected time.Duration
	// Finish is how long it takes until the switchover can begin.
	Finish Forecast
	// Downtime is how long the guest stood still so far.
	Downtime time.Duration
}

// DiskProgress holds the figures of one disk.
type DiskProgress struct {
	Name string
	// Total is the disk's size.
	Total int64
	// Remaining is what is dirty or on its way.
	Remaining int64
	// Sent is data that went over, Zero what did not need to because it reads
	// as zeros. Blocks that were written again count again.
	Sent, Zero int64
	// Same is data that the destination had from an earlier attempt, as its
	// hashes showed.
	Same int64
}

// MemoryProgress holds the figures of a guest's memory.
type MemoryProgress struct {
	Total, Sent, Remaining int64
	// Iteration counts the passes of pre-copy.
	Iteration int
	// DirtyRate is how fast the guest writes to its memory.
	DirtyRate int64
}

// Remaining is what is still to be sent of all disks and memory.
func (p Progress) Remaining() int64 {
	var n int64
	for _, d := range p.Disks {
		n += d.Remaining
	}
	if p.Memory != nil {
		n += p.Memory.Remaining
	}
	return n
}

// Sent is what went over of all disks and memory.
func (p Progress) Sent() int64 {
	var n int64
	for _, d := range p.Disks {
		n += d.Sent
	}
	if p.Memory != nil {
		n += p.Memory.Sent
	}
	return n
}
