package migrate_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/internal/wire"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// receive starts a receiver that expects the device under the name "disk", on
// loopback, and returns how to reach it.
func receive(t testing.TB, d share.Device, opts *migrate.ReceiverOptions) (*migrate.Receiver, *migrate.Remote) {
	t.Helper()
	r, err := migrate.NewReceiver(opts)
	require.NoError(t, err)
	require.NoError(t, r.Expect("disk", d))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- r.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		require.NoError(t, r.Close())
		require.NoError(t, r.Close())
		require.NoError(t, <-served)
	})
	return r, &migrate.Remote{Address: l.Addr().String(), Disk: "disk", Timeout: 5 * time.Second}
}

// toRemote changes the rig's move to go through a receiver; the guest goes on
// at the device behind it.
func (r *rig) toRemote(opts *migrate.ReceiverOptions) *migrate.Remote {
	_, remote := receive(r.t, r.to, opts)
	r.move.Disks[0].Destination, r.move.Disks[0].Remote = nil, remote
	return remote
}

func TestMoveToReceiver(t *testing.T) {
	for name, opts := range map[string]*migrate.ReceiverOptions{"received": nil, "read back": {ReadBack: true}} {
		for _, compress := range []migrate.Compression{migrate.CompressNever, migrate.CompressAlways, migrate.CompressWhenItPays} {
			r := newRig(t, 3, nil)
			remote := r.toRemote(opts)
			remote.Compress = compress
			r.write()
			res, err := r.wait(r.start(nil))
			require.NoError(t, err)
			r.stillWrites()
			require.NoError(t, r.stop())
			require.NoError(t, r.writer.Check(context.Background(), r.to))
			require.Equal(t, name, res.Disks[0].Proof)
			require.NotEmpty(t, res.Disks[0].Root)
		}
	}
}

// pki is an authority and what it signed.
type pki struct {
	pool                   *x509.CertPool
	server, client, strays tls.Certificate
}

func newPKI(t testing.TB) *pki {
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		return k
	}
	caKey := key()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	issue := func(parent *x509.Certificate, signer *ecdsa.PrivateKey, after time.Time) tls.Certificate {
		k := key()
		leaf := &x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: ca.NotBefore, NotAfter: after,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		der, err := x509.CreateCertificate(rand.Reader, leaf, parent, k.Public(), signer)
		require.NoError(t, err)
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	require.NoError(t, err)
	parsed, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	p := &pki{pool: x509.NewCertPool(), server: issue(ca, caKey, ca.NotAfter), client: issue(ca, caKey, ca.NotAfter)}
	p.pool.AddCert(parsed)
	otherKey := key()
	p.strays = issue(ca, otherKey, ca.NotAfter) // signed by somebody else
	return p
}

func (p *pki) receiver() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{p.server}, ClientCAs: p.pool}
}

func (p *pki) sender() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{p.client}, RootCAs: p.pool}
}

func TestMoveOverTLS(t *testing.T) {
	p := newPKI(t)
	var mu sync.Mutex
	var peers []migrate.Peer
	r := newRig(t, 3, nil)
	remote := r.toRemote(&migrate.ReceiverOptions{TLS: p.receiver(), Authorize: func(_ context.Context, peer migrate.Peer, disk string) error {
		mu.Lock()
		defer mu.Unlock()
		peers = append(peers, peer)
		if !peer.Token.Equal(share.NewSecret([]byte("the token"))) {
			return errors.New("another token")
		}
		return nil
	}})
	var states []tls.ConnectionState
	remote.TLS = p.sender()
	remote.TLS.VerifyConnection = func(s tls.ConnectionState) error {
		mu.Lock()
		defer mu.Unlock()
		states = append(states, s)
		return nil
	}
	remote.Token = share.NewSecret([]byte("the token"))
	r.write()
	_, err := r.wait(r.start(nil))
	require.NoError(t, err)
	require.NoError(t, r.stop())
	require.NoError(t, r.writer.Check(context.Background(), r.to))
	require.Len(t, peers, 4)
	require.Len(t, peers[0].Certificates, 1)
	for _, s := range states {
		require.Equal(t, uint16(tls.VersionTLS13), s.Version)
		require.Equal(t, tls.X25519MLKEM768, s.CurveID, "the key exchange is not hybrid post-quantum")
	}
}

