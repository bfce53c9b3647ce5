package domain

import (
	"fmt"
	"strconv"

	"libvirt.org/go/libvirtxml"

	"github.com/vmferry/vmferry/tuning"
)

// disks advises on every disk, and on the threads for them.
func (a *adviser) disks() {
	var virtio []*libvirtxml.DomainDisk
	for i := range a.dom.Devices.Disks {
		d := &a.dom.Devices.Disks[i]
		if d.Device != "" && d.Device != "disk" || d.Target == nil {
			continue // a CD-ROM is not worth it
		}
		a.disk(d)
		if d.Target.Bus == "virtio" && d.ReadOnly == nil {
			virtio = append(virtio, d)
		}
	}
	a.threads(virtio)
}

func (a *adviser) disk(d *libvirtxml.DomainDisk) {
	where := "disk " + d.Target.Dev
	if bus := d.Target.Bus; bus != "virtio" && bus != "scsi" && bus != "" {
		a.change("disk-bus", where, bus, "virtio", "", a.o.Devices, func() { a.toVirtio(d) })
	}
	if d.Driver == nil {
		d.Driver = &libvirtxml.DomainDiskDriver{Name: "qemu"}
	}
	p := d.Driver
	if p.Cache != "none" && p.Cache != "directsync" {
		a.change("disk-cache", where, p.Cache, "none", "", true, func() { p.Cache = "none" })
	}
	// Where the source is a socket, io means nothing.
	if d.Source != nil && (d.Source.File != nil || d.Source.Block != nil) && p.IO != "native" && a.is(tuning.Latency, tuning.Throughput, tuning.Mixed) {
		a.change("disk-io", where, p.IO, "native", "", true, func() { p.IO = "native" })
	}
	if d.ReadOnly == nil && p.Discard != "unmap" && a.is(tuning.Mixed, tuning.Throughput, tuning.SharedFiles, tuning.InGuest) {
		a.change("disk-discard", where, p.Discard, "unmap", "", true, func() { p.Discard = "unmap" })
	}
	switch {
	case d.ReadOnly != nil:
	case a.is(tuning.Mixed) && p.DetectZeros != "unmap":
		a.change("disk-detect-zeroes", where, p.DetectZeros, "unmap", "", true, func() { p.DetectZeros = "unmap" })
	case a.is(tuning.Latency) && p.DetectZeros != "" && p.DetectZeros != "off":
		a.change("disk-detect-zeroes", where, p.DetectZeros, "off", "looking at every write for zeros costs time on each", true, func() { p.DetectZeros = "off" })
	}
	// Without a number there is one per processor.
	if n := a.vcpus(); p.Queues != nil && *p.Queues > n {
		a.change("disk-queues", where, strconv.Itoa(int(*p.Queues)), strconv.Itoa(int(n)), "more queues than processors are memory and interrupts for nothing", true, func() { p.Queues = &n })
	}
}

// toVirtio gives a disk virtio's bus, and a name that is free there.
func (a *adviser) toVirtio(d *libvirtxml.DomainDisk) {
	taken := map[string]bool{}
	for _, other := range a.dom.Devices.Disks {
		if other.Target != nil {
			taken[other.Target.Dev] = true
		}
	}
	for c := 'a'; c <= 'z'; c++ {
		if name := "vd" + string(c); !taken[name] {
			d.Target.Dev, d.Target.Bus, d.Target.RotationRate = name, "virtio", 0
			d.Address, d.Alias = nil, nil // of the old controller
			return
		}
	}
	a.err = fmt.Errorf("disk %s: no name for it is left among virtio disks", d.Target.Dev)
}

