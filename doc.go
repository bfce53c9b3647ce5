// Package vmferry is the front page of an embeddable SDK for KVM. It holds no
// code; import what you need:
//
//   - [github.com/vmferry/vmferry/share] is the contract between storage and
//     those who use it: one small Share interface, what a backend can besides
//     as data, and [github.com/vmferry/vmferry/share/local], the directory of
//     this host, as the embedded default.
//   - [github.com/vmferry/vmferry/migrate] moves disks that are being written:
//     dirty blocks are tracked, leased and acknowledged, both sides are
//     compared, and authority over the guest is handed over so that never two
//     copies run.
//   - [github.com/vmferry/vmferry/migrate/kvm] moves running libvirt guests.
//     It needs cgo; nothing else here does.
//   - [github.com/vmferry/vmferry/migrate/nbd] is an NBD client and server:
//     any device to and from QEMU.
//
// It is a library: no daemon, no global state, nothing printed. README.md has
// the first steps, ARCHITECTURE.md the reasons.
package vmferry
