package kvm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
	"libvirt.org/go/libvirt"
)

// Migrate moves a running guest to another host. What can be known to forbid
// that is returned as an error before anything starts, all of it at once:
//
//   - [share.ErrInvalid]: the guest does not run, the destination is its own
//     host, the options do not fit its disks;
//   - [share.ErrExist]: the destination has a guest of that name or UUID, or a
//     file where a disk is to be made, or one of another size or format;
//   - [share.ErrInUse]: a job, a backup or another move is under way;
//   - [share.ErrNotExist]: a directory or volume is missing;
//   - [share.ErrUnavailable], [share.ErrDenied]: a host does not answer, or
//     does not let the caller in;
//   - errors.ErrUnsupported: a device cannot be moved.
//
// The job goes on until it ends, ctx ends or it is cancelled; both hosts must
// stay open as long. Its phases are Preparing, Copying, Pausing, Finishing,
// Verifying, Activating, Completing, and at the end Done, Failed, Cancelled or
// Indeterminate, as the package says. Its result counts the passes over the
// guest's memory as rounds, and its downtime is from the pause at the source to
// the return of the call that resumed the guest at the destination.
//
// It corresponds to virDomainMigrate3.
func Migrate(ctx context.Context, g *Guest, to *Host, opts *MigrateOptions) (*migrate.Job, error) {
	m, err := preflight(ctx, g, to, opts)
	if err != nil {
		return nil, share.WrapError("migrate", backend, g.name, err)
	}
	return migrate.Go(ctx, m.opts.ID, m.run), nil
}

// run is the body of the job.
func (m *move) run(ctx context.Context, r *migrate.Reporter) (migrate.Result, error) {
	r.Enter(migrate.PhasePreparing)
	m.initFigures(r)
	for _, w := range m.warnings {
		r.Warn(w)
	}
	w := m.watch(ctx, r)
	defer w.stop()

	err := m.prepare(ctx)
	started := err == nil
	if started {
		r.Enter(migrate.PhaseCopying)
		err = m.copy(ctx, w)
	}
	if err == nil {
		r.Enter(migrate.PhaseVerifying)
	} else {
		r.Enter(migrate.PhaseRollingBack)
	}
	// From here on the job ends by its own patience, not by ctx: leaving now
	// would leave a guest between two hosts.
	ctx = context.WithoutCancel(ctx)
	place, serr := m.settle(ctx, r, started, err)
	return m.conclude(ctx, w, place, err, serr)
}

// conclude says how the job ended: place and serr are the truth about the
// guest, err is what libvirt said.
func (m *move) conclude(ctx context.Context, w *watch, place place, err, serr error) (migrate.Result, error) {
	res := w.result()
	wrap := func(err error) error { return share.WrapError("migrate", backend, m.guest.name, err) }
	switch place {
	case atDestination:
		w.r.Enter(migrate.PhaseCompleting)
		if serr != nil {
			w.r.Warn(serr)
		}
		m.complete(ctx, w.r)
		w.r.Enter(migrate.PhaseDone)
		res.Phase = migrate.PhaseDone
		return res, nil
	case atSource:
		if serr != nil {
			w.r.Warn(serr)
		}
		if err == nil {
			err = fmt.Errorf("libvirt called the move a success, and the guest is at the source: %w", share.ErrUnavailable)
		}
		res.Phase = migrate.PhaseFailed
		if errors.Is(err, migrate.ErrCancelled) {
			res.Phase = migrate.PhaseCancelled
		}
		w.r.Enter(res.Phase)
		return res, wrap(errors.Join(err, serr))
	}
	res.Phase = migrate.PhaseIndeterminate
	w.r.Enter(res.Phase)
	return res, wrap(errors.Join(serr, err))
}

func (m *move) initFigures(r *migrate.Reporter) {
	r.Update(func(p *migrate.Progress) {
		p.Memory = &migrate.MemoryProgress{Total: int64(m.desc.Memory), Remaining: int64(m.desc.Memory)}
		for _, d := range m.mirrored() {
			p.Disks = append(p.Disks, migrate.DiskProgress{Name: d.Target, Total: int64(d.Capacity), Remaining: int64(d.Capacity)})
		}
	})
}

