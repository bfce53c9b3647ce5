package migrate

import (
	"context"
	"fmt"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Journal keeps what a move was about to do and what is known to have arrived,
// so that [Resume] can go on after a crash. One journal belongs to one move.
// See [OpenJournal] for the one that is a file.
type Journal interface {
	// Append writes one entry. When it returns nil the entry survives a crash
	// of the program and of the host.
	Append(ctx context.Context, e Entry) error
	// Entries returns all entries, from the first to the last. An entry whose
	// Append did not return nil may be there or not; none may be damaged or
	// missing in between.
	Entries(ctx context.Context) ([]Entry, error)
}

// Entry is one line of a journal. Exactly one of the pointers is set. It holds
// no secret.
type Entry struct {
	Job  string    `json:"job"`
	Seq  uint64    `json:"seq"` // from 1, without gaps
	Time time.Time `json:"time"`

	// Begin is the first entry of an attempt: what moves where.
	Begin *BeginEntry `json:"begin,omitempty"`
	// Phase is written before the effect of a phase.
	Phase *PhaseEntry `json:"phase,omitempty"`
	// Arrived is written after the destination has flushed.
	Arrived *ArrivedEntry `json:"arrived,omitempty"`
}

// BeginEntry says what moves, from where to where.
type BeginEntry struct {
	// Attempt is the epoch in which the disks are sent; it grows with each
	// attempt.
	Attempt     uint64      `json:"attempt"`
	Guest       string      `json:"guest"`
	Source      string      `json:"source"`
	Destination string      `json:"destination"`
	Disks       []DiskEntry `json:"disks"`
}

// DiskEntry is one disk of a move, as it was when an attempt began.
type DiskEntry struct {
	Name          string `json:"name"`
	Size          int64  `json:"size"`
	SourceID      string `json:"source_id,omitempty"`
	DestinationID string `json:"destination_id,omitempty"`
}

// PhaseEntry is the state of a move.
type PhaseEntry struct {
	Phase Phase `json:"phase"`
	// Epoch and Owner are the record of authority as it was last known.
	Epoch uint64 `json:"epoch"`
	Owner string `json:"owner"`
	// Cancelled says that the move goes back by the caller's wish, HandBack
	// that the destination never ran the guest and authority goes back.
	Cancelled bool `json:"cancelled,omitempty"`
	HandBack  bool `json:"hand_back,omitempty"`
}

// ArrivedEntry names ranges that the destination has acknowledged durably. They
// may have changed at the source since.
type ArrivedEntry struct {
	Disk   string  `json:"disk"`
	Ranges []Range `json:"ranges"`
}

// JournalError says why a journal cannot be used. It is a [share.ErrCorrupt],
// [share.ErrInvalid] or errors.ErrUnsupported.
type JournalError struct {
	Path   string // empty where it is no file
	Line   int    // from 1; 0 for the whole
	Reason string
	Kind   error
}

func (e *JournalError) Error() string {
	where := "journal"
	if e.Path != "" {
		where += " " + e.Path
	}
	if e.Line > 0 {
		where += fmt.Sprintf(", line %d", e.Line)
	}
	return where + ": " + e.Reason
}

// Unwrap returns Kind.
func (e *JournalError) Unwrap() error { return e.Kind }

// history is what a journal says of a move.
type history struct {
	seq     uint64
	begin   *BeginEntry // the first; later ones differ in the attempt alone
	attempt uint64      // the greatest
	state   state
	arrived map[string][]Range
}

// readHistory reads a journal and compares it with the move that is to go on.
func readHistory(ctx context.Context, m *Move) (*history, error) {
	entries, err := m.Journal.Entries(ctx)
	if err != nil {
		return nil, err
	}
	h := &history{arrived: map[string][]Range{}}
	bad := func(i int, kind error, format string, args ...any) error {
		return &JournalError{Line: i + 1, Kind: kind, Reason: fmt.Sprintf(format, args...)}
	}
	for i, e := range entries {
		switch {
		case e.Job != m.ID:
			return nil, bad(i, share.ErrInvalid, "it belongs to job %q, not to %q", e.Job, m.ID)
		case e.Seq != h.seq+1 && e.Seq != h.seq: // the same again after an append that failed and was there
			return nil, bad(i, share.ErrCorrupt, "entry %d follows entry %d", e.Seq, h.seq)
		case h.begin == nil && e.Begin == nil:
			return nil, bad(i, share.ErrCorrupt, "it does not begin with what moves")
		}
		h.seq = e.Seq
		switch {
		case e.Begin != nil:
			if h.begin == nil {
				h.begin = e.Begin
			}
			if err := h.begin.same(e.Begin); err != nil {
				return nil, bad(i, share.ErrCorrupt, "an attempt differs from the first one: %v", err)
			}
			h.attempt = max(h.attempt, e.Begin.Attempt)
		case e.Phase != nil:
			h.state = state{Phase: e.Phase.Phase, Epoch: e.Phase.Epoch, Cancelled: e.Phase.Cancelled, HandBack: e.Phase.HandBack}
			switch e.Phase.Owner {
			case m.Source:
				h.state.Owner = source
			case m.Destination:
				h.state.Owner = destination
			}
		case e.Arrived != nil:
			h.arrived[e.Arrived.Disk] = append(h.arrived[e.Arrived.Disk], e.Arrived.Ranges...)
		default:
			return nil, bad(i, share.ErrCorrupt, "an entry says nothing")
		}
	}
	return h, nil
}

// same compares what moves with what moved before.
func (b *BeginEntry) same(now *BeginEntry) error {
	switch {
	case b.Guest != now.Guest:
		return fmt.Errorf("%w: the guest was %q, and is %q", share.ErrInvalid, b.Guest, now.Guest)
	case b.Source != now.Source || b.Destination != now.Destination:
		return fmt.Errorf("%w: it was from %q to %q, and is from %q to %q", share.ErrInvalid, b.Source, b.Destination, now.Source, now.Destination)
	case len(b.Disks) != len(now.Disks):
		return fmt.Errorf("%w: there were %d disks, and are %d", share.ErrInvalid, len(b.Disks), len(now.Disks))
	}
	for i, d := range b.Disks {
		n := now.Disks[i]
		switch {
		case d.Name != n.Name:
			return fmt.Errorf("%w: disk %d was %q, and is %q", share.ErrInvalid, i+1, d.Name, n.Name)
		case d.Size != n.Size:
			return fmt.Errorf("%w: disk %s had %d bytes, and has %d", share.ErrInvalid, d.Name, d.Size, n.Size)
		case d.SourceID != n.SourceID:
			return fmt.Errorf("%w: disk %s: the source was %q, and is %q", share.ErrWrongDevice, d.Name, d.SourceID, n.SourceID)
		case d.DestinationID != n.DestinationID:
			return fmt.Errorf("%w: disk %s: the destination was %q, and is %q", share.ErrWrongDevice, d.Name, d.DestinationID, n.DestinationID)
		}
	}
	return nil
}
