package kvm

import (
	"context"
	"fmt"
	"sync"

	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
)

// exportView is a disk at the export's moment: a device whose connection is
// another one after each moment.
type exportView struct {
	disk     *ExportDisk
	size     int64
	identity string

	mu     sync.Mutex
	client *nbd.Client // nil between moments
}

func (v *exportView) connected(c *nbd.Client) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.client = c
}

// disconnect is called when no read is under way.
func (v *exportView) disconnect() {
	v.mu.Lock()
	c := v.client
	v.client = nil
	v.mu.Unlock()
	if c != nil {
		_ = c.Close() // of a connection that only read
	}
}

func (v *exportView) alive() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.client == nil {
		return false
	}
	select {
	case <-v.client.Done():
		return false
	default:
		return true
	}
}

// with runs f on the connection, when the moment does not move.
func (v *exportView) with(ctx context.Context, f func(*nbd.Client) error) error {
	if err := v.disk.export.reads.enter(ctx); err != nil {
		return fmt.Errorf("disk %s: waiting for the export's next moment: %w", v.disk.target, err)
	}
	defer v.disk.export.reads.leave()
	v.mu.Lock()
	c := v.client
	v.mu.Unlock()
	if c == nil {
		return fmt.Errorf("disk %s: its export %w; the next pass opens it again, if it can", v.disk.target, share.ErrUnavailable)
	}
	return f(c)
}

func (v *exportView) ReadAt(ctx context.Context, p []byte, off int64) error {
	return v.with(ctx, func(c *nbd.Client) error { return c.ReadAt(ctx, p, off) })
}

func (v *exportView) Extents(ctx context.Context, off, n int64) (list []share.Extent, err error) {
	err = v.with(ctx, func(c *nbd.Client) error {
		list, err = c.Extents(ctx, off, n)
		return err
	})
	return list, err
}

func (v *exportView) WriteAt(context.Context, []byte, int64) error {
	return fmt.Errorf("disk %s: writing to what the guest's disk was is %w", v.disk.target, share.ErrDenied)
}

func (v *exportView) Flush(context.Context) error { return nil }
func (v *exportView) Size() int64                 { return v.size }
func (v *exportView) Identity() string            { return v.identity }

// Close does nothing: the view is the export's.
func (v *exportView) Close() error { return nil }

// turnstile lets any number in, until it is closed. The zero value is open.
type turnstile struct {
	mu     sync.Mutex
	inside int
	shut   chan struct{} // closed when it opens; nil while it is open
	empty  chan struct{} // closed when the last one leaves, if somebody waits
}

func (t *turnstile) enter(ctx context.Context) error {
	for {
		t.mu.Lock()
		shut := t.shut
		if shut == nil {
			t.inside++
			t.mu.Unlock()
			return nil
		}
		t.mu.Unlock()
		select {
		case <-shut:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (t *turnstile) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.inside--; t.inside == 0 && t.empty != nil {
		close(t.empty)
		t.empty = nil
	}
}

// close lets nobody in any more and returns when all are out, or opens again if
// ctx ends before. One at a time may hold it closed.
func (t *turnstile) close(ctx context.Context) error {
	t.mu.Lock()
	t.shut = make(chan struct{})
	if t.inside == 0 {
		t.mu.Unlock()
		return nil
	}
	empty := make(chan struct{})
	t.empty = empty
	t.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		t.open()
		return context.Cause(ctx)
	}
}

func (t *turnstile) open() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.shut)
	t.shut, t.empty = nil, nil
}