// Who is not who they should be gets nowhere, and the guest stays.
func TestReceiverRefuses(t *testing.T) {
	p := newPKI(t)
	for name, tc := range map[string]struct {
		opts   *migrate.ReceiverOptions
		change func(*migrate.Remote)
		want   error
	}{
		"another disk":         {nil, func(r *migrate.Remote) { r.Disk = "other" }, share.ErrNotExist},
		"nobody there":         {nil, func(r *migrate.Remote) { r.Address = "127.0.0.1:1" }, share.ErrUnavailable},
		"a stray certificate":  {&migrate.ReceiverOptions{TLS: p.receiver()}, func(r *migrate.Remote) { r.TLS = p.sender(); r.TLS.Certificates[0] = p.strays }, nil},
		"no certificate":       {&migrate.ReceiverOptions{TLS: p.receiver()}, func(r *migrate.Remote) { r.TLS = p.sender(); r.TLS.Certificates = nil }, nil},
		"an unknown authority": {&migrate.ReceiverOptions{TLS: p.receiver()}, func(r *migrate.Remote) { r.TLS = p.sender(); r.TLS.RootCAs = x509.NewCertPool() }, share.ErrDenied},
		"another name":         {&migrate.ReceiverOptions{TLS: p.receiver()}, func(r *migrate.Remote) { r.TLS = p.sender(); r.TLS.ServerName = "host" }, share.ErrDenied},
		"plaintext to TLS":     {&migrate.ReceiverOptions{TLS: p.receiver()}, func(*migrate.Remote) {}, nil},
		"TLS to plaintext":     {nil, func(r *migrate.Remote) { r.TLS = p.sender() }, share.ErrDenied},
		"a wrong token": {&migrate.ReceiverOptions{Authorize: func(context.Context, migrate.Peer, string) error { return errors.New("no") }},
			func(*migrate.Remote) {}, share.ErrDenied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, nil)
			r.write()
			tc.change(r.toRemote(tc.opts))
			res, err := r.wait(r.start(nil))
			require.Error(t, err)
			if tc.want != nil {
				require.ErrorIs(t, err, tc.want)
			}
			require.Equal(t, migrate.PhaseFailed, res.Phase)
			r.stillWrites()
		})
	}
}

func TestReceiverTooSmall(t *testing.T) {
	r := newRig(t, 1, sharetest.NewDevice(diskSize))
	r.toRemote(nil)
	_, err := r.wait(r.start(nil))
	require.ErrorIs(t, err, share.ErrInvalid)
	require.ErrorContains(t, err, "does not fit")
}

func TestReceiverIdentity(t *testing.T) {
	r := newRig(t, 1, nil)
	r.toRemote(nil)
	r.move.Disks[0].DestinationID = "another"
	_, err := r.wait(r.start(nil))
	require.ErrorIs(t, err, share.ErrWrongDevice)
}

func TestReceiverOptions(t *testing.T) {
	for name, opts := range map[string]*migrate.ReceiverOptions{
		"no certificate": {TLS: &tls.Config{}}, "little credit": {Credit: 100}, "no client CAs": {TLS: &tls.Config{Certificates: make([]tls.Certificate, 1)}},
	} {
		_, err := migrate.NewReceiver(opts)
		require.ErrorIs(t, err, share.ErrInvalid, name)
	}
	r, err := migrate.NewReceiver(nil)
	require.NoError(t, err)
	require.NoError(t, r.Expect("a", sharetest.NewDevice(512)))
	require.ErrorIs(t, r.Expect("a", sharetest.NewDevice(512)), share.ErrExist)
	require.ErrorIs(t, r.Expect("../a", sharetest.NewDevice(512)), share.ErrInvalid)
	require.NoError(t, r.Forget(context.Background(), "a"))
	require.NoError(t, r.Forget(context.Background(), "a"))
	l, err := net.Listen("tcp", "0.0.0.0:0")
	require.NoError(t, err)
	require.ErrorIs(t, r.Serve(context.Background(), l), share.ErrDenied)
	require.NoError(t, r.Close())
	require.ErrorIs(t, r.Expect("b", sharetest.NewDevice(512)), share.ErrClosed)
}

