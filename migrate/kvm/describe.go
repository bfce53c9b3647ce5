package kvm

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vmferry/vmferry/share"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// State is what a guest does.
type State uint8

const (
	UnknownState State = iota
	Absent             // the host knows no such guest
	Running            // its processors run
	Paused             // it has a process, and its processors stand still
	Off                // it is defined and has no process
)

// String is the state's name in lower case.
func (s State) String() string {
	names := [...]string{"unknown", "absent", "running", "paused", "off"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Description is a guest as it was at one moment.
type Description struct {
	Name, UUID string
	State      State
	// Persistent says that the host keeps the guest's definition when it is
	// off, Autostart that it starts the guest when it boots.
	Persistent, Autostart bool
	// Emulated guests have no hardware virtualisation: <domain type='qemu'>.
	Emulated bool
	VCPUs    int
	// Memory is what the guest has at most.
	Memory share.Bytes
	Disks  []Disk
	// Blockers are what forbids to move the guest live, and the remedy; empty
	// for one that may be moved as far as its definition tells.
	Blockers []error
}

// Disk is one disk, floppy or CD-ROM drive of a guest.
type Disk struct {
	Target string // as the guest's definition names it: "vda"
	Device string // "disk", "cdrom", "floppy", "lun"
	Serial string
	// Location says in words where the disk lies; empty for an empty drive.
	Location string
	// Source is set where package share has a word for the place.
	Source share.Source
	Format share.Format
	// Backed disks lie on others: the source is the top of a chain.
	Backed              bool
	ReadOnly, Shareable bool
	// Capacity is the disk's size as the guest sees it, Allocation what it
	// takes on the storage. Both are set for disks that QEMU has open.
	Capacity, Allocation share.Bytes
}

// Describe reads the guest's state and definition. It corresponds to
// virDomainGetState, virDomainGetXMLDesc and virDomainGetBlockInfo.
func (g *Guest) Describe(ctx context.Context) (*Description, error) {
	d, err := readGuest(ctx, g.host, g.uuid, "describe it", func(d *libvirt.Domain) (*Description, error) {
		text, err := d.GetXMLDesc(0)
		if err != nil {
			return nil, err
		}
		desc, err := parseGuest(text)
		if err != nil {
			return nil, err
		}
		state, _, err := d.GetState()
		if err != nil {
			return nil, err
		}
		desc.State = stateOf(state)
		if desc.Persistent, err = d.IsPersistent(); err != nil {
			return nil, err
		}
		if desc.Persistent {
			if desc.Autostart, err = d.GetAutostart(); err != nil {
				return nil, err
			}
		}
		if desc.State != Running && desc.State != Paused {
			return desc, nil
		}
		for i := range desc.Disks {
			disk := &desc.Disks[i]
			if disk.Location == "" {
				continue
			}
			info, err := d.GetBlockInfo(disk.Target, 0)
			if err != nil {
				return nil, err
			}
			disk.Capacity, disk.Allocation = share.Bytes(info.Capacity), share.Bytes(info.Allocation)
		}
		return desc, nil
	})
	return d, share.WrapError("describe", backend, g.name, err)
}

func stateOf(s libvirt.DomainState) State {
	switch s {
	case libvirt.DOMAIN_RUNNING, libvirt.DOMAIN_BLOCKED:
		return Running
	case libvirt.DOMAIN_PAUSED, libvirt.DOMAIN_PMSUSPENDED, libvirt.DOMAIN_SHUTDOWN:
		// One that is shutting down still has its process.
		return Paused
	case libvirt.DOMAIN_SHUTOFF, libvirt.DOMAIN_CRASHED:
		return Off
	}
	return UnknownState
}

// parseGuest reads what a definition says.
func parseGuest(text string) (*Description, error) {
	var dom libvirtxml.Domain
	if err := dom.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("%w: the guest's definition: %w", share.ErrInvalid, err)
	}
	desc := &Description{Name: dom.Name, UUID: dom.UUID, Emulated: dom.Type == "qemu"}
	if dom.VCPU != nil {
		desc.VCPUs = int(dom.VCPU.Value)
	}
	if m := dom.Memory; m != nil {
		unit := share.KiB
		if m.Unit != "" && m.Unit != "KiB" {
			if u, err := share.ParseBytes("1" + m.Unit); err == nil {
				unit = u
			}
		}
		desc.Memory = share.Bytes(m.Value) * unit
	}
	if dom.Devices == nil {
		return desc, nil
	}
	for i := range dom.Devices.Disks {
		disk := &dom.Devices.Disks[i]
		desc.Disks = append(desc.Disks, parseDisk(disk))
		if disk.Mirror != nil {
			desc.Blockers = append(desc.Blockers, fmt.Errorf("a block job on disk %s: the disk %w; wait for it, or end it with virsh blockjob --abort", desc.Disks[i].Target, share.ErrInUse))
		}
	}
	desc.Blockers = append(desc.Blockers, deviceBlockers(dom.Devices)...)
	return desc, nil
}

// deviceBlockers are devices whose state stays in the host.
func deviceBlockers(devices *libvirtxml.DomainDeviceList) []error {
	var all []error
	block := func(what, remedy string) {
		all = append(all, &share.UnsupportedError{What: "moving a running guest with " + what, Reason: remedy})
	}
	for _, f := range devices.Filesystems {
		tag := ""
		if f.Target != nil {
			tag = f.Target.Dir
		}
		if f.Driver != nil && f.Driver.Type == "virtiofs" {
			block(fmt.Sprintf("the virtiofs %q", tag), "unmount and detach it first, and attach it again at the destination")
		} else {
			block(fmt.Sprintf("the 9p file system %q", tag), "9p cannot be unplugged: use a network file system in the guest, or shut it down to move it")
		}
	}
	for _, h := range devices.Hostdevs {
		kind := "host device"
		switch {
		case h.SubsysPCI != nil:
			kind = "PCI device of the host"
		case h.SubsysUSB != nil:
			kind = "USB device of the host"
		case h.SubsysSCSI != nil:
			kind = "SCSI device of the host"
		case h.SubsysMDev != nil:
			kind = "mediated device of the host"
		}
		block("a "+kind, "detach it first, and attach one at the destination")
	}
	return all
}

func parseDisk(d *libvirtxml.DomainDisk) Disk {
	out := Disk{Device: d.Device, Serial: d.Serial, ReadOnly: d.ReadOnly != nil, Shareable: d.Shareable != nil}
	if out.Device == "" {
		out.Device = "disk"
	}
	if d.Target != nil {
		out.Target = d.Target.Dev
	}
	if d.Driver != nil {
		out.Format = share.Format(d.Driver.Type)
	}
	if b := d.BackingStore; b != nil && (b.Format != nil || b.Source != nil && !emptySource(b.Source)) {
		out.Backed = true
	}
	if d.Source == nil || emptySource(d.Source) {
		return out
	}
	out.Location = locate(d.Source)
	out.Source = sourceOf(d.Source, out.Format, out.ReadOnly)
	return out
}

func emptySource(s *libvirtxml.DomainDiskSource) bool { return locate(s) == "" }

// locate names the place of a disk for a reader.
func locate(s *libvirtxml.DomainDiskSource) string {
	switch {
	case s.File != nil:
		return s.File.File
	case s.Block != nil:
		return s.Block.Dev
	case s.Dir != nil:
		return s.Dir.Dir
	case s.Volume != nil:
		return "volume " + s.Volume.Pool + "/" + s.Volume.Volume
	case s.NVME != nil:
		return "an NVMe device of the host"
	case s.VHostUser != nil:
		return "a vhost-user server"
	case s.VHostVDPA != nil:
		return "a vhost-vdpa device"
	case s.Network != nil:
		hosts := make([]string, len(s.Network.Hosts))
		for i, h := range s.Network.Hosts {
			hosts[i] = h.Name
			if h.Socket != "" {
				hosts[i] = h.Socket
			} else if h.Port != "" {
				hosts[i] = net.JoinHostPort(h.Name, h.Port)
			}
		}
		return s.Network.Protocol + ":" + strings.Join(hosts, ",") + "/" + s.Network.Name
	}
	return ""
}

// sourceOf is the zero Source where package share has no word for the place.
func sourceOf(s *libvirtxml.DomainDiskSource, format share.Format, readOnly bool) share.Source {
	out := share.Source{Kind: share.Disk, Format: format, ReadOnly: readOnly}
	switch n := s.Network; {
	case s.File != nil:
		out.File = &share.FileSource{Path: s.File.File}
	case s.Block != nil:
		out.File = &share.FileSource{Path: s.Block.Dev, Block: true}
	case n != nil && n.Protocol == "nbd" && len(n.Hosts) == 1:
		out.NBD = &share.NBDSource{Address: n.Hosts[0].Socket, Export: n.Name, TLS: n.TLS == "yes"}
		if out.NBD.Address == "" {
			port := n.Hosts[0].Port
			if port == "" {
				port = "10809"
			}
			out.NBD.Address = net.JoinHostPort(n.Hosts[0].Name, port)
		}
	}
	if out.Check() != nil {
		return share.Source{}
	}
	return out
}

// disk finds a disk by its target.
func (d *Description) disk(target string) *Disk {
	if i := slices.IndexFunc(d.Disks, func(k Disk) bool { return k.Target == target }); i >= 0 {
		return &d.Disks[i]
	}
	return nil
}
