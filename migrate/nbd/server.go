package nbd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/vmferry/vmferry/internal/secure"
	"github.com/vmferry/vmferry/share"
)

// ServerOptions change how a [Server] works. The zero value and nil are the
// defaults.
type ServerOptions struct {
	// TLS demands TLS of all clients, version 1.3 or later, each with a
	// certificate that ClientCAs verify. Before it is up nothing is told, not
	// even the names of exports.
	TLS *tls.Config
	// InsecurePlaintext allows listeners that are neither on a unix socket
	// nor on loopback without TLS: everybody on the network can read and
	// write the exports.
	InsecurePlaintext bool
	// InsecureAnyClient keeps the ClientAuth of TLS as it is, so that clients
	// need no certificate.
	InsecureAnyClient bool
	// Authorize is asked before an export is told about or opened; an error
	// refuses it, and its text stays here. It runs within the handshake's
	// time. The default allows everybody who came so far.
	Authorize func(ctx context.Context, peer ConnInfo, export string) error

	// MaxConns bounds the connections, those in the handshake included; more
	// are closed at once. Default 256.
	MaxConns int
	// MaxRequest is the longest read or write in bytes; default 32 MiB, which
	// clients expect. A power of two is best.
	MaxRequest int64
	// MaxRequests bounds the requests under way on one connection; default
	// 64. Further ones are not read.
	MaxRequests int
	// MaxConnBytes and MaxBytes bound the memory for data under way on one
	// connection and in all; defaults 64 MiB and 256 MiB.
	MaxConnBytes, MaxBytes int64
	// HandshakeTimeout bounds the negotiation; default 10 s.
	HandshakeTimeout time.Duration
	// StallTimeout ends a connection that takes longer to send the data of
	// one write, or to receive one answer; default 60 s. A connection without
	// requests may rest for ever.
	StallTimeout time.Duration
	// PeerTimeout ends a TCP connection whose peer's kernel acknowledges
	// nothing for so long; default 30 s, negative for the system's defaults.
	PeerTimeout time.Duration
	// Logger hears of connections, of who opens which export, and of
	// refusals; nil discards.
	Logger *slog.Logger
}

// ConnInfo says who is on the other side of a connection.
type ConnInfo struct {
	RemoteAddr net.Addr
	// PeerCertificates are the verified client's, the leaf first; nil without
	// TLS.
	PeerCertificates []*x509.Certificate
}

// Server offers devices to NBD clients. It corresponds to qemu-nbd(8) and
// nbdkit(1).
//
// The requests of a connection run at the same time, and are answered in the
// order in which they end. A disconnection cancels those under way. A device
// that blocks holds up only the connections to it.
//
// All methods may be called from several goroutines at once.
type Server struct {
	opts   ServerOptions
	tls    *tls.Config
	budget *budget

	mu        sync.Mutex
	exports   map[string]*served
	sessions  map[*session]struct{}
	listeners map[net.Listener]struct{}
	closed    bool
	wg        sync.WaitGroup // of sessions
}

// NewServer makes a server without exports. It fails with [share.ErrInvalid]
// if the TLS configuration cannot authenticate both sides.
func NewServer(opts *ServerOptions) (*Server, error) {
	var o ServerOptions
	if opts != nil {
		o = *opts
	}
	if o.MaxConns <= 0 {
		o.MaxConns = 256
	}
	if o.MaxRequests <= 0 {
		o.MaxRequests = 64
	}
	setDefault(&o.MaxRequest, defaultMax)
	o.MaxRequest = min(o.MaxRequest, 1<<30)
	setDefault(&o.MaxConnBytes, 64<<20)
	setDefault(&o.MaxBytes, 256<<20)
	setDefault(&o.HandshakeTimeout, 10*time.Second)
	setDefault(&o.StallTimeout, time.Minute)
	if o.PeerTimeout == 0 {
		o.PeerTimeout = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		opts: o, budget: newBudget(o.MaxBytes),
		exports: map[string]*served{}, sessions: map[*session]struct{}{}, listeners: map[net.Listener]struct{}{},
	}
	if o.TLS != nil {
		var err error
		if s.tls, err = serverTLS(o.TLS, o.InsecureAnyClient); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Add offers an export. The name "" is the default export. It fails with
// [share.ErrExist] if the name is taken.
func (s *Server) Add(name string, e Export) error {
	x, err := newServed(name, e, s.opts.MaxRequest)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.exports[name]; ok {
		return fmt.Errorf("nbd: export %s: %w", quote(name), share.ErrExist)
	}
	s.exports[name] = x
	return nil
}

// Remove withdraws an export and ends the connections to it. When it returns
// nil, no call on the device is under way. It fails with [share.ErrNotExist]
// if there is none of that name, and with ctx's error if a call on the device
// does not end before ctx; the export is withdrawn all the same.
func (s *Server) Remove(ctx context.Context, name string) error {
	s.mu.Lock()
	x, ok := s.exports[name]
	delete(s.exports, name)
	var on []*session
	for t := range s.sessions {
		if t.export == x {
			on = append(on, t)
		}
	}
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("nbd: export %s: %w", quote(name), share.ErrNotExist)
	}
	for _, t := range on {
		t.stop(errRemoved)
	}
	for _, t := range on {
		select {
		case <-t.done:
		case <-ctx.Done():
			return fmt.Errorf("nbd: export %s: a call on the device is still under way: %w", quote(name), ctx.Err())
		}
	}
	return nil
}

var (
	errRemoved = errors.New("the export was removed")
	errClosing = errors.New("the server was closed")
)

// Serve accepts connections until ctx ends or the server is closed, and
// returns nil when the last of them has ended; the end of ctx ends them. It
// owns l. Without TLS it refuses a listener that a network can reach, with
// [share.ErrDenied]. After Close or Shutdown it fails with [share.ErrClosed].
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if s.tls == nil && !s.opts.InsecurePlaintext && !secure.OnThisMachine(l.Addr()) {
		return fmt.Errorf("nbd: plaintext on %v is refused; set TLS in the options, or listen on a unix socket or loopback: %w", l.Addr(), share.ErrDenied)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("nbd: the server %w", share.ErrClosed)
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()

	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mine sync.WaitGroup
	defer mine.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err == nil {
			mine.Go(func() { s.serveConn(ctx, conn) })
			continue
		}
		s.mu.Lock()
		closed := s.closed
		s.mu.Unlock()
		switch {
		case closed, ctx.Err() != nil:
			return nil
		case isTemporary(err):
			s.opts.Logger.Warn("nbd: accept failed, trying again", "err", err)
			time.Sleep(50 * time.Millisecond)
		default:
			cancel()
			return fmt.Errorf("nbd: accept on %v: %w", l.Addr(), err)
		}
	}
}

