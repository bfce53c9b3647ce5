package kvm

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// owner names a program that holds an export, within the names of all that the
// export makes: checkpoints, exports, the socket. It tells whoever finds them
// whether the program lives:
//
//	vmferry-MACHINE-BOOT-PID-START-RANDOM
//
// MACHINE is a digest of the machine's identity and of the PID namespace, BOOT
// of the boot's, START the program's start in clock ticks since the boot.
type owner string

const ownerPrefix = "vmferry-"

var ownerGrammar = regexp.MustCompile(`^vmferry-([0-9a-f]{8})-([0-9a-f]{8})-([0-9]{1,10})-([0-9]{1,20})-[0-9a-f]{8}`)

func newOwner() owner {
	var unique [4]byte
	_, _ = rand.Read(unique[:]) // it never fails
	pid := os.Getpid()
	return owner(fmt.Sprintf("%s%s-%s-%d-%d-%x", ownerPrefix, thisMachine(), thisBoot(), pid, startOf(pid), unique))
}

// owns reports whether a checkpoint is this owner's.
func (o owner) owns(name string) bool { return strings.HasPrefix(name, string(o)+".") }

// checkpointName is the name of the owner's n-th checkpoint.
func (o owner) checkpointName(n int) string { return fmt.Sprintf("%s.%d", o, n) }

// exportName is the name of a disk's export.
func (o owner) exportName(target string) string { return string(o) + "." + target }

// ownerOf finds the owner in the name of something that an export made, or
// returns "".
func ownerOf(name string) owner { return owner(ownerGrammar.FindString(name)) }

// fate is what is known of a program.
type fate uint8

const (
	fateUnknown fate = iota // it runs on another machine, or did
	lives
	dead
)

func (o owner) fate() fate {
	m := ownerGrammar.FindStringSubmatch(string(o))
	if m == nil || m[1] != thisMachine() {
		return fateUnknown
	}
	if m[2] != thisBoot() {
		return dead
	}
	pid, err := strconv.Atoi(m[3])
	if err != nil {
		return fateUnknown
	}
	if start := startOf(pid); start == 0 || strconv.FormatUint(start, 10) != m[4] {
		return dead
	}
	return lives
}

func thisMachine() string {
	id, _ := os.ReadFile("/etc/machine-id")
	if id = bytes.TrimSpace(id); len(id) == 0 {
		return thisBoot() // after the next boot it is another machine
	}
	space, _ := os.Readlink("/proc/self/ns/pid")
	return digest(append(id, space...))
}

func thisBoot() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return digest(bytes.TrimSpace(id))
}

func digest(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:4])
}

// startOf is when a process began, in clock ticks since the boot, or 0 where
// there is none; see proc_pid_stat(5).
func startOf(pid int) uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The second field is a name in parentheses, which may hold anything.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return 0
	}
	start, _ := strconv.ParseUint(string(fields[19]), 10, 64)
	return start
}
