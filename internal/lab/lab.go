package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Options shape a lab. The zero value is two hosts below the system's
// directory for temporary files.
type Options struct {
	// Hosts is how many hosts there are, 2 when zero, at most 200.
	Hosts int
	// Dir is where the lab's directory is made, the system's directory for
	// temporary files when empty. It must lie on a disk (not a tmpfs) for
	// guests to use it without the page cache, and be short: the path of a
	// unix socket ends at 107 bytes.
	Dir string
}

// Lab is a running laboratory. Its methods may be called concurrently.
type Lab struct {
	dir    string
	lock   io.Closer
	swtch  *netSwitch
	hosts  []*Host
	wire   *wire
	shared string

	mu     sync.Mutex
	guests []*Guest
	image  *guestImage
	closed bool
}

// New starts a lab and sweeps away what dead ones left below the same
// directory. The caller closes it; if the process ends without that, its hosts
// end with it.
func New(ctx context.Context, opts *Options) (_ *Lab, err error) {
	if opts == nil {
		opts = new(Options)
	}
	n := opts.Hosts
	if n == 0 {
		n = 2
	}
	if n < 0 || n > 200 {
		return nil, fmt.Errorf("lab: %d hosts, want 1 to 200", n)
	}
	if !initialised.Load() {
		return nil, errors.New("lab: call lab.Init first thing in main, or lab.Main in TestMain: hosts are re-executions of this program")
	}
	l := new(Lab)
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if l.dir, l.lock, err = newDir(ctx, opts.Dir); err != nil {
		return nil, err
	}
	l.shared = filepath.Join(l.dir, "shared")
	if err := os.Mkdir(l.shared, 0o755); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if l.swtch, err = newSwitch(ctx); err != nil {
		return nil, err
	}
	if l.wire, err = newWire(l.swtch); err != nil {
		return nil, err
	}
	for i := range n {
		h, err := newHost(l, i, n)
		if err != nil {
			return nil, err
		}
		l.hosts = append(l.hosts, h)
	}
	errs := make([]error, n)
	var started sync.WaitGroup
	for i, h := range l.hosts {
		started.Go(func() { errs[i] = h.PowerOn(ctx) })
	}
	started.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return l, nil
}

// Hosts are the lab's hosts in order.
func (l *Lab) Hosts() []*Host { return append([]*Host(nil), l.hosts...) }

// Host is the i-th host, counted from 0.
func (l *Lab) Host(i int) *Host { return l.hosts[i] }

// SharedDir is a directory outside that every host sees as SharedPath.
func (l *Lab) SharedDir() string { return l.shared }

// SharedPath is where hosts see the file name of SharedDir.
func (l *Lab) SharedPath(name string) string { return filepath.Join(sharedInside, name) }

// Close ends every host and guest at once and removes the lab's files. Closing
// again returns nil.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()

	if len(l.hosts) > 0 {
		l.hosts[0].keepCapabilities()
	}
	var down sync.WaitGroup
	for _, h := range l.hosts {
		down.Go(func() { h.PowerOff() })
	}
	down.Wait()
	var errs []error
	if l.wire != nil {
		errs = append(errs, l.wire.close())
	}
	if l.swtch != nil {
		errs = append(errs, l.swtch.close())
	}
	if l.dir != "" {
		errs = append(errs, removeDir(l.dir))
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}

// poll calls ready every few milliseconds until it says true, fails, or ctx
// ends; what names the thing that is waited for.
func poll(ctx context.Context, what string, ready func() (bool, error)) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		ok, err := ready()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lab: waiting for %s: %w", what, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}
