// Package lab is the laboratory that tests and examples work in: real libvirt
// and QEMU on hosts that are namespaces of this machine, real guests under
// emulation, links that can be cut, and an oracle that knows what must not be
// lost.
//
//	func TestMain(m *testing.M) { lab.Main(m) }
//
//	func TestSomething(t *testing.T) {
//		l := lab.Start(t, &lab.Options{Hosts: 2})
//		from, to := l.Host(0), l.Host(1)
//		g, err := l.StartGuest(ctx, from, &lab.GuestOptions{
//			Dirty: 20 << 20,
//			Disks: []lab.Disk{{Path: "root.raw", Format: "raw", Size: 1 << 30, Writes: 100}},
//		})
//		began := time.Now()
//		// ... move g.UUID from from.URI() to to.URI() ...
//		gap := g.Watch().LongestGap(began).Length()
//		verdicts, err := g.Verify(ctx, to)   // every acknowledged write is there
//		err = g.Watch().Healthy()            // memory intact, never two copies
//		hosts, err := l.Running(ctx, g)      // where it runs
//	}
//
// A program that is no test calls [Init] first thing in main, then [New] and
// [Lab.Close].
//
// # What it needs
//
// What install.sh installs: on Debian 12 (with backports) or 13, QEMU 9 or newer,
// libvirt with the monolithic libvirtd, iproute2, ebtables. And root, or an
// ordinary user with namespaces:
//
//	unshare -U -r -n -m -p -f --mount-proc go test ./internal/lab
//
// [Require] skips a test where something is missing and names the remedy; with
// VMFERRY_LAB=required in the environment it fails instead. Guests are emulated (TCG) everywhere: hosts have no /dev/kvm, whatever
// the machine has.
//
// # Hosts
//
// A host is this program, executed again as PID 1 of its own network, mount,
// UTS, IPC and PID namespaces. It has a libvirtd without authentication, a /run
// and a /dev, and private /etc/libvirt, /var/lib/libvirt, /var/log/libvirt and
// /var/cache/libvirt; the rest of the file system is the machine's. Its images
// lie at [Host.ImagePath], the same path on every host and not the same file;
// [Lab.SharedPath] is one directory for all of them. [Host.OutsidePath] is the
// way from a path inside to the file outside.
//
//	10.77.0.N      host N, counted from 1, on its bridge br0
//	10.77.1.N      guest N
//	10.77.0.254    the switch, where heartbeats go
//
// [Host.URI] reaches a host's libvirtd from the lab's program, through a socket
// file; [Host.PeerURI] reaches it from another host, over the network that can
// be cut. Sockets of the lab's program can be on a host: [Host.Dial],
// [Host.Listen], [Host.Do]. Processes can too: [Host.Command].
//
// # Faults
//
// [Host.PowerOff] kills everything on a host at once, its cable first: peers get
// no FIN and no RST. [Host.PowerOn] boots it with the files it had.
// [Host.KillLibvirtd] and [Host.KillQEMU] kill one process.
//
// [Lab.Cut] loses packets on the bridge between the hosts, without a word:
// taking a port down would show as a lost carrier, a firewall on the host as
// errors of its own system calls, and both would be noticed sooner than the
// partitions that hurt. ARP passes, so that there is no "no route to host"
// either; what is left is silence, time-outs and keepalives. [Host.Shape] limits
// a host's bandwidth both ways.
//
// # Guests
//
// A guest is a real kernel with an initramfs of the guest agent and the
// workload (package workload), which writes to disks, dirties and verifies
// memory, and sends a heartbeat every 10 ms. The image is built once, with the
// go command, and cached by a digest of its inputs below $VMFERRY_CACHE,
// $XDG_CACHE_HOME/vmferry or ~/.cache/vmferry. /sbin/shutdown is all that the
// agent can execute; there are no file systems to freeze, and freezing none
// succeeds.
//
// [Guest.Watch] listens where heartbeats leave a host's cable, before a cut or a
// queue: it sees every copy that runs, on whichever host, cut off or not, by
// evidence that neither libvirt nor QEMU has a part in. A heartbeat says which
// boot it comes from and carries a number; both travel with memory, so that a
// second copy, or one that went back in time, collides with the first
// ([Watch.Conflicts]).
//
// [Guest.Verify] reads disks and finds writes that were acknowledged and are
// not there ([CheckDisk]). The workload writes to a ring of slots, one block
// after the other, each when the last is flushed, so that for every slot the
// sequence that must be there follows from the highest acknowledged one.
//
// # Nothing stays behind
//
// Namespaces have no names, mounts are private, and every process lives in a PID
// namespace whose PID 1 the kernel kills when this program ends, however it
// ends. Only files may be left: a directory below the temporary directory,
// which the next lab removes when it finds nobody holding its lock.
package lab
