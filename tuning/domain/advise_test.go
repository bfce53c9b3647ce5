package domain_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/tuning"
	"github.com/vmferry/vmferry/tuning/domain"
)

const slow = `<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>db</name>
  <uuid>6c0e7c4e-6d1b-4d5e-9f43-3f5f2c3c9a10</uuid>
  <metadata><a:x xmlns:a="http://example.org/a">kept</a:x></metadata>
  <memory unit='KiB'>4194304</memory>
  <vcpu placement='static'>4</vcpu>
  <os><type arch='x86_64' machine='pc-q35-9.0'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='unsafe' queues='16'/>
      <source file='/srv/a.qcow2'/>
      <target dev='vda' bus='virtio'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none' io='threads' discard='unmap'/>
      <source dev='/dev/vg/b'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/srv/c.raw'/>
      <target dev='sda' bus='sata'/>
      <address type='drive' controller='0' bus='0' target='0' unit='0'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <target dev='sdb' bus='sata'/>
      <readonly/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:01'/>
      <source bridge='br0'/>
      <model type='e1000'/>
    </interface>
    <filesystem type='mount' accessmode='passthrough'>
      <driver type='virtiofs'/>
      <source dir='/srv/share'/>
      <target dir='share'/>
    </filesystem>
  </devices>
  <qemu:commandline><qemu:arg value='-no-hpet'/></qemu:commandline>
</domain>
`

func advise(t *testing.T, xml string, o *domain.Options) *domain.Advice {
	t.Helper()
	a, err := domain.Advise(xml, o)
	require.NoError(t, err)
	return a
}

func knobs(changes []domain.Change) (out []string) {
	for _, c := range changes {
		out = append(out, c.Knob+" "+c.Where+" "+c.From+">"+c.To)
	}
	return out
}

func TestAdvise(t *testing.T) {
	a := advise(t, slow, nil)
	require.Equal(t, []string{
		"guest.disk-cache disk vda unsafe>none", "guest.disk-io disk vda >native", "guest.disk-discard disk vda >unmap",
		"guest.disk-detect-zeroes disk vda >unmap", "guest.disk-queues disk vda 16>4",
		"guest.disk-io disk vdb threads>native", "guest.disk-detect-zeroes disk vdb >unmap",
		"guest.disk-cache disk sda >none", "guest.disk-io disk sda >native", "guest.disk-discard disk sda >unmap", "guest.disk-detect-zeroes disk sda >unmap",
		"guest.iothreads domain 0>1", "guest.disk-iothread disk vda >1", "guest.disk-iothread disk vdb >1",
		"guest.shared-memory domain private>shared",
	}, knobs(a.Changes))
	require.Equal(t, []string{"guest.disk-bus disk sda sata>virtio", "guest.nic-model interface 52:54:00:00:00:01 e1000>virtio"}, knobs(a.Notes))
	require.Equal(t, tuning.Harm, a.Changes[0].Severity)
	for _, c := range append(a.Changes, a.Notes...) {
		require.NotEmpty(t, c.Reason, c.Knob)
		require.NotEmpty(t, c.Source, c.Knob)
	}
	require.Contains(t, a.XML, "kept")
	require.Contains(t, a.XML, "-no-hpet")
	require.Contains(t, a.XML, `memfd`)

	l := advise(t, slow, &domain.Options{Class: tuning.Latency, Devices: true, HugePages: true, Node: new(int)})
	require.Empty(t, l.Notes)
	got := knobs(l.Changes)
	require.Contains(t, got, "guest.iothreads domain 0>3")
	require.Contains(t, got, "guest.disk-iothread disk vdc >3", "the third has become one of virtio's")
	require.Contains(t, got, "guest.nic-queues interface 52:54:00:00:00:01 1>4")
	require.Contains(t, got, "guest.hugepages domain no>yes")
	require.Contains(t, got, "guest.numa domain any>0")
	require.NotContains(t, l.XML, "detect_zeroes")
	require.NotContains(t, l.XML, "sata'/>\n      <source file")
}

// Of a diff one side is the old text and the other the new, and every line that
// came has a reason.
func TestDiff(t *testing.T) {
	for _, c := range tuning.Classes() {
		for _, devices := range []bool{false, true} {
			a := advise(t, slow, &domain.Options{Class: c, Devices: devices, HugePages: devices})
			var before, after []string
			for _, l := range a.Diff {
				if l.Op != "+" {
					before = append(before, l.Text)
					require.Empty(t, l.Reasons)
				} else {
					require.NotEmpty(t, l.Reasons, l.Text)
				}
				if l.Op != "-" {
					after = append(after, l.Text)
				}
			}
			require.Equal(t, a.XML, strings.Join(after, "\n"))
			again := advise(t, strings.Join(before, "\n"), &domain.Options{Class: c, Devices: devices, HugePages: devices})
			require.Equal(t, a.XML, again.XML, "the old side is the old definition")
			// Advised once, there is nothing left to say.
			require.Empty(t, advise(t, a.XML, &domain.Options{Class: c, Devices: devices, HugePages: devices}).Changes)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, bad := range []string{"", "x", "<domain", "<network/>", "<domain><name>a</domain>", strings.Repeat("<a>", 1000), strings.Repeat(" ", 2<<20)} {
		_, err := domain.Advise(bad, nil)
		require.ErrorIs(t, err, share.ErrInvalid, "%.20q", bad)
	}
	_, err := domain.Advise(strings.Replace(slow, "<emulator>", "<newthing speed='11'/><emulator>", 1), nil)
	require.ErrorIs(t, err, errors.ErrUnsupported)
	require.ErrorContains(t, err, "newthing")
	_, err = domain.Advise(slow, &domain.Options{Class: 99})
	require.ErrorIs(t, err, share.ErrInvalid)
	node := -1
	_, err = domain.Advise(slow, &domain.Options{Node: &node})
	require.ErrorIs(t, err, share.ErrInvalid)
}

// Whatever is advised on stays a definition, and advice on it comes to an end.
func FuzzAdvise(f *testing.F) {
	f.Add(slow)
	f.Add("<domain type='kvm'><devices><disk><target dev='vda'/></disk></devices></domain>")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := domain.Advise(s, &domain.Options{Class: tuning.Latency, Devices: true, HugePages: true})
		if err != nil {
			return
		}
		again, err := domain.Advise(a.XML, &domain.Options{Class: tuning.Latency, Devices: true, HugePages: true})
		if err != nil {
			t.Fatalf("its own text: %v", err)
		}
		if len(again.Changes) > 0 && again.XML == a.XML {
			t.Fatalf("changes that change nothing: %+v", again.Changes)
		}
	})
}
