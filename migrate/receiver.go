package migrate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/vmferry/vmferry/internal/secure"
	"github.com/vmferry/vmferry/internal/wire"
	"github.com/vmferry/vmferry/share"
)

// Receiver takes in disks that are sent to this host; it is embedded in the
// host's agent. Nothing arrives that was not announced with [Receiver.Expect].
//
// A sender works in a session of several connections. A session of a greater
// epoch ends older ones of the same disk, and begins when the last write of
// theirs has ended; so a sender that was believed dead cannot write over what
// its successor wrote. All methods may be called from several goroutines at
// once.
type Receiver struct {
	opts ReceiverOptions
	tls  *tls.Config

	mu     sync.Mutex
	disks  map[string]*arrival
	conns  map[net.Conn]bool
	closed bool
	done   sync.WaitGroup // connections and listeners
	stop   context.CancelFunc
	ctx    context.Context
}

// ReceiverOptions change how a [Receiver] works. The zero value and nil are the
// defaults.
type ReceiverOptions struct {
	// TLS is the server's configuration: TLS 1.3, every sender with a
	// certificate that ClientCAs verify. Without it only unix sockets and
	// loopback are served.
	TLS *tls.Config
	// InsecurePlaintext allows listeners without TLS that a network can reach.
	InsecurePlaintext bool
	// Authorize is asked for each connection whether the peer may send the
	// disk. An error refuses it; its text stays here. Nil allows everybody who
	// came so far.
	Authorize func(ctx context.Context, peer Peer, disk string) error
	// ReadBack reads what was written back after each flush, so that the root
	// stands on what the disk gives, and not on what it was given.
	ReadBack bool
	// MaxConns bounds the connections; more are closed at once. Default 64.
	MaxConns int
	// Credit is how many bytes may be under way on one connection, and so the
	// memory that it can take. Default 16 MiB; at least 8 MiB.
	Credit int64
	// HandshakeTimeout bounds the time until a disk is named; default 10 s.
	HandshakeTimeout time.Duration
	// PeerTimeout ends a connection whose peer's kernel acknowledges nothing
	// for so long; default 30 s.
	PeerTimeout time.Duration
	// Logger hears of sessions and refusals; nil discards.
	Logger *slog.Logger
}

// Peer says who wants to send.
type Peer struct {
	Addr net.Addr
	// Certificates are the verified sender's, the leaf first; nil without TLS.
	Certificates []*x509.Certificate
	// Token is what the sender showed.
	Token share.Secret
}

// NewReceiver makes a receiver that expects nothing yet. It fails with
// [share.ErrInvalid] if the TLS configuration cannot authenticate both sides.
func NewReceiver(opts *ReceiverOptions) (*Receiver, error) {
	r := &Receiver{disks: map[string]*arrival{}, conns: map[net.Conn]bool{}}
	if opts != nil {
		r.opts = *opts
	}
	setDefault(&r.opts.MaxConns, 64)
	setDefault(&r.opts.Credit, 16<<20)
	setDefault(&r.opts.HandshakeTimeout, 10*time.Second)
	setDefault(&r.opts.PeerTimeout, 30*time.Second)
	if r.opts.Logger == nil {
		r.opts.Logger = slog.New(slog.DiscardHandler)
	}
	if r.opts.Credit < 2*wire.MaxPayload {
		return nil, fmt.Errorf("%w: a credit of %d bytes; at least %d", share.ErrInvalid, r.opts.Credit, 2*wire.MaxPayload)
	}
	if r.opts.TLS != nil {
		c, err := secure.ServerTLS(r.opts.TLS, false)
		if err != nil {
			return nil, fmt.Errorf("%w: receiver: %w", share.ErrInvalid, err)
		}
		r.tls = c
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r, nil
}

// Expect lets a disk arrive under a name. The device is written by the receiver
// alone until [Receiver.Forget]; it stays the caller's, who closes it after
// that. A name that is taken is [share.ErrExist].
func (r *Receiver) Expect(name string, d share.Device) error {
	if err := share.CheckName(name); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("receiver %w", share.ErrClosed)
	}
	if r.disks[name] != nil {
		return fmt.Errorf("the arrival of disk %s %w", name, share.ErrExist)
	}
	r.disks[name] = &arrival{name: name, dev: d, opts: &r.opts}
	return nil
}

// Forget ends what arrives under a name and returns when the last write to the
// device has ended. There being none is no error. When ctx ends first the name
// is forgotten all the same, and writes may still be under way.
func (r *Receiver) Forget(ctx context.Context, name string) error {
	r.mu.Lock()
	a := r.disks[name]
	delete(r.disks, name)
	r.mu.Unlock()
	if a == nil {
		return nil
	}
	why := fmt.Errorf("the disk is no longer expected: %w", share.ErrNotExist)
	a.endReaders(why)
	return a.endSession(ctx, why)
}

// Serve accepts senders until ctx ends or the receiver is closed, and returns
// nil when the listener is closed. It owns l. Without TLS it refuses a listener
// that a network can reach, with [share.ErrDenied].
func (r *Receiver) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if r.tls == nil && !r.opts.InsecurePlaintext && !secure.OnThisMachine(l.Addr()) {
		return fmt.Errorf("receiver: plaintext on %v is %w; set TLS", l.Addr(), share.ErrDenied)
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return fmt.Errorf("receiver %w", share.ErrClosed)
	}
	r.done.Add(1)
	r.mu.Unlock()
	defer r.done.Done()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer context.AfterFunc(r.ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || r.ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("receiver: %w", err)
		}
		if !r.enter(conn) {
			conn.Close()
			continue
		}
		go func() {
			defer r.leave(conn)
			r.serve(conn)
		}()
	}
}

