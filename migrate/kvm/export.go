package kvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
)

// Export shows the disks of a running guest as they all were at one moment, and
// tells what changed from one moment to the next: the sources and trackers of a
// [migrate.Move], or of a backup.
//
// The moment moves on: each pass of a cursor begins with a new one, for all
// disks and all consumers, and a block that one of them has leased is then read
// as it is now, and marked as changed if it is. So several consumers lose
// nothing to each other; one that needs all of its blocks to be of one moment
// must be the only one that begins a pass meanwhile.
//
// A moment is libvirt's backup in pull mode with a checkpoint, which is atomic
// over the disks: virDomainBackupBegin. What changed between two is what QEMU's
// dirty bitmap says; those of qcow2 images outlive a QEMU that ends in order.
// Where there is none, because the disk is raw, QEMU was killed, or somebody
// removed the checkpoint, the disk is read, and compared by hash with what each
// consumer has acknowledged ([migrate.HashTracker]); that is logged, and costs
// time, and no block is lost or sent without need.
//
// Between moments the guest's writes go to a scratch file of the old data, which
// grows with what the guest overwrites. While an export is open libvirt refuses
// to migrate the guest and to copy its disks.
//
// Libvirt's own trap: where a guest agent connects or leaves in the very moment
// in which a backup begins, libvirt waits for that backup's end before it hears
// of the event, and for the event before it hears of the end; it gives up after
// 30 s, and so long the next pass or Close waits, if its context lets it.
//
// The privilege needed is that of [Host], and to connect to QEMU's NBD server.
// All methods may be called from several goroutines at once.
type Export struct {
	guest *Guest
	opts  ExportOptions
	owner owner
	disks []*ExportDisk
	// reads holds back readers while the moment moves.
	reads turnstile

	turn chan struct{} // held by who moves the moment
	// Under turn:
	moment  uint64    // counts those that were reached
	tried   int       // counts checkpoints, so that names are used once
	begun   time.Time // not later than the moment
	good    bool      // the disks show it
	since   string    // the checkpoint up to which all changes are marked; "" for none
	kept    []checkpoint
	cursors map[*exportCursor]bool
	closed  bool

	mu    sync.Mutex
	stats ExportStats
}

// ExportOptions change how [Guest.Export] works; nil is the zero value.
type ExportOptions struct {
	// Disks are the targets of the disks to export, such as "vda". Nil means
	// all that are disks and can be written.
	Disks []string
	// Address is where QEMU listens: the absolute path of a unix socket, or
	// host:port. The default is a unix socket in SocketDir, which only a
	// program on the same host reaches.
	Address string
	// ScratchDir is a directory on the guest's host for the scratch files.
	// The default is to have them beside the images.
	ScratchDir string
	// NBD is how QEMU is connected to; Export, MetaContexts and Identity are
	// not the caller's. With TLS set QEMU demands it, by its own
	// certificates (backup_tls_x509_cert_dir in qemu.conf).
	NBD *nbd.ClientOptions
	// TakeOver ends an export of this package that some other program holds,
	// or held, and of which it cannot be told whether the program lives.
	TakeOver bool
	// Logger receives a warning whenever changes cannot be told by a bitmap.
	// Nil discards it.
	Logger *slog.Logger
}

// SocketDir is where QEMU's sockets of exports are by default. It belongs to
// QEMU's user on all distributions.
const SocketDir = "/var/lib/libvirt/qemu"

// ExportStats count what an export did.
type ExportStats struct {
	// Moments is how many there were, HashRounds at how many of them changes
	// could not be told by a bitmap for at least one disk that has them.
	Moments, HashRounds int
	// Marked is how many bytes bitmaps called changed.
	Marked int64
}

// Export begins to export the guest's disks. What an earlier export left behind
// whose program is dead (on this machine) is removed first; one that lives, or
// may live, is [share.ErrInUse], and so is another program's backup. A guest
// that does not run is [share.ErrUnavailable].
func (g *Guest) Export(ctx context.Context, opts *ExportOptions) (*Export, error) {
	return g.exportAs(ctx, newOwner(), opts)
}

func (g *Guest) exportAs(ctx context.Context, o owner, opts *ExportOptions) (*Export, error) {
	e := &Export{guest: g, owner: o, turn: make(chan struct{}, 1), cursors: map[*exportCursor]bool{}}
	if opts != nil {
		e.opts = *opts
	}
	if e.opts.Logger == nil {
		e.opts.Logger = slog.New(slog.DiscardHandler)
	}
	if e.opts.Address == "" {
		e.opts.Address = filepath.Join(SocketDir, string(e.owner)+".sock")
	}
	err := e.open(ctx)
	if err != nil {
		// What may have begun is ended, whatever became of ctx.
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), shortly)
		defer cancel()
		_ = e.Close(after)
		return nil, share.WrapError("export", backend, g.name, err)
	}
	return e, nil
}

func (e *Export) open(ctx context.Context) error {
	desc, err := e.guest.Describe(ctx)
	if err != nil {
		return err
	}
	if desc.State != Running && desc.State != Paused {
		return fmt.Errorf("the guest is %v, and its disks %w to an export; start it, or read its images", desc.State, share.ErrUnavailable)
	}
	if err := e.pick(desc); err != nil {
		return err
	}
	if err := e.removeLeftovers(ctx); err != nil {
		return err
	}
	return e.advance(ctx, time.Now())
}

