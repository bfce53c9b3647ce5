package nbd_test

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
)

func blocks(least, preferred, most int64) share.BlockSizes {
	return share.BlockSizes{Minimum: least, Preferred: preferred, Maximum: most}
}

// TestPaused: a device that blocks holds up its own requests only.
func TestPaused(t *testing.T) {
	slow, quick := newMemory(1<<20), newMemory(1<<20)
	s, uri := serve(t, nbd.Export{Device: slow}, &nbd.ServerOptions{MaxRequests: 8, MaxConnBytes: 64 << 10})
	require.NoError(t, s.Add("quick", nbd.Export{Device: quick}))
	u, err := nbd.ParseURI(uri)
	require.NoError(t, err)
	u.Export = "quick"
	resume := slow.setPause()
	defer resume()

	c := dial(t, uri, nil)
	done := make(chan error, 40)
	for i := range 40 { // more than requests and bytes allow at once
		go func() { done <- c.WriteAt(timed(t), []byte{byte(i)}, int64(i)*4096) }()
	}
	require.Eventually(t, func() bool { return slow.count("write") >= 8 }, 5*time.Second, time.Millisecond)
	other := dial(t, u.String(), nil)
	require.NoError(t, other.WriteAt(timed(t), []byte{1}, 0))
	require.Empty(t, done)
	resume()
	for range 40 {
		require.NoError(t, <-done)
	}
	for i := range 40 {
		require.EqualValues(t, i, slow.content()[i*4096])
	}
}

// TestDisconnectCancels: when the client is gone the device's calls end, also
// those for which nobody reads the connection any more.
func TestDisconnectCancels(t *testing.T) {
	for name, opts := range map[string]*nbd.ServerOptions{
		"reading":          nil,
		"out of workers":   {MaxRequests: 2},
		"out of memory":    {MaxConnBytes: 8 << 10},
		"out of all":       {MaxBytes: 8 << 10},
		"before a goodbye": {MaxRequests: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mem := newMemory(1 << 20)
			s, uri := serve(t, nbd.Export{Device: mem}, opts)
			defer mem.setPause()()
			w := knock(t, uri).open()
			for i := range uint64(10) {
				w.send(0, 0, i, 0, 4096)
			}
			require.Eventually(t, func() bool { return mem.count("read") >= 2 }, 5*time.Second, time.Millisecond)
			time.Sleep(20 * time.Millisecond)
			w.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			require.NoError(t, s.Shutdown(ctx), "the calls have ended although the device is paused")
		})
	}
}

func TestShutdown(t *testing.T) {
	mem := newMemory(1 << 20)
	s, uri := serve(t, nbd.Export{Device: mem}, nil)
	idle, busy := dial(t, uri, nil), dial(t, uri, nil)
	resume := mem.setPause()
	defer resume()
	wrote := make(chan error, 1)
	go func() { wrote <- busy.WriteAt(timed(t), []byte{1}, 0) }()
	require.Eventually(t, func() bool { return mem.count("write") == 1 }, 5*time.Second, time.Millisecond)
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(timed(t)) }()
	<-idle.Done()
	select {
	case <-down:
		t.Fatal("a request is under way")
	case <-time.After(50 * time.Millisecond):
	}
	_, err := nbd.Dial(timed(t), uri, nil)
	require.ErrorIs(t, err, share.ErrUnavailable)
	resume()
	require.NoError(t, <-wrote, "it was answered")
	require.NoError(t, <-down)
	require.ErrorIs(t, idle.Flush(timed(t)), share.ErrUnavailable)
	require.NoError(t, s.Close())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.ErrorIs(t, s.Serve(timed(t), l), share.ErrClosed)
}

func TestShutdownTooLong(t *testing.T) {
	mem := newMemory(1 << 20)
	s, uri := serve(t, nbd.Export{Device: mem}, nil)
	c := dial(t, uri, nil)
	defer mem.setPause()()
	wrote := make(chan error, 1)
	go func() { wrote <- c.WriteAt(timed(t), []byte{1}, 0) }()
	require.Eventually(t, func() bool { return mem.count("write") == 1 }, 5*time.Second, time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, s.Shutdown(ctx), context.DeadlineExceeded)
	require.ErrorIs(t, <-wrote, share.ErrUnavailable)
}

func TestRemove(t *testing.T) {
	one, two := newMemory(1<<20), newMemory(1<<20)
	s, uri := serve(t, nbd.Export{Device: one}, nil)
	require.ErrorIs(t, s.Add("", nbd.Export{Device: two}), share.ErrExist)
	require.NoError(t, s.Add("two", nbd.Export{Device: two}))
	u, _ := nbd.ParseURI(uri)
	u.Export = "two"
	a, b := dial(t, uri, nil), dial(t, u.String(), nil)
	defer two.setPause()()
	wrote := make(chan error, 1)
	go func() { wrote <- b.WriteAt(timed(t), []byte{1}, 0) }()
	require.Eventually(t, func() bool { return two.count("write") == 1 }, 5*time.Second, time.Millisecond)
	require.NoError(t, s.Remove(timed(t), "two"))
	require.ErrorIs(t, <-wrote, share.ErrUnavailable)
	require.NoError(t, a.WriteAt(timed(t), []byte{1}, 0), "the other export is still served")
	_, err := nbd.Dial(timed(t), u.String(), nil)
	require.ErrorIs(t, err, share.ErrNotExist)
	require.ErrorIs(t, s.Remove(timed(t), "two"), share.ErrNotExist)
}

