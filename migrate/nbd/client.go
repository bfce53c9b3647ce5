package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmferry/vmferry/share"
)

// ClientOptions change how a [Client] connects and works. The zero value and
// nil are the defaults.
type ClientOptions struct {
	// Export is the export's name, for [NewClient]; with [Dial] it is the
	// URI's.
	Export string
	// TLS demands TLS, version 1.3 or later, with the server verified against
	// RootCAs (nil: the system's) and ServerName (empty: the URI's host).
	// With nil only the nbds schemes use TLS.
	TLS *tls.Config
	// InsecurePlaintext allows to speak without TLS to servers that are
	// neither on a unix socket nor on loopback: who is on the way can read
	// and change everything.
	InsecurePlaintext bool
	// MetaContexts are contexts wanted for [Client.BlockStatus], such as
	// DirtyBitmap("backup"), beside base:allocation, which is used if there
	// is one. A wanted context that the export does not have fails the
	// connection with [share.ErrNotExist].
	MetaContexts []string
	// Connections is how many connections Dial makes if the server advertises
	// that they see each other's writes (CAN_MULTI_CONN); default 2. To other
	// servers there is always one.
	Connections int
	// MaxRequest is the size in bytes into which longer reads and writes are
	// split, so that they use all connections; default 1 MiB. The server's
	// own maximum applies too.
	MaxRequest int64
	// MaxInFlight bounds the bytes of all requests in flight; each counts at
	// least 4 KiB. Calls beyond it wait. Default 64 MiB.
	MaxInFlight int64
	// FUA makes each write, zero and discard durable before it returns.
	FUA bool
	// Identity is returned by [Client.Identity].
	Identity string
	// HandshakeTimeout bounds connecting and negotiating, for each
	// connection; default 10 s.
	HandshakeTimeout time.Duration
	// ResponseTimeout ends the Client if requests are in flight and the
	// server has sent nothing for so long. The default, 0, waits as long as
	// each call's context allows: a paused device answers late.
	ResponseTimeout time.Duration
	// PeerTimeout ends a TCP connection whose peer's kernel acknowledges
	// nothing for so long (keep-alive probes and TCP_USER_TIMEOUT); default
	// 30 s, negative for the system's defaults.
	PeerTimeout time.Duration
	// DialContext makes the connections of Dial; default net.Dialer's.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

func (o *ClientOptions) withDefaults() ClientOptions {
	var v ClientOptions
	if o != nil {
		v = *o
	}
	setDefault(&v.Connections, 2)
	setDefault(&v.MaxRequest, 1<<20)
	setDefault(&v.MaxInFlight, 64<<20)
	setDefault(&v.HandshakeTimeout, 10*time.Second)
	if v.PeerTimeout == 0 {
		v.PeerTimeout = 30 * time.Second
	}
	if v.DialContext == nil {
		v.DialContext = new(net.Dialer).DialContext
	}
	return v
}

// setDefault replaces a value that makes no sense too.
func setDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

const (
	// requestCost is what a request counts at least in MaxInFlight.
	requestCost = 4096
	// leaveGrace is how long a cancelled call waits for its buffer to leave
	// the hands of a connection before it ends the connection.
	leaveGrace = time.Second
	// maxBodiless is the most that one trim or block status covers.
	maxBodiless = 1 << 30
)

// Client is an export of an NBD server, as a block device. It implements
// [share.Device], [share.Zeroer], [share.Discarder], [share.ExtentLister],
// [share.BlockSizer] and [share.Identifier].
//
// All methods may be called from several goroutines at once; their requests
// are pipelined over the connections. A Client never repeats a request and
// never reconnects: when one of its connections ends, the Client has ended,
// and every call under way or later gets the reason, which wraps
// [share.ErrUnavailable], or [share.ErrCorrupt] if the server broke the
// protocol. (If the server closed a connection that was idle, calls under way
// on the others may still succeed.) What was written and not flushed is then
// in an unknown state.
//
// A call whose context ends returns at once, with one exception: if just then
// its bytes are on their way into or out of the buffer, they get a second to
// finish, after which the Client ends. When a call has returned, its buffer is
// not touched any more. A write that was cancelled on its way may still take
// effect later, also after a write to the same range that was sent afterwards;
// only the server's end of the connection rules that out. Its error wraps
// [share.ErrWedged], which says so.
type Client struct {
	opts   ClientOptions
	info   *ExportInfo
	flags  uint16
	budget *budget
	conns  []*conn
	next   atomic.Uint32
	stop   chan struct{} // closed when the Client has ended
	ended  atomic.Bool
	err    error // set before stop is closed
	wg     sync.WaitGroup
}

var _ interface {
	share.Device
	share.Zeroer
	share.Discarder
	share.ExtentLister
	share.BlockSizer
	share.Identifier
} = (*Client)(nil)

func newClient(hs []*handshake, o ClientOptions) *Client {
	c := &Client{opts: o, info: hs[0].export(), flags: hs[0].flags, budget: newBudget(o.MaxInFlight), stop: make(chan struct{})}
	c.opts.MaxRequest = min(o.MaxRequest, c.info.BlockSizes.Maximum, 1<<30)
	c.opts.MaxRequest -= c.opts.MaxRequest % c.info.BlockSizes.Minimum
	c.opts.MaxRequest = max(c.opts.MaxRequest, c.info.BlockSizes.Minimum)
	for _, h := range hs {
		c.conns = append(c.conns, newConn(h, c.budget.release, c.lost))
	}
	for _, k := range c.conns {
		k.start()
		if o.ResponseTimeout > 0 {
			c.wg.Go(func() { k.watch(o.ResponseTimeout, c.stop) })
		}
	}
	return c
}

// fail ends the Client. Its connections come here in turn when they end.
func (c *Client) fail(err error) {
	c.finish(err)
	for _, k := range c.conns {
		k.fail(err)
	}
}

func (c *Client) finish(err error) {
	if c.ended.CompareAndSwap(false, true) {
		c.err = err
		close(c.stop)
	}
}

// lost is told by a connection that it has ended. If the server closed it
// while it was idle, as one that goes down in good order does, the others may
// still receive the answers to what is in flight.
func (c *Client) lost(err error, idle bool) {
	if !idle || !errors.Is(err, io.EOF) {
		c.fail(err)
		return
	}
	c.finish(err)
	for _, k := range c.conns {
		k.retire(err)
	}
}

// Info is what the server told about the export; Contexts are those selected.
func (c *Client) Info() ExportInfo {
	info := *c.info
	info.Contexts = append([]string(nil), info.Contexts...)
	return info
}

// Done is closed when the Client has ended, by Close or by itself.
func (c *Client) Done() <-chan struct{} { return c.stop }

// Size is the export's size in bytes.
func (c *Client) Size() int64 { return c.info.Size }

// BlockSizes are the server's limits on offsets and lengths, and the size it
// prefers. There is no maximum: the Client splits requests itself.
func (c *Client) BlockSizes() share.BlockSizes {
	return share.BlockSizes{Minimum: c.info.BlockSizes.Minimum, Preferred: c.info.BlockSizes.Preferred}
}

// Identity is opts.Identity. NBD itself has no identities.
func (c *Client) Identity() string { return c.opts.Identity }

// Close says goodbye to the server and returns when all connections are
// closed, which takes a few seconds at most. It does not flush. Calls under
// way end with an error that wraps [share.ErrClosed]. A second Close returns
// nil.
func (c *Client) Close() error {
	c.fail(fmt.Errorf("nbd: the client %w", share.ErrClosed))
	for _, k := range c.conns {
		k.wg.Wait()
	}
	c.wg.Wait()
	return nil
}

// ReadAt fills p from off: NBD_CMD_READ.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	return c.call(ctx, command{cmd: CmdRead, most: c.opts.MaxRequest, buf: p}, off, int64(len(p)))
}

