package kvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vmferry/vmferry/share"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// moment is what a backup that began is good for.
type moment struct {
	// checkpoint collects what changes from now on; "" where there is none.
	checkpoint string
	// incremental: the export tells what changed since the moment before.
	incremental bool
	// doubt has the disks of which it cannot be told what changed since then.
	doubt map[string]bool
}

// beginBackup begins the backup of the next moment, with the most that can be
// had: changes told by a bitmap; else, a bitmap for the changes from now on;
// else, the disks alone. It corresponds to virDomainBackupBegin.
func (e *Export) beginBackup(ctx context.Context) (moment, error) {
	e.tried++
	n := moment{checkpoint: e.owner.checkpointName(e.tried), doubt: map[string]bool{}}
	for _, d := range e.disks {
		// At the first moment there are no cursors yet, whom it could concern.
		n.doubt[d.target] = e.since == "" && d.bitmaps
	}
	if !slices.ContainsFunc(e.disks, func(d *ExportDisk) bool { return d.bitmaps }) {
		n.checkpoint = ""
		return n, e.tryBackup(ctx, "", "")
	}
	var err error
	if e.since != "" {
		if err = e.tryBackup(ctx, e.since, n.checkpoint); err == nil {
			n.incremental = true
			return n, nil
		}
		if !e.brokenBitmaps(ctx, err) {
			return n, err
		}
		e.lost(err)
		for _, d := range e.disks {
			n.doubt[d.target] = d.bitmaps
		}
		// What is left of the old ones is in the way of new ones.
		if err := e.deleteCheckpoints(ctx, e.owner.owns); err != nil {
			return n, err
		}
		e.kept = nil
		// From here on the doubt stays until a moment has been reached.
		e.since = ""
	}
	if err = e.tryBackup(ctx, "", n.checkpoint); err == nil || !e.brokenBitmaps(ctx, err) {
		return n, err
	}
	e.lost(err)
	n.checkpoint = ""
	return n, e.tryBackup(ctx, "", "")
}

// lost notes that changes cannot be told by a bitmap.
func (e *Export) lost(err error) {
	e.count(func(s *ExportStats) { s.HashRounds++ })
	e.opts.Logger.Warn("no bitmap tells what changed; the disks are compared by hash", "guest", e.guest.name, "err", err)
}

// brokenBitmaps reports whether a backup that failed with err may succeed
// without bitmaps: it was refused, by a guest that runs.
func (e *Export) brokenBitmaps(ctx context.Context, err error) bool {
	for _, kind := range []error{share.ErrUnavailable, share.ErrWedged, share.ErrInUse, share.ErrDenied, share.ErrNoSpace, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, kind) {
			return false
		}
	}
	return !e.off(ctx)
}

// tryBackup begins a backup: with what changed since a checkpoint, if that is
// not "", and with a new checkpoint, if that is not "".
func (e *Export) tryBackup(ctx context.Context, since, next string) error {
	backup, checkpoint, err := e.backupXML(since, next)
	if err != nil {
		return err
	}
	err = changeGuest(ctx, e.guest.host, e.guest.uuid, "begin a backup in pull mode", func(d *libvirt.Domain) error {
		return d.BackupBegin(backup, checkpoint, 0)
	})
	if err != nil && ctx.Err() == nil && e.off(ctx) {
		// In libvirt's words it is unsupported, or invalid, or a lost monitor.
		return fmt.Errorf("the guest does not run, and its disks have no export: it %w: %w", share.ErrUnavailable, err)
	}
	return err
}

// off reports whether the guest is known not to run.
func (e *Export) off(ctx context.Context) bool {
	active, err := readGuest(ctx, e.guest.host, e.guest.uuid, "read the guest's state", (*libvirt.Domain).IsActive)
	return err == nil && !active
}

