package kvm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vmferry/vmferry/internal/virt"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
	"libvirt.org/go/libvirt"
)

// settlement brings a guest of which both hosts may have a copy to one of them.
type settlement struct {
	uuid, name string
	from, to   *Host
	handOver   HandOver
	created    []string          // what may be removed at the destination
	patience   time.Duration     // for silence and for libvirt's own end of the job
	r          *migrate.Reporter // nil where there is no job
}

// settle finds out where the guest is after libvirt's call has ended with err,
// and leaves it running on one side. Before libvirt was called, that is the
// source, and a host that does not answer changes nothing.
func (m *move) settle(ctx context.Context, r *migrate.Reporter, started bool, err error) (place, error) {
	s := &settlement{
		uuid: m.guest.uuid, name: m.guest.name, from: m.from, to: m.to,
		handOver: m.opts.HandOver, created: m.note.Created, patience: m.opts.Patience, r: r,
	}
	if errors.Is(err, share.ErrWedged) && started {
		// Libvirt's call may still do anything, so nothing is done here.
		return nowhereKnown, s.indeterminate(s.look(ctx, s.from), s.look(ctx, s.to))
	}
	at, err := s.run(ctx)
	if at == nowhereKnown && !started {
		at = atSource
	}
	return at, err
}

func (s *settlement) run(ctx context.Context) (place, error) {
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	var silent error
	for {
		src, dst := s.look(ctx, s.from), s.look(ctx, s.to)
		last := ctx.Err() != nil
		v := decide(src, dst, s.handOver)
		if v == wait && last {
			v = surrender(src, dst, s.handOver)
		}
		if dst.state == UnknownState && v != wait {
			silent = fmt.Errorf("the destination does not answer, and may hold a paused copy of the guest and %v: call Settle when it is back: %w", s.created, dst.err)
		}
		switch v {
		case staySource:
			s.resumed()
			return atSource, errors.Join(silent, s.cleanSource(ctx, dst))
		case stayDestination:
			s.resumed()
			return atDestination, nil
		case ended:
			return atSource, errors.Join(s.cleanSource(ctx, dst),
				fmt.Errorf("the guest ended during the move; at the source it is %v: a running guest %w", src.state, share.ErrNotExist))
		case split:
			return nowhereKnown, s.indeterminate(src, dst)
		}
		err := s.act(ctx, v, dst)
		if last && (v == wait || err != nil) {
			return nowhereKnown, errors.Join(s.indeterminate(src, dst), err)
		}
		if v == wait || err != nil {
			sleep(ctx, retry)
		}
	}
}

// act does what a verdict asks for; the next look shows what came of it.
func (s *settlement) act(ctx context.Context, v verdict, dst sighting) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shortly)
	defer cancel()
	switch v {
	case resumeSource:
		s.enter(migrate.PhaseResuming)
		err = changeGuest(ctx, s.from, s.uuid, "resume the guest at the source", (*libvirt.Domain).Resume)
	case activate:
		s.enter(migrate.PhaseActivating)
		err = changeGuest(ctx, s.to, s.uuid, "resume the guest at the destination", (*libvirt.Domain).Resume)
		if err == nil {
			s.resumed()
		}
	case dropDestination:
		s.enter(migrate.PhaseRollingBack)
		err = s.drop(ctx, s.to, dst.persistent)
	case dropSource:
		err = s.drop(ctx, s.from, false)
	}
	if err != nil && s.r != nil {
		s.r.Warn(err)
	}
	return err
}

func (s *settlement) enter(p migrate.Phase) {
	if s.r != nil {
		s.r.Enter(p)
	}
}

func (s *settlement) resumed() {
	if s.r != nil {
		s.r.Resumed()
	}
}

// look asks one host.
func (s *settlement) look(ctx context.Context, h *Host) sighting {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shortly/2)
	defer cancel()
	what := "look for the guest on " + h.String()
	got, err := read(ctx, h, what, func(c *libvirt.Connect) (sighting, error) {
		d, err := c.LookupDomainByUUIDString(s.uuid)
		if isNoDomain(err) {
			return sighting{state: Absent}, nil
		}
		if err != nil {
			return sighting{}, err
		}
		defer d.Free()
		return inspect(d)
	}, nil)
	if err != nil {
		return sighting{err: err}
	}
	return got
}

