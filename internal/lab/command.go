package lab

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Commands on a host are children of its PID 1, as they should be: entering a
// PID namespace from outside leaves orphans whose parent is out of the host's
// sight, and the host's end would wait for that to reap them. What the lab's
// program starts is a stand-in, which hands its arguments and its standard
// files to PID 1 and ends as the command does. The connection between them ends
// the command when the stand-in is killed.

// commandSocket is what PID 1 listens on, below a directory that both see.
const commandSocket = "lab-exec"

// command is the request of a stand-in. Its standard files come before, with
// the single byte that carries them.
type command struct {
	Args, Env []string
}

// outcome is PID 1's answer when the command has ended.
type outcome struct {
	Code  int
	Error string
}

// Command is a command inside the host: in all its namespaces, so that it sees
// the host's network, files and processes, and dies with the host's power. Its
// input, output and context are exec's; signals other than SIGKILL are not
// passed on. Killed, it takes its whole process group along. Its directory is
// the root, whatever Dir says, and it has no ExtraFiles.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	if _, err := h.powered(); err != nil {
		cmd.Err = err
		return cmd
	}
	cmd.Args = append([]string{execArg, filepath.Join(h.dir, "run", commandSocket), name}, args...)
	return cmd
}

// enterHost is the stand-in: args are the socket and the command.
func enterHost(args []string) (int, error) {
	const failed = 127
	if len(args) < 2 {
		return failed, errors.New("nothing to execute")
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: args[0], Net: "unix"})
	if err != nil {
		return failed, fmt.Errorf("host's PID 1: %w", err)
	}
	defer c.Close()
	if _, _, err := c.WriteMsgUnix([]byte{0}, unix.UnixRights(0, 1, 2), nil); err != nil {
		return failed, fmt.Errorf("host's PID 1: %w", err)
	}
	if err := gob.NewEncoder(c).Encode(command{Args: args[1:], Env: os.Environ()}); err != nil {
		return failed, fmt.Errorf("host's PID 1: %w", err)
	}
	var o outcome
	if err := gob.NewDecoder(c).Decode(&o); err != nil {
		return failed, fmt.Errorf("host is gone: %w", err)
	}
	if o.Error != "" {
		return failed, errors.New(o.Error)
	}
	return o.Code, nil
}

// serve takes commands, at PID 1.
func (c *children) serve() error {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join("/run/libvirt", commandSocket), Net: "unix"})
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				var o outcome
				if o.Code, err = c.execute(conn); err != nil {
					o.Error = err.Error()
				}
				_ = gob.NewEncoder(conn).Encode(o) // nobody may listen any more
			}()
		}
	}()
	return nil
}

func (c *children) execute(conn *net.UnixConn) (int, error) {
	files, err := receiveFiles(conn)
	defer func() {
		for _, fd := range files {
			unix.Close(int(fd))
		}
	}()
	if err != nil {
		return 0, err
	}
	var r command
	if err := gob.NewDecoder(conn).Decode(&r); err != nil {
		return 0, err
	}
	started, err := c.start(r.Args, r.Env, files)
	if err != nil {
		return 0, err
	}
	for _, fd := range files {
		unix.Close(int(fd)) // the command's alone: its end is theirs
	}
	files = nil
	left := make(chan struct{})
	go func() {
		defer close(left)
		_, _ = io.Copy(io.Discard, conn) // the stand-in says no more
	}()
	select {
	case <-started.ended:
	case <-left:
		if err := c.kill(started, -started.pid); err != nil {
			return 0, err
		}
		<-started.ended
	}
	if started.status.Signaled() {
		return 128 + int(started.status.Signal()), nil
	}
	return started.status.ExitStatus(), nil
}

func receiveFiles(conn *net.UnixConn) ([]uintptr, error) {
	one, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(3*4))
	_, n, _, _, err := conn.ReadMsgUnix(one, rights)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil {
		return nil, err
	}
	var files []uintptr
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, uintptr(fd))
		}
	}
	if len(files) != 3 {
		return files, fmt.Errorf("%d files came with the command, want 3", len(files))
	}
	return files, nil
}