func (e *Export) backupXML(since, next string) (backup, check string, err error) {
	server := &libvirtxml.DomainBackupPullServer{}
	if e.opts.NBD != nil && e.opts.NBD.TLS != nil {
		server.TLS = "yes"
	}
	if e.unix() {
		server.UNIX = &libvirtxml.DomainBackupPullServerUNIX{Socket: e.opts.Address}
	} else {
		host, port, err := net.SplitHostPort(e.opts.Address)
		if err != nil {
			return "", "", fmt.Errorf("%w: the export's address: %w", share.ErrInvalid, err)
		}
		server.TCP = &libvirtxml.DomainBackupPullServerTCP{Name: host}
		if _, err := fmt.Sscanf(port, "%d", &server.TCP.Port); err != nil {
			return "", "", fmt.Errorf("%w: the export's port %q", share.ErrInvalid, port)
		}
	}
	b := libvirtxml.DomainBackup{Pull: &libvirtxml.DomainBackupPull{Server: server, Disks: &libvirtxml.DomainBackupPullDisks{}}}
	c := libvirtxml.DomainCheckpoint{Name: next, Disks: &libvirtxml.DomainCheckpointDisks{}}
	for _, d := range e.disks {
		disk := libvirtxml.DomainBackupPullDisk{Name: d.target, ExportName: e.owner.exportName(d.target)}
		if e.opts.ScratchDir != "" {
			path := filepath.Join(e.opts.ScratchDir, e.owner.exportName(d.target)+".scratch")
			disk.Backup = "yes" // only with a scratch file does the schema let it be said
			disk.Scratch = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
		}
		kind := "no"
		if d.bitmaps {
			kind = "bitmap"
			if since != "" {
				disk.BackupMode, disk.Incremental, disk.ExportBitmap = "incremental", since, d.bitmap()
			}
		}
		b.Pull.Disks.Disks = append(b.Pull.Disks.Disks, disk)
		c.Disks.Disks = append(c.Disks.Disks, libvirtxml.DomainCheckpointDisk{Name: d.target, Checkpoint: kind})
	}
	if backup, err = b.Marshal(); err != nil || next == "" {
		return backup, "", err
	}
	check, err = c.Marshal()
	return backup, check, err
}

// errNotOurs: the export was taken over, or had ended when another began.
var errNotOurs = fmt.Errorf("a backup that is not this export's runs: the guest %w; begin another export when it has ended", share.ErrInUse)

// endBackup ends the export's backup, if there is one, and returns when it has
// ended. It corresponds to virDomainAbortJob.
func (e *Export) endBackup(ctx context.Context) error {
	asked, pause := false, 2*time.Millisecond
	for ; ; pause = min(2*pause, 50*time.Millisecond) {
		owner, err := e.backupOwner(ctx)
		if err != nil || owner == "" {
			return err
		}
		if owner != e.owner {
			return errNotOurs
		}
		if !asked {
			if err := e.abort(ctx); err != nil {
				return err
			}
			asked = true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("the backup was told to end, and has not yet: the guest %w: %w", share.ErrInUse, context.Cause(ctx))
		}
	}
}

func (e *Export) abort(ctx context.Context) error {
	err := changeGuest(ctx, e.guest.host, e.guest.uuid, "end the backup", func(d *libvirt.Domain) error {
		return d.AbortJob()
	})
	if errors.Is(err, libvirt.ERR_OPERATION_INVALID) || errors.Is(err, share.ErrNotExist) {
		return nil // it has ended, or the guest
	}
	return err
}

// foreign owns a backup that no export began.
const foreign owner = "another program"

// backupOwner says whose backup runs; "" for none. It corresponds to
// virDomainBackupGetXMLDesc.
func (e *Export) backupOwner(ctx context.Context) (owner, error) {
	text, err := readGuest(ctx, e.guest.host, e.guest.uuid, "look for a backup", func(d *libvirt.Domain) (string, error) {
		return d.BackupGetXMLDesc(0)
	})
	if errors.Is(err, libvirt.ERR_NO_DOMAIN_BACKUP) || errors.Is(err, libvirt.ERR_OPERATION_INVALID) || errors.Is(err, libvirt.ERR_NO_DOMAIN) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var b libvirtxml.DomainBackup
	if err := b.Unmarshal(text); err != nil {
		return "", fmt.Errorf("%w: the backup's definition: %w", share.ErrInvalid, err)
	}
	if b.Pull != nil && b.Pull.Disks != nil {
		for _, d := range b.Pull.Disks.Disks {
			if o := ownerOf(d.ExportName); o != "" {
				return o, nil
			}
		}
	}
	return foreign, nil
}

