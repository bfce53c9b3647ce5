package migrate

// The course of a move as a pure function. It does no I/O, has no clock and
// decides nothing by chance, so that a test can walk through all that may
// happen. The executor runs the effects; see executor.go.
//
//	preparing → copying → pausing → finishing → verifying → relinquishing → swapping → activating → completing → DONE
//	    │          │         │          │           │             │            │  ▲        │
//	    │          │         └──────────┴───────────┤             │            ▼  │        │ (it never ran)
//	    │          │                                │             ├────────▶ reading ──────┼──▶ INDETERMINATE
//	    │          │                                ▼             ▼            ▲  │        │
//	    └──────────┴────────▶ rolling back ◀─── resuming ◀─── reclaiming ◀─────┴──┴────────┘
//	                                │
//	                                ▼
//	                        FAILED or CANCELLED
//
// Three rules make two running copies impossible:
//
//   - The destination is activated only in the phase that follows a swap which
//     is known to have happened.
//   - Once the source may have relinquished, it resumes only after it has taken
//     authority back under a new epoch. A swap of ours that was delayed
//     expects the old epoch, and fails.
//   - What is not known is read from the store; what cannot be read is left
//     alone.

// state is where a move stands: all that must survive a crash.
type state struct {
	Phase Phase `json:"phase"`
	// Owner and Epoch are the last record of authority that is known.
	Owner side   `json:"owner"`
	Epoch uint64 `json:"epoch"`
	// Cancelled says that the caller asked to go back, in time.
	Cancelled bool `json:"cancelled,omitempty"`
	// HandBack says that the destination never ran the guest, and authority is
	// on its way back to the source: a swap of ours to that end may be late,
	// so the destination must not be activated under the same epoch any more.
	HandBack bool `json:"hand_back,omitempty"`
	// Again says that the copy goes on once the guest runs at the source: the
	// move was interrupted by a crash, not by a failure.
	Again bool `json:"again,omitempty"`
	// Reads counts how often the store had to be asked, so that a store which
	// never answers clearly does not keep the job for ever.
	Reads uint8 `json:"reads,omitempty"`
}

// side is one of the two hosts.
type side uint8

const (
	nobody side = iota // neither of the two: someone else, or not known
	source
	destination
)

// maxReads bounds state.Reads.
const maxReads = 8

// outcome is how an effect ended.
type outcome uint8

const (
	ok      outcome = iota // it happened
	refused                // it did not happen, and will not
	unknown                // it may have happened, or may yet
)

// input is what the machine reacts to.
type input interface{ isInput() }

type (
	// started begins the move.
	started struct{}
	// ended is the outcome of the effect of the current phase. Owner and Epoch
	// are what the store says, where the phase was to read it.
	ended struct {
		Outcome outcome
		Owner   side
		Epoch   uint64
	}
	// cancelAsked is the caller's wish to go back.
	cancelAsked struct{}
	// restarted: the program was started again and found the state in the
	// journal. What the last effect did is not known.
	restarted struct{}
)

func (started) isInput()     {}
func (ended) isInput()       {}
func (cancelAsked) isInput() {}
func (restarted) isInput()   {}

// effect is what the executor is to do.
type effect uint8

const (
	// run: do what the phase of the new state is there for.
	run effect = iota + 1
	// interrupt: make the effect under way end soon.
	interrupt
)

// step returns the state after an input, and what is to be done. Inputs that
// have no meaning in the state change nothing.
func step(s state, in input) (state, []effect) {
	switch in := in.(type) {
	case started:
		if s.Phase == PhaseUnknown {
			return s.enter(PhasePreparing)
		}
	case cancelAsked:
		if !s.Cancelled && s.Phase.cancellable() {
			s.Cancelled = true
			return s, []effect{interrupt}
		}
	case restarted:
		return s.restart()
	case ended:
		return s.after(in)
	}
	return s, nil
}

// cancellable: there is a way back without asking the store.
func (p Phase) cancellable() bool { return p >= PhasePreparing && p <= PhaseRelinquishing }