func inspect(d *libvirt.Domain) (g sighting, err error) {
	state, _, err := d.GetState()
	if err != nil {
		if isNoDomain(err) {
			return sighting{state: Absent}, nil
		}
		return sighting{}, err
	}
	g.state = stateOf(state)
	if g.persistent, err = d.IsPersistent(); err != nil {
		return sighting{}, err
	}
	if g.state == Off {
		return g, nil
	}
	g.note, err = noteOf(d)
	if err != nil && !errors.Is(err, share.ErrNotExist) && !errors.Is(err, share.ErrInvalid) {
		return sighting{}, err
	}
	info, err := d.GetJobStats(0)
	if errors.Is(err, libvirt.ERR_OPERATION_INVALID) {
		g.busy = true // what arrives has no figures
		return g, nil
	}
	if err != nil {
		return sighting{}, err
	}
	g.busy = info.Type == libvirt.DOMAIN_JOB_BOUNDED || info.Type == libvirt.DOMAIN_JOB_UNBOUNDED
	return g, nil
}

// drop ends a copy that stands still, and what it left defined. A running one
// is not touched, whatever was seen before.
func (s *settlement) drop(ctx context.Context, h *Host, undefine bool) error {
	return changeGuest(ctx, h, s.uuid, "end the paused copy on "+h.String(), func(d *libvirt.Domain) error {
		state, _, err := d.GetState()
		if err != nil {
			return err
		}
		if stateOf(state) == Running {
			return fmt.Errorf("the copy on %s runs, and %w", h, share.ErrInUse)
		}
		if err := d.Destroy(); err != nil && !isNoDomain(err) {
			return err
		}
		if !undefine {
			return nil
		}
		err = d.UndefineFlags(libvirt.DOMAIN_UNDEFINE_KEEP_NVRAM)
		if isNoDomain(err) {
			return nil
		}
		return err
	})
}

// cleanSource takes back what was made for the move, once the guest is at the
// source. The note goes last: with it goes the knowledge of the rest.
func (s *settlement) cleanSource(ctx context.Context, dst sighting) error {
	if dst.state == UnknownState {
		return nil // said already
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.patience)
	defer cancel()
	for _, p := range s.created {
		if err := s.deleteUnused(ctx, p); err != nil {
			return err
		}
	}
	err := removeNote(ctx, s.from, s.uuid)
	if errors.Is(err, share.ErrNotExist) || errors.Is(err, libvirt.ERR_OPERATION_INVALID) {
		return nil // gone with the guest
	}
	return err
}

// deleteUnused removes a volume at the destination, unless a guest there has it
// in its definition.
func (s *settlement) deleteUnused(ctx context.Context, p string) error {
	user, err := read(ctx, s.to, "look who uses "+p, func(c *libvirt.Connect) (string, error) {
		doms, err := c.ListAllDomains(0)
		if err != nil {
			return "", err
		}
		user := ""
		for i := range doms {
			text, err := doms[i].GetXMLDesc(0)
			if err == nil {
				if desc, err := parseGuest(text); err == nil && slices.ContainsFunc(desc.Disks, func(d Disk) bool { return d.Location == p }) {
					user = desc.Name
				}
			}
			_ = doms[i].Free()
		}
		return user, nil
	}, nil)
	if err != nil {
		return err
	}
	if user != "" {
		return fmt.Errorf("%s on %s was made for the move and is %w by the guest %q there", p, s.to, share.ErrInUse, user)
	}
	return deleteVolume(ctx, s.to, p)
}

func (s *settlement) indeterminate(src, dst sighting) error {
	say := func(where string, h *Host, g sighting) string {
		if g.err != nil {
			return fmt.Sprintf("%s (%s) does not answer: %v", where, h, g.err)
		}
		text := fmt.Sprintf("%s (%s): %v", where, h, g.state)
		if g.busy {
			text += ", with a job of libvirt on it"
		}
		return text
	}
	invariant := "at most one copy may run"
	if src.state == Running && dst.state == Running {
		invariant = "the guest runs TWICE"
	}
	return &migrate.IndeterminateError{
		Guest:     s.name,
		Invariant: invariant,
		Check: []string{
			"whether the guest has a QEMU process at " + s.from.String() + " (virsh domstate " + s.uuid + "): if it runs there, the copy at the destination must go (virsh destroy)",
			"if it is gone at the source for good, resume it at " + s.to.String() + " (virsh resume)",
			"kvm.Settle does both once the two hosts answer and libvirt has ended its job",
		},
		Err: errors.Join(errors.New(say("source", s.from, src)+"; "+say("destination", s.to, dst)), sortOf(src.err), sortOf(dst.err)),
	}
}

