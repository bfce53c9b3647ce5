package lab

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
	"text/template"
)

// domainParams is what the template of a domain is filled with.
type domainParams struct {
	GuestOptions
	Image  *guestImage
	Direct bool
	Addr   string
	MAC    string
}

// The type is qemu: guests are emulated, whatever the machine could do. The
// machine and the processor are fixed, so that guests move between versions of
// QEMU. The processor is the oldest with the CRC instruction, which the
// workload lives on, and with random numbers from the first moment, which a
// guest waits a second for otherwise. Eight root ports are for disks that are plugged in later.
const domainTemplate = `<domain type='qemu'>
  <name>{{xml .Name}}</name>
  <uuid>{{xml .UUID}}</uuid>
  <memory unit='MiB'>{{.Memory}}</memory>
  <vcpu>{{.VCPUs}}</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>{{xml .Image.Kernel}}</kernel>
    <initrd>{{xml .Image.Initrd}}</initrd>
    <cmdline>{{xml .CommandLine}}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>Nehalem</model><feature policy='require' name='rdrand'/></cpu>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
{{- range .Ports}}
    <controller type='pci' index='{{.}}' model='pcie-root-port'/>
{{- end}}
    <controller type='usb' model='none'/>
{{- range $i, $d := .Disks}}
    <disk type='file' device='disk'>
      <driver name='qemu' type='{{xml $d.Format}}' {{$.Cache}} discard='unmap'/>
      <source file='{{xml $d.Path}}'/>
      <target dev='vd{{letter $i}}' bus='virtio'/>
      <serial>{{xml $d.Serial}}</serial>
    </disk>
{{- end}}
    <interface type='bridge'>
      <mac address='{{.MAC}}'/>
      <source bridge='br0'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <serial type='file'>
      <source path='/var/log/libvirt/qemu/{{xml .Name}}-console.log' append='on'/>
    </serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/>
    <video><model type='none'/></video>
  </devices>
</domain>
`

func domainXML(p *domainParams) (string, error) {
	t, err := template.New("domain").Funcs(template.FuncMap{
		"xml": func(s string) (string, error) {
			var b bytes.Buffer
			err := xml.EscapeText(&b, []byte(s))
			return b.String(), err
		},
		"letter": func(i int) string { return string(rune('a' + i)) },
	}).Parse(domainTemplate)
	if err != nil {
		return "", fmt.Errorf("lab: domain template: %w", err)
	}
	if len(p.Disks) > 8 {
		return "", fmt.Errorf("lab: %s: more than eight disks", p.Name)
	}
	var b strings.Builder
	if err := t.Execute(&b, p); err != nil {
		return "", fmt.Errorf("lab: domain template: %w", err)
	}
	return b.String(), nil
}

// Ports are the indexes of the root ports: one per device and eight to spare.
func (p *domainParams) Ports() []int {
	ports := make([]int, 8+4+len(p.Disks))
	for i := range ports {
		ports[i] = i + 1
	}
	return ports
}

// Cache is how QEMU opens the disks.
func (p *domainParams) Cache() string {
	if p.Direct {
		return "cache='none' io='native'"
	}
	return "cache='writeback' io='threads'"
}

// CommandLine is the kernel's, the workload's parameters behind its own.
func (p *domainParams) CommandLine() string {
	words := []string{
		"console=ttyS0", "quiet", "panic=-1", "mitigations=off", "nokaslr", "tsc=reliable", "random.trust_cpu=on",
		"no_timer_check", "cryptomgr.notests", "rcupdate.rcu_expedited=1", "lsm=capability", "audit=0",
		"vmferry.guest=" + p.UUID,
		"vmferry.addr=" + p.Addr + "/16",
		"vmferry.beat=" + bridgeAddr + "," + bridgeMAC,
		fmt.Sprintf("vmferry.memory=%d", p.Region),
		fmt.Sprintf("vmferry.dirty=%d", p.Dirty),
	}
	for _, d := range p.Disks {
		words = append(words, fmt.Sprintf("vmferry.disk=%s,%d,%d,%d,%d", d.Serial, d.Writes, d.Block, d.Slots, d.Span))
	}
	return strings.Join(append(words, p.KernelArgs...), " ")
}
