package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// This file is the other side: NBD servers, and the tools that copy between
// them.

// served is an NBD server of another project.
type served struct {
	*process
	uri string
}

// directNBD is qemu-nbd that writes past the page cache.
const directNBD = "qemu-nbd --cache=none"

// serveNBD serves a file: on a unix socket, or over TCP on loopback.
func (b *bench) serveNBD(ctx context.Context, server, path string, tcp, readOnly bool) (*served, error) {
	socket, port := filepath.Join(b.dir, "nbd-"+strconv.FormatInt(time.Now().UnixNano(), 36)), ""
	s := &served{uri: "nbd+unix:///?socket=" + socket}
	if tcp {
		// The port is free now; should somebody else take it, the server says so.
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		_, port, _ = net.SplitHostPort(l.Addr().String())
		l.Close()
		s.uri = "nbd://127.0.0.1:" + port
	}
	var args []string
	switch server {
	case "nbdkit":
		args = []string{"--foreground", "--exit-with-parent", "--threads", "16"}
		if tcp {
			args = append(args, "--ipaddr", "127.0.0.1", "--port", port)
		} else {
			args = append(args, "--unix", socket)
		}
		if readOnly {
			args = append(args, "--readonly")
		}
		args = append(args, "file", path)
	case "qemu-nbd", directNBD:
		args = []string{"--format=raw", "--persistent", "--shared=16", "--discard=unmap"}
		if server == directNBD && !readOnly { // what is read lies in the cache
			args = append(args, "--cache=none", "--aio=native")
		} else {
			args = append(args, "--cache=writeback", "--aio=threads")
		}
		server = "qemu-nbd"
		if tcp {
			args = append(args, "--bind=127.0.0.1", "--port="+port)
		} else {
			args = append(args, "--socket="+socket)
		}
		if readOnly {
			args = append(args, "--read-only")
		}
		args = append(args, path)
	default:
		return nil, fmt.Errorf("%s is no NBD server", server)
	}
	var err error
	if s.process, err = start(ctx, server, args...); err != nil {
		return nil, err
	}
	for range 200 {
		network, address := "unix", socket
		if tcp {
			network, address = "tcp", "127.0.0.1:"+port
		}
		conn, err := net.Dial(network, address)
		if err == nil {
			conn.Close()
			return s, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.stop()
	return nil, fmt.Errorf("%s did not begin to listen: %s", server, lastLine(s.stderr.String()))
}

// missing says which of the programs are not installed.
func missing(programs ...string) error {
	var errs []error
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			errs = append(errs, fmt.Errorf("%s is not installed", p))
		}
	}
	return errors.Join(errs...)
}

// between runs a tool between two servers, and returns its time.
func (b *bench) between(ctx context.Context, server, from, to string, tool func(from, to string) []string) (time.Duration, error) {
	src, err := b.serveNBD(ctx, server, from, false, true)
	if err != nil {
		return 0, err
	}
	defer src.stop()
	dst, err := b.serveNBD(ctx, server, to, true, false)
	if err != nil {
		return 0, err
	}
	defer dst.stop()
	args := tool(src.uri, dst.uri)
	return timed(ctx, args[0], args[1:]...)
}

// nbdcopy is the command with its settings.
func nbdcopy(settings ...string) func(from, to string) []string {
	return func(from, to string) []string {
		return append(append([]string{"nbdcopy", "--flush"}, settings...), from, to)
	}
}

// qemuConvert is qemu-img with sixteen requests at once, out of order. The
// cache mode makes it flush at the end; its own default would not.
func qemuConvert(from, to string) []string {
	return []string{"qemu-img", "convert", "-n", "-W", "-m", "16", "-t", "writeback", "-f", "raw", "-O", "raw", from, to}
}
