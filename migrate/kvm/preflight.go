package kvm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"

	"github.com/vmferry/vmferry/share"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// move is all that is known of a move before it starts.
type move struct {
	opts     MigrateOptions
	guest    *Guest
	from, to *Host
	desc     *Description
	disks    []diskPlan
	note     note
	warnings []error
	// live and stored are the definitions for the destination, empty where
	// the source's will do.
	live, stored string
}

// diskPlan is what becomes of one disk that is named or copied.
type diskPlan struct {
	Disk
	DiskMove
	to     share.Source // how the destination reaches it
	edited bool         // whether the definition changes for that
}

// created are the volumes that the move makes.
func (m *move) created() []string {
	var all []string
	for _, d := range m.disks {
		if d.Policy == Mirror && !d.Overwrite {
			all = append(all, d.to.File.Path)
		}
	}
	return all
}

// mirrored are the targets that QEMU copies.
func (m *move) mirrored() []diskPlan {
	return slices.DeleteFunc(slices.Clone(m.disks), func(d diskPlan) bool { return d.Policy != Mirror })
}

// preflight asks both hosts for everything that can be known to forbid the
// move, and returns all of it at once. It changes nothing, but for the empty
// file that proves a shared disk and the transient pools of storage.go.
func preflight(ctx context.Context, g *Guest, to *Host, opts *MigrateOptions) (*move, error) {
	m := &move{opts: opts.withDefaults(g), guest: g, from: g.host, to: to}
	var err error
	if m.desc, err = g.Describe(ctx); err != nil {
		return nil, err
	}
	if m.desc.State != Running {
		return nil, fmt.Errorf("%w: the guest is %v on %s: only a running guest is moved live; start or resume it", share.ErrInvalid, m.desc.State, m.from)
	}
	if m.note.Source, err = m.from.ID(ctx); err != nil {
		return nil, err
	}
	if m.note.Destination, err = to.ID(ctx); err != nil {
		return nil, fmt.Errorf("the destination: %w", err)
	}
	if m.note.Source == m.note.Destination {
		return nil, fmt.Errorf("%w: the destination %s is the host that the guest runs on (host UUID %s)", share.ErrInvalid, to, m.note.Source)
	}
	m.note.ID, m.note.HandOver, m.note.Autostart = m.opts.ID, m.opts.HandOver, m.desc.Autostart

	var errs []error
	add := func(err error) { errs = append(errs, err) }
	errs = append(errs, m.desc.Blockers...)
	add(m.checkJobs(ctx))
	add(m.checkTaken(ctx))
	if err := m.planDisks(); err != nil {
		add(err)
	} else {
		add(m.checkDisks(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	m.checkVersions(ctx)
	m.note.Created = m.created()
	return m, nil
}

// checkJobs looks for what libvirt would wait for, and then give up.
func (m *move) checkJobs(ctx context.Context) error {
	_, err := readGuest(ctx, m.from, m.guest.uuid, "look for jobs", func(d *libvirt.Domain) (struct{}, error) {
		var none struct{}
		info, err := d.GetJobStats(0)
		if err != nil {
			return none, err
		}
		if info.Type == libvirt.DOMAIN_JOB_BOUNDED || info.Type == libvirt.DOMAIN_JOB_UNBOUNDED {
			return none, fmt.Errorf("the guest %w by a job of libvirt: wait for it, or end it with virsh domjobabort", share.ErrInUse)
		}
		if _, err := d.BackupGetXMLDesc(0); err == nil {
			return none, fmt.Errorf("the guest %w by a backup: wait for it, or end it with virsh domjobabort", share.ErrInUse)
		}
		n, err := noteOf(d)
		switch {
		case errors.Is(err, share.ErrNotExist):
			return none, nil
		case err != nil:
			return none, err
		}
		return none, fmt.Errorf("the guest %w by the move %q to the host with UUID %s, whose program is no longer there: call Settle with that host", share.ErrInUse, n.ID, n.Destination)
	})
	return err
}

// checkTaken refuses a destination that knows the guest's name or UUID.
func (m *move) checkTaken(ctx context.Context) error {
	_, err := read(ctx, m.to, "look the guest up at the destination", func(c *libvirt.Connect) (struct{}, error) {
		var none struct{}
		for what, look := range map[string]func() (*libvirt.Domain, error){
			"the UUID " + m.guest.uuid: func() (*libvirt.Domain, error) { return c.LookupDomainByUUIDString(m.guest.uuid) },
			"the name " + m.guest.name: func() (*libvirt.Domain, error) { return c.LookupDomainByName(m.guest.name) },
		} {
			d, err := look()
			if isNoDomain(err) {
				continue
			}
			if err != nil {
				return none, err
			}
			defer d.Free()
			name, _ := d.GetName()
			return none, fmt.Errorf("%s is taken at %s by the guest %q, which %w: undefine or rename it", what, m.to, name, share.ErrExist)
		}
		return none, nil
	}, nil)
	return err
}

// planDisks matches the guest's disks with what the options say of them.
func (m *move) planDisks() error {
	var errs []error
	for _, target := range slices.Sorted(maps.Keys(m.opts.Disks)) {
		if d := m.desc.disk(target); d == nil || d.Location == "" {
			var have []string
			for _, d := range m.desc.Disks {
				have = append(have, d.Target)
			}
			errs = append(errs, fmt.Errorf("%w: the guest has no disk %q; it has %v", share.ErrInvalid, target, have))
		}
	}
	for _, d := range m.desc.Disks {
		if d.Location == "" {
			continue
		}
		choice, named := m.opts.Disks[d.Target]
		if !named && (d.ReadOnly || d.Device == "cdrom" || d.Device == "floppy") {
			continue
		}
		p := diskPlan{Disk: d, DiskMove: choice, to: d.Source}
		if choice.To != nil {
			p.to = *choice.To
		}
		p.edited = choice.To != nil || d.Backed && choice.Policy == Mirror
		errs = append(errs, p.check())
		m.disks = append(m.disks, p)
	}
	return errors.Join(errs...)
}

// check refuses what is wrong whatever the destination.
func (p *diskPlan) check() error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("disk %s: %w: %s", p.Target, share.ErrInvalid, fmt.Sprintf(format, args...))
	}
	if p.Policy > SharedUnproven {
		return invalid("policy %d", p.Policy)
	}
	if p.To != nil {
		if err := p.to.Check(); err != nil {
			return fmt.Errorf("disk %s: %w", p.Target, err)
		}
	}
	if p.Policy != Mirror {
		switch {
		case p.Overwrite:
			return invalid("a shared disk is not copied, so Overwrite says nothing")
		case p.To != nil && p.to.Format != p.Format:
			return invalid("a shared disk keeps its format %s; %s was asked for", p.Format, p.to.Format)
		case p.Policy == Shared && p.Location != "" && p.Source.Kind == 0 && p.To != nil:
			return invalid("it cannot be shown that %s and another place are one; use SharedUnproven", p.Location)
		}
		return nil
	}
	switch {
	case p.Shareable:
		return invalid("a disk that other guests may write to cannot be mirrored; share it")
	case p.ReadOnly:
		return invalid("a read-only disk cannot be mirrored; copy it beforehand")
	case p.to.File == nil:
		return invalid("%s cannot be mirrored to the same place; give To a file or block device", p.Location)
	case p.to.Format != share.Raw && p.to.Format != share.Qcow2:
		return invalid("a mirror is raw or qcow2, not %q", p.to.Format)
	case p.to.File.Block && !p.Overwrite:
		return invalid("a block device is not made by the move: make %s beforehand and say Overwrite", p.to.File.Path)
	}
	return nil
}

// checkDisks looks at the destination's storage.
func (m *move) checkDisks(ctx context.Context) error {
	var errs []error
	for _, d := range m.disks {
		var err error
		if d.Policy == Mirror {
			err = m.checkMirror(ctx, d)
		} else if d.Policy == Shared && d.Source.File != nil && d.to.File != nil && !d.to.File.Block {
			err = proveShared(ctx, m.from, path.Dir(d.Source.File.Path), m.to, path.Dir(d.to.File.Path))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("disk %s: %w", d.Target, err))
		}
	}
	return errors.Join(errs...)
}

