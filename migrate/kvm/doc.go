// Package kvm moves running guests between KVM hosts through libvirt: memory,
// device state and disks, while the guest works.
//
//	from, err := kvm.Connect(ctx, "qemu+tls://a.example/system", nil)
//	to, err := kvm.Connect(ctx, "qemu+tls://b.example/system", nil)
//	guest, err := from.Guest(ctx, "vm1")
//	job, err := kvm.Migrate(ctx, guest, to, nil)
//	result, err := job.Wait(ctx)
//
// # What happens to the disks
//
// Each disk has a [Policy]. Mirror, the default, has QEMU copy the disk over
// the network while the guest writes it; the destination's volume is made
// first, through libvirt's storage API, with the size and format it must have.
// Shared says that both hosts reach the same bytes; nothing is copied, and what
// the caller says is put to the proof before anything starts. Path and format
// may change on the way, except that a shared disk keeps its format.
//
// # Who may run the guest
//
// This program is the third party that libvirt calls managed migration, and the
// guest arrives paused. It resumes there, by this program's call, when the copy
// at the source is known to be gone, and not before. Libvirt left to itself
// resumes the guest at the destination at once; where the answer to that is
// lost, it resumes the guest at the source too, and says so in a comment. The
// order here costs the time it takes to end the source's QEMU process, about
// 0.2 s for a small guest and longer with much memory, in downtime; [HandOver]
// names the alternative.
//
// Managed migration also means that the two daemons need not trust each other,
// that a program which is killed while the guest runs at the source leaves it
// running there, since libvirt ends the job with the connection, and that a cut
// between the hosts does not cut off this program from the truth about both.
//
// While a job runs, the guest's live metadata holds a note of it, in the
// namespace [Namespace]: who moves it, where to, and which volumes were made
// for it. [Settle] reads that note and brings the move of a program that is no
// longer there to its end.
//
// # How a job ends
//
// What libvirt's calls return is taken as a hint. When the call has ended, both
// hosts are asked for the guest, and that decides:
//
//   - It runs at the destination, and nowhere else: done.
//   - It runs at the source, and what was made at the destination is gone:
//     failed, or cancelled where the caller asked for that.
//   - Anything else, and a host that does not answer when its answer is needed:
//     an [*migrate.IndeterminateError], and nobody resumes the guest.
//
// A guest that cannot be moved at all is refused by [Migrate] itself, before
// anything has started.
//
// # A dead link
//
// A job in which nothing goes over for [MigrateOptions].Stall is aborted, and a
// mirror that waits for the dead link is cut off through QEMU's yank: the guest
// works on all the while. If the link dies in the moment in which the guest
// stands still, QEMU itself waits for it, and neither it nor libvirt answers
// before TCP gives up: a quarter of an hour by default, some seconds with
// net.ipv4.tcp_retries2=5 on the hosts. The job then ends as indeterminate, the
// guest stands, and [Settle] finds it when TCP or the link has decided.
//
// # Not offered
//
// Post-copy: a guest that runs at the destination with half of its memory at
// the source is lost with the link between them, and cannot be taken back.
// Peer-to-peer and tunnelled migration, for the reasons above. Plaintext
// between the hosts, unless [MigrateOptions] asks for it by name.
//
// # Libvirt
//
// The package needs cgo and libvirt's client library, 8.0 or later; with the
// build tag libvirt_dlopen it is loaded at run time. Calls that the library
// does not let go of are left behind when their context ends, and say so:
// reads as [share.ErrUnavailable], changes as [share.ErrWedged]. Native handles
// are reachable from [Host] and [Guest].
//
// Events need an event loop. If the program has registered one before the first
// [Connect], that one serves and the program runs it; otherwise libvirt's
// default one is started, once, and runs as long as the process.
package kvm
