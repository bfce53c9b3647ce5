package kvm

import (
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/vmferry/vmferry/share"
	"libvirt.org/go/libvirtxml"
)

// editDisks returns a guest's definition with the disks that edit changes
// written anew, and every other byte as it was: what this package does not know
// goes over untouched.
func editDisks(text string, edit func(*libvirtxml.DomainDisk) (bool, error)) (string, error) {
	dec := xml.NewDecoder(strings.NewReader(text))
	var path []string
	var out strings.Builder
	copied, begin := int64(0), int64(0)
	for {
		before := dec.InputOffset()
		token, err := dec.RawToken()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", fmt.Errorf("%w: the guest's definition: %w", share.ErrInvalid, err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			path = append(path, t.Name.Local)
			if isDisk(path) {
				begin = before
			}
		case xml.EndElement:
			was := isDisk(path)
			path = path[:max(0, len(path)-1)]
			if !was {
				continue
			}
			end := dec.InputOffset()
			var disk libvirtxml.DomainDisk
			if err := disk.Unmarshal(text[begin:end]); err != nil {
				return "", fmt.Errorf("%w: a disk of the guest's definition: %w", share.ErrInvalid, err)
			}
			changed, err := edit(&disk)
			if err != nil {
				return "", err
			}
			if !changed {
				continue
			}
			written, err := disk.Marshal()
			if err != nil {
				return "", err
			}
			out.WriteString(text[copied:begin])
			out.WriteString(written)
			copied = end
		}
	}
	if len(path) > 0 {
		return "", fmt.Errorf("%w: the guest's definition ends within <%s>", share.ErrInvalid, path[len(path)-1])
	}
	out.WriteString(text[copied:])
	return out.String(), nil
}

func isDisk(path []string) bool {
	return len(path) == 3 && path[0] == "domain" && path[1] == "devices" && path[2] == "disk"
}

// setSource points a disk at another place and format, which is the whole of
// its chain.
func setSource(d *libvirtxml.DomainDisk, s share.Source) error {
	if err := s.Check(); err != nil {
		return err
	}
	if s.Kind != share.Disk {
		return fmt.Errorf("%w: a guest's disk needs the source of a disk, not of a %v", share.ErrInvalid, s.Kind)
	}
	source := &libvirtxml.DomainDiskSource{}
	if old := d.Source; old != nil {
		source.StartupPolicy, source.Encryption, source.Reservations = old.StartupPolicy, old.Encryption, old.Reservations
	}
	switch {
	case s.File != nil && s.File.Block:
		source.Block = &libvirtxml.DomainDiskSourceBlock{Dev: s.File.Path}
	case s.File != nil:
		source.File = &libvirtxml.DomainDiskSourceFile{File: s.File.Path}
	case s.NBD != nil:
		n := &libvirtxml.DomainDiskSourceNetwork{Protocol: "nbd", Name: s.NBD.Export}
		if s.NBD.TLS {
			n.TLS = "yes"
		}
		if strings.HasPrefix(s.NBD.Address, "/") {
			n.Hosts = []libvirtxml.DomainDiskSourceHost{{Transport: "unix", Socket: s.NBD.Address}}
		} else {
			host, port, err := net.SplitHostPort(s.NBD.Address)
			if err != nil {
				return fmt.Errorf("%w: %w", share.ErrInvalid, err)
			}
			n.Hosts = []libvirtxml.DomainDiskSourceHost{{Name: host, Port: port}}
		}
		source.Network = n
	}
	d.Source = source
	d.BackingStore = &libvirtxml.DomainDiskBackingStore{}
	if d.Driver == nil {
		d.Driver = &libvirtxml.DomainDiskDriver{Name: "qemu"}
	}
	d.Driver.Type = string(s.Format)
	return nil
}