// changedSince is how many bytes of a disk the guest changed since the last
// moment: virDomainCheckpointGetXMLDesc with the size.
func (e *Export) changedSince(ctx context.Context, disk *ExportDisk) (int64, error) {
	if !disk.bitmaps || e.since == "" {
		return 0, nil // the tracker knows that it does not know
	}
	text, err := readGuest(ctx, e.guest.host, e.guest.uuid, "ask the bitmap", func(d *libvirt.Domain) (string, error) {
		c, err := d.CheckpointLookupByName(e.since, 0)
		if err != nil {
			return "", err
		}
		defer c.Free()
		return c.GetXMLDesc(libvirt.DOMAIN_CHECKPOINT_XML_SIZE | libvirt.DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
	})
	if err != nil {
		return 0, err
	}
	var c libvirtxml.DomainCheckpoint
	if err := c.Unmarshal(text); err != nil {
		return 0, fmt.Errorf("%w: the checkpoint's definition: %w", share.ErrInvalid, err)
	}
	if c.Disks != nil {
		for _, d := range c.Disks.Disks {
			if d.Name == disk.target {
				return int64(d.Size), nil
			}
		}
	}
	return 0, nil
}

// deleteCheckpoints deletes those whose names wanted picks, with their bitmaps.
// Where libvirt cannot, because a bitmap is missing or broken, it forgets the
// checkpoint. It corresponds to virDomainListAllCheckpoints and
// virDomainCheckpointDelete.
func (e *Export) deleteCheckpoints(ctx context.Context, wanted func(name string) bool) error {
	err := changeGuest(ctx, e.guest.host, e.guest.uuid, "delete checkpoints", func(d *libvirt.Domain) error {
		// Parents first, so that no bitmap is merged for nothing.
		all, err := d.ListAllCheckpoints(libvirt.DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
		if err != nil {
			return err
		}
		var errs []error
		for _, c := range all {
			name, err := c.GetName()
			if err == nil && wanted(name) {
				if err = c.Delete(0); err != nil {
					e.opts.Logger.Warn("a checkpoint is deleted without its bitmaps, which are broken, or stay in the images", "guest", e.guest.name, "checkpoint", name, "err", err)
					err = c.Delete(libvirt.DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
				}
			}
			errs = append(errs, err)
			_ = c.Free()
		}
		return errors.Join(errs...)
	})
	if errors.Is(err, libvirt.ERR_NO_DOMAIN) {
		return nil
	}
	return err
}

// removeLeftovers removes what programs that are dead have left of exports.
func (e *Export) removeLeftovers(ctx context.Context) error {
	names, err := readGuest(ctx, e.guest.host, e.guest.uuid, "list checkpoints", func(d *libvirt.Domain) ([]string, error) {
		all, err := d.ListAllCheckpoints(0)
		var names []string
		for _, c := range all {
			name, nerr := c.GetName()
			err = errors.Join(err, nerr)
			names = append(names, name)
			_ = c.Free()
		}
		return names, err
	})
	if err != nil {
		return err
	}
	running, err := e.backupOwner(ctx)
	if err != nil {
		return err
	}
	if running == foreign {
		return fmt.Errorf("another program's backup of the guest runs: it %w; wait for it, or end it with virsh domjobabort", share.ErrInUse)
	}
	owners := map[owner]bool{running: true}
	for _, n := range names {
		owners[ownerOf(n)] = true
	}
	delete(owners, "")
	for o := range owners {
		switch f := o.fate(); {
		case f == dead || e.opts.TakeOver:
		case f == lives:
			return fmt.Errorf("an export of the guest is open: it %w; close it, or take it over", share.ErrInUse)
		default:
			return fmt.Errorf("an export of the guest was begun on another machine: it %w, if that program lives; take it over if it does not", share.ErrInUse)
		}
	}
	if running != "" {
		old := &Export{guest: e.guest, owner: running}
		if err := old.endBackup(ctx); err != nil {
			return err
		}
	}
	if len(owners) == 0 {
		return nil
	}
	return e.deleteCheckpoints(ctx, func(name string) bool { return strings.HasPrefix(name, ownerPrefix) && owners[ownerOf(name)] })
}
