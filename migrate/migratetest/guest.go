package migratetest

import (
	"context"
	"fmt"
	"sync"

	"github.com/vmferry/vmferry/migrate"
)

// Guest is a [migrate.Guest] on two fake hosts. It runs at the source at first.
// It notes every moment at which a rule of the contract is broken: two running
// copies, a side that runs without authority.
type Guest struct {
	faults Faults
	*guestState
}

// guestState is what several views of a guest share.
type guestState struct {
	name              string
	from, to          string
	authority         migrate.Authority
	onPause, onResume func() error

	mu           sync.Mutex
	running      map[string]bool
	relinquished uint64
	violations   []string
}

// NewGuest makes the guest that runs at host from and may move to host to.
// Authority is asked, without faults, whenever the guest starts to run.
func NewGuest(name, from, to string, a migrate.Authority, f Faults) *Guest {
	return &Guest{f, &guestState{name: name, from: from, to: to, authority: a, running: map[string]bool{from: true}}}
}

// WithFaults is another view of the same guest, whose calls fail as f says: the
// connection of another program to it.
func (g *Guest) WithFaults(f Faults) *Guest { return &Guest{f, g.guestState} }

// WhileRunning calls f if the guest runs at host, and keeps it from being paused
// meanwhile.
func (g *Guest) WhileRunning(host string, f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running[host] {
		f()
	}
}

// OnPause lets pause and resume do more: hold the guest's writes back, say.
// Set it before the guest is moved.
func (g *Guest) OnPause(pause, resume func() error) { g.onPause, g.onResume = pause, resume }

// Name is the guest's name.
func (g *Guest) Name() string { return g.name }

// Pause stops the guest at the source.
func (g *Guest) Pause(ctx context.Context) error {
	return g.faults.run(ctx, "pause", func() error {
		if g.onPause != nil {
			if err := g.onPause(); err != nil {
				return err
			}
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.running[g.from] = false
		return nil
	})
}

// Resume lets the guest go on at the source.
func (g *Guest) Resume(ctx context.Context, epoch uint64) error {
	return g.faults.run(ctx, "resume", func() error {
		g.mu.Lock()
		if epoch <= g.relinquished {
			g.violations = append(g.violations, fmt.Sprintf("resume in epoch %d, and %d was relinquished", epoch, g.relinquished))
		}
		g.mu.Unlock()
		g.start(g.from)
		if g.onResume != nil {
			return g.onResume()
		}
		return nil
	})
}

// Relinquish notes that the source gave the epoch up.
func (g *Guest) Relinquish(ctx context.Context, epoch uint64) error {
	return g.faults.run(ctx, "relinquish", func() error {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.running[g.from] {
			g.violations = append(g.violations, "relinquished while it runs")
		}
		g.relinquished = max(g.relinquished, epoch)
		return nil
	})
}

// Activate lets the guest run at the destination.
func (g *Guest) Activate(ctx context.Context, epoch uint64) error {
	ran := false
	err := g.faults.run(ctx, "activate", func() error {
		ran = true
		g.start(g.to)
		return nil
	})
	if err != nil && !ran {
		return fmt.Errorf("%w: %w", migrate.ErrNotActivated, err)
	}
	return err
}

// start notes that the guest runs at host, and what is wrong with that.
func (g *Guest) start(host string) {
	rec, err := g.authority.Load(context.Background(), g.name)
	g.mu.Lock()
	defer g.mu.Unlock()
	for other, runs := range g.running {
		if runs && other != host {
			g.violations = append(g.violations, fmt.Sprintf("it runs at %s and starts at %s", other, host))
		}
	}
	if err != nil || rec.Owner != host && rec.Owner != "" {
		g.violations = append(g.violations, fmt.Sprintf("it starts at %s, and the record is %+v (%v)", host, rec, err))
	}
	g.running[host] = true
}

// Running lists where the guest runs: the source first.
func (g *Guest) Running() (hosts []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, h := range []string{g.from, g.to} {
		if g.running[h] {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// Violations lists the broken rules.
func (g *Guest) Violations() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.violations...)
}