func TestServeEndsWithContext(t *testing.T) {
	s, err := nbd.NewServer(nil)
	require.NoError(t, err)
	require.NoError(t, s.Add("", nbd.Export{Device: newMemory(4096)}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	c := dial(t, "nbd://"+l.Addr().String(), nil)
	cancel()
	require.NoError(t, <-served)
	<-c.Done()
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
}

func TestMaxConns(t *testing.T) {
	_, uri := serve(t, nbd.Export{Device: newMemory(4096)}, &nbd.ServerOptions{MaxConns: 2})
	knock(t, uri)
	c := dial(t, uri, &nbd.ClientOptions{Connections: 1})
	_, err := nbd.Dial(timed(t), uri, nil)
	require.ErrorIs(t, err, share.ErrUnavailable)
	require.NoError(t, c.Close())
	require.Eventually(t, func() bool {
		c, err := nbd.Dial(timed(t), uri, &nbd.ClientOptions{Connections: 1})
		return err == nil && c.Close() == nil
	}, 5*time.Second, 10*time.Millisecond)
}

// TestPlaintext: what a network can reach is TLS, or says that it is not.
func TestPlaintext(t *testing.T) {
	addr := foreignAddr{}
	s, err := nbd.NewServer(nil)
	require.NoError(t, err)
	require.NoError(t, s.Add("", nbd.Export{Device: newMemory(4096)}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.ErrorIs(t, s.Serve(timed(t), foreignListener{l}), share.ErrDenied)

	ours, theirs := net.Pipe()
	go s.ServeConn(timed(t), theirs)
	_, err = nbd.NewClient(timed(t), foreignConn{ours}, nil)
	require.ErrorIs(t, err, share.ErrDenied)
	require.ErrorContains(t, err, addr.String())

	ours, theirs = net.Pipe()
	go s.ServeConn(timed(t), theirs)
	c, err := nbd.NewClient(timed(t), foreignConn{ours}, &nbd.ClientOptions{InsecurePlaintext: true})
	require.NoError(t, err)
	require.NoError(t, c.WriteAt(timed(t), []byte("abc"), 0))
	require.Equal(t, "abc", string(read(t, c, 0, 3)))
	require.NoError(t, c.Close())
	require.NoError(t, s.Close())

	ca := newAuthority(t)
	pair, _ := ca.issue("server", "server")
	_, err = nbd.NewServer(&nbd.ServerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{pair}}})
	require.ErrorIs(t, err, share.ErrInvalid, "nobody to verify clients with")
	_, err = nbd.NewServer(&nbd.ServerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{pair}}, InsecureAnyClient: true})
	require.NoError(t, err)
	_, err = nbd.NewServer(&nbd.ServerOptions{TLS: &tls.Config{ClientCAs: ca.pool()}})
	require.ErrorIs(t, err, share.ErrInvalid, "no certificate")
}

type foreignAddr struct{}

func (foreignAddr) Network() string { return "tcp" }
func (foreignAddr) String() string  { return "192.0.2.1:10809" }

type foreignListener struct{ net.Listener }

func (foreignListener) Addr() net.Addr { return foreignAddr{} }

type foreignConn struct{ net.Conn }

func (foreignConn) RemoteAddr() net.Addr { return foreignAddr{} }

func TestExportChecks(t *testing.T) {
	s, err := nbd.NewServer(nil)
	require.NoError(t, err)
	dev := newMemory(1 << 20)
	for name, e := range map[string]nbd.Export{
		"no device":                {},
		"minimum not a power":      {Device: dev, BlockSizes: blocks(3, 4096, 0)},
		"preferred below minimum":  {Device: dev, BlockSizes: blocks(4096, 512, 0)},
		"maximum below preferred":  {Device: dev, BlockSizes: blocks(512, 4096, 1024)},
		"minimum below the device": {Device: sized{dev, blocks(4096, 4096, 0)}, BlockSizes: blocks(512, 4096, 0)},
		"context twice":            {Device: dev, Contexts: []nbd.MetaContext{stripes{"a:b", 1}, stripes{"a:b", 1}}},
		"base:allocation twice":    {Device: dev, Contexts: []nbd.MetaContext{stripes{nbd.ContextAllocation, 1}}},
		"context with a NUL":       {Device: dev, Contexts: []nbd.MetaContext{stripes{"a:\x00", 1}}},
	} {
		require.ErrorIs(t, s.Add("x", e), share.ErrInvalid, name)
	}
	require.ErrorIs(t, s.Add("a\x00b", nbd.Export{Device: dev}), share.ErrInvalid)
	require.NoError(t, s.Add("x", nbd.Export{Device: sized{dev, blocks(4096, 65536, 1<<20)}}))
}

// sized is a device with block sizes.
type sized struct {
	share.Device
	sizes share.BlockSizes
}

func (s sized) BlockSizes() share.BlockSizes { return s.sizes }

// TestBlockSizes: they travel, and are kept by both sides.
func TestBlockSizes(t *testing.T) {
	dev := sized{newMemory(1 << 20), blocks(4096, 65536, 128<<10)}
	_, uri := serve(t, nbd.Export{Device: dev}, nil)
	c := dial(t, uri, nil)
	require.Equal(t, blocks(4096, 65536, 128<<10), c.Info().BlockSizes)
	require.Equal(t, blocks(4096, 65536, 0), c.BlockSizes())
	require.ErrorIs(t, c.WriteAt(timed(t), make([]byte, 512), 0), share.ErrInvalid)
	p := pattern(make([]byte, 1<<20), 0, 3)
	require.NoError(t, c.WriteAt(timed(t), p, 0))
	same(t, p, read(t, c, 0, 1<<20))
}