// The receiver's failures reach the sender as what they are.
func TestReceiverDiskFails(t *testing.T) {
	for _, want := range []error{share.ErrNoSpace, share.ErrUnavailable} {
		to := newHook(sharetest.NewDevice(diskSize + 512))
		to.onWrite(func(context.Context) error { return want })
		r := newRig(t, 1, to)
		r.toRemote(nil)
		r.write()
		_, err := r.wait(r.start(nil))
		require.ErrorIs(t, err, want)
		r.stillWrites()
	}
	to := newHook(sharetest.NewDevice(diskSize + 512))
	to.onRead = func(p []byte) error { p[0] ^= 1; return nil }
	r := newRig(t, 1, to)
	r.toRemote(&migrate.ReceiverOptions{ReadBack: true})
	r.write()
	_, err := r.wait(r.start(nil))
	var d *migrate.DivergedError
	require.ErrorAs(t, err, &d)
	require.Equal(t, "vda", d.Disk)
}

// A bit that flips on the way is found by the checksum, and ends the session.
func TestDamagedFrame(t *testing.T) {
	r := newRig(t, 1, nil)
	remote := r.toRemote(nil)
	remote.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		return &damaged{Conn: c, after: 200_000}, err
	}
	r.write()
	res, err := r.wait(r.start(nil))
	require.Error(t, err)
	require.Equal(t, migrate.PhaseFailed, res.Phase)
	r.stillWrites()
	require.NoError(t, r.stop())
}

// damaged flips a bit once, after so many bytes.
type damaged struct {
	net.Conn
	after int
}

func (d *damaged) Write(p []byte) (int, error) {
	if before := d.after; before > 0 && before <= len(p) {
		p = bytes.Clone(p)
		p[before-1] ^= 0x10
	}
	d.after -= len(p)
	return d.Conn.Write(p)
}

// raw is a connection that a test speaks by hand.
type raw struct {
	t testing.TB
	net.Conn
	in *wire.Reader
}

func dialRaw(t testing.TB, remote *migrate.Remote, hello wire.HelloBody) *raw {
	c, err := net.Dial("tcp", remote.Address)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	r := &raw{t, c, wire.NewReader(c)}
	payload, err := wire.Encode(hello)
	require.NoError(t, err)
	require.NoError(t, wire.Write(c, wire.Header{Type: wire.Hello, ID: 1}, payload))
	return r
}

// next is the next answer.
func (r *raw) next() (wire.Header, wire.Failure, error) {
	h, err := r.in.Next(wire.MaxPayload)
	if err != nil {
		return h, wire.Failure{}, err
	}
	p := make([]byte, h.Length)
	require.NoError(r.t, r.in.Payload(p))
	var f wire.Failure
	if h.Type == wire.Failed {
		require.NoError(r.t, wire.Decode(p, &f))
	}
	return h, f, nil
}

func (r *raw) ask(h wire.Header, payload []byte) (wire.Header, wire.Failure, error) {
	if err := wire.Write(r.Conn, h, payload); err != nil {
		return wire.Header{}, wire.Failure{}, err
	}
	return r.next()
}

func hello(epoch uint64) wire.HelloBody {
	return wire.HelloBody{Versions: []int{1}, Disk: "disk", Session: "0123456789abcdef0123456789abcdef", Epoch: epoch, Size: 1 << 20, Block: 4096}
}

