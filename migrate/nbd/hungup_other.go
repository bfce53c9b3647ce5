//go:build !linux

package nbd

import (
	"net"
)

// hungUp cannot be known on this system without reading.
func hungUp(net.Conn) bool { return false }
