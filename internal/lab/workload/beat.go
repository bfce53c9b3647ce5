//go:build linux

package main

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"github.com/vmferry/vmferry/internal/lab/record"
)

const nic = "eth0"

// state is all that the heartbeat tells.
type state struct {
	guest    [16]byte
	instance uint64
	disks    []diskState
	memory   memoryState
}

func newState(c *config) *state {
	s := &state{guest: c.guest, disks: make([]diskState, len(c.disks))}
	var id [8]byte
	rand.Read(id[:])
	s.instance = binary.LittleEndian.Uint64(id[:])
	return s
}

type sender struct {
	fd int
	to syscall.SockaddrInet4
}

// newSender gives the interface its address and a permanent neighbour entry
// for the destination: a guest that is cut off goes on sending, and whoever
// watches its wire sees that it runs.
func newSender(c *config) (*sender, error) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat("/sys/class/net/" + nic); err == nil {
			break
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("no interface %s", nic)
		}
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	for _, step := range []struct {
		name, nic string
		request   uintptr
		value     []byte
	}{
		{"loopback", "lo", syscall.SIOCSIFFLAGS, flags(syscall.IFF_UP)},
		{"address", nic, syscall.SIOCSIFADDR, inet(c.addr.IP)},
		{"netmask", nic, syscall.SIOCSIFNETMASK, inet(net.IP(c.addr.Mask))},
		{"up", nic, syscall.SIOCSIFFLAGS, flags(syscall.IFF_UP | syscall.IFF_RUNNING)},
	} {
		var request [40]byte // struct ifreq
		copy(request[:syscall.IFNAMSIZ], step.nic)
		copy(request[syscall.IFNAMSIZ:], step.value)
		if err := ioctl(fd, step.request, request[:]); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", step.nic, step.name, err)
		}
	}
	var arp [68]byte // struct arpreq: address, hardware address, flags, mask, device
	copy(arp[0:], inet(c.beat))
	binary.NativeEndian.PutUint16(arp[16:], syscall.ARPHRD_ETHER)
	copy(arp[18:], c.beatMAC)
	binary.NativeEndian.PutUint32(arp[32:], 0x02|0x04) // ATF_COM|ATF_PERM
	copy(arp[52:], nic)
	if err := ioctl(fd, syscall.SIOCSARP, arp[:]); err != nil {
		return nil, fmt.Errorf("neighbour %v: %w", c.beat, err)
	}
	s := &sender{fd: fd, to: syscall.SockaddrInet4{Port: record.Port}}
	copy(s.to.Addr[:], c.beat)
	return s, nil
}

// run sends the heartbeat on a thread of its own. A datagram that cannot be
// sent is lost like any other.
func (s *sender) run(st *state) {
	runtime.LockOSThread()
	began := time.Now()
	beat := record.Beat{Guest: st.guest, Instance: st.instance, Disks: make([]record.Disk, len(st.disks))}
	var buf []byte
	for next := began; ; {
		beat.Number++
		beat.Uptime = time.Since(began)
		// Each disk's count before the datagram: never more than is true.
		for i := range st.disks {
			d := &st.disks[i]
			beat.Disks[i] = record.Disk{Serial: d.serial, Ring: d.ring, Acked: d.acked.Load(), Errors: d.errors.Load()}
		}
		beat.Memory = record.Memory{Errors: st.memory.errors.Load(), Stamped: st.memory.stamped.Load(), Checked: st.memory.checked.Load()}
		buf = beat.Append(buf[:0])
		_ = syscall.Sendto(s.fd, buf, syscall.MSG_DONTWAIT, &s.to)
		if next = next.Add(record.Interval); time.Since(next) > 10*record.Interval {
			next = time.Now()
		}
		time.Sleep(time.Until(next))
	}
}

func flags(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }

// inet is a struct sockaddr_in.
func inet(ip net.IP) []byte {
	p := make([]byte, 16)
	binary.NativeEndian.PutUint16(p, syscall.AF_INET)
	copy(p[4:], ip.To4())
	return p
}

func ioctl(fd int, request uintptr, p []byte) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&p[0]))); errno != 0 {
		return errno
	}
	return nil
}