// pick makes the list of disks.
func (e *Export) pick(desc *Description) error {
	wanted := e.opts.Disks
	if wanted == nil {
		for _, d := range desc.Disks {
			if d.Device == "disk" && d.Location != "" && !d.ReadOnly {
				wanted = append(wanted, d.Target)
			}
		}
	}
	if len(wanted) == 0 {
		return fmt.Errorf("%w: the guest has no disk to export", share.ErrInvalid)
	}
	for _, target := range wanted {
		d := desc.disk(target)
		if d == nil || d.Location == "" {
			return fmt.Errorf("disk %s %w, or is an empty drive", target, share.ErrNotExist)
		}
		x := &ExportDisk{export: e, target: target, bitmaps: d.Format == share.Qcow2}
		x.view = exportView{disk: x, size: int64(d.Capacity), identity: e.guest.uuid + "/" + target + ":" + d.Location}
		var err error
		if x.tracker, err = migrate.NewHashTracker(&x.view, 0); err != nil {
			return err
		}
		if x.bitmaps {
			x.tracker.Trust()
		}
		e.disks = append(e.disks, x)
	}
	return nil
}

// Disks are the exported disks.
func (e *Export) Disks() []*ExportDisk { return append([]*ExportDisk(nil), e.disks...) }

// Disk finds an exported disk by its target, or returns nil.
func (e *Export) Disk(target string) *ExportDisk {
	for _, d := range e.disks {
		if d.target == target {
			return d
		}
	}
	return nil
}

// Stats are the figures so far.
func (e *Export) Stats() ExportStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stats
}

func (e *Export) count(f func(*ExportStats)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f(&e.stats)
}

// Close ends the export: the backup, QEMU's server and its socket, the scratch
// files, the checkpoints and their bitmaps (of a guest that is off by then, the
// bitmaps stay in the images, which is logged). Consumers must be done. After an
// error something of it is left, and Close can be called again; a later Export
// removes it too. A second Close returns nil.
func (e *Export) Close(ctx context.Context) error {
	if err := e.enter(ctx); err != nil {
		return share.WrapError("end the export of", backend, e.guest.name, err)
	}
	defer e.leave()
	if e.closed {
		return nil
	}
	if err := e.reads.close(ctx); err != nil {
		return share.WrapError("end the export of", backend, e.guest.name, fmt.Errorf("waiting for reads under way: %w", err))
	}
	defer e.reads.open() // into an error
	e.good = false
	for _, d := range e.disks {
		d.view.disconnect()
	}
	err := e.endBackup(ctx)
	if errors.Is(err, errNotOurs) { // nor is it ours to end
		err = nil
	}
	err = errors.Join(err, e.deleteCheckpoints(ctx, e.owner.owns))
	e.closed = err == nil
	return share.WrapError("end the export of", backend, e.guest.name, err)
}

func (e *Export) enter(ctx context.Context) error {
	select {
	case e.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *Export) leave() { <-e.turn }

// advance moves to a moment that is not before asked.
func (e *Export) advance(ctx context.Context, asked time.Time) error {
	if err := e.enter(ctx); err != nil {
		return err
	}
	defer e.leave()
	if e.closed {
		return fmt.Errorf("the export %w", share.ErrClosed)
	}
	if e.alive() && e.begun.After(asked) {
		return nil // another's pass, which began meanwhile, has done it
	}
	if err := e.reads.close(ctx); err != nil {
		return fmt.Errorf("waiting for reads under way: %w", err)
	}
	defer e.reads.open()
	e.good = false
	for _, d := range e.disks {
		d.view.disconnect()
	}
	if err := e.endBackup(ctx); err != nil {
		return err
	}
	e.begun = time.Now()
	now, err := e.beginBackup(ctx)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, d := range e.disks {
		g.Go(func() error { return d.show(gctx, now) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	// From here on nothing older is needed to know what changed.
	e.moment, e.since, e.good = e.moment+1, now.checkpoint, true
	e.count(func(s *ExportStats) { s.Moments++ })
	if now.checkpoint != "" {
		e.kept = append(e.kept, checkpoint{now.checkpoint, e.moment})
	}
	e.prune(ctx)
	return nil
}

// alive reports whether the disks show a moment, and can be read.
func (e *Export) alive() bool {
	for _, d := range e.disks {
		if !d.view.alive() {
			return false
		}
	}
	return e.good
}

func (e *Export) isAlive(ctx context.Context) bool {
	if e.enter(ctx) != nil {
		return false // and what follows says why
	}
	defer e.leave()
	return e.alive()
}

// unix reports whether QEMU listens on a unix socket.
func (e *Export) unix() bool { return filepath.IsAbs(e.opts.Address) }

// prune deletes the checkpoints that every consumer is past: each has
// acknowledged all that changed up to a later one. That it fails costs a bitmap
// until the export ends.
func (e *Export) prune(ctx context.Context) {
	past := e.moment
	for c := range e.cursors {
		past = min(past, c.holds)
	}
	var left []checkpoint
	for _, k := range e.kept {
		if k.moment >= past || k.name == e.since {
			left = append(left, k)
			continue
		}
		if err := e.deleteCheckpoints(ctx, func(name string) bool { return name == k.name }); err != nil {
			e.opts.Logger.Warn("an old checkpoint stays until the export ends", "guest", e.guest.name, "err", err)
			left = append(left, k)
		}
	}
	e.kept = left
}

// checkpoint is one that this export made.
type checkpoint struct {
	name   string
	moment uint64
}