func (m *move) checkMirror(ctx context.Context, d diskPlan) error {
	v, err := statVolume(ctx, m.to, d.to.File.Path, d.to.File.Block)
	missing := errors.Is(err, share.ErrNotExist)
	switch {
	case missing && !d.Overwrite:
		return m.checkDir(ctx, path.Dir(d.to.File.Path))
	case missing:
		return fmt.Errorf("%w (Overwrite was said; without it the move makes the volume)", err)
	case err != nil:
		return err
	case !d.Overwrite:
		return fmt.Errorf("%s at %s %w: delete it, give To another path, or say Overwrite to lose its content", d.to.File.Path, m.to, share.ErrExist)
	case v.format != d.to.Format && !(d.to.File.Block && d.to.Format == share.Raw):
		return fmt.Errorf("%s at %s: %w", d.to.File.Path, m.to, &share.MismatchError{Field: "format", Have: string(v.format), Want: string(d.to.Format)})
	case v.size != d.Capacity:
		return fmt.Errorf("%s at %s: %w", d.to.File.Path, m.to, &share.MismatchError{Field: "size", Have: exactly(v.size), Want: exactly(d.Capacity)})
	}
	return nil
}

// exactly never rounds.
func exactly(b share.Bytes) string { return fmt.Sprintf("%d bytes", int64(b)) }