// threads gives disks threads of their own: each its own for latency and
// throughput, one for all where many guests share a host.
func (a *adviser) threads(disks []*libvirtxml.DomainDisk) {
	const most = 4 // more compete with the guest's processors
	var without []*libvirtxml.DomainDisk
	used := uint(0)
	for _, d := range disks {
		switch {
		case d.Driver.IOThread != nil:
			used = max(used, *d.Driver.IOThread)
		case d.Driver.IOThreads == nil:
			without = append(without, d)
		}
	}
	if len(without) == 0 || !a.is(tuning.Latency, tuning.Throughput, tuning.Mixed) || a.dom.IOThreadIDs != nil {
		return // with numbers of his own the administrator has a plan
	}
	each := !a.is(tuning.Mixed)
	want := uint(1)
	if each {
		want = min(most, used+uint(len(without)))
	}
	if a.dom.IOThreads < want {
		a.change("iothreads", "domain", strconv.Itoa(int(a.dom.IOThreads)), strconv.Itoa(int(want)), "", true, func() { a.dom.IOThreads = want })
	}
	for i, d := range without {
		id := uint(1)
		if each {
			id = (used+uint(i))%a.dom.IOThreads + 1
		}
		a.change("disk-iothread", "disk "+d.Target.Dev, "", strconv.Itoa(int(id)), "", true, func() { d.Driver.IOThread = &id })
	}
}

func (a *adviser) network(n *libvirtxml.DomainInterface, i int) {
	where := fmt.Sprintf("interface %d", i)
	if n.MAC != nil {
		where = "interface " + n.MAC.Address
	}
	if n.Model == nil {
		return // what the machine has, or a device of the host's
	}
	switch n.Model.Type {
	case "e1000", "e1000e", "rtl8139", "ne2k_pci", "pcnet":
		a.change("nic-model", where, n.Model.Type, "virtio", "", a.o.Devices, func() { n.Model.Type = "virtio"; n.Address = nil })
	}
	// Several queues need vhost, which user-mode networks have not.
	kernel := n.Source != nil && (n.Source.Bridge != nil || n.Source.Network != nil || n.Source.Direct != nil)
	if v := min(8, a.vcpus()); v > 1 && kernel && n.Model.Type == "virtio" && a.is(tuning.Latency, tuning.Throughput) && (n.Driver == nil || n.Driver.Queues == 0) {
		a.change("nic-queues", where, "1", strconv.Itoa(int(v)), "", true, func() {
			if n.Driver == nil {
				n.Driver = &libvirtxml.DomainInterfaceDriver{}
			}
			n.Driver.Queues = v
		})
	}
}

// memory advises on where the guest's memory comes from.
func (a *adviser) memory() {
	backing := func() *libvirtxml.DomainMemoryBacking {
		if a.dom.MemoryBacking == nil {
			a.dom.MemoryBacking = &libvirtxml.DomainMemoryBacking{}
		}
		return a.dom.MemoryBacking
	}
	b := a.dom.MemoryBacking
	if a.is(tuning.Latency) && (b == nil || b.MemoryHugePages == nil) {
		a.change("hugepages", "domain", "no", "yes", "", a.o.HugePages, func() { backing().MemoryHugePages = &libvirtxml.DomainMemoryHugepages{} })
	}
	if a.virtiofs() && (b == nil || b.MemoryAccess == nil || b.MemoryAccess.Mode != "shared") {
		a.change("shared-memory", "domain", "private", "shared", "virtiofs reads requests straight from the guest's memory, and does not start without", true, func() {
			m := backing()
			m.MemoryAccess = &libvirtxml.DomainMemoryAccess{Mode: "shared"}
			if m.MemorySource == nil && m.MemoryHugePages == nil {
				m.MemorySource = &libvirtxml.DomainMemorySource{Type: "memfd"}
			}
		})
	}
	if a.o.Node != nil && a.dom.NUMATune == nil {
		node := strconv.Itoa(*a.o.Node)
		a.change("numa", "domain", "any", node, "", true, func() {
			a.dom.NUMATune = &libvirtxml.DomainNUMATune{Memory: &libvirtxml.DomainNUMATuneMemory{Mode: "strict", Nodeset: node}}
		})
	}
}

func (a *adviser) virtiofs() bool {
	if a.dom.Devices == nil {
		return false
	}
	for _, f := range a.dom.Devices.Filesystems {
		if f.Driver != nil && f.Driver.Type == "virtiofs" {
			return true
		}
	}
	return false
}