// A sender of a later epoch locks the earlier one out, also for frames that
// are under way; one of an earlier epoch cannot come back.
func TestLaterEpochTakesOver(t *testing.T) {
	d := sharetest.NewDevice(1 << 20)
	_, remote := receive(t, d, nil)
	first := dialRaw(t, remote, hello(5))
	h, _, err := first.next()
	require.NoError(t, err)
	require.Equal(t, wire.Welcome, h.Type)
	h, _, err = first.ask(wire.Header{Type: wire.Data, ID: 2, Len: 4096, Epoch: 5, Generation: 9}, bytes.Repeat([]byte{5}, 4096))
	require.NoError(t, err)
	require.Equal(t, wire.Done, h.Type)
	require.Equal(t, uint64(9), h.Generation)

	// The same epoch, another sender.
	other := hello(5)
	other.Session = "ffffffffffffffffffffffffffffffff"
	_, f, err := dialRaw(t, remote, other).next()
	require.NoError(t, err)
	require.Equal(t, wire.CodeInUse, f.Code)

	second := dialRaw(t, remote, hello(6))
	h, _, err = second.next()
	require.NoError(t, err)
	require.Equal(t, wire.Welcome, h.Type)
	_, _, err = first.ask(wire.Header{Type: wire.Data, ID: 3, Len: 4096, Epoch: 5, Generation: 10}, make([]byte, 4096))
	require.Error(t, err, "the old session goes on")
	_, f, err = dialRaw(t, remote, hello(5)).next()
	require.NoError(t, err)
	require.Equal(t, wire.CodeStale, f.Code)

	// Within a session too: older generations and epochs are refused.
	ok := func(h wire.Header, f wire.Failure, err error) {
		require.NoError(t, err)
		require.Equal(t, wire.Done, h.Type, f.Text)
	}
	ok(second.ask(wire.Header{Type: wire.Data, ID: 2, Len: 4096, Epoch: 6, Generation: 3}, bytes.Repeat([]byte{6}, 4096)))
	_, f, err = second.ask(wire.Header{Type: wire.Data, ID: 3, Len: 4096, Epoch: 6, Generation: 2}, make([]byte, 4096))
	require.NoError(t, err)
	require.Equal(t, wire.CodeStale, f.Code)
	_, f, err = second.ask(wire.Header{Type: wire.Zero, ID: 4, Len: 4096, Epoch: 5, Generation: 9}, nil)
	require.NoError(t, err)
	require.Equal(t, wire.CodeStale, f.Code)
	got := make([]byte, 1)
	require.NoError(t, d.ReadAt(context.Background(), got, 0))
	require.Equal(t, byte(6), got[0])
}

// What a hostile sender may say: each gets an error, and nothing is written.
func TestHostileSender(t *testing.T) {
	d := sharetest.NewDevice(1 << 20)
	_, remote := receive(t, d, &migrate.ReceiverOptions{HandshakeTimeout: 200 * time.Millisecond})
	for name, change := range map[string]func(*wire.HelloBody){
		"no version":       func(h *wire.HelloBody) { h.Versions = nil },
		"unknown version":  func(h *wire.HelloBody) { h.Versions = []int{2, 99} },
		"no epoch":         func(h *wire.HelloBody) { h.Epoch = 0 },
		"no session":       func(h *wire.HelloBody) { h.Session = "" },
		"odd block":        func(h *wire.HelloBody) { h.Block = 4095 },
		"huge block":       func(h *wire.HelloBody) { h.Block = 1 << 40 },
		"negative size":    func(h *wire.HelloBody) { h.Size = -1 },
		"too large a disk": func(h *wire.HelloBody) { h.Size = 2 << 20 },
		"a path":           func(h *wire.HelloBody) { h.Disk = "../disk" },
	} {
		body := hello(1)
		change(&body)
		h, f, err := dialRaw(t, remote, body).next()
		require.NoError(t, err, name)
		require.Equal(t, wire.Failed, h.Type, name)
		require.NotEmpty(t, f.Text, name)
	}
	s := dialRaw(t, remote, hello(1))
	_, _, err := s.next()
	require.NoError(t, err)
	for name, q := range map[string]struct {
		h wire.Header
		p []byte
	}{
		"past the end":    {wire.Header{Type: wire.Data, Off: 1 << 20, Len: 4096, Epoch: 1}, make([]byte, 4096)},
		"overflow":        {wire.Header{Type: wire.Zero, Off: 1 << 63, Len: 4096, Epoch: 1}, nil},
		"wraps around":    {wire.Header{Type: wire.Zero, Off: 4096, Len: 1<<64 - 4096, Epoch: 1}, nil},
		"not aligned":     {wire.Header{Type: wire.Data, Off: 1, Len: 4096, Epoch: 1}, make([]byte, 4096)},
		"other length":    {wire.Header{Type: wire.Data, Len: 8192, Epoch: 1}, make([]byte, 4096)},
		"no data":         {wire.Header{Type: wire.Data, Len: 4096, Epoch: 1}, nil},
		"no zstd":         {wire.Header{Type: wire.Data, Flags: wire.Compressed, Len: 4096, Epoch: 1}, make([]byte, 100)},
		"unknown":         {wire.Header{Type: 99, Len: 4096, Epoch: 1}, nil},
		"an answer":       {wire.Header{Type: wire.Welcome, Len: 4096, Epoch: 1}, nil},
		"flush of junk":   {wire.Header{Type: wire.Flush, Epoch: 1}, []byte("junk")},
		"flush outside":   {wire.Header{Type: wire.Flush, Epoch: 1}, []byte(`[{"Off":-4096,"Len":4096}]`)},
		"hash of nothing": {wire.Header{Type: wire.Hash, Epoch: 1}, nil},
	} {
		h, f, err := s.ask(q.h, q.p)
		require.NoError(t, err, name)
		require.Equal(t, wire.Failed, h.Type, name)
		require.NotEmpty(t, f.Text, name)
	}
	require.Zero(t, d.Unflushed(), "something was written")

	// A frame that is longer than allowed, and no hello at all.
	_, err = s.Conn.Write(append([]byte("vF\x02\x00\xff\xff\xff\xff"), make([]byte, 44)...))
	require.NoError(t, err)
	_, _, err = s.next()
	require.ErrorIs(t, err, io.EOF)
	silent, err := net.Dial("tcp", remote.Address)
	require.NoError(t, err)
	defer silent.Close()
	require.NoError(t, silent.SetDeadline(time.Now().Add(5*time.Second)))
	_, err = silent.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "a silent peer is kept")
}

