package migrate

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/vmferry/vmferry/internal/secure"
	"github.com/vmferry/vmferry/internal/wire"
	"github.com/vmferry/vmferry/share"
)

// Remote is a destination on another host: a disk that a [Receiver] there
// expects. It is plain configuration; the move makes the connections, several
// of them, and a resumed move makes them again.
type Remote struct {
	// Network and Address are where the receiver listens: "tcp" and host:port,
	// or "unix" and a path. The default network is "tcp".
	Network, Address string
	// Disk is the name under which the receiver expects the disk.
	Disk string
	// TLS is the client's configuration: TLS 1.3, with a certificate to show,
	// and the receiver verified. Required, except on unix sockets and loopback.
	TLS *tls.Config
	// InsecurePlaintext allows to send without TLS to another host.
	InsecurePlaintext bool
	// Token is shown to the receiver, where it wants one.
	Token share.Secret
	// Connections is how many are made; the default is 4.
	Connections int
	// Timeout bounds connecting, and how long the receiver's host may be
	// silent. The default is 10 s.
	Timeout time.Duration
	// AnswerTimeout ends the session if requests wait and the receiver says
	// nothing for so long. The default is 60 s: a flush may take a while.
	AnswerTimeout time.Duration
	// DialContext makes a connection; the default is net.Dialer's.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// Compress says when data is compressed on its way.
	Compress Compression
}

// Compression is a policy; see [Remote].
type Compression uint8

const (
	// CompressWhenItPays: it is measured, for each connection and again and
	// again, whether the link or the processor is the narrow place.
	CompressWhenItPays Compression = iota
	CompressNever
	CompressAlways
)

func (r *Remote) orDefault() Remote {
	c := *r
	setDefault(&c.Network, "tcp")
	setDefault(&c.Connections, 4)
	setDefault(&c.Timeout, 10*time.Second)
	setDefault(&c.AnswerTimeout, time.Minute)
	if c.DialContext == nil {
		c.DialContext = new(net.Dialer).DialContext
	}
	return c
}

// remoteTarget is the [target] at the other end of a session with a receiver.
// When one of its connections ends the session has ended, and every call gets
// the reason: nothing is sent a second time within a session.
type remoteTarget struct {
	block   int64
	welcome wire.WelcomeBody
	links   []*link
	next    atomic.Uint32
}

// dial opens a session that sends a disk of size bytes.
func (r *Remote) dial(ctx context.Context, size, block int64, epoch uint64) (*remoteTarget, error) {
	return r.session(ctx, wire.HelloBody{Epoch: epoch, Size: size, Block: block})
}

// dialReader opens a session that asks for hashes.
func (r *Remote) dialReader(ctx context.Context, size, block int64) (*remoteTarget, error) {
	return r.session(ctx, wire.HelloBody{ReadOnly: true, Size: size, Block: block})
}

func (r *Remote) session(ctx context.Context, body wire.HelloBody) (*remoteTarget, error) {
	c, block := r.orDefault(), body.Block
	if block > wire.MaxPayload {
		return nil, fmt.Errorf("%w: a granularity of %d bytes; a receiver takes at most %d", share.ErrInvalid, block, wire.MaxPayload)
	}
	var id [16]byte
	_, _ = rand.Read(id[:])
	body.Versions, body.Disk, body.Session = []int{wire.Version}, c.Disk, hex.EncodeToString(id[:])
	body.Token = string(c.Token.Reveal())
	hello, err := wire.Encode(body)
	if err != nil {
		return nil, err
	}
	t := &remoteTarget{block: block}
	for range c.Connections {
		l, welcome, err := c.connect(ctx, hello)
		if err != nil {
			t.close()
			return nil, fmt.Errorf("receiver %s: %w", c.Address, err)
		}
		t.welcome = welcome
		t.links = append(t.links, l)
	}
	return t, nil
}

