package kvm

import (
	"encoding/xml"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"libvirt.org/go/libvirtxml"

	"github.com/vmferry/vmferry/share"
)

const definition = `<domain type='kvm' id='7' xmlns:x='https://example.com/x'>
  <name>a &amp; b</name>
  <uuid>6a0b4a0e-3c2c-4ab5-9e0b-0c0f6e0a1b2c</uuid>
  <memory unit='MiB'>512</memory>
  <vcpu placement='static'>2</vcpu>
  <metadata><x:note><disk>not one</disk></x:note></metadata>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
      <source file='/images/top.qcow2' index='2'/>
      <backingStore type='file' index='1'><format type='raw'/><source file='/images/base.raw'/><backingStore/></backingStore>
      <target dev='vda' bus='virtio'/>
      <serial>S1</serial>
      <address type='pci' domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='nbd' name='x' tls='yes'><host name='10.0.0.1' port='10810'/></source>
      <backingStore/>
      <target dev='vdb' bus='virtio'/>
      <shareable/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/image'><host name='mon'/></source>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <new-device of='2031'><what is='this'/></new-device>
  </devices>
</domain>`

func TestParseGuest(t *testing.T) {
	d, err := parseGuest(definition)
	require.NoError(t, err)
	require.Equal(t, "a & b", d.Name)
	require.Equal(t, 512*share.MiB, d.Memory)
	require.Equal(t, 2, d.VCPUs)
	require.False(t, d.Emulated)
	require.Len(t, d.Disks, 4)
	a, b, c, cd := d.Disks[0], d.Disks[1], d.Disks[2], d.Disks[3]
	require.Equal(t, Disk{Target: "vda", Device: "disk", Serial: "S1", Location: "/images/top.qcow2", Format: share.Qcow2, Backed: true,
		Source: share.Source{Kind: share.Disk, Format: share.Qcow2, File: &share.FileSource{Path: "/images/top.qcow2"}}}, a)
	require.Equal(t, &share.NBDSource{Address: "10.0.0.1:10810", Export: "x", TLS: true}, b.Source.NBD)
	require.True(t, b.Shareable)
	require.False(t, b.Backed)
	require.Equal(t, share.Source{}, c.Source)
	require.Contains(t, c.Location, "rbd:mon/pool/image")
	require.Empty(t, cd.Location)
	require.True(t, cd.ReadOnly)
}

func TestBlockers(t *testing.T) {
	for part, device := range map[string]string{
		"virtiofs": `<filesystem type='mount'><driver type='virtiofs'/><source dir='/x'/><target dir='tag'/></filesystem>`,
		"9p":       `<filesystem type='mount'><source dir='/x'/><target dir='tag'/></filesystem>`,
		"PCI":      `<hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x03' slot='0x00' function='0x0'/></source></hostdev>`,
		"USB":      `<hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/><product id='0xbeef'/></source></hostdev>`,
		"vda":      `<disk type='file'><source file='/x'/><mirror type='file' job='copy'><source file='/y'/></mirror><target dev='vda'/></disk>`,
	} {
		d, err := parseGuest("<domain><devices>" + device + "</devices></domain>")
		require.NoError(t, err)
		require.Len(t, d.Blockers, 1, part)
		require.ErrorContains(t, d.Blockers[0], part)
	}
}

func TestEditDisks(t *testing.T) {
	same, err := editDisks(definition, func(*libvirtxml.DomainDisk) (bool, error) { return false, nil })
	require.NoError(t, err)
	require.Equal(t, definition, same)

	to := share.Source{Kind: share.Disk, Format: share.Raw, File: &share.FileSource{Path: "/new/<odd> & 'name'.raw"}}
	out, err := editDisks(definition, func(d *libvirtxml.DomainDisk) (bool, error) {
		if d.Target.Dev != "vda" {
			return false, nil
		}
		return true, setSource(d, to)
	})
	require.NoError(t, err)
	// The rest is as it was, byte for byte.
	i := strings.Index(definition, "<disk type='file' device='disk'>")
	require.Equal(t, definition[:i], out[:i])
	j := strings.Index(definition, "<disk type='network'")
	require.True(t, strings.HasSuffix(out, definition[j:]))
	d, err := parseGuest(out)
	require.NoError(t, err)
	require.Equal(t, to, d.Disks[0].Source)
	require.False(t, d.Disks[0].Backed)
	require.Equal(t, "S1", d.Disks[0].Serial)
	require.Contains(t, out, "backingStore></backingStore", "libvirt must not look for a chain")
	require.Contains(t, out, `cache="none"`)

	_, err = editDisks("<domain><devices><disk>", nil)
	require.ErrorIs(t, err, share.ErrInvalid)
}

// What is written is read back: no text of a path becomes markup.
func FuzzSetSource(f *testing.F) {
	f.Add("/a")
	f.Add("/a'><source file='/etc/shadow'/>")
	f.Add("/]]>&amp;&#10;\"")
	f.Fuzz(func(t *testing.T, p string) {
		s := share.Source{Kind: share.Disk, Format: share.Raw, File: &share.FileSource{Path: p}}
		out, err := editDisks(definition, func(d *libvirtxml.DomainDisk) (bool, error) {
			return d.Target.Dev == "vda", setSource(d, s)
		})
		if err != nil {
			return
		}
		var whole struct {
			XMLName xml.Name `xml:"domain"`
		}
		require.NoError(t, xml.Unmarshal([]byte(out), &whole))
		d, err := parseGuest(out)
		require.NoError(t, err)
		require.Len(t, d.Disks, 4)
		if strings.ToValidUTF8(p, "") == p && !strings.ContainsAny(p, "\ufffd\ufffe\uffff") {
			require.Equal(t, p, d.Disks[0].Location)
		}
	})
}

func TestYankCommand(t *testing.T) {
	command, some, err := yankCommand(`{"return":[{"type":"chardev","id":"charmonitor"},{"node-name":"migration-vda-storage","type":"block-node"},` +
		`{"node-name":"libvirt-1-storage","type":"block-node"},{"type":"migration"}],"id":"libvirt-6"}`)
	require.NoError(t, err)
	require.True(t, some)
	require.JSONEq(t, `{"execute":"yank","arguments":{"instances":[{"type":"block-node","node-name":"migration-vda-storage"},{"type":"migration"}]}}`, command)
	_, some, err = yankCommand(`{"return":[{"type":"chardev","id":"charmonitor"}]}`)
	require.NoError(t, err)
	require.False(t, some)
	_, _, err = yankCommand(`{`)
	require.ErrorIs(t, err, share.ErrInvalid)
}

func TestParseVolume(t *testing.T) {
	v, err := parseVolume(`<volume type='file'><name>a</name><capacity unit='KiB'>64</capacity><allocation unit='bytes'>512</allocation><target><format type='qcow2'/></target></volume>`)
	require.NoError(t, err)
	require.Equal(t, volume{format: share.Qcow2, size: 64 * share.KiB, allocated: 512}, v)
}
