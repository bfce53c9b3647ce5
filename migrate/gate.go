package migrate

import (
	"context"
	"sync"
)

// gate lets calls through while it is open, holds them back while it is shut,
// and knows when none is inside.
type gate struct {
	mu     sync.Mutex
	inside int
	shut   bool
	opened chan struct{} // while shut: closed when the gate opens
	empty  chan struct{} // while shut: closed when nobody is inside
}

// enter waits until the gate is open. Who entered must leave.
func (g *gate) enter(ctx context.Context) error {
	g.mu.Lock()
	for g.shut {
		opened := g.opened
		g.mu.Unlock()
		select {
		case <-opened:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		g.mu.Lock()
	}
	g.inside++
	g.mu.Unlock()
	return nil
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.shut && g.inside == 0 {
		close(g.empty)
	}
}

// shutNow shuts the gate; the channel is closed when nobody is inside.
func (g *gate) shutNow() (empty <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.shut {
		g.shut = true
		g.opened, g.empty = make(chan struct{}), make(chan struct{})
		if g.inside == 0 {
			close(g.empty)
		}
	}
	return g.empty
}

// close shuts the gate and waits until nobody is inside. If ctx ends first it
// returns its cause, and the gate stays shut.
func (g *gate) close(ctx context.Context) error {
	select {
	case <-g.shutNow():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// open lets calls through again. Opening an open gate does nothing.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		g.shut = false
		close(g.opened)
	}
}

// isClosed reports whether the gate is shut and nobody is inside.
func (g *gate) isClosed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut && g.inside == 0
}