// isTemporary: descriptors have run out, or a connection ended before it was
// accepted.
func isTemporary(err error) bool {
	var n net.Error
	//lint:ignore SA1019 there is no other way to tell
	return errors.As(err, &n) && n.Temporary()
}

// ServeConn serves one connection, which it owns, until it ends. The rules
// for plaintext are applied to conn.LocalAddr.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error {
	if s.tls == nil && !s.opts.InsecurePlaintext && !secure.OnThisMachine(conn.LocalAddr()) {
		conn.Close()
		return fmt.Errorf("nbd: plaintext on %v is refused; set TLS in the options, or use a unix socket or loopback: %w", conn.LocalAddr(), share.ErrDenied)
	}
	return s.serveConn(ctx, conn)
}

func (s *Server) serveConn(ctx context.Context, conn net.Conn) error {
	t := newSession(ctx, s, conn)
	s.mu.Lock()
	closed, full := s.closed, len(s.sessions) >= s.opts.MaxConns
	if !closed && !full {
		s.sessions[t] = struct{}{}
		s.wg.Add(1)
	}
	s.mu.Unlock()
	log := s.opts.Logger.With("peer", conn.RemoteAddr())
	switch {
	case closed:
		conn.Close()
		return fmt.Errorf("nbd: the server %w", share.ErrClosed)
	case full:
		conn.Close()
		log.Warn("nbd: connection refused, there are too many", "limit", s.opts.MaxConns)
		return fmt.Errorf("nbd: there are %d connections already: %w", s.opts.MaxConns, share.ErrInUse)
	}
	defer s.wg.Done()
	defer close(t.done)
	defer func() {
		s.mu.Lock()
		delete(s.sessions, t)
		s.mu.Unlock()
	}()
	secure.WatchPeer(conn, s.opts.PeerTimeout)
	err := t.run(log)
	if err != nil {
		log.Info("nbd: connection ended", "err", err)
	} else {
		log.Debug("nbd: connection ended")
	}
	return err
}

// Shutdown accepts nothing more, lets the requests under way end and be
// answered, and closes each connection then. When ctx ends first it goes on
// as Close, and returns ctx's error. It does not flush devices.
func (s *Server) Shutdown(ctx context.Context) error {
	for _, t := range s.close() {
		t.drain()
	}
	ended := make(chan struct{})
	go func() { s.wg.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	s.Close()
	return fmt.Errorf("nbd: shutdown: %w", ctx.Err())
}

// Close ends all connections, cancels the requests under way, and returns
// when none is left. A second Close returns nil.
func (s *Server) Close() error {
	for _, t := range s.close() {
		t.stop(errClosing)
	}
	s.wg.Wait()
	return nil
}

// close closes the listeners and returns the sessions that are left.
func (s *Server) close() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	clear(s.listeners)
	var all []*session
	for t := range s.sessions {
		all = append(all, t)
	}
	return all
}

// lookup finds an export for t, or says which refusal is due.
func (s *Server) lookup(ctx context.Context, t *session, name string) (*served, uint32) {
	s.mu.Lock()
	x := s.exports[name]
	closed := s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return nil, repErrShutdown
	case x == nil:
		return nil, repErrUnknown
	}
	if s.opts.Authorize != nil {
		if err := s.opts.Authorize(ctx, t.info, name); err != nil {
			t.log.Warn("nbd: export refused", "export", name, "err", err)
			return nil, repErrPolicy
		}
	}
	return x, 0
}

// names are those of all exports, sorted.
func (s *Server) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]string, 0, len(s.exports))
	for name := range s.exports {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// enter binds t to x, unless x has just been removed.
func (s *Server) enter(t *session, x *served) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.exports[x.name] != x {
		return false
	}
	t.export = x
	return true
}
