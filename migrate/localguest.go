package migrate

import (
	"context"
	"fmt"
	"sync"

	"github.com/vmferry/vmferry/share"
)

// Gate is the [Guest] of a writer that this program serves: a program or a
// virtual machine behind an NBD server, say. Pausing holds its writes back,
// activating leads them to the destination. The writer notices a write that
// takes a little longer.
type Gate struct {
	name string
	from []*TrackedDevice
	to   []share.Device

	mu           sync.Mutex
	relinquished uint64 // no running at the source in this epoch or before
}

// NewGate makes the guest called name, which writes to the devices from, and
// after the move to the devices to, in the same order.
func NewGate(name string, from []*TrackedDevice, to []share.Device) (*Gate, error) {
	if name == "" || len(from) == 0 || len(from) != len(to) {
		return nil, fmt.Errorf("%w: gate %q of %d devices to %d; it needs a name and pairs", share.ErrInvalid, name, len(from), len(to))
	}
	return &Gate{name: name, from: from, to: to}, nil
}

// Name is the guest's name.
func (g *Gate) Name() string { return g.name }

// Pause holds back writes to all devices, or to none.
func (g *Gate) Pause(ctx context.Context) error {
	for i, d := range g.from {
		if err := d.Pause(ctx); err != nil {
			for _, p := range g.from[:i] {
				p.Resume()
			}
			return err
		}
	}
	return nil
}

// Resume lets writes through to the source.
func (g *Gate) Resume(_ context.Context, epoch uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if epoch <= g.relinquished {
		return fmt.Errorf("guest %s: the source relinquished epoch %d: resuming in epoch %d is %w", g.name, g.relinquished, epoch, share.ErrDenied)
	}
	for _, d := range g.from {
		d.Resume()
	}
	return nil
}

// Relinquish forbids the source the epoch. It is durable enough: the source
// ends with this program.
func (g *Gate) Relinquish(_ context.Context, epoch uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.relinquished = max(g.relinquished, epoch)
	return nil
}

// Activate leads the writes to the destination. Only a device that is not
// paused can make it fail, and then nothing was let through.
func (g *Gate) Activate(context.Context, uint64) error {
	for i, d := range g.from {
		if d.Target() == g.to[i] {
			continue // an earlier call came this far
		}
		if err := d.Retarget(g.to[i]); err != nil {
			return fmt.Errorf("guest %s: %w", g.name, err)
		}
	}
	for _, d := range g.from {
		d.Resume()
	}
	return nil
}