// connect makes one connection and shakes hands.
func (r *Remote) connect(ctx context.Context, hello []byte) (*link, wire.WelcomeBody, error) {
	var welcome wire.WelcomeBody
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	conn, err := r.DialContext(ctx, r.Network, r.Address)
	if err != nil {
		return nil, welcome, unavailable(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	fail := func(err error) (*link, wire.WelcomeBody, error) {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return nil, welcome, err
	}
	secure.WatchPeer(conn, r.Timeout)
	if r.TLS != nil {
		host, _, _ := net.SplitHostPort(r.Address)
		config, err := secure.ClientTLS(r.TLS, host)
		if err != nil {
			return fail(err)
		}
		tc := tls.Client(wire.NewBatched(conn), config)
		if err := tc.HandshakeContext(ctx); err != nil {
			return fail(fmt.Errorf("TLS handshake: %w: %w", share.ErrDenied, err))
		}
		conn = tc
	} else if !r.InsecurePlaintext && !secure.OnThisMachine(conn.RemoteAddr()) {
		return fail(fmt.Errorf("plaintext to another host is %w; set TLS", share.ErrDenied))
	}
	if err := wire.Write(conn, wire.Header{Type: wire.Hello}, hello); err != nil {
		return fail(unavailable(err))
	}
	in := wire.NewReader(conn)
	h, payload, err := readSmall(in)
	switch {
	case err != nil:
		return fail(err)
	case h.Type == wire.Failed:
		return fail(remoteError(payload))
	case h.Type != wire.Welcome:
		return fail(fmt.Errorf("%w: an answer of type %d to hello", wire.ErrProtocol, h.Type))
	}
	if err := wire.Decode(payload, &welcome); err != nil {
		return fail(err)
	}
	if welcome.Version != wire.Version || welcome.Credit < wire.MaxPayload || welcome.Size < 0 {
		return fail(fmt.Errorf("%w: the receiver welcomes with version %d, a credit of %d and a size of %d", wire.ErrProtocol, welcome.Version, welcome.Credit, welcome.Size))
	}
	if !stop() {
		return fail(context.Cause(ctx))
	}
	l := &link{conn: conn, in: in, credit: semaphore.NewWeighted(welcome.Credit), pending: map[uint64]*call{}, done: make(chan struct{}),
		patience: r.AnswerTimeout, squeeze: squeezer{policy: r.Compress}}
	go l.read()
	return l, welcome, nil
}

// readSmall reads a frame with a short payload.
func readSmall(in *wire.Reader) (wire.Header, []byte, error) {
	h, err := in.Next(wire.MaxHello)
	if err != nil {
		return h, nil, unavailable(err)
	}
	p := make([]byte, h.Length)
	if err := in.Payload(p); err != nil {
		return h, nil, unavailable(err)
	}
	return h, p, nil
}

// unavailable marks the error of a connection. A peer that broke the protocol
// is not unavailable but wrong.
func unavailable(err error) error {
	if errors.Is(err, wire.ErrProtocol) {
		return fmt.Errorf("%w: %w", share.ErrCorrupt, err)
	}
	return fmt.Errorf("the connection %w: %w", share.ErrUnavailable, err)
}

func (t *remoteTarget) proof() string { return t.welcome.Proof }

func (t *remoteTarget) blank(ctx context.Context) ([]Range, error) {
	answer, err := t.call(ctx, wire.Header{Type: wire.Blank}, nil)
	if err != nil {
		return nil, err
	}
	var out []Range
	if err := json.Unmarshal(answer, &out); err != nil {
		return nil, fmt.Errorf("%w: %w", wire.ErrProtocol, err)
	}
	for _, r := range out {
		if err := share.CheckRange(t.welcome.Size, r.Off, r.Len); err != nil {
			return nil, fmt.Errorf("%w: %w", wire.ErrProtocol, err)
		}
	}
	return out, nil
}

func (t *remoteTarget) write(ctx context.Context, st Stamp, off int64, p []byte, _ []hash) error {
	for len(p) > 0 {
		k := min(int64(len(p)), wire.MaxPayload/t.block*t.block)
		h := wire.Header{Type: wire.Data, Off: uint64(off), Len: uint64(k), Epoch: st.Epoch, Generation: st.Generation}
		if _, err := t.call(ctx, h, p[:k]); err != nil {
			return err
		}
		off, p = off+k, p[k:]
	}
	return nil
}

func (t *remoteTarget) zero(ctx context.Context, st Stamp, r Range) error {
	_, err := t.call(ctx, wire.Header{Type: wire.Zero, Off: uint64(r.Off), Len: uint64(r.Len), Epoch: st.Epoch, Generation: st.Generation}, nil)
	return err
}

func (t *remoteTarget) commit(ctx context.Context, written []Range) error {
	payload, err := json.Marshal(written)
	if err != nil {
		return err
	}
	_, err = t.call(ctx, wire.Header{Type: wire.Flush}, payload)
	return err
}

func (t *remoteTarget) hashes(ctx context.Context, r Range) ([]hash, error) {
	// A part's answer fits into a frame.
	most := wire.MaxPayload / int64(len(hash{})) / 4 * t.block
	var out []hash
	for off := r.Off; off < r.End(); {
		n := min(most, r.End()-off)
		answer, err := t.call(ctx, wire.Header{Type: wire.Hash, Off: uint64(off), Len: uint64(n)}, nil)
		if err != nil {
			return nil, err
		}
		if int64(len(answer)) != (n+t.block-1)/t.block*int64(len(hash{})) {
			return nil, fmt.Errorf("%w: %d bytes of hashes for %d bytes of disk", wire.ErrProtocol, len(answer), n)
		}
		for ; len(answer) > 0; answer = answer[len(hash{}):] {
			out = append(out, hash(answer[:len(hash{})]))
		}
		off += n
	}
	return out, nil
}

func (t *remoteTarget) root(ctx context.Context) (string, error) {
	answer, err := t.call(ctx, wire.Header{Type: wire.Root}, nil)
	return string(answer), err
}

// call sends one request over the connection that has the least on its way.
func (t *remoteTarget) call(ctx context.Context, h wire.Header, payload []byte) ([]byte, error) {
	best := t.links[int(t.next.Add(1))%len(t.links)]
	for _, l := range t.links {
		if l.load.Load() < best.load.Load() {
			best = l
		}
	}
	return best.call(ctx, h, payload)
}

func (t *remoteTarget) close() {
	for _, l := range t.links {
		l.end(fmt.Errorf("session %w", share.ErrClosed))
		<-l.done
	}
}

// link is one connection of a session. Its goroutine reads the answers.
type link struct {
	conn     net.Conn
	in       *wire.Reader
	credit   *semaphore.Weighted
	load     atomic.Int64 // bytes unanswered
	done     chan struct{}
	patience time.Duration
	squeeze  squeezer

	write   sync.Mutex // one frame at a time
	mu      sync.Mutex
	id      uint64
	pending map[uint64]*call
	err     error
}

// call is a request that waits for its answer.
type call struct {
	answer chan struct{} // closed when there is one
	result []byte
	err    error
}

func (l *link) call(ctx context.Context, h wire.Header, payload []byte) ([]byte, error) {
	cost := max(int64(len(payload)), 4096) // a request without data takes memory too
	if err := l.credit.Acquire(ctx, cost); err != nil {
		return nil, context.Cause(ctx)
	}
	defer l.credit.Release(cost)
	l.load.Add(cost)
	defer l.load.Add(-cost)

	sent, flags, give := payload, uint8(0), func() {}
	if h.Type == wire.Data {
		sent, flags, give = l.squeeze.pack(payload)
	}
	defer give()
	h.Flags |= flags

	c := &call{answer: make(chan struct{})}
	l.mu.Lock()
	if l.err != nil {
		defer l.mu.Unlock()
		return nil, l.err
	}
	l.id++
	h.ID = l.id
	l.pending[h.ID] = c
	if len(l.pending) == 1 {
		_ = l.conn.SetReadDeadline(time.Now().Add(l.patience))
	}
	l.mu.Unlock()

	l.write.Lock()
	err := wire.Write(l.conn, h, sent)
	l.write.Unlock()
	if err != nil {
		l.end(unavailable(err))
	}
	select {
	case <-c.answer:
	case <-ctx.Done():
		// The request may still be carried out. The session ends, so that
		// nothing later can be overtaken by it.
		l.end(fmt.Errorf("session ended by a cancelled call: %w", context.Cause(ctx)))
		<-c.answer
	}
	if h.Type == wire.Data && c.err == nil {
		l.squeeze.observe(len(sent))
	}
	return c.result, c.err
}

// read takes the answers until the connection ends.
func (l *link) read() {
	defer close(l.done)
	for {
		h, err := l.in.Next(wire.MaxPayload)
		if err == nil {
			p := make([]byte, h.Length)
			if err = l.in.Payload(p); err == nil {
				err = l.take(h, p)
			}
		}
		if err != nil {
			if err == io.EOF {
				err = errors.New("the receiver closed it")
			}
			l.end(unavailable(err))
			return
		}
	}
}

// take gives an answer to the call that waits for it.
func (l *link) take(h wire.Header, p []byte) error {
	l.mu.Lock()
	c := l.pending[h.ID]
	delete(l.pending, h.ID)
	deadline := time.Time{} // who owes no answer may be silent
	if len(l.pending) > 0 {
		deadline = time.Now().Add(l.patience)
	}
	_ = l.conn.SetReadDeadline(deadline)
	l.mu.Unlock()
	if c == nil {
		return fmt.Errorf("%w: an answer to request %d, which nobody made", wire.ErrProtocol, h.ID)
	}
	switch h.Type {
	case wire.Done:
		c.result = p
	case wire.Failed:
		c.err = remoteError(p)
	default:
		c.err = fmt.Errorf("%w: an answer of type %d", wire.ErrProtocol, h.Type)
	}
	close(c.answer)
	return nil
}

// end closes the connection; calls under way and later ones get err.
func (l *link) end(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	err = l.err
	pending := l.pending
	l.pending = map[uint64]*call{}
	l.mu.Unlock()
	_ = l.conn.Close()
	for _, c := range pending {
		c.err = err
		close(c.answer)
	}
}

// remoteError makes an error of a Failed frame's payload.
func remoteError(p []byte) error {
	var f wire.Failure
	if err := wire.Decode(p, &f); err != nil {
		return err
	}
	kind := failureKinds[f.Code]
	switch {
	case f.Code == wire.CodeDiverged:
		return &DivergedError{Off: f.Off, Len: f.Len}
	case kind != nil:
		return fmt.Errorf("the receiver says: %w: %s", kind, sanitize(f.Text))
	}
	return fmt.Errorf("the receiver says: %s", sanitize(f.Text))
}
