package local

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
)

// qcow2Image is an open qcow2 image: an NBD client of a qemu-nbd of its own, on
// a unix socket in a directory that only this user may enter. qemu-nbd holds
// the image's locks, and ends with the device or with this program.
type qcow2Image struct {
	client *nbd.Client
	server *server
}

func (q *qcow2Image) readAt(p []byte, off int64) error {
	return q.client.ReadAt(context.Background(), p, off)
}

func (q *qcow2Image) writeAt(p []byte, off int64) error {
	return q.client.WriteAt(context.Background(), p, off)
}

func (q *qcow2Image) flush() error { return q.client.Flush(context.Background()) }

func (q *qcow2Image) zero(off, n int64, flags share.ZeroFlags) error {
	return q.client.Zero(context.Background(), off, n, flags)
}

func (q *qcow2Image) discard(off, n int64) error {
	return q.client.Discard(context.Background(), off, n)
}

func (q *qcow2Image) extents(off, n int64) ([]share.Extent, error) {
	return q.client.Extents(context.Background(), off, n)
}

func (q *qcow2Image) interrupt() { _ = q.client.Close() }

// release returns when the image is free.
func (q *qcow2Image) release() {
	_ = q.client.Close()
	q.server.stop(true)
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
	client, err := srv.dial(ctx)
	if err != nil {
		srv.stop(false)
		return nil, err
	}
	readOnly := opts.ReadOnly || opts.Snapshot != ""
	return c.d.newDevice(&qcow2Image{client, srv}, c.rec, client.Size(), client.BlockSizes(), readOnly)
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
func (s *server) dial(ctx context.Context) (*nbd.Client, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		c, err := nbd.Dial(ctx, "nbd+unix:///?socket="+url.QueryEscape(s.socket()), &nbd.ClientOptions{Connections: 1})
		if err == nil {
			_ = os.RemoveAll(s.dir) // nobody else is to come
		}
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

// stop makes the server end, and waits for that. One whose client has left
// ends by itself, having written what it has.
func (s *server) stop(left bool) {
	if left && s.ended() {
		return
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		_ = s.cmd.Process.Signal(sig)
		if s.ended() {
			return
		}
	}
}

// stopGrace is how long a server has to end.
const stopGrace = 5 * time.Second

func (s *server) ended() bool {
	select {
	case <-s.done:
		return true
	case <-time.After(stopGrace):
		return false
	}
}
