package migrate

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Move says what to move: disks that are being written, and who writes them.
type Move struct {
	// ID names the job in events, journal and errors. Required.
	ID string
	// Disks are moved together. At least one.
	Disks []DiskMove
	// Guest is what runs on the disks. Required; see [Gate] for a writer
	// served by this program.
	Guest Guest
	// Source and Destination are the names of the two hosts in the authority's
	// records. Required, and different.
	Source, Destination string
	// Authority says who may run the guest. Nil: one within this program, for
	// this move alone.
	Authority Authority
	// Journal keeps what is needed to [Resume]. Nil: none; a crash of this
	// program then leaves the finding out to a human.
	Journal Journal
}

// DiskMove is one disk of a [Move].
type DiskMove struct {
	// Name tells the disks apart, in events and errors. Required.
	Name string
	// Source is read. It is the device that the guest writes, or another view
	// of the same bytes.
	Source share.Device
	// Tracker knows what the guest changes on Source.
	Tracker Tracker
	// Destination is written. Nothing else may write it until the move ends.
	// Either this or Remote is set.
	Destination share.Device
	// Remote is a destination at a [Receiver] on another host.
	Remote *Remote
	// DestinationID, if not "", is the identity that Destination must have,
	// else nothing is written; see [share.Identifier].
	DestinationID string
	// AllowLarger lets Destination be larger than Source. The rest is left as
	// it is.
	AllowLarger bool
	// Base, if not nil, says that the destination holds all but what was
	// written since; see [Base].
	Base *Base
	// Return leaves a [Base] in the result, for the way back. Tracker must see
	// what the guest writes at the destination too, as that of a
	// [TrackedDevice] does.
	Return bool
	// Undo, if not nil, removes what was made for the move at the destination.
	// It is called once if the move goes back, after the last write.
	Undo func(ctx context.Context) error
}

// Guest is what runs on the disks and moves with them: a virtual machine, or a
// program behind an NBD server. Its methods are called by one goroutine, may be
// called again after a crash, and then do only what is left to do.
type Guest interface {
	// Name is the guest's name in the authority's records.
	Name() string
	// Pause stops the guest at the source. When it returns nil no write is
	// under way, and none begins before Resume.
	Pause(ctx context.Context) error
	// Resume lets the guest go on at the source. It is called only while the
	// source holds authority, with that epoch.
	Resume(ctx context.Context, epoch uint64) error
	// Relinquish records durably at the source that it does not run the guest
	// in this epoch or an earlier one, also after a restart of the host.
	Relinquish(ctx context.Context, epoch uint64) error
	// Activate opens the disks for writing at the destination and lets the
	// guest run. It is called only while the destination holds authority, with
	// that epoch. An error that wraps [ErrNotActivated] promises that the
	// guest did not run there, and will not by this call; after any other
	// error it may run.
	Activate(ctx context.Context, epoch uint64) error
}

// ErrNotActivated: the guest did not run at the destination; see
// [Guest.Activate].
var ErrNotActivated = fmt.Errorf("the guest was not activated")

// Options change how [Start] works; nil is the zero value.
type Options struct {
	// MaxDowntime is how long the switchover may be expected to take. The
	// default is 300 ms.
	MaxDowntime time.Duration
	// NotConverging says what happens when the guest writes faster than the
	// destination takes. The default is to fail.
	NotConverging NotConverging
	// StallRounds is how many rounds in a row may end without less to send
	// than the best round before, until that counts as not converging. The
	// default is 5.
	StallRounds int
	// SwitchoverTimeout bounds the time from the pause to the handing over of
	// authority. When it is over the guest resumes at the source. The default
	// is 30 s.
	SwitchoverTimeout time.Duration
	// NoReadBack leaves out reading back what was written to the destination.
	// Then the result holds no proof.
	NoReadBack bool
	// Window is how many bytes are under way for each disk before the
	// destination is flushed. The default is 64 MiB.
	Window int64
	// Streams is how many reads and writes are under way at once for each
	// disk. The default is 8; each takes ChunkSize bytes of memory.
	Streams int
	// Throttle limits the copy, and can be changed while it runs. Nil: no
	// limit.
	Throttle *Throttle
	// Logger receives a record for each change of phase and each warning. Nil
	// discards them.
	Logger *slog.Logger
}

// NotConverging is a policy; see [Options].
type NotConverging uint8

const (
	// FailIfNotConverging: the move goes back with a [*NotConvergingError].
	FailIfNotConverging NotConverging = iota
	// SwitchIfNotConverging: the switchover takes as long as it takes, up to
	// Options.SwitchoverTimeout.
	SwitchIfNotConverging
	// WaitIfNotConverging: the rounds go on until the guest writes less or
	// someone cancels.
	WaitIfNotConverging
)

// ChunkSize is the most that one read or write of the copy moves: large enough
// to be cheap, and small enough to stay in a processor's cache from the read to
// the sending.
const ChunkSize = 512 << 10