// prepare makes the destination ready. What it leaves on failure, settle
// removes.
func (m *move) prepare(ctx context.Context) error {
	if err := writeNote(ctx, m.from, m.guest.uuid, &m.note); err != nil {
		return causeOf(ctx, err)
	}
	if err := m.writeDefinitions(ctx); err != nil {
		return causeOf(ctx, err)
	}
	for _, d := range m.mirrored() {
		if d.Overwrite {
			continue
		}
		if err := createVolume(ctx, m.to, d.to.File.Path, d.to.Format, d.Capacity); err != nil {
			if errors.Is(err, share.ErrExist) {
				m.disown(d.to.File.Path)
			}
			return causeOf(ctx, fmt.Errorf("disk %s: %w", d.Target, err))
		}
		v, err := statVolume(ctx, m.to, d.to.File.Path, false)
		if err == nil && (v.format != d.to.Format || v.size != d.Capacity) {
			err = fmt.Errorf("%s was made as %s of %d bytes, not %s of %d: %w", d.to.File.Path, v.format, v.size, d.to.Format, d.Capacity, share.ErrCorrupt)
		}
		if err != nil {
			return causeOf(ctx, fmt.Errorf("disk %s: %w", d.Target, err))
		}
	}
	return nil
}

// disown takes a volume that someone else has made, and all that were not tried
// yet, out of what the move may remove.
func (m *move) disown(p string) {
	for i, c := range m.note.Created {
		if c == p {
			m.note.Created = m.note.Created[:i]
			return
		}
	}
}

// causeOf puts the reason for which ctx ended first.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// request is what libvirt is asked for.
func (m *move) request() (*libvirt.DomainMigrateParameters, libvirt.DomainMigrateFlags) {
	o := m.opts
	flags := libvirt.MIGRATE_LIVE | libvirt.MIGRATE_ABORT_ON_ERROR
	set := func(on bool, f libvirt.DomainMigrateFlags) {
		if on {
			flags |= f
		}
	}
	p := &libvirt.DomainMigrateParameters{}
	text := func(to *string, is *bool, value string) {
		if value != "" {
			*to, *is = value, true
		}
	}
	set(o.HandOver == Strict, libvirt.MIGRATE_PAUSED)
	set(m.desc.Persistent, libvirt.MIGRATE_PERSIST_DEST)
	set(m.desc.Persistent && !o.KeepDefinition, libvirt.MIGRATE_UNDEFINE_SOURCE)
	set(!o.Plaintext, libvirt.MIGRATE_TLS)
	set(o.Unsafe, libvirt.MIGRATE_UNSAFE)
	set(o.AutoConverge, libvirt.MIGRATE_AUTO_CONVERGE)
	if o.Connections > 1 {
		flags |= libvirt.MIGRATE_PARALLEL
		p.ParallelConnections, p.ParallelConnectionsSet = o.Connections, true
	}
	if disks := m.mirrored(); len(disks) > 0 {
		flags |= libvirt.MIGRATE_NON_SHARED_DISK
		p.MigrateDisksSet = true
		for _, d := range disks {
			p.MigrateDisks = append(p.MigrateDisks, d.Target)
		}
	}
	if o.Address != "" {
		text(&p.URI, &p.URISet, "tcp:"+bracket(o.Address))
	}
	text(&p.ListenAddress, &p.ListenAddressSet, o.Listen)
	text(&p.TLSDestination, &p.TLSDestinationSet, o.TLSName)
	text(&p.DestXML, &p.DestXMLSet, m.live)
	text(&p.PersistXML, &p.PersistXMLSet, m.stored)
	if o.Bandwidth > 0 {
		p.Bandwidth, p.BandwidthSet = uint64((o.Bandwidth+share.MiB-1)/share.MiB), true
	}
	return p, flags
}

// complete tidies up after the guest has arrived; whatever fails is a warning,
// for the guest runs.
func (m *move) complete(ctx context.Context, r *migrate.Reporter) {
	warn := func(err error) {
		if err != nil {
			r.Warn(err)
		}
	}
	within := func(f func(ctx context.Context) error) {
		ctx, cancel := context.WithTimeout(ctx, m.opts.Patience)
		defer cancel()
		warn(f(ctx))
	}
	within(func(ctx context.Context) error { return arrived(ctx, m.to, m.guest.uuid, &m.note) })
	if !m.opts.RemoveSource {
		return
	}
	for _, d := range m.mirrored() {
		if d.Source.File == nil || d.Source.File.Block {
			warn(fmt.Errorf("disk %s: %s stays at the source: only files are removed", d.Target, d.Location))
			continue
		}
		within(func(ctx context.Context) error { return deleteVolume(ctx, m.from, d.Source.File.Path) })
	}
}

// retry is the pause between two looks at the same thing.
const retry = 100 * time.Millisecond