// after goes on from the end of the phase's effect.
func (s state) after(e ended) (state, []effect) {
	if s.Phase == PhasePreparing && e.Outcome == ok {
		s.Owner, s.Epoch = e.Owner, e.Epoch
	}
	if s.Phase.cancellable() {
		return s.afterAtSource(e.Outcome)
	}
	switch s.Phase {
	case PhaseSwapping:
		if e.Outcome == ok {
			s.Owner, s.Epoch = destination, s.Epoch+1
			return s.enter(PhaseActivating)
		}
		return s.enter(PhaseReading)
	case PhaseReading:
		return s.afterReading(e)
	case PhaseReclaiming:
		if e.Outcome == ok {
			s.Owner, s.Epoch, s.HandBack = source, s.Epoch+1, false
			return s.enter(PhaseResuming)
		}
		return s.enter(PhaseReading)
	case PhaseActivating:
		switch e.Outcome {
		case ok:
			return s.enter(PhaseCompleting)
		case refused: // it never ran, so the source's disks are still the latest
			s.HandBack = true
			return s.enter(PhaseReclaiming)
		}
		return s.enter(PhaseIndeterminate)
	case PhaseCompleting:
		return s.enter(PhaseDone)
	case PhaseResuming:
		if e.Outcome == ok {
			if s.Again && !s.Cancelled {
				s.Again = false
				return s.enter(PhasePreparing)
			}
			return s.enter(PhaseRollingBack)
		}
		return s.enter(PhaseIndeterminate)
	case PhaseRollingBack:
		if s.Cancelled {
			return s.enter(PhaseCancelled)
		}
		return s.enter(PhaseFailed)
	}
	return s, nil
}

// afterAtSource covers the phases in which authority has not left the source.
func (s state) afterAtSource(o outcome) (state, []effect) {
	forward := map[Phase]Phase{
		PhasePreparing: PhaseCopying, PhaseCopying: PhasePausing, PhasePausing: PhaseFinishing, PhaseFinishing: PhaseVerifying,
		PhaseVerifying: PhaseRelinquishing, PhaseRelinquishing: PhaseSwapping}
	if o == ok && !s.Cancelled {
		return s.enter(forward[s.Phase])
	}
	switch s.Phase {
	case PhasePreparing, PhaseCopying:
		return s.enter(PhaseRollingBack)
	case PhaseRelinquishing:
		if o != refused {
			return s.enter(PhaseReclaiming)
		}
	}
	return s.enter(PhaseResuming)
}

func (s state) afterReading(e ended) (state, []effect) {
	s.Reads++
	before := s.Epoch
	if e.Outcome != ok || s.Reads > maxReads || e.Epoch < before { // an epoch never goes back
		return s.enter(PhaseIndeterminate)
	}
	s.Owner, s.Epoch = e.Owner, e.Epoch
	switch {
	case e.Owner == destination && !s.HandBack:
		return s.enter(PhaseActivating)
	case e.Owner == source && e.Epoch > before: // our reclaiming did happen
		s.HandBack = false
		return s.enter(PhaseResuming)
	case e.Owner == source || e.Owner == destination: // and a swap of ours may still be on its way
		return s.enter(PhaseReclaiming)
	}
	return s.enter(PhaseIndeterminate)
}

// restart goes on after a crash, or from a state that nobody could resolve.
// Where the guest may be paused the store is asked, even if the source had not
// relinquished: while this program was gone somebody may have taken over.
func (s state) restart() (state, []effect) {
	switch p := s.Phase; {
	case p == PhaseRollingBack || s.Cancelled && (p == PhasePreparing || p == PhaseCopying):
		return s.enter(PhaseRollingBack)
	case p == PhaseUnknown || p == PhasePreparing || p == PhaseCopying || p == PhaseFailed || p == PhaseCancelled:
		s.Cancelled = false
		return s.enter(PhasePreparing)
	case p >= PhasePausing && p <= PhaseActivating || p == PhaseResuming || p == PhaseIndeterminate:
		s.Reads, s.Again = 0, !s.HandBack
		return s.enter(PhaseReading)
	case p == PhaseCompleting:
		return s.enter(PhaseCompleting)
	}
	return s, nil
}

// enter moves to a phase, whose effect is to be run.
func (s state) enter(p Phase) (state, []effect) {
	s.Phase = p
	if p.Ended() {
		return s, nil
	}
	return s, []effect{run}
}
