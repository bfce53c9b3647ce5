// Package virt is what this module's users of libvirt share: connections that
// notice a dead daemon, calls that end by their context, errors of the kinds of
// package share, and the one event loop.
package virt