// checkDir makes sure that there is a directory to make a volume in.
func (m *move) checkDir(ctx context.Context, dir string) error {
	_, err := read(ctx, m.to, "the directory "+dir+" at "+m.to.String(), func(c *libvirt.Connect) (struct{}, error) {
		return struct{}{}, inPool(c, dir, func(*libvirt.StoragePool) error { return nil })
	}, nil)
	return err
}

// checkVersions warns of what is known to corrupt memory: before 9.0 the
// emulator misses pages that the guest writes during a move. Hypervisors that
// do not tell are passed over.
func (m *move) checkVersions(ctx context.Context) {
	const nine = 9_000_000
	if !m.desc.Emulated {
		return
	}
	v, err := read(ctx, m.from, "ask for QEMU's version", (*libvirt.Connect).GetVersion, nil)
	if err == nil && v < nine {
		m.warnings = append(m.warnings, fmt.Errorf("QEMU %d.%d on %s: before 9.0 the emulator can corrupt the memory of a guest that writes it fast during a move; update it",
			v/1_000_000, v/1000%1000, m.from))
	}
}

// writeDefinitions makes the definitions for the destination, where any disk
// lies elsewhere there. The live one holds the note, which is in place by now:
// libvirt takes what it is given for the whole.
func (m *move) writeDefinitions(ctx context.Context) error {
	if !slices.ContainsFunc(m.disks, func(d diskPlan) bool { return d.edited }) {
		return nil
	}
	texts, err := readGuest(ctx, m.from, m.guest.uuid, "read its definition", func(d *libvirt.Domain) (t [2]string, err error) {
		if t[0], err = d.GetXMLDesc(libvirt.DOMAIN_XML_SECURE | libvirt.DOMAIN_XML_MIGRATABLE); err != nil || !m.desc.Persistent {
			return t, err
		}
		t[1], err = d.GetXMLDesc(libvirt.DOMAIN_XML_SECURE | libvirt.DOMAIN_XML_MIGRATABLE | libvirt.DOMAIN_XML_INACTIVE)
		return t, err
	})
	if err != nil {
		return err
	}
	edit := func(d *libvirtxml.DomainDisk) (bool, error) {
		if d.Target == nil {
			return false, nil
		}
		i := slices.IndexFunc(m.disks, func(p diskPlan) bool { return p.Target == d.Target.Dev && p.edited })
		if i < 0 {
			return false, nil
		}
		return true, setSource(d, m.disks[i].to)
	}
	if m.live, err = editDisks(texts[0], edit); err != nil || texts[1] == "" {
		return err
	}
	m.stored, err = editDisks(texts[1], edit)
	return err
}
