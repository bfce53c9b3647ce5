package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vmferry/vmferry/internal/lab/record"
	"golang.org/x/sys/unix"
)

// wire listens at the switch's ports for heartbeats: it hears them where they
// leave a host, before a cut or a queue can take them, and knows the host by
// the port. It needs no cooperation of libvirt or QEMU.
type wire struct {
	swtch *netSwitch
	f     *os.File
	done  chan struct{}

	mu      sync.Mutex
	ports   map[int]*Host // by interface index
	watches map[[16]byte]*Watch
}

func newWire(s *netSwitch) (*wire, error) {
	w := &wire{swtch: s, done: make(chan struct{}), ports: map[int]*Host{}, watches: map[[16]byte]*Watch{}}
	err := s.do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		w.f = os.NewFile(uintptr(fd), "heartbeats")
		// The filter first, then the protocol: a migration's traffic
		// passes the same ports and must not be copied.
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, beatFilter()); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) // best effort, needs privilege
		// All protocols: a socket for one sees frames only behind the
		// bridge, when their port is forgotten.
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))})
	})
	if err != nil {
		if w.f != nil {
			w.f.Close()
		}
		return nil, fmt.Errorf("lab: listen for heartbeats: %w", err)
	}
	go w.run()
	return w, nil
}

// beatFilter passes IPv4's UDP to the heartbeats' port; packets begin with the
// IP header.
func beatFilter() *unix.SockFprog {
	const (
		loadWord, loadByte, loadHalfX, loadHeaderLength = 0x20, 0x30, 0x48, 0xb1
		jumpEqual, give                                 = 0x15, 0x06
		etherType                                       = 0xfffff000 // SKF_AD_OFF + SKF_AD_PROTOCOL
	)
	f := []unix.SockFilter{
		{Code: loadWord, K: etherType},
		{Code: jumpEqual, K: unix.ETH_P_IP, Jf: 6},
		{Code: loadByte, K: 9},
		{Code: jumpEqual, K: unix.IPPROTO_UDP, Jf: 4},
		{Code: loadHeaderLength, K: 0},
		{Code: loadHalfX, K: 2},
		{Code: jumpEqual, K: record.Port, Jf: 1},
		{Code: give, K: 1 << 16},
		{Code: give, K: 0},
	}
	return &unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
}

// attach learns the interface index of a port that was just plugged in.
func (w *wire) attach(h *Host) error {
	return w.swtch.do(func() error {
		dev, err := net.InterfaceByName(h.port)
		if err != nil {
			return err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ports[dev.Index] = h
		return nil
	})
}

func (w *wire) watch(guest [16]byte) *Watch {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := w.watches[guest]
	if v == nil {
		v = newWatch()
		w.watches[guest] = v
	}
	return v
}

func (w *wire) run() {
	defer close(w.done)
	raw, err := w.f.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1<<16)
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, from, failed = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
		at := time.Now()
		if err != nil {
			return // closed
		}
		port, ok := from.(*unix.SockaddrLinklayer)
		if failed != nil || !ok {
			continue
		}
		w.mu.Lock()
		host := w.ports[port.Ifindex]
		w.mu.Unlock()
		if header := int(buf[0]&15)*4 + 8; host != nil && n > header {
			w.deliver(at, host, buf[header:n])
		}
	}
}

func (w *wire) deliver(at time.Time, host *Host, datagram []byte) {
	beat, err := record.ParseBeat(datagram)
	if err != nil {
		return // not one of our guests
	}
	w.mu.Lock()
	watch := w.watches[beat.Guest]
	w.mu.Unlock()
	if watch != nil {
		watch.arrive(Arrival{At: at, Host: host, Beat: beat})
	}
}

func (w *wire) close() error {
	err := w.f.Close()
	<-w.done
	return err
}
