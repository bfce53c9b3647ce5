package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// timed runs a program and returns how long it took.
func timed(ctx context.Context, name string, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", name, err, lastLine(stderr.String()))
	}
	return time.Since(begin), nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// process is a program that runs beside: a server, or a child of ours.
type process struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	stdout *bufio.Reader
	stderr bytes.Buffer
	killed bool
}

func start(ctx context.Context, name string, args ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, name, args...)}
	p.cmd.Stderr = &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.stdin, p.stdout = in, bufio.NewReader(out)
	return p, p.cmd.Start()
}

// startChild runs this program in a part of a child; see child.
func startChild(ctx context.Context, part string, config any) (*process, error) {
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return start(ctx, self, "child", part, string(text))
}

// answer reads the next line that the child says, as JSON.
func (p *process) answer(v any) error {
	line, err := p.stdout.ReadBytes('\n')
	if err != nil {
		return errors.Join(fmt.Errorf("the child says nothing more: %w", err), p.wait())
	}
	return json.Unmarshal(line, v)
}

// wait waits for the end.
func (p *process) wait() error {
	p.stdin.Close()
	if err := p.cmd.Wait(); err != nil && !p.killed {
		return fmt.Errorf("%s: %w: %s", p.cmd.Args[0], err, lastLine(p.stderr.String()))
	}
	return nil
}

// kill ends the process with SIGKILL.
func (p *process) kill() {
	p.killed = true
	_ = p.cmd.Process.Kill()
}

// stop ends a server, and waits for it.
func (p *process) stop() {
	p.killed = true
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	end := time.AfterFunc(5*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer end.Stop()
	_ = p.wait()
}

// peakMemory is the most memory that the ended process had resident, in MiB.
func (p *process) peakMemory() float64 {
	return float64(p.cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) / 1024
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}

// fileSystem is the name of the file system at path.
func fileSystem(path string) string {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return "unknown file system"
	}
	names := map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs"}
	if n, ok := names[int64(st.Type)]; ok {
		return n
	}
	return fmt.Sprintf("file system %#x", st.Type)
}
