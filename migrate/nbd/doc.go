// Package nbd is a client and a server of the NBD protocol over
// [share.Device], in pure Go.
//
// A [Client], made by [Dial] or [NewClient], is a block device that another
// program serves: QEMU, libvirt's backups, qemu-nbd, nbdkit, another vmferry.
// A [Server] serves devices to such programs, and to the kernel's nbd driver.
//
//	nbd.Dial, nbd.Info, nbd.List        nbdinfo URI, nbdinfo --list, qemu-img info
//	Client.ReadAt and WriteAt           nbdcopy, qemu-io -c read, -c write
//	Client.Extents                      nbdinfo --map URI
//	Client.DirtyExtents                 nbdinfo --map=qemu:dirty-bitmap:NAME URI
//	Server.Add, Server.Serve            qemu-nbd -k SOCKET -x NAME, nbdkit -U SOCKET
//
// # Protocol
//
// Both sides speak the fixed newstyle negotiation with GO, INFO, LIST,
// EXPORT_NAME, ABORT, STARTTLS, STRUCTURED_REPLY and the metadata contexts
// base:allocation, qemu:dirty-bitmap:NAME and any other; the commands read,
// write, flush, trim, write zeroes (NO_HOLE, FAST_ZERO) and block status, with
// FUA; block size constraints; and several connections to one export
// (CAN_MULTI_CONN). There is no oldstyle negotiation, no resize, no cache
// command, and there are no extended headers: a command covers less than
// 4 GiB, and the client splits what is longer.
//
// # Security
//
// No privileges are needed but those for the socket. The defaults are closed:
//
//   - Plaintext stays on this machine: unix sockets and loopback. Elsewhere
//     both sides insist on TLS, unless an option called InsecurePlaintext
//     says otherwise.
//   - TLS is version 1.3 or later, and begins before anything is told. The
//     client verifies the server, the server its clients. A peer that offers
//     no TLS is left; nobody falls back.
//   - [ServerOptions].Authorize decides on each export, by certificate.
//   - What a peer sends is bounded before memory is taken for it, and checked
//     before it is believed: sizes, ranges, numbers of options, of
//     connections, of bytes in flight, and the time it takes. Text from a peer
//     is stripped of control characters. Text of a device's errors is not
//     sent to clients.
//   - A unix socket is as open as its directory and mode; the caller makes it.
//
// # Failures
//
// Errors wrap the kinds of package share. A command that the server refuses is
// an [*Error], a negotiation that it refuses a [*NegotiationError]. A lost
// connection is [share.ErrUnavailable], a peer that breaks the protocol
// [share.ErrCorrupt]; both end the client, and nothing is ever sent twice.
package nbd