// WriteAt writes p at off: NBD_CMD_WRITE. On a read-only export it fails with
// [share.ErrDenied].
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64) error {
	return c.change(ctx, command{cmd: CmdWrite, most: c.opts.MaxRequest, buf: p}, off, int64(len(p)))
}

// Zero makes n bytes from off read as zeros: NBD_CMD_WRITE_ZEROES, with
// NO_HOLE for [share.ZeroKeepAllocated] and FAST_ZERO for [share.ZeroFast].
// It fails with errors.ErrUnsupported where the server has no such command or
// flag; [share.ZeroRange] then writes zeros.
func (c *Client) Zero(ctx context.Context, off, n int64, flags share.ZeroFlags) error {
	k := command{cmd: CmdWriteZeroes, most: c.info.BlockSizes.Maximum, need: flagSendWriteZeroes}
	k.most = min(maxBodiless, k.most-k.most%c.info.BlockSizes.Minimum)
	if flags&share.ZeroKeepAllocated != 0 {
		k.bits |= cmdFlagNoHole
	}
	if flags&share.ZeroFast != 0 {
		k.bits |= cmdFlagFastZero
		k.need |= flagSendFastZero
	}
	return c.change(ctx, k, off, n)
}

// Discard says that n bytes from off are not needed: NBD_CMD_TRIM. It fails
// with errors.ErrUnsupported where the server has no such command.
func (c *Client) Discard(ctx context.Context, off, n int64) error {
	return c.change(ctx, command{cmd: CmdTrim, most: maxBodiless, need: flagSendTrim}, off, n)
}

// Flush makes durable all writes that returned before it began:
// NBD_CMD_FLUSH. One is enough for all connections, as there are several only
// if the server promises that. A server that cannot flush a writable export
// cannot promise durability: errors.ErrUnsupported.
func (c *Client) Flush(ctx context.Context) error {
	if c.info.ReadOnly && c.flags&flagSendFlush == 0 {
		return c.usable(ctx)
	}
	return c.call(ctx, command{cmd: CmdFlush, need: flagSendFlush}, 0, 0)
}

