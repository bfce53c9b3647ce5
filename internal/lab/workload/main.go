//go:build linux

// Command workload is PID 1 of the lab's guests. It loads the modules of its
// initramfs, brings up the network and the guest agent, and then works as the
// kernel command line says: it writes numbered blocks to disks, dirties and
// verifies memory, and sends out a heartbeat every 10 ms that says how far it
// has got. It uses the standard library alone.
//
//	vmferry.guest=UUID            identity in the heartbeat
//	vmferry.addr=10.77.1.1/16     address of eth0
//	vmferry.beat=ADDRESS,MAC      where heartbeats go, no ARP asked
//	vmferry.memory=BYTES          memory under test
//	vmferry.dirty=BYTES           memory rewritten per second
//	vmferry.disk=SERIAL,RATE,BLOCK,SLOTS,SPAN
//	                              blocks per second on that disk, its ring, and
//	                              the bytes it spreads over (0: the whole disk)
//
// Started under the name shutdown, as the guest agent does, it turns the guest
// off.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

func main() {
	if filepath.Base(os.Args[0]) == "shutdown" {
		shutdown(os.Args[1:])
		return
	}
	if err := run(); err != nil {
		say("%v", err)
		select {} // the console keeps the reason; the missing heartbeat tells
	}
}

func run() error {
	if err := mounts(); err != nil {
		return err
	}
	c, err := readConfig("/proc/cmdline")
	if err != nil {
		return err
	}
	// A goroutine that computes must not keep the heartbeat from its thread.
	runtime.GOMAXPROCS(4 + len(c.disks))
	if err := loadModules("/modules"); err != nil {
		return err
	}
	state := newState(c)
	sender, err := newSender(c)
	if err != nil {
		return err
	}
	memory, err := newMemory(c)
	if err != nil {
		return err
	}
	for i := range c.disks {
		d, err := openDisk(&c.disks[i], state.instance)
		if err != nil {
			return err
		}
		state.disks[i].start(d)
		go d.run(&state.disks[i])
	}
	go memory.run(&state.memory)
	go sender.run(state)
	say("works")
	superviseAgent() // never returns: PID 1 reaps
	return nil
}

func mounts() error {
	for _, m := range []struct{ fs, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.fs, m.at, m.fs, 0, ""); err != nil && err != syscall.EBUSY {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

func shutdown(args []string) {
	how := syscall.LINUX_REBOOT_CMD_POWER_OFF
	for _, a := range args {
		switch a {
		case "-r":
			how = syscall.LINUX_REBOOT_CMD_RESTART
		case "-H":
			how = syscall.LINUX_REBOOT_CMD_HALT
		}
	}
	syscall.Sync()
	if err := syscall.Reboot(how); err != nil {
		say("reboot: %v", err)
	}
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "workload: "+format+"\n", args...)
}
