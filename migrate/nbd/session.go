package nbd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// session is one connection of a Server. Its own goroutine negotiates and then
// reads requests; each is handed to a worker, of which there are as many as
// requests were ever under way at once, up to a limit; workers answer.
//
// It ends softly, when the client says goodbye or the server drains: then
// requests under way are answered first; or hard, by stop: then their context
// ends.
type session struct {
	srv  *Server
	raw  net.Conn
	ctx  context.Context
	quit context.CancelCauseFunc
	done chan struct{} // closed when the session is no more
	log  *slog.Logger
	info ConnInfo

	// Set by the negotiation, and not changed after it.
	conn       net.Conn // TLS once that is up
	secure     bool
	noZeroes   bool
	structured bool
	export     *served  // guarded by srv.mu until transmission
	selected   []uint32 // numbers of metadata contexts
	selectedOf *served

	in       *bufio.Reader
	budget   *budget
	work     chan *task
	draining atomic.Bool

	answers chan *task
	mu      sync.Mutex // of sending
	out     *sender
	batch   []*task
	dead    bool // sending failed

	// For watch: the tick in which something began that must not last, or 0.
	tick             atomic.Int64
	reading, writing atomic.Int64
	blocked          atomic.Bool // nobody reads the connection
}

func newSession(ctx context.Context, s *Server, conn net.Conn) *session {
	t := &session{srv: s, raw: conn, conn: conn, done: make(chan struct{}), info: ConnInfo{RemoteAddr: conn.RemoteAddr()}}
	t.ctx, t.quit = context.WithCancelCause(ctx)
	return t
}

// stop ends the session hard. The first reason is the one told.
func (t *session) stop(why error) {
	t.quit(why)
	t.raw.Close()
}

// drain ends the session softly, as soon as it reads.
func (t *session) drain() {
	t.draining.Store(true)
	t.raw.SetReadDeadline(time.Unix(1, 0))
}

func (t *session) run(log *slog.Logger) error {
	t.log = log
	defer t.stop(nil)
	stop := context.AfterFunc(t.ctx, func() { t.raw.Close() })
	defer stop()
	err := guard(t.ctx, t.raw, t.srv.opts.HandshakeTimeout, func() error { return t.negotiate(t.ctx) })
	switch {
	case errors.Is(err, errGone), t.draining.Load():
		return nil
	case err != nil:
		return err
	}
	t.log = log.With("export", t.export.name)
	t.log.Info("nbd: export opened", "tls", t.secure, "read_only", t.export.ReadOnly, "client", t.client())
	return t.transmission()
}

// client names the peer by its certificate.
func (t *session) client() string {
	if len(t.info.PeerCertificates) == 0 {
		return ""
	}
	return t.info.PeerCertificates[0].Subject.String()
}

func (t *session) transmission() error {
	t.in = bufio.NewReaderSize(t.conn, receiveBuffer)
	t.out = newSender(t.conn)
	t.budget = newBudget(t.srv.opts.MaxConnBytes)
	t.work = make(chan *task)
	t.answers = make(chan *task, t.srv.opts.MaxRequests)
	t.tick.Store(1)
	var workers, watcher sync.WaitGroup
	watcher.Go(t.watch)
	err := t.read(&workers)
	if err != nil {
		t.stop(err)
	}
	close(t.work)
	t.blocked.Store(t.draining.Load())
	workers.Wait()
	if err == nil {
		t.conn.Close() // TLS says goodbye
	}
	cause := context.Cause(t.ctx)
	t.stop(nil)
	watcher.Wait()
	if err == nil || cause == nil {
		return err
	}
	return cause
}

// read takes requests until the session is to end: softly with nil.
func (t *session) read(workers *sync.WaitGroup) error {
	started := 0
	for {
		b, err := t.in.Peek(sizeRequest)
		if err != nil {
			if t.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			if errors.Is(err, io.EOF) && len(b) == 0 {
				return errHungUp
			}
			return lost("waiting for requests", err)
		}
		h, ok := parseRequest(b)
		if !ok {
			return violation("a request does not begin with its magic number")
		}
		t.in.Discard(sizeRequest)
		if h.cmd == CmdDisconnect {
			return nil
		}
		k, err := t.receive(h)
		if err != nil {
			if t.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				return nil // the rest of the request will not be read
			}
			return err
		}
		select {
		case t.work <- k:
			continue
		default:
		}
		if started < t.srv.opts.MaxRequests {
			started++
			workers.Go(t.worker)
		}
		t.blocked.Store(true)
		select {
		case t.work <- k:
		case <-t.ctx.Done():
			t.release(k)
			return t.ctx.Err()
		}
		t.blocked.Store(false)
	}
}

var errHungUp = errors.New("nbd: the client hung up without saying goodbye")

// receive makes a task of a request: it checks it, takes memory for its data
// from the budgets, and reads that of a write.
func (t *session) receive(h header) (*task, error) {
	k := tasks.Get().(*task)
	k.header = h
	k.code = t.check(h)
	if h.cmd != CmdWrite && (h.cmd != CmdRead || k.code != 0) {
		return k, nil
	}
	n := int64(h.n)
	if k.code != 0 {
		if n > t.srv.opts.MaxRequest {
			return nil, violation("a write of %d bytes is longer than the %d agreed", n, t.export.BlockSizes.Maximum)
		}
		return k, t.data(func() error { _, err := t.in.Discard(int(n)); return err })
	}
	k.held = bufferSize(n)
	t.blocked.Store(true)
	err := t.budget.acquire(t.ctx, k.held, &k.waiter)
	if err == nil {
		if err = t.srv.budget.acquire(t.ctx, k.held, &k.waiter); err != nil {
			t.budget.release(k.held)
		}
	}
	t.blocked.Store(false)
	if err != nil {
		return nil, err
	}
	k.buf = newBuffer(n)
	k.data = k.buf.b[:n]
	if h.cmd == CmdWrite {
		err = t.data(func() error { _, err := io.ReadFull(t.in, k.data); return err })
	}
	if err != nil {
		t.release(k)
		return nil, err
	}
	return k, nil
}

// data watches over f, which reads the data of a write.
func (t *session) data(f func() error) error {
	t.reading.Store(t.tick.Load())
	err := f()
	t.reading.Store(0)
	if err != nil {
		return lost("receiving a write", err)
	}
	return nil
}

// release gives back what k holds.
func (t *session) release(k *task) {
	if k.buf != nil {
		k.buf.free()
		t.srv.budget.release(k.held)
		t.budget.release(k.held)
	}
	*k = task{waiter: k.waiter}
	tasks.Put(k)
}

// watch ends the session when a message takes too long, and when the client
// is gone while nobody reads the connection.
func (t *session) watch() {
	limit := t.srv.opts.StallTimeout
	period := max(min(limit/4, time.Second), time.Millisecond)
	clock := time.NewTicker(period)
	defer clock.Stop()
	late := func(since int64, now int64) bool { return since != 0 && now-since > int64(limit/period) }
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-clock.C:
		}
		now := t.tick.Add(1)
		switch {
		case late(t.reading.Load(), now), late(t.writing.Load(), now):
			t.stop(errStalled)
		case t.blocked.Load() && hungUp(t.raw):
			t.stop(errHungUp)
		}
	}
}

var errStalled = errors.New("nbd: the client took too long to send or to receive a message")
