package kvm

// place is where the guest is, once that is known.
type place uint8

const (
	nowhereKnown place = iota
	atSource
	atDestination
)

// sighting is the truth about one side, as far as its host tells it.
type sighting struct {
	state State
	// note is what the move left on this copy, nil if nothing.
	note *note
	// busy: libvirt still works on it.
	busy       bool
	persistent bool
	err        error
}

// verdict is what to do, given both sides.
type verdict uint8

const (
	wait            verdict = iota // look again
	staySource                     // it runs at the source, alone
	stayDestination                // it runs at the destination, alone
	resumeSource                   // it stands at the source, alone
	activate                       // it stands at the destination, alone
	dropDestination                // a copy that never ran stands at the destination
	dropSource                     // a copy that has handed over stands at the source
	ended                          // it is nowhere: it has ended
	split                          // it runs twice
)

// decide is the whole of who may run the guest. It has no side effects, and the
// table in its test has every pair of states.
//
// With Strict, a copy at the destination never ran unless the one at the source
// was gone; so as long as there is one at the source, that one is the guest.
// With Unfenced the destination resumes by itself, and only a running copy is
// proof.
func decide(s, d sighting, h HandOver) verdict {
	switch {
	case s.state == UnknownState:
		// The source may run it for all we know.
		return wait
	case s.state == Running && d.state == Running:
		return split
	case s.busy || d.busy && d.state != Running:
		return wait
	case s.state == Running:
		switch d.state {
		case Paused:
			return dropDestination
		case UnknownState:
			return wait
		}
		return staySource
	case s.state == Paused:
		switch d.state {
		case Running:
			return dropSource
		case Paused:
			if h == Unfenced {
				return wait // it may be about to run
			}
			return dropDestination
		case UnknownState:
			return wait
		}
		return resumeSource
	}
	// There is none at the source.
	switch d.state {
	case Running:
		return stayDestination
	case Paused:
		return activate
	case UnknownState:
		return wait
	}
	return ended
}

// surrender is decide for when patience has run out: what can be said although
// the destination is silent.
func surrender(s, d sighting, h HandOver) verdict {
	if h != Strict || s.busy {
		return wait
	}
	// It never ran there, and nobody but us would resume it.
	switch {
	case s.state == Running && d.state == UnknownState:
		return staySource
	case s.state == Paused && d.state == UnknownState:
		return resumeSource
	case d.state == Paused && (s.state == Running || s.state == Paused):
		return dropDestination // its libvirt has not ended the job by itself
	}
	return wait
}
