package kvm

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vmferry/vmferry/internal/virt"
	"github.com/vmferry/vmferry/share"
	"libvirt.org/go/libvirt"
)

// Host is libvirt on one host. Its methods may be called concurrently.
//
// The privilege needed is read-write access to the system daemon: the socket's
// group, or what polkit, SASL or the TLS certificate grants.
type Host struct {
	name  string // for messages: the URI, without what could be secret in it
	owned bool
	opts  ConnectOptions
	// opening holds who opens the connection again.
	opening chan struct{}

	mu     sync.Mutex
	conn   *libvirt.Connect
	id     string
	closed bool
}

// ConnectOptions say how to hold on to a host. The zero value will do.
type ConnectOptions struct {
	// KeepAlive is how often the daemon is asked whether it lives; 5 s when
	// zero, in whole seconds.
	KeepAlive time.Duration
	// Misses is how many answers may be missing before the connection is
	// dead; 3 when zero.
	Misses int
}

// Connect opens a connection to libvirt at uri: "qemu:///system",
// "qemu+tls://host/system", "qemu+ssh://…", and keeps it alive; see
// [ConnectOptions]. A connection that was found dead is opened again by the
// next call that needs it. It corresponds to virConnectOpen and
// virConnectSetKeepAlive.
//
// A host that does not answer within ctx is [share.ErrUnavailable], one that
// does not let the caller in [share.ErrDenied].
func Connect(ctx context.Context, uri string, opts *ConnectOptions) (*Host, error) {
	h := &Host{name: uri, owned: true, opening: make(chan struct{}, 1)}
	if opts != nil {
		h.opts = *opts
	}
	if h.opts.KeepAlive <= 0 {
		h.opts.KeepAlive = 5 * time.Second
	}
	if h.opts.Misses <= 0 {
		h.opts.Misses = 3
	}
	var err error
	if h.conn, err = virt.Open(ctx, uri, h.opts.KeepAlive, h.opts.Misses); err != nil {
		return nil, share.WrapError("connect", backend, "", err)
	}
	return h, nil
}

// Borrow makes a Host of a connection that the caller has opened and closes,
// not before every job that uses it has ended. Its keepalive is the caller's
// affair, and so is the event loop: a connection that was opened before there
// was one delivers no events, and then a job measures downtime by polling.
func Borrow(conn *libvirt.Connect) (*Host, error) {
	own, err := virt.Hold(conn)
	if err != nil {
		return nil, share.WrapError("connect", backend, "", err)
	}
	uri, err := own.GetURI()
	if err != nil {
		uri = "borrowed connection"
	}
	return &Host{name: uri, conn: own}, nil
}

// backend is this package's name in errors.
const backend = "kvm"

// String is the host's URI.
func (h *Host) String() string { return h.name }

// Native is libvirt's own handle, borrowed: the caller does not close it, and
// does not keep it beyond Close or the death of the connection.
func (h *Host) Native(ctx context.Context) (*libvirt.Connect, error) {
	c, err := h.hold(ctx)
	if err != nil {
		return nil, err
	}
	defer virt.Close(c)
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.conn, nil
}

// Close gives the connection back; a borrowed one stays the caller's. A second
// Close returns nil. Jobs that use the host must have ended.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	virt.Close(h.conn)
	return nil
}

// ID is the UUID that libvirt gives the host, the same for every connection to
// it.
func (h *Host) ID(ctx context.Context) (string, error) {
	h.mu.Lock()
	id := h.id
	h.mu.Unlock()
	if id != "" {
		return id, nil
	}
	text, err := read(ctx, h, "read the capabilities", (*libvirt.Connect).GetCapabilities, nil)
	if err != nil {
		return "", err
	}
	var caps struct {
		UUID string `xml:"host>uuid"`
	}
	if err := xml.Unmarshal([]byte(text), &caps); err != nil || caps.UUID == "" {
		return "", fmt.Errorf("%s: its capabilities name no UUID: %w", h, errors.Join(err, share.ErrUnavailable))
	}
	h.mu.Lock()
	h.id = caps.UUID
	h.mu.Unlock()
	return caps.UUID, nil
}

// hold returns a reference to a live connection, opening it again where the
// last one died.
func (h *Host) hold(ctx context.Context) (*libvirt.Connect, error) {
	if c, err := h.live(); c != nil || err != nil {
		return c, err
	}
	select {
	case h.opening <- struct{}{}:
		defer func() { <-h.opening }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%s is being connected to again and %w: %w", h, share.ErrUnavailable, context.Cause(ctx))
	}
	if c, err := h.live(); c != nil || err != nil {
		return c, err
	}
	c, err := virt.Open(ctx, h.name, h.opts.KeepAlive, h.opts.Misses)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	if h.closed {
		virt.Close(c)
	} else {
		virt.Close(h.conn)
		h.conn = c
	}
	h.mu.Unlock()
	return h.live()
}

// live is nil without an error where the connection is dead and ours to open.
func (h *Host) live() (*libvirt.Connect, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, fmt.Errorf("%s: the connection %w", h, share.ErrClosed)
	}
	// Asks the connection, not the daemon.
	if alive, err := h.conn.IsAlive(); h.owned && (err != nil || !alive) {
		return nil, nil
	}
	return virt.Hold(h.conn)
}

// read runs f, which changes nothing, on a live connection under a watchdog.
func read[T any](ctx context.Context, h *Host, what string, f func(*libvirt.Connect) (T, error), free func(T)) (T, error) {
	return call(ctx, h, what, virt.Read[T], f, free)
}

// change is read for an f that changes something.
func change(ctx context.Context, h *Host, what string, f func(*libvirt.Connect) error) error {
	_, err := call(ctx, h, what, virt.Change[struct{}], func(c *libvirt.Connect) (struct{}, error) { return struct{}{}, f(c) }, nil)
	return err
}

type watchdog[T any] func(context.Context, string, func() (T, error), func(T)) (T, error)

func call[T any](ctx context.Context, h *Host, what string, dog watchdog[T], f func(*libvirt.Connect) (T, error), free func(T)) (T, error) {
	c, err := h.hold(ctx)
	if err != nil {
		var none T
		return none, fmt.Errorf("%s: %w", what, err)
	}
	return dog(ctx, what, func() (T, error) {
		defer virt.Close(c)
		return f(c)
	}, free)
}

// readGuest is read for a call on the guest of that UUID.
func readGuest[T any](ctx context.Context, h *Host, uuid, what string, f func(*libvirt.Domain) (T, error)) (T, error) {
	return read(ctx, h, what, onGuest(uuid, f), nil)
}

// changeGuest is change for a call on the guest of that UUID.
func changeGuest(ctx context.Context, h *Host, uuid, what string, f func(*libvirt.Domain) error) error {
	on := onGuest(uuid, func(d *libvirt.Domain) (struct{}, error) { return struct{}{}, f(d) })
	return change(ctx, h, what, func(c *libvirt.Connect) error {
		_, err := on(c)
		return err
	})
}

func onGuest[T any](uuid string, f func(*libvirt.Domain) (T, error)) func(*libvirt.Connect) (T, error) {
	return func(c *libvirt.Connect) (v T, err error) {
		d, err := c.LookupDomainByUUIDString(uuid)
		if err != nil {
			return v, err
		}
		defer d.Free()
		return f(d)
	}
}
