package virt

import (
	"context"
	"errors"
	"time"

	"libvirt.org/go/libvirt"
)

// Open connects to uri, with the event loop running and, where the transport
// has it, a keepalive message every interval: a daemon that misses count of
// them is dead, and calls to it end. It corresponds to virConnectOpenAuth
// without callbacks and virConnectSetKeepAlive. The caller closes the
// connection, and does that with [Close].
func Open(ctx context.Context, uri string, interval time.Duration, count int) (*libvirt.Connect, error) {
	if err := StartLoop(); err != nil {
		return nil, err
	}
	return Read(ctx, "connect to "+uri, func() (*libvirt.Connect, error) {
		c, err := libvirt.NewConnect(uri)
		if err != nil {
			return nil, err
		}
		seconds := max(1, int((interval+time.Second-1)/time.Second))
		err = c.SetKeepAlive(seconds, uint(count))
		if err != nil && !errors.Is(err, libvirt.ERR_NO_SUPPORT) && !errors.Is(err, libvirt.ERR_INTERNAL_ERROR) {
			c.Close()
			return nil, err
		}
		return c, nil
	}, Close)
}

// Close gives the connection back. It waits for nobody: closing talks to the
// daemon, which may not answer.
func Close(c *libvirt.Connect) { go c.Close() }

// Hold returns a reference of the caller's own, so that a call which is left
// behind does not see the connection freed under it.
func Hold(c *libvirt.Connect) (*libvirt.Connect, error) {
	// Close clears the pointer in the struct, hence another struct.
	own := *c
	if err := own.Ref(); err != nil {
		return nil, Error("hold the connection", err)
	}
	return &own, nil
}