func (r *Receiver) enter(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || len(r.conns) >= r.opts.MaxConns {
		return false
	}
	r.conns[c] = true
	r.done.Add(1)
	return true
}

func (r *Receiver) leave(c net.Conn) {
	c.Close()
	r.mu.Lock()
	delete(r.conns, c)
	r.mu.Unlock()
	r.done.Done()
}

// Close ends all sessions and returns when the last write has ended. It does
// not flush. A second Close returns nil.
func (r *Receiver) Close() error {
	r.mu.Lock()
	r.closed = true
	for c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	r.stop()
	r.done.Wait()
	return nil
}

// serve shakes hands on one connection, and hands it to the disk's session.
func (r *Receiver) serve(conn net.Conn) {
	log := r.opts.Logger.With("peer", conn.RemoteAddr())
	secure.WatchPeer(conn, r.opts.PeerTimeout)
	_ = conn.SetDeadline(time.Now().Add(r.opts.HandshakeTimeout))
	ctx, cancel := context.WithTimeout(r.ctx, r.opts.HandshakeTimeout)
	defer cancel()
	peer := Peer{Addr: conn.RemoteAddr()}
	if r.tls != nil {
		tc := tls.Server(wire.NewBatched(conn), r.tls)
		if err := tc.HandshakeContext(ctx); err != nil {
			log.Warn("receiver: TLS handshake", "error", err)
			return
		}
		conn, peer.Certificates = tc, tc.ConnectionState().PeerCertificates
	}
	in := wire.NewReader(conn)
	h, payload, err := readSmall(in)
	if err != nil || h.Type != wire.Hello {
		log.Warn("receiver: no hello", "error", err)
		return
	}
	var hello wire.HelloBody
	if err := wire.Decode(payload, &hello); err != nil {
		log.Warn("receiver: hello", "error", err)
		return
	}
	peer.Token = share.NewSecret([]byte(hello.Token))
	hello.Token = ""
	s, err := r.join(ctx, peer, hello)
	if err != nil {
		log.Warn("receiver: refused", "disk", hello.Disk, "epoch", hello.Epoch, "error", err)
		_ = writeFailure(conn, wire.Header{ID: h.ID}, err)
		return
	}
	welcome, err := wire.Encode(wire.WelcomeBody{Version: wire.Version, Identity: share.IdentityOf(s.arrival.dev), Size: s.arrival.dev.Size(),
		Credit: r.opts.Credit, Proof: s.proof()})
	if err == nil {
		err = wire.Write(conn, wire.Header{Type: wire.Welcome, ID: h.ID}, welcome)
	}
	if err != nil || !s.add(conn) {
		return
	}
	defer s.remove(conn)
	_ = conn.SetDeadline(time.Time{})
	log.Info("receiver: connected", "disk", hello.Disk, "epoch", hello.Epoch)
	err = s.serve(r.ctx, conn, in)
	log.Info("receiver: disconnected", "disk", hello.Disk, "epoch", hello.Epoch, "error", err)
}

// join finds or begins the session that hello belongs to.
func (r *Receiver) join(ctx context.Context, peer Peer, hello wire.HelloBody) (*session, error) {
	speaks := false
	for _, v := range hello.Versions {
		speaks = speaks || v == wire.Version
	}
	switch {
	case !speaks:
		return nil, &versionError{hello.Versions}
	case len(hello.Session) != 32 || (hello.Epoch == 0) != hello.ReadOnly:
		return nil, fmt.Errorf("%w: hello names no session or no epoch", share.ErrInvalid)
	case hello.Block < 512 || hello.Block > wire.MaxPayload || hello.Block&(hello.Block-1) != 0:
		return nil, fmt.Errorf("%w: a granularity of %d bytes", share.ErrInvalid, hello.Block)
	}
	r.mu.Lock()
	a := r.disks[hello.Disk]
	r.mu.Unlock()
	// Who may not send a disk does not hear whether it is expected.
	if r.opts.Authorize != nil {
		if err := r.opts.Authorize(ctx, peer, hello.Disk); err != nil {
			r.opts.Logger.Warn("receiver: not authorized", "peer", peer.Addr, "disk", hello.Disk, "error", err)
			return nil, fmt.Errorf("sending this disk is %w", share.ErrDenied)
		}
	}
	if a == nil {
		return nil, fmt.Errorf("a disk of that name %w here", share.ErrNotExist)
	}
	if hello.Size < 0 || hello.Size > a.dev.Size() {
		return nil, fmt.Errorf("%w: a disk of %d bytes does not fit into one of %d", share.ErrInvalid, hello.Size, a.dev.Size())
	}
	return a.join(ctx, hello)
}

// versionError refuses a sender that speaks no version of ours.
type versionError struct{ versions []int }

func (e *versionError) Error() string {
	return fmt.Sprintf("the sender speaks versions %v of the protocol, and this receiver %d; update the older one", e.versions, wire.Version)
}

// writeFailure answers with an error.
func writeFailure(conn net.Conn, h wire.Header, err error) error {
	f := wire.Failure{Code: codeOf(err), Text: err.Error()}
	if d := (*DivergedError)(nil); errors.As(err, &d) {
		f.Off, f.Len = d.Off, d.Len
	}
	payload, err := wire.Encode(f)
	if err != nil {
		return err
	}
	h.Type = wire.Failed
	return wire.Write(conn, h, payload)
}

// answerRanges encodes ranges, no more than fit into a frame: what is left out
// is then sent although it need not be.
func answerRanges(list []Range) ([]byte, error) {
	const most = wire.MaxPayload / 64
	if len(list) > most {
		list = list[:most]
	}
	return json.Marshal(list)
}

var _ io.Closer = (*Receiver)(nil)
