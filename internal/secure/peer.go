package secure

import (
	"net"
	"time"
)

// WatchPeer lets the kernel end a TCP connection whose peer has acknowledged
// nothing for d: keep-alive probes, and TCP_USER_TIMEOUT where the system has
// it. On other connections, and for d ≤ 0, it does nothing. Errors do not
// matter: the connection works without.
func WatchPeer(c net.Conn, d time.Duration) {
	t, ok := c.(*net.TCPConn)
	if !ok || d <= 0 {
		return
	}
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: max(d/3, time.Second), Interval: max(d/6, time.Second), Count: 4})
	setUserTimeout(t, d)
}