// A receiver that lies or stops ends the move, not the guest.
func TestHostileReceiver(t *testing.T) {
	answer := func(h wire.Header, payload []byte) func(net.Conn) {
		return func(c net.Conn) {
			in := wire.NewReader(c)
			q, err := in.Next(wire.MaxHello)
			if err != nil || in.Payload(make([]byte, q.Length)) != nil {
				return
			}
			_ = wire.Write(c, h, payload)
			_, _ = io.Copy(io.Discard, c)
		}
	}
	welcome, err := wire.Encode(wire.WelcomeBody{Version: 1, Size: diskSize + 512, Credit: 16 << 20, Proof: "received"})
	require.NoError(t, err)
	for name, serve := range map[string]func(net.Conn){
		"junk":             func(c net.Conn) { _, _ = c.Write(bytes.Repeat([]byte("junk"), 1000)) },
		"silence":          func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"goodbye":          func(c net.Conn) {},
		"another version":  answer(wire.Header{Type: wire.Welcome}, []byte(`{"version":2,"credit":99999999}`)),
		"no credit":        answer(wire.Header{Type: wire.Welcome}, []byte(`{"version":1,"credit":1}`)),
		"not JSON":         answer(wire.Header{Type: wire.Welcome}, []byte(`{`)),
		"an odd answer":    answer(wire.Header{Type: wire.Done}, nil),
		"a huge welcome":   answer(wire.Header{Type: wire.Welcome}, make([]byte, 1<<20)),
		"escape sequences": answer(wire.Header{Type: wire.Failed}, []byte(`{"code":"denied","text":"\u001b[2J"}`)),
		"silence later":    answer(wire.Header{Type: wire.Welcome}, welcome),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			require.NoError(t, err)
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() { defer c.Close(); serve(c) }()
				}
			}()
			r := newRig(t, 1, nil)
			r.write()
			r.move.Disks[0].Destination = nil
			r.move.Disks[0].Remote = &migrate.Remote{Network: "unix", Address: path, Disk: "disk", Timeout: 500 * time.Millisecond,
				AnswerTimeout: 500 * time.Millisecond}
			_, err = r.wait(r.start(nil))
			require.Error(t, err)
			require.NotContains(t, err.Error(), "\x1b")
			r.stillWrites()
		})
	}
}
