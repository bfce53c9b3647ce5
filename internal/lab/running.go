package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Process is a QEMU process of a guest.
type Process struct {
	Host *Host
	PID  int // outside of the host
}

// Processes are the guest's QEMU processes on all hosts, whatever libvirt says
// of them. While a guest migrates there are two, of which one waits.
func (l *Lab) Processes(g *Guest) ([]Process, error) {
	byNamespace := map[string]*Host{}
	for _, h := range l.hosts {
		m, err := h.powered()
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", m.pid)); err == nil {
			byNamespace[ns] = h
		}
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	var found []Process
	for _, dir := range all {
		// Processes come and go: one that cannot be read is none.
		ns, err := os.Readlink(dir + "/ns/pid")
		if err != nil || byNamespace[ns] == nil {
			continue
		}
		args, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !bytes.Contains(args, []byte("\x00-uuid\x00"+g.UUID+"\x00")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			found = append(found, Process{Host: byNamespace[ns], PID: pid})
		}
	}
	return found, nil
}

// Running are the hosts on which the guest's processors run: those that have a
// QEMU process for it and whose libvirt calls it running, not paused. It fails
// where such a host's libvirtd does not answer.
func (l *Lab) Running(ctx context.Context, g *Guest) ([]*Host, error) {
	processes, err := l.Processes(g)
	if err != nil {
		return nil, err
	}
	var hosts []*Host
	for _, p := range processes {
		state, err := p.Host.Virsh(ctx, "domstate", g.UUID)
		if err != nil {
			return nil, err
		}
		if state == "running" {
			hosts = append(hosts, p.Host)
		}
	}
	return hosts, nil
}

// KillQEMU kills the guest's QEMU on the host with SIGKILL and returns when it
// is gone.
func (h *Host) KillQEMU(ctx context.Context, g *Guest) error {
	find := func() ([]Process, error) {
		all, err := h.lab.Processes(g)
		var here []Process
		for _, p := range all {
			if p.Host == h {
				here = append(here, p)
			}
		}
		return here, err
	}
	here, err := find()
	if err != nil {
		return err
	}
	if len(here) == 0 {
		return fmt.Errorf("lab: %s has no QEMU process of %s", h.name, g.Name)
	}
	for _, p := range here {
		fd, err := unix.PidfdOpen(p.PID, 0)
		if err != nil {
			continue // ended by itself
		}
		err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		unix.Close(fd)
		if err != nil && err != unix.ESRCH {
			return fmt.Errorf("lab: kill QEMU of %s: %w", g.Name, err)
		}
	}
	return poll(ctx, "the end of "+g.Name+"'s QEMU", func() (bool, error) {
		here, err := find()
		return len(here) == 0, err
	})
}
