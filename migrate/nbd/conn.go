package nbd

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmferry/vmferry/share"
)

// conn is one connection of a Client in transmission. Two goroutines work for
// it: send takes requests off the queue, receive matches answers to them. A
// connection ends once, with one error, which every request in flight gets;
// the Client ends with it.
type conn struct {
	net        net.Conn // TLS if there is any
	raw        net.Conn
	in         *bufio.Reader
	out        *sender
	structured bool
	contexts   map[string]uint32
	release    func(n int64)
	ended      func(err error, idle bool) // called once, without mu
	received   atomic.Uint64
	wg         sync.WaitGroup

	mu          sync.Mutex
	wake        sync.Cond
	first, last *request // to be sent
	slots       []slot   // by the low half of the cookie
	free        []uint32
	busy        int // slots taken
	err         error
	retired     error // why the connection ends when nothing is in flight
}

// slot is a place for a request in flight. The generation is the high half of
// the cookie, so that a late or repeated answer is not taken for another's.
type slot struct {
	req *request
	gen uint32
}

const (
	receiveBuffer = 32 << 10
	batchRequests = 64
	batchBytes    = 512 << 10
	goodbyeTime   = time.Second
)

func newConn(h *handshake, release func(int64), ended func(error, bool)) *conn {
	c := &conn{
		net: h.conn, raw: h.raw, in: bufio.NewReaderSize(h.conn, receiveBuffer), out: newSender(h.conn),
		structured: h.structured, contexts: h.contexts, release: release, ended: ended,
	}
	c.wake.L = &c.mu
	return c
}

func (c *conn) start() {
	c.wg.Go(c.send)
	c.wg.Go(func() { c.fail(c.receive()) })
}

// submit takes r over. From then on r.op hears of it exactly once.
func (c *conn) submit(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.conn = c
	if c.err != nil || c.retired != nil {
		r.err, r.finished = cmp.Or(c.err, c.retired), true
		c.settle(r)
		return
	}
	if len(c.free) == 0 {
		c.free = append(c.free, uint32(len(c.slots)))
		c.slots = append(c.slots, slot{})
	}
	i := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	s := &c.slots[i]
	s.gen++
	s.req = r
	c.busy++
	r.cookie = uint64(s.gen)<<32 | uint64(i)
	if c.first == nil {
		c.first = r
		c.wake.Signal()
	} else {
		c.last.next = r
	}
	c.last = r
}

// leave is the caller's wish not to wait for r any longer. It is granted as
// soon as nobody works on r's buffer.
func (c *conn) leave(r *request) {
	c.mu.Lock()
	if !r.signaled {
		r.left = true
		c.settle(r)
	}
	c.mu.Unlock()
}

// occupied reports whether r holds its caller up.
func (c *conn) occupied(r *request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !r.signaled
}

// settle ends r, or lets its caller go, if that is due. After the end r must
// not be touched. It needs mu.
func (c *conn) settle(r *request) {
	if r.phase == sending || r.receiving {
		return
	}
	o := r.op
	switch {
	case r.finished:
		if r.cookie != 0 {
			i := uint32(r.cookie)
			c.slots[i].req = nil
			c.free = append(c.free, i)
			c.busy--
			if c.retired != nil {
				c.wake.Signal()
			}
		}
		c.release(r.cost)
		if !r.signaled {
			r.signaled = true
			o.fail(r.err)
			o.arrived()
		}
		o.unref()
	case r.left && !r.signaled:
		r.buf, r.signaled = nil, true
		o.arrived()
	}
}

// fail ends the connection. Only the first error counts.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	idle := c.busy == 0
	c.first, c.last = nil, nil
	for i := range c.slots {
		if r := c.slots[i].req; r != nil {
			if !r.finished {
				r.finished, r.err = true, err
			}
			c.settle(r)
		}
	}
	c.wake.Signal()
	c.mu.Unlock()
	if !errors.Is(err, share.ErrClosed) {
		// Not net: closing TLS may wait for the peer.
		c.raw.Close()
	} else {
		// The sender says goodbye, and closes.
		c.raw.SetDeadline(time.Now().Add(goodbyeTime))
	}
	c.ended(err, idle)
}

// retire ends the connection as soon as nothing is in flight. Until then it
// takes nothing more.
func (c *conn) retire(err error) {
	c.mu.Lock()
	c.retired = err
	c.wake.Signal()
	c.mu.Unlock()
}

// send sends what is queued, several requests with one system call.
func (c *conn) send() {
	batch := make([]*request, 0, batchRequests)
	for {
		c.mu.Lock()
		for c.first == nil && c.err == nil && (c.retired == nil || c.busy > 0) {
			c.wake.Wait()
		}
		if c.first == nil && c.err == nil {
			c.mu.Unlock()
			c.fail(c.retired)
			return
		}
		if c.err != nil {
			polite := errors.Is(c.err, share.ErrClosed)
			c.mu.Unlock()
			if polite {
				c.out.keep(appendRequest(c.out.copied(), header{cmd: CmdDisconnect}))
				c.out.flush()
				c.net.Close()
				c.raw.Close()
			}
			return
		}
		batch = batch[:0]
		bytes := 0
		for c.first != nil && len(batch) < batchRequests && bytes < batchBytes {
			r := c.first
			c.first, r.next = r.next, nil
			if r.left {
				r.finished = true
				c.settle(r)
				continue
			}
			r.phase = sending
			if r.cmd == CmdWrite {
				bytes += len(r.buf)
			}
			batch = append(batch, r)
		}
		c.mu.Unlock()

		for _, r := range batch {
			c.out.keep(appendRequest(c.out.copied(), header{r.bits, r.cmd, r.cookie, uint64(r.off), uint32(r.n)}))
			if r.cmd == CmdWrite {
				c.out.ref(r.buf)
			}
		}
		if len(batch) > 0 {
			if err := c.out.flush(); err != nil {
				c.fail(lost("sending", err))
			}
		}
		c.mu.Lock()
		for _, r := range batch {
			r.phase = sent
			c.settle(r)
		}
		c.mu.Unlock()
	}
}

// begin finds the request of an answer and marks it as being received.
func (c *conn) begin(cookie uint64) (*request, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := uint32(cookie); uint64(i) < uint64(len(c.slots)) {
		if r := c.slots[i].req; r != nil && r.cookie == cookie && r.phase != queued && !r.finished {
			r.receiving = true
			return r, nil
		}
	}
	if c.err != nil {
		return nil, c.err
	}
	return nil, violation("an answer has the cookie %#x, which no request in flight has", cookie)
}

// end undoes begin. final says that r has its answer.
func (c *conn) end(r *request, final bool) {
	c.mu.Lock()
	r.receiving = false
	if final && !r.finished {
		r.finished = true
		if r.refused != nil {
			r.err = r.refused
		}
	}
	c.settle(r)
	c.mu.Unlock()
}

// watch ends the connection when requests are in flight and nothing at all
// was received for timeout. stop ends watch.
func (c *conn) watch(timeout time.Duration, stop <-chan struct{}) {
	const steps = 4
	tick := time.NewTicker(max(timeout/steps, time.Millisecond))
	defer tick.Stop()
	var last uint64
	quiet := 0
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		c.mu.Lock()
		busy := c.busy > 0
		c.mu.Unlock()
		if now := c.received.Load(); now != last || !busy {
			last, quiet = now, 0
			continue
		}
		if quiet++; quiet > steps {
			c.fail(fmt.Errorf("nbd: the server answered nothing for %v: %w", timeout, share.ErrUnavailable))
			return
		}
	}
}
