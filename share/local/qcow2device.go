package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
)

// qcow2Device is an open qcow2 image: an NBD client of a qemu-nbd of its own,
// on a unix socket in a directory that only this user may enter. qemu-nbd
// holds the image's locks and ends with the device or with this program.
type qcow2Device struct {
	*nbd.Client
	server  *server
	onClose func()
	once    sync.Once
}

// Close implements [share.Device]. When it returns, the image is free.
func (d *qcow2Device) Close() error {
	d.once.Do(func() {
		_ = d.Client.Close()
		d.server.stop()
		d.onClose()
	})
	return nil
}

func (c *change) openQcow2(ctx context.Context, opts *share.OpenOptions) (share.Device, error) {
	if c.d.tools == nil {
		return nil, errNoTools
	}
	f, err := c.d.openImage(c.rec, !opts.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	args := []string{"--cache=writeback", "--discard=unmap", "--detect-zeroes=off"}
	u := writerOf
	if opts.ReadOnly || opts.Snapshot != "" {
		// As QEMU's tools do: nobody may write the metadata meanwhile.
		u = use{permRead, permAll &^ permWrite &^ permResize}
		args = append(args, "--read-only")
	}
	if opts.Snapshot != "" {
		s, err := findSnapshot(f, opts.Snapshot)
		if err != nil {
			return nil, err
		}
		if _, err := fmt.Sscanf(s.id, "%d", new(int)); err != nil {
			return nil, fmt.Errorf("the qcow2 image %w: the snapshot %q has the ID %q", share.ErrCorrupt, s.name, s.id)
		}
		args = append(args, "--load-snapshot=snapshot.id="+s.id+",snapshot.name="+s.name)
	}
	// Looked at here for a better message; qemu-nbd takes them for itself.
	if err := lockImage(f, u); err != nil {
		return nil, err
	}
	if err := unlockImage(f); err != nil {
		return nil, err
	}
	srv, err := startServer(ctx, c.d.tools.nbd, f, args)
	if err != nil {
		return nil, err
	}
	client, err := srv.dial(ctx, c.rec.ID)
	if err != nil {
		srv.stop()
		return nil, err
	}
	dev := &qcow2Device{Client: client, server: srv}
	dev.onClose = func() { c.d.drop(dev) }
	if err := c.d.hold(dev); err != nil {
		_ = dev.Close()
		return nil, err
	}
	return dev, nil
}

// server is a running qemu-nbd.
type server struct {
	dir  string // private; holds the socket
	cmd  *exec.Cmd
	said tail
	done chan struct{} // closed when it has ended
	err  error         // how, once done is closed
}

// startServer starts qemu-nbd on an image. It serves one connection, ends when
// that does, and is told to end when this program dies.
func startServer(ctx context.Context, program string, image *os.File, args []string) (*server, error) {
	dir, err := privateDir()
	if err != nil {
		return nil, err
	}
	s := &server{dir: dir, done: make(chan struct{})}
	args = append(args, "--socket="+s.socket(), "--shared=1", "--", imageNode)
	s.cmd = command(context.WithoutCancel(ctx), program, image, args...)
	s.cmd.Stderr = &s.said
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	started := make(chan error)
	go func() {
		// Pdeathsig is of the thread that started the process: keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(s.done)
		err := s.cmd.Start()
		started <- err
		if err == nil {
			s.err = s.cmd.Wait()
		}
		_ = os.RemoveAll(s.dir)
	}()
	if err := <-started; err != nil {
		<-s.done
		return nil, fmt.Errorf("starting qemu-nbd: %w", err)
	}
	return s, nil
}

// privateDir makes a directory for a socket, whose path has little room.
func privateDir() (string, error) {
	const room = 80
	dir, err := os.MkdirTemp("", "vmferry-") // mode 0700
	if err == nil && len(dir) > room {
		_ = os.Remove(dir)
		dir, err = os.MkdirTemp("/tmp", "vmferry-")
	}
	return dir, err
}

func (s *server) socket() string { return filepath.Join(s.dir, "nbd") }

// dial connects as soon as the server listens.
func (s *server) dial(ctx context.Context, id string) (*nbd.Client, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		c, err := nbd.Dial(ctx, "nbd+unix:///?socket="+s.socket(), &nbd.ClientOptions{Connections: 1, Identity: id})
		if err == nil || ctx.Err() != nil || !errors.Is(err, share.ErrUnavailable) {
			return c, err
		}
		select {
		case <-s.done:
			return nil, s.said.explain("qemu-nbd", errors.Join(share.ErrUnavailable, s.err))
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// stop waits for the server to end, as it does when its client has left, and
// makes it end if it does not.
func (s *server) stop() {
	for _, sig := range []os.Signal{nil, syscall.SIGTERM, syscall.SIGKILL} {
		if sig != nil {
			_ = s.cmd.Process.Signal(sig)
		}
		select {
		case <-s.done:
			return
		case <-time.After(stopGrace):
		}
	}
}
