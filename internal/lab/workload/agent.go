//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	agentPath = "/usr/sbin/qemu-ga"
	agentPort = "org.qemu.guest_agent.0"
)

// superviseAgent keeps the guest agent running where the guest has its port,
// and reaps what is orphaned, as PID 1 must.
func superviseAgent() {
	agent := 0
	for {
		if agent == 0 {
			agent = startAgent()
		}
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil: // no children
			time.Sleep(time.Second)
		case pid == agent:
			say("agent ended with status %d", status)
			agent = 0
			time.Sleep(time.Second)
		}
	}
}

func startAgent() int {
	if _, err := os.Stat(agentPath); err != nil {
		return 0
	}
	ports, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, p := range ports {
		if name, err := os.ReadFile(p); err != nil || strings.TrimSpace(string(name)) != agentPort {
			continue
		}
		device := "/dev/" + filepath.Base(filepath.Dir(p))
		pid, err := syscall.ForkExec(agentPath, []string{"qemu-ga", "-m", "virtio-serial", "-p", device, "-t", "/run"},
			&syscall.ProcAttr{Env: []string{"PATH=/sbin:/bin:/usr/sbin:/usr/bin"}, Files: []uintptr{0, 1, 2}})
		if err != nil {
			say("agent: %v", err)
			return 0
		}
		return pid
	}
	return 0
}
