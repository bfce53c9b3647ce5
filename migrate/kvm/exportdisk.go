package kvm

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
)

// ExportDisk is one disk of an [Export], and the [migrate.Tracker] of what the
// guest changes on it. Consumers read it through [ExportDisk.Source], as a
// [migrate.HashTracker] demands.
type ExportDisk struct {
	export  *Export
	target  string
	bitmaps bool // its format can keep them
	view    exportView
	tracker *migrate.HashTracker
}

var _ migrate.Tracker = (*ExportDisk)(nil)

// Target is the disk's name in the guest's definition.
func (d *ExportDisk) Target() string { return d.target }

// Source is the disk at the export's moment. It refuses to be written, and
// Close does nothing to it: it ends with the export. While the moment moves,
// which takes 40 to 100 ms, reads wait. Where QEMU has gone, or has begun anew,
// reads are [share.ErrUnavailable] until a pass begins.
func (d *ExportDisk) Source() share.Device { return d.tracker.Source() }

// Size is the disk's size in bytes.
func (d *ExportDisk) Size() int64 { return d.view.size }

// Granularity is the size of a block: 64 KiB, that of QEMU's bitmaps.
func (d *ExportDisk) Granularity() int64 { return d.tracker.Granularity() }

// NewCursor begins to collect changes; see [migrate.Tracker]. With
// [migrate.FromNow] it reads the disk, for the sake of rounds without bitmaps.
// A pass of the cursor begins with a new moment, and at its end the bitmap is
// asked what has changed meanwhile, for Dirty.
func (d *ExportDisk) NewCursor(ctx context.Context, from migrate.From) (migrate.Cursor, error) {
	inner, err := d.tracker.NewCursor(ctx, from)
	if err != nil {
		return nil, err
	}
	c := &exportCursor{Cursor: inner, disk: d, turn: make(chan struct{}, 1)}
	if err := d.export.enter(ctx); err != nil {
		inner.Close()
		return nil, err
	}
	defer d.export.leave()
	if from == migrate.FromNow {
		c.holds = d.export.moment
	}
	d.export.cursors[c] = true
	return c, nil
}

// show connects to the disk at its new moment, and marks what changed.
func (d *ExportDisk) show(ctx context.Context, now moment) error {
	if now.doubt[d.target] {
		d.tracker.Doubt()
	}
	incremental := now.incremental && d.bitmaps
	client, err := d.connect(ctx, incremental)
	if err != nil {
		return fmt.Errorf("disk %s: QEMU's export: %w", d.target, err)
	}
	if err := d.mark(ctx, client, incremental); err != nil {
		client.Close()
		return fmt.Errorf("disk %s: %w", d.target, err)
	}
	d.view.connected(client)
	return nil
}

func (d *ExportDisk) mark(ctx context.Context, client *nbd.Client, incremental bool) error {
	if client.Size() != d.view.size {
		return fmt.Errorf("%w: it has %d bytes now, and had %d; begin another export", share.ErrWrongDevice, client.Size(), d.view.size)
	}
	if !incremental {
		return nil
	}
	dirty, err := client.DirtyExtents(ctx, d.bitmap(), 0, d.view.size)
	if err != nil {
		return fmt.Errorf("the dirty bitmap: %w", err)
	}
	var sum int64
	for _, r := range dirty {
		d.tracker.Mark(r.Off, r.Len)
		sum += r.Len
	}
	d.export.count(func(s *ExportStats) { s.Marked += sum })
	return nil
}

// bitmap is the name under which libvirt offers what changed.
func (d *ExportDisk) bitmap() string { return "changed-" + d.target }

func (d *ExportDisk) connect(ctx context.Context, incremental bool) (*nbd.Client, error) {
	e := d.export
	var o nbd.ClientOptions
	if e.opts.NBD != nil {
		o = *e.opts.NBD
	}
	o.Identity, o.MetaContexts, o.Export = d.view.identity, nil, ""
	if incremental {
		o.MetaContexts = []string{nbd.DirtyBitmap(d.bitmap())}
	}
	u := nbd.URI{Network: "tcp", Address: e.opts.Address, Export: e.owner.exportName(d.target), TLS: o.TLS != nil}
	if e.unix() {
		u.Network = "unix"
	}
	return nbd.Dial(ctx, u.String(), &o)
}

// exportCursor is a [migrate.Cursor] whose passes begin with a new moment.
type exportCursor struct {
	migrate.Cursor
	disk *ExportDisk
	turn chan struct{} // held by who leases

	// Under turn:
	passing bool
	began   uint64 // the moment of this pass, at least

	// holds is the last moment up to which the consumer has everything.
	holds uint64 // under the export's turn

	mu     sync.Mutex
	behind int64 // bytes changed since the pass, when it ended
}

func (c *exportCursor) Lease(ctx context.Context, max int64) (*migrate.Lease, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	e := c.disk.export
	if !c.passing || !e.isAlive(ctx) {
		if err := e.advance(ctx, time.Now()); err != nil {
			return nil, fmt.Errorf("disk %s: begin a pass: %w", c.disk.target, share.WrapError("export", backend, e.guest.name, err))
		}
		c.passing = true
		c.setBehind(0)
		if err := e.enter(ctx); err != nil {
			return nil, err
		}
		c.began = e.moment
		e.leave()
	}
	l, err := c.Cursor.Lease(ctx, max)
	if err != io.EOF {
		return l, err
	}
	if err := c.end(ctx); err != nil {
		return nil, err // the pass has not ended; the next Lease tries to end it
	}
	return nil, io.EOF
}

// end ends a pass.
func (c *exportCursor) end(ctx context.Context) error {
	e := c.disk.export
	if err := e.enter(ctx); err != nil {
		return err
	}
	defer e.leave()
	behind, err := e.changedSince(ctx, c.disk)
	if err != nil {
		return fmt.Errorf("disk %s: what has changed since the pass: %w", c.disk.target, share.WrapError("export", backend, e.guest.name, err))
	}
	c.setBehind(behind)
	c.passing = false
	if c.Cursor.Dirty() == 0 && c.Cursor.Leased() == 0 {
		c.holds = max(c.holds, c.began)
	}
	return nil
}

func (c *exportCursor) setBehind(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.behind = n
}

// Dirty is what is marked, and what the bitmap had more when the last pass
// ended.
func (c *exportCursor) Dirty() int64 {
	n := c.Cursor.Dirty()
	c.mu.Lock()
	defer c.mu.Unlock()
	return min(n+c.behind, c.disk.view.size)
}

func (c *exportCursor) Close() error {
	e := c.disk.export
	e.turn <- struct{}{} // held no longer than the context of who holds it
	delete(e.cursors, c)
	<-e.turn
	return c.Cursor.Close()
}
