package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// netns is a network namespace that lives as long as its descriptor or a
// process in it: it has no name and leaves nothing in the file system.
type netns struct{ f *os.File }

// newNetns makes an empty namespace.
func newNetns() (*netns, error) {
	var ns *netns
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("lab: make a network namespace: %w", err)
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		ns = &netns{f}
		return err
	})
	if err != nil {
		return nil, err
	}
	return ns, nil
}

// netnsOf opens the namespace that a process is in.
func netnsOf(pid int) (*netns, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return &netns{f}, nil
}

func (ns *netns) close() error { return ns.f.Close() }

// do runs f on a thread inside the namespace. Sockets that f opens stay in it,
// processes that it starts are born in it.
func (ns *netns) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("lab: enter a network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread that does not outlive it, so that what f does to
// its thread's namespaces ends there.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine.
		runtime.LockOSThread()
		err := errors.New("lab: the function ended its goroutine")
		defer func() { done <- err }()
		err = f()
	}()
	return <-done
}

// run executes a command of the network tools inside the namespace.
func (ns *netns) run(ctx context.Context, input string, name string, args ...string) error {
	return ns.do(func() error { return runTool(ctx, input, name, args...) })
}

func runTool(ctx context.Context, input, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("lab: %s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (ns *netns) dial(ctx context.Context, network, address string) (net.Conn, error) {
	// A name would be resolved, and several addresses tried, on goroutines
	// of other threads.
	if _, err := netip.ParseAddrPort(address); err != nil && !strings.HasPrefix(network, "unix") {
		return nil, fmt.Errorf("lab: dial %s: want an address, not a name: %w", address, err)
	}
	var c net.Conn
	err := ns.do(func() (err error) {
		d := net.Dialer{FallbackDelay: -1}
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

func (ns *netns) listen(ctx context.Context, network, address string) (net.Listener, error) {
	var ln net.Listener
	err := ns.do(func() (err error) {
		ln, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return ln, err
}
