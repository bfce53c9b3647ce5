package lab

import (
	"bytes"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ignoreSetgroups makes setgroups(2) succeed and do nothing, for this process
// and all that it starts, where the kernel denies it: in the user namespace of
// an ordinary user. There is but one user and one group in it, and libvirt does
// not start QEMU if that call fails.
func ignoreSetgroups() error {
	denied, err := os.ReadFile("/proc/self/setgroups")
	if err != nil || !bytes.HasPrefix(denied, []byte("deny")) {
		return nil // allowed, or a kernel that never denies
	}
	const (
		loadWord, jumpEqual, give = 0x20, 0x15, 0x06
		number, arch              = 0, 4 // offsets in struct seccomp_data
		allow, fail               = 0x7fff0000, 0x00050000
	)
	filter := []unix.SockFilter{
		{Code: loadWord, K: arch},
		{Code: jumpEqual, K: unix.AUDIT_ARCH_X86_64, Jf: 3},
		{Code: loadWord, K: number},
		{Code: jumpEqual, K: unix.SYS_SETGROUPS, Jf: 1},
		{Code: give, K: fail + 0}, // fail with "success"
		{Code: give, K: allow},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("filter setgroups: %w", errno)
	}
	return nil
}
