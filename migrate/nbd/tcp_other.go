//go:build !linux

package nbd

import (
	"net"
	"time"
)

// setPeerTimeout sets what this system has: keep-alive probes.
func setPeerTimeout(c net.Conn, d time.Duration) {
	if t, ok := c.(*net.TCPConn); ok && d > 0 {
		t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: max(d/3, time.Second), Interval: max(d/6, time.Second), Count: 4})
	}
}

// hungUp cannot be known on this system without reading.
func hungUp(net.Conn) bool { return false }