// change is call for commands that write.
func (c *Client) change(ctx context.Context, k command, off, n int64) error {
	if c.info.ReadOnly {
		return fmt.Errorf("nbd: %v: export %s is read-only: %w", k.cmd, quote(c.info.Name), share.ErrDenied)
	}
	if c.opts.FUA && c.flags&flagSendFUA != 0 {
		k.bits |= cmdFlagFUA
	}
	err := c.call(ctx, k, off, n)
	if err == nil && c.opts.FUA && c.flags&flagSendFUA == 0 {
		err = c.Flush(ctx)
	}
	return err
}

// command is what call sends, in as many requests as it takes.
type command struct {
	cmd  Command
	bits uint16 // command flags
	need uint16 // transmission flags without which it is not supported
	most int64  // bytes of one request
	buf  []byte // data to be sent or received, if any
}

func (c *Client) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-c.stop:
		return c.err
	default:
		return nil
	}
}

func (c *Client) call(ctx context.Context, k command, off, n int64) error {
	if err := c.checkRange(k.cmd, off, n); err != nil {
		return err
	}
	if c.flags&k.need != k.need {
		return fmt.Errorf("nbd: %v: the server does not support it for export %s: %w", k.cmd, quote(c.info.Name), errors.ErrUnsupported)
	}
	if n == 0 && k.cmd != CmdFlush {
		return c.usable(ctx)
	}
	// Rounds of maxPieces requests; nearly always one.
	for {
		round := min(n, maxPieces*k.most)
		o := newOp(int(max(1, (round+k.most-1)/max(1, k.most))))
		rest := k.buf
		for i, at := 0, off; i < len(o.pieces); i++ {
			size := min(off+round-at, k.most)
			r := &o.pieces[i]
			r.op, r.cmd, r.bits, r.off, r.n = o, k.cmd, k.bits, at, size
			if k.buf != nil {
				r.buf, rest = rest[:size:size], rest[size:]
			}
			at += size
		}
		err := c.run(ctx, o, nil)
		o.unref()
		if err != nil {
			return err
		}
		off, n = off+round, n-round
		if n == 0 {
			return nil
		}
		if k.buf != nil {
			k.buf = rest
		}
	}
}

// run sends the pieces of o and waits until the caller may go on. The caller
// keeps its reference to o. With on not nil all goes over that connection.
func (c *Client) run(ctx context.Context, o *op, on *conn) error {
	sent := 0
	for i := range o.pieces {
		r := &o.pieces[i]
		r.cost = requestCost
		if r.buf != nil {
			r.cost = max(r.cost, r.n)
		}
		if ctx.Err() != nil || c.budget.acquire(ctx, r.cost, &o.waiter) != nil {
			o.fail(fmt.Errorf("nbd: %v: %w", r.cmd, ctx.Err()))
			break
		}
		o.open.Add(1)
		o.refs.Add(1)
		k := on
		if k == nil {
			k = c.pick()
		}
		k.submit(r)
		sent++
	}
	if o.open.Add(-1) == 0 {
		return o.err
	}
	select {
	case <-o.done:
	case <-ctx.Done():
		c.cancel(o, sent)
		if cmd := o.pieces[0].cmd; cmd.writes() { // the server has it, and goes on
			return fmt.Errorf("nbd: %v %w: it may still take effect: %w", cmd, share.ErrWedged, ctx.Err())
		}
		return fmt.Errorf("nbd: %v: %w", o.pieces[0].cmd, ctx.Err())
	}
	return o.err
}

// pick takes the connections in turn.
func (c *Client) pick() *conn { return c.conns[c.next.Add(1)%uint32(len(c.conns))] }

// cancel leaves the pieces of o to their connections, and returns when none
// touches the caller's buffer any more.
func (c *Client) cancel(o *op, sent int) {
	pieces := o.pieces[:sent]
	for i := range pieces {
		pieces[i].conn.leave(&pieces[i])
	}
	grace := time.NewTimer(leaveGrace)
	defer grace.Stop()
	select {
	case <-o.done:
		return
	case <-grace.C:
	}
	for i := range pieces {
		if r := &pieces[i]; r.conn.occupied(r) {
			r.conn.fail(fmt.Errorf("nbd: a cancelled %v was stuck half-way, connection ended: %w", r.cmd, share.ErrUnavailable))
		}
	}
	<-o.done
}

// checkRange applies the device's size and the server's minimum block size.
func (c *Client) checkRange(cmd Command, off, n int64) error {
	if err := share.CheckRange(c.info.Size, off, n); err != nil {
		return fmt.Errorf("nbd: %v: %w", cmd, err)
	}
	least := c.info.BlockSizes.Minimum
	if off%least != 0 || n%least != 0 && off+n != c.info.Size {
		return fmt.Errorf("nbd: %v: range %d+%d is not in blocks of %d bytes, which the server demands: %w", cmd, off, n, least, share.ErrInvalid)
	}
	return nil
}