// sortOf keeps the kind of an error that was already put into words.
func sortOf(err error) error {
	if err == nil || virt.Gone(err) || errors.Is(err, share.ErrUnavailable) {
		return nil
	}
	return err
}

// Settle ends a move whose program was killed: it finds the guest on either
// host, leaves it running on exactly one of them, removes what was made for the
// move, and returns the guest where it runs. A guest that was left standing
// between the two goes on: at the source as long as there is a copy, for then
// the one at the destination has never run.
//
// A guest that no move has left a note on is returned where it is, if that is
// one host. A job of libvirt that is still under way, because its program lives,
// is waited for as long as ctx lasts, and is then [share.ErrInUse]. It may be
// called again at any time.
func Settle(ctx context.Context, nameOrUUID string, from, to *Host) (*Guest, error) {
	g, err := settle(ctx, nameOrUUID, from, to)
	return g, share.WrapError("settle", backend, nameOrUUID, err)
}

func settle(ctx context.Context, nameOrUUID string, from, to *Host) (*Guest, error) {
	var found *Guest
	for _, h := range []*Host{from, to} {
		g, err := h.Guest(ctx, nameOrUUID)
		if err == nil {
			found = g
			break
		}
		if !errors.Is(err, share.ErrNotExist) && h == from {
			return nil, err
		}
	}
	if found == nil {
		return nil, fmt.Errorf("neither %s nor %s has it: the guest %w", from, to, share.ErrNotExist)
	}
	s := &settlement{uuid: found.uuid, name: found.name, from: from, to: to, patience: time.Minute}
	if at, ok := ctx.Deadline(); ok {
		s.patience = time.Until(at)
	}
	src, dst := s.look(ctx, from), s.look(ctx, to)
	for (src.state == UnknownState || dst.state == UnknownState) && src.note == nil && sleep(ctx, retry) {
		src, dst = s.look(ctx, from), s.look(ctx, to)
	}
	n := src.note
	if n == nil {
		n = dst.note
	}
	if n == nil {
		return s.unnoted(src, dst)
	}
	ids := [2]string{}
	for i, h := range []*Host{from, to} {
		var err error
		if ids[i], err = h.ID(ctx); err != nil {
			return nil, err
		}
	}
	if n.Source != ids[0] || n.Destination != ids[1] {
		return nil, fmt.Errorf("%w: the guest was on its way from the host with UUID %s to the one with UUID %s, and these are %s and %s",
			share.ErrInvalid, n.Source, n.Destination, ids[0], ids[1])
	}
	s.handOver, s.created = n.HandOver, n.Created
	at, err := s.run(ctx)
	switch {
	case at == nowhereKnown && src.busy:
		return nil, fmt.Errorf("the guest %w by the job of a program that lives: %w", share.ErrInUse, err)
	case at == nowhereKnown:
		return nil, err
	case at == atSource:
		return &Guest{host: from, name: found.name, uuid: found.uuid}, err
	}
	return &Guest{host: to, name: found.name, uuid: found.uuid}, arrived(ctx, to, found.uuid, n)
}

// unnoted is a guest that nobody moves.
func (s *settlement) unnoted(src, dst sighting) (*Guest, error) {
	has := func(g sighting) bool { return g.state == Running || g.state == Paused }
	switch {
	case src.state == UnknownState || dst.state == UnknownState || has(src) && has(dst):
		return nil, s.indeterminate(src, dst)
	case has(dst) || !has(src) && src.state != Off && dst.state == Off:
		return &Guest{host: s.to, name: s.name, uuid: s.uuid}, nil
	}
	return &Guest{host: s.from, name: s.name, uuid: s.uuid}, nil
}
