//go:build !linux

package secure

import (
	"net"
	"time"
)

func setUserTimeout(*net.TCPConn, time.Duration) {}
