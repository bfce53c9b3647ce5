package kvm

import (
	"fmt"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Policy says what becomes of a disk in a move.
type Policy uint8

const (
	// Mirror has QEMU copy the disk to the destination while the guest
	// writes it. The destination's disk is a plain one, whatever chain of
	// backing files the source's lies on.
	Mirror Policy = iota
	// Shared leaves the disk where it is: both hosts reach the same bytes.
	// For files that is proved before the move, by an empty file that is made
	// beside the disk through one host, seen through the other, and removed.
	// For network disks the same address is the proof.
	Shared
	// SharedUnproven is Shared on the caller's word alone. If it is wrong,
	// the guest comes up with another disk, or with none, and writes there.
	SharedUnproven
)

// String is the policy's name in lower case.
func (p Policy) String() string {
	switch p {
	case Mirror:
		return "mirror"
	case Shared:
		return "shared"
	case SharedUnproven:
		return "shared unproven"
	}
	return fmt.Sprintf("Policy(%d)", uint8(p))
}

// DiskMove says what becomes of one disk. The zero value mirrors it to the same
// path and format.
type DiskMove struct {
	Policy Policy
	// To is how the destination reaches the disk; nil: as the source does.
	// For a mirror it is a file or block device, and may be of another format.
	To *share.Source
	// Overwrite mirrors onto what is there: a volume of the right size and
	// format, whose content is lost. It is never removed. Without Overwrite
	// the volume is made by the move, there must be none, and it is removed
	// again if the move fails.
	Overwrite bool
}

// HandOver says when the guest resumes at the destination.
type HandOver uint8

const (
	// Strict resumes the guest when its copy at the source is known to be
	// gone. The downtime includes the end of the source's QEMU process.
	Strict HandOver = iota
	// Unfenced leaves it to libvirt, which resumes the guest as soon as the
	// destination has it, and the one at the source too where the answer to
	// that is lost. For guests whose disks have a fence of their own: a lock
	// manager, RBD's exclusive lock.
	Unfenced
)

// MigrateOptions shape a move. The zero value mirrors every writable disk to
// the same path over TLS.
type MigrateOptions struct {
	// ID names the job; the guest's name when empty.
	ID string
	// Disks say what becomes of disks, by target ("vda"). Read-only disks and
	// CD-ROMs that are not named must be reachable at the destination by the
	// same path; nothing is done to them. A target that the guest has not is
	// [share.ErrInvalid].
	Disks map[string]DiskMove

	// Plaintext sends memory and disks unencrypted. The default is TLS with
	// both sides verified, which the hosts must have certificates for; it
	// corresponds to VIR_MIGRATE_TLS.
	Plaintext bool
	// TLSName is the name in the destination's certificate, where it is not
	// the one in the migration's address.
	TLSName string
	// Address is the host name or address under which the source's QEMU
	// reaches the destination; what the destination's libvirt is configured
	// with when empty.
	Address string
	// Listen is the address on which the destination listens; what its
	// libvirt is configured with when empty.
	Listen string

	HandOver HandOver
	// Bandwidth limits memory and disks, each, in bytes per second; rounded up
	// to whole MiB. 0 is no limit.
	Bandwidth share.Bytes
	// MaxDowntime is how long QEMU may let the guest stand still for the last
	// pass over its memory; QEMU's own 300 ms when zero. What [Strict] adds
	// comes on top.
	MaxDowntime time.Duration
	// AutoConverge lets QEMU slow the guest down until the copy catches up.
	AutoConverge bool
	// Connections is how many connections the memory goes over; one when 0.
	Connections int
	// Unsafe corresponds to VIR_MIGRATE_UNSAFE: libvirt does not recognise a
	// shared disk's file system as one, or a disk goes through a host's page
	// cache, and the caller knows that it is safe all the same.
	Unsafe bool

	// KeepDefinition leaves the guest defined at the source, switched off.
	// Whoever starts it there starts a second copy.
	KeepDefinition bool
	// RemoveSource deletes the source's volumes of mirrored disks once the
	// guest runs at the destination. A failure to do so is a warning.
	RemoveSource bool

	// Stall is how long not a byte may go over before the move is given up;
	// 30 s when zero.
	Stall time.Duration
	// Patience is how long to wait for libvirt to let go of a job that was
	// aborted, and for a host that does not answer when the outcome is
	// looked at; 30 s when zero.
	Patience time.Duration
}

func (o *MigrateOptions) withDefaults(g *Guest) MigrateOptions {
	var out MigrateOptions
	if o != nil {
		out = *o
	}
	if out.ID == "" {
		out.ID = g.name
	}
	if out.Stall <= 0 {
		out.Stall = 30 * time.Second
	}
	if out.Patience <= 0 {
		out.Patience = 30 * time.Second
	}
	return out
}
