package local

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vmferry/vmferry/share"
)

// calls are the calls under way on one open image. They let a caller go when
// its context ends although the kernel, or a server, does not; the image stays
// open, and with it its locks, until the last call has ended.
type calls struct {
	release func() // closes the file, once closed and idle

	mu     sync.Mutex
	closed bool
	active int
	stuck  int           // writes that were given up and have not ended
	end    chan struct{} // closed by close
	idle   chan struct{} // closed when the file is given back
}

func newCalls(release func()) *calls {
	return &calls{release: release, end: make(chan struct{}), idle: make(chan struct{})}
}

// begin counts a call in. Behind a write that was given up no other one is let
// in: it could be overtaken.
func (c *calls) begin(write bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("device %w", share.ErrClosed)
	}
	if write && c.stuck > 0 {
		return fmt.Errorf("the device %w: an earlier write has not ended", share.ErrWedged)
	}
	c.active++
	return nil
}

func (c *calls) done() {
	c.mu.Lock()
	c.active--
	last := c.closed && c.active == 0
	c.mu.Unlock()
	if last {
		c.giveBack()
	}
}

func (c *calls) giveBack() {
	c.release()
	close(c.idle)
}

// close ends the calls under way, by interrupt as far as that can be done, and
// gives the file back when they have ended. It waits for that, but not for
// calls that hang.
func (c *calls) close(interrupt func()) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	close(c.end)
	none := c.active == 0
	c.mu.Unlock()
	interrupt()
	if none {
		c.giveBack()
		return
	}
	select {
	case <-c.idle:
	case <-time.After(2 * grace):
	}
}

// do runs f, which makes one such call. Without an end to ctx it runs here.
// With one f runs beside, and must not touch memory of the caller's: it may go
// on when do has returned.
func (c *calls) do(ctx context.Context, write bool, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.begin(write); err != nil {
		return err
	}
	if ctx.Done() == nil {
		defer c.done()
		return f()
	}
	ch := make(chan error, 1)
	go func() {
		err := f()
		c.done() // first: who has the result may close, and finds the file free
		ch <- err
	}()
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return c.giveUp(ctx.Err(), write, ch)
	case <-c.end:
		return c.giveUp(fmt.Errorf("device %w", share.ErrClosed), write, ch)
	}
}

// giveUp waits a little longer for a call whose outcome is no longer wanted.
func (c *calls) giveUp(cause error, write bool, ch chan error) error {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case err := <-ch:
		return err
	case <-timer.C:
	}
	if write {
		c.mu.Lock()
		c.stuck++
		c.mu.Unlock()
		go func() {
			<-ch
			c.mu.Lock()
			c.stuck--
			c.mu.Unlock()
		}()
	}
	return wedged(cause)
}
