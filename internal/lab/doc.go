// Package lab is the laboratory that tests and examples work in: real libvirt
// and QEMU on hosts that are namespaces of this machine, real guests under
// emulation, links that can be cut.
package lab