func (o *Options) orDefault() Options {
	var c Options
	if o != nil {
		c = *o
	}
	setDefault(&c.MaxDowntime, 300*time.Millisecond)
	setDefault(&c.StallRounds, 5)
	setDefault(&c.SwitchoverTimeout, 30*time.Second)
	setDefault(&c.Window, 64<<20)
	setDefault(&c.Streams, 8)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Start begins to move disks that are being written, and returns the job.
//
// The copy runs in rounds while the guest runs. When what is left fits into the
// allowed downtime the guest is paused, the rest goes over, both sides are
// compared, authority is handed over, and the guest is activated at the
// destination. Whatever fails before that leaves the guest at the source, with
// its disks untouched. A request that is wrong in itself is an error wrapping
// [share.ErrInvalid], and nothing is begun.
//
// The devices and the guest are the caller's again when the job has ended, and
// must not be closed before.
//
// A journal that holds an attempt already is [share.ErrExist]; see [Resume].
func Start(ctx context.Context, m Move, opts *Options) (*Job, error) {
	return start(ctx, m, opts, func() (*history, error) {
		if m.Journal == nil {
			return new(history), nil
		}
		h, err := readHistory(ctx, &m)
		if err == nil && h.begin != nil {
			err = fmt.Errorf("the journal of move %s %w: Resume goes on with it", m.ID, share.ErrExist)
		}
		return h, err
	})
}

// Resume goes on with a move after a crash of this program or of a host, after
// a failure, or after a cancel. The move is described as for [Start], with the
// devices opened and the guest connected again, and with its journal.
//
// What the journal says arrived is compared by hash with the source, and sent
// again only where it differs. Where the guest may be paused the authority's
// store is asked, and the move goes to where that leads: the guest is activated
// at the destination, or resumes at the source and the copy goes on. A move that
// is done returns a job that has ended.
//
// A journal of another job or version, or one that is damaged, is a
// [*JournalError]; devices that are not those of the journal are
// [share.ErrWrongDevice]. In these cases nothing is written.
func Resume(ctx context.Context, m Move, opts *Options) (*Job, error) {
	if m.Journal == nil {
		return nil, fmt.Errorf("%w: move %s has no journal to resume from", share.ErrInvalid, m.ID)
	}
	return start(ctx, m, opts, func() (*history, error) { return readHistory(ctx, &m) })
}

func start(ctx context.Context, m Move, opts *Options, past func() (*history, error)) (*Job, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	o := opts.orDefault()
	if o.MaxDowntime < 0 || o.StallRounds < 1 || o.SwitchoverTimeout < 0 || o.Window < ChunkSize || o.Streams < 1 {
		return nil, fmt.Errorf("%w: options: times are positive, rounds and streams at least 1, the window at least %d bytes", share.ErrInvalid, ChunkSize)
	}
	h, err := past()
	if err != nil {
		return nil, err
	}
	return Go(ctx, m.ID, func(ctx context.Context, r *Reporter) (Result, error) {
		return newMover(m, o, h, r).run(ctx)
	}), nil
}

func (m *Move) check() error {
	switch {
	case m.ID == "":
		return fmt.Errorf("%w: a move needs an ID", share.ErrInvalid)
	case m.Guest == nil:
		return fmt.Errorf("%w: move %s has no guest", share.ErrInvalid, m.ID)
	case m.Source == "" || m.Destination == "" || m.Source == m.Destination:
		return fmt.Errorf("%w: move %s is from host %q to host %q; it needs two", share.ErrInvalid, m.ID, m.Source, m.Destination)
	case len(m.Disks) == 0:
		return fmt.Errorf("%w: move %s has no disks", share.ErrInvalid, m.ID)
	}
	names := map[string]bool{}
	for _, d := range m.Disks {
		switch {
		case d.Name == "" || names[d.Name]:
			return fmt.Errorf("%w: move %s: disk name %q is empty or not alone", share.ErrInvalid, m.ID, d.Name)
		case d.Source == nil || d.Tracker == nil:
			return fmt.Errorf("%w: move %s: disk %s needs a source and a tracker", share.ErrInvalid, m.ID, d.Name)
		case (d.Destination == nil) == (d.Remote == nil):
			return fmt.Errorf("%w: move %s: disk %s needs either a destination or a remote", share.ErrInvalid, m.ID, d.Name)
		case d.Tracker.Size() != d.Source.Size():
			return fmt.Errorf("%w: disk %s has %d bytes, its tracker %d", share.ErrInvalid, d.Name, d.Source.Size(), d.Tracker.Size())
		}
		names[d.Name] = true
		if d.Destination == nil {
			continue // its receiver is asked when the move begins
		}
		if err := d.checkDestination(d.Destination.Size(), share.IdentityOf(d.Destination)); err != nil {
			return fmt.Errorf("move %s: %w", m.ID, err)
		}
	}
	return nil
}

// checkDestination refuses a destination of the wrong size or identity.
func (d *DiskMove) checkDestination(to int64, id string) error {
	from := d.Source.Size()
	switch {
	case to < from:
		return fmt.Errorf("%w: disk %s has %d bytes, and the destination only %d", share.ErrInvalid, d.Name, from, to)
	case to > from && !d.AllowLarger:
		return fmt.Errorf("%w: disk %s has %d bytes, and the destination %d; AllowLarger lets it be so", share.ErrInvalid, d.Name, from, to)
	case d.DestinationID != "" && id != d.DestinationID:
		return fmt.Errorf("%w: disk %s: the destination is %q, not %q", share.ErrWrongDevice, d.Name, id, d.DestinationID)
	case id != "" && id == share.IdentityOf(d.Source):
		return fmt.Errorf("%w: disk %s: source and destination are one device, %q", share.ErrInvalid, d.Name, id)
	}
	return nil
}
