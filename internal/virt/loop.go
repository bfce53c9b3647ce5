package virt

import (
	"fmt"
	"sync"

	"libvirt.org/go/libvirt"
)

var loop struct {
	once sync.Once
	err  error
}

// StartLoop makes sure that the process has an event loop, without which
// libvirt delivers no events and notices no dead connection. Where the program
// or another library has registered one, that one serves, and running it is
// their business. Otherwise the first call registers libvirt's default one and
// runs it in a goroutine for the rest of the process: libvirt has no way to
// take an event loop back. A program that brings its own registers it first.
func StartLoop() error {
	loop.once.Do(func() {
		// Initialises the library, before which the next call crashes.
		if _, loop.err = libvirt.GetVersion(); loop.err != nil {
			return
		}
		// Adding a timer that never fires fails without a loop, and is the
		// only way to ask.
		if timer, err := libvirt.EventAddTimeout(-1, func(int) {}); err == nil {
			loop.err = libvirt.EventRemoveTimeout(timer)
			return
		}
		if loop.err = libvirt.EventRegisterDefaultImpl(); loop.err != nil {
			return
		}
		// The default loop sleeps until there is something to do. Were it
		// without any handle, nothing could wake it.
		if _, loop.err = libvirt.EventAddTimeout(60_000, func(int) {}); loop.err != nil {
			return
		}
		go func() {
			for libvirt.EventRunDefaultImpl() == nil {
			}
		}()
	})
	if loop.err != nil {
		return fmt.Errorf("libvirt's event loop: %w", loop.err)
	}
	return nil
}
