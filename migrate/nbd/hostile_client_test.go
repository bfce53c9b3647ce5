package nbd_test

import (
	"crypto/tls"
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate/nbd"
)

// The server, with clients that lie, cheat and fall silent.

func TestHostileOptions(t *testing.T) {
	const (
		ack     = uint32(1)
		unsup   = uint32(1<<31 + 1)
		policy  = uint32(1<<31 + 2)
		invalid = uint32(1<<31 + 3)
		unknown = uint32(1<<31 + 6)
	)
	_, uri := serve(t, nbd.Export{Device: newMemory(1 << 20)}, nil)
	w := knock(t, uri)
	for _, k := range []struct {
		name   string
		option uint32
		data   []byte
		want   uint32
	}{
		{"unknown option", 99, be("whatever"), unsup},
		{"extended headers", 11, nil, unsup},
		{"TLS without certificates", 5, nil, policy},
		{"list with data", 3, be(1), invalid},
		{"contexts before structured replies", 10, be(0, 1, 15, "base:allocation"), invalid},
		{"structured replies with data", 8, be(1), invalid},
		{"GO without data", 7, nil, invalid},
		{"GO with a long name", 7, be(5000, strings.Repeat("x", 5000), uint16(0)), invalid},
		{"GO with a lying name length", 7, be(100, "abc", uint16(0)), invalid},
		{"GO with a NUL", 7, be(3, "a\x00b", uint16(0)), invalid},
		{"GO with bad UTF-8", 7, be(2, "\xff\xfe", uint16(0)), invalid},
		{"GO with a lying count", 7, be(0, uint16(60000)), invalid},
		{"GO with bytes left", 7, be(0, uint16(0), "more"), invalid},
		{"GO to nowhere", 7, be(3, "abc", uint16(0)), unknown},
		{"INFO about nowhere", 6, be(3, "abc", uint16(0)), unknown},
		{"structured replies", 8, nil, ack},
		{"contexts with a lying count", 10, be(0, uint32(1<<31)), invalid},
		{"contexts with bytes left", 10, be(0, 1, 1, "a", "b"), invalid},
		{"contexts of nowhere", 10, be(3, "abc", 0), unknown},
		{"no contexts at all", 10, be(0, 0), ack},
		{"a context that is not there", 10, be(0, 1, 3, "a:b"), ack},
		{"list of contexts", 9, be(0, 1, 5, "base:"), ack},
	} {
		kinds, _ := w.ask(k.option, k.data)
		require.NotEmpty(t, kinds, k.name)
		require.Equal(t, k.want, kinds[len(kinds)-1], k.name)
	}
	// The same connection still works.
	kinds, _ := w.ask(7, 0, uint16(0))
	require.Equal(t, []uint32{3, 3, 1}, kinds)
	w.send(0, 0, 1, 0, 512)
	kind, _, data := w.reply()
	require.EqualValues(t, 1, kind)
	require.Len(t, data, 8+512)
	w.send(0, 7, 2, 0, 512)
	kind, _, _ = w.reply()
	require.EqualValues(t, 1<<15+1, kind, "no context was selected")
}

func TestHostileNegotiations(t *testing.T) {
	for name, f := range map[string]func(w wire){
		"unknown flags":      func(w wire) { w.put(0xff) },
		"wrong option magic": func(w wire) { w.put(3, uint64(1), 7, 0) },
		"huge option":        func(w wire) { w.put(3, uint64(wOption), 7, uint32(0xffffffff)) },
		"export name":        func(w wire) { w.put(3, uint64(wOption), 1, 3, "abc") },
		"silent":             func(w wire) {},
		"half an option":     func(w wire) { w.put(3, uint64(wOption), 7, 100, "abc") },
		"flood": func(w wire) {
			w.put(3)
			for range 1000 {
				w.put(uint64(wOption), 99, 0)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, uri := serve(t, nbd.Export{Device: newMemory(1 << 20)}, &nbd.ServerOptions{HandshakeTimeout: 300 * time.Millisecond})
			c, err := net.Dial("unix", socketOf(t, uri))
			require.NoError(t, err)
			defer c.Close()
			w := wire{t, c}
			w.get(18)
			f(w)
			w.gone()
		})
	}
	// An abort is answered.
	_, uri := serve(t, nbd.Export{Device: newMemory(1 << 20)}, nil)
	w := knock(t, uri)
	kinds, _ := w.ask(2)
	require.Equal(t, []uint32{1}, kinds)
	w.gone()
}

// TestExportName is the negotiation of old clients, without structure.
func TestExportName(t *testing.T) {
	mem := newMemory(1 << 20)
	copy(mem.data, "hello")
	_, uri := serve(t, nbd.Export{Device: mem}, nil)
	c, err := net.Dial("unix", socketOf(t, uri))
	require.NoError(t, err)
	defer c.Close()
	w := wire{t, c}
	w.get(18)
	w.put(1, uint64(wOption), 1, 0)
	b := w.get(8 + 2 + 124)
	require.EqualValues(t, 1<<20, binary.BigEndian.Uint64(b))
	w.send(0, 0, 7, 0, 5)
	require.Equal(t, be(0x67446698, 0, uint64(7), "hello"), w.get(21))
	w.send(0, 0, 8, 1<<20, 5)
	require.Equal(t, be(0x67446698, 22, uint64(8)), w.get(16))
	w.send(0, 1, 9, 0, 5, "HELLO")
	require.Equal(t, be(0x67446698, 0, uint64(9)), w.get(16))
	require.Equal(t, "HELLO", string(mem.content()[:5]))
}

func TestHostileRequests(t *testing.T) {
	const size = 1 << 20
	for _, k := range []struct {
		name       string
		flags, cmd uint16
		off        uint64
		n          int
		data       []byte
		want       nbd.Errno
	}{
		{"read beyond", 0, 0, size - 512, 1024, nil, nbd.EINVAL},
		{"read far away", 0, 0, 1<<64 - 512, 512, nil, nbd.EINVAL},
		{"read too long", 0, 0, 0, 512 << 10, nil, nbd.EINVAL},
		{"read unaligned", 0, 0, 1, 512, nil, nbd.EINVAL},
		{"read of half a block", 0, 0, 0, 100, nil, nbd.EINVAL},
		{"read with FAST_ZERO", 16, 0, 0, 512, nil, nbd.EINVAL},
		{"write beyond", 0, 1, size - 512, 1024, make([]byte, 1024), nbd.ENOSPC},
		{"write unaligned", 0, 1, 1, 512, make([]byte, 512), nbd.EINVAL},
		{"write with NO_HOLE", 2, 1, 0, 512, make([]byte, 512), nbd.EINVAL},
		{"zero beyond", 0, 6, size, 512, nil, nbd.ENOSPC},
		{"trim beyond", 0, 4, size, 512, nil, nbd.EINVAL},
		{"flush with a range", 0, 3, 0, 512, nil, nbd.EINVAL},
		{"block status beyond", 0, 7, size, 512, nil, nbd.EINVAL},
		{"block status of nothing", 0, 7, 0, 0, nil, nbd.EINVAL},
		{"cache", 0, 5, 0, 512, nil, nbd.EINVAL},
		{"unknown command", 0, 99, 0, 0, nil, nbd.EINVAL},
		{"unknown flag", 1 << 15, 0, 0, 512, nil, nbd.EINVAL},
	} {
		t.Run(k.name, func(t *testing.T) {
			mem := newMemory(size)
			_, uri := serve(t, nbd.Export{Device: mem, BlockSizes: blocks(512, 4096, 256<<10)}, nil)
			w := knock(t, uri).open()
			w.send(k.flags, k.cmd, 5, k.off, k.n, k.data)
			kind, cookie, data := w.reply()
			require.EqualValues(t, 1<<15+1, kind)
			require.EqualValues(t, 5, cookie)
			require.Equal(t, be(int(k.want), uint16(0)), data)
			w.send(0, 3, 6, 0, 0)
			kind, cookie, _ = w.reply()
			require.Zero(t, kind)
			require.EqualValues(t, 6, cookie, "the connection goes on")
			require.Zero(t, mem.count("read")+mem.count("write")+mem.count("zero0")+mem.count("discard"))
		})
	}
	_, uri := serve(t, nbd.Export{Device: newMemory(size), ReadOnly: true}, nil)
	w := knock(t, uri).open()
	for _, cmd := range []uint16{1, 4, 6} {
		w.send(0, cmd, 1, 0, 512)
		if cmd == 1 {
			w.put(make([]byte, 512))
		}
		_, _, data := w.reply()
		require.Equal(t, be(int(nbd.EPERM), uint16(0)), data)
	}
	for name, f := range map[string]func(w wire){
		"wrong magic": func(w wire) { w.put(make([]byte, 28)) },
		"huge write":  func(w wire) { w.send(0, 1, 1, 0, 1<<30) },
		"half header": func(w wire) { w.put(0x25609513); w.Conn.(*net.UnixConn).CloseWrite() },
		"half write":  func(w wire) { w.send(0, 1, 1, 0, 4096, "abc"); w.Conn.(*net.UnixConn).CloseWrite() },
		"goodbye":     func(w wire) { w.send(0, 2, 0, 0, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			mem := newMemory(size)
			_, uri := serve(t, nbd.Export{Device: mem}, nil)
			w := knock(t, uri).open()
			f(w)
			w.gone()
			require.Zero(t, mem.count("write"))
		})
	}
}

// TestSlowClients: a peer that stops in the middle is given up.
func TestSlowClients(t *testing.T) {
	for name, f := range map[string]func(w wire){
		"half a write": func(w wire) { w.send(0, 1, 1, 0, 4096, "abc") },
		"takes no answers": func(w wire) {
			for i := range 100 {
				w.send(0, 0, uint64(i), 0, 1<<20)
			}
			time.Sleep(time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mem := newMemory(1 << 20)
			pattern(mem.data, 0, 1)
			_, uri := serve(t, nbd.Export{Device: mem}, &nbd.ServerOptions{StallTimeout: 200 * time.Millisecond})
			w := knock(t, uri).open()
			f(w)
			w.gone()
		})
	}
	t.Run("rests", func(t *testing.T) {
		t.Parallel()
		_, uri := serve(t, nbd.Export{Device: newMemory(1 << 20)}, &nbd.ServerOptions{StallTimeout: 100 * time.Millisecond})
		w := knock(t, uri).open()
		time.Sleep(500 * time.Millisecond)
		w.send(0, 3, 6, 0, 0)
		kind, _, _ := w.reply()
		require.Zero(t, kind, "a client without requests may rest")
	})
}

// TestBeforeTLS: nothing is told, and nothing said in the clear counts.
func TestBeforeTLS(t *testing.T) {
	ca := newAuthority(t)
	server, _ := ca.issue("server", "server")
	mine, _ := ca.issue("client", "alice")
	_, uri := serve(t, nbd.Export{Device: newMemory(1 << 20)}, &nbd.ServerOptions{
		TLS: &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: ca.pool()}})
	w := knock(t, uri)
	for _, o := range []uint32{3, 6, 7, 8, 9, 10, 99} {
		kinds, _ := w.ask(o, 0, uint16(0))
		require.Equal(t, []uint32{1<<31 + 5}, kinds)
	}
	config := &tls.Config{RootCAs: ca.pool(), ServerName: "localhost", Certificates: []tls.Certificate{mine}}
	kinds, _ := w.ask(5)
	require.Equal(t, []uint32{1}, kinds)
	c := tls.Client(w.Conn, config)
	require.NoError(t, c.HandshakeContext(timed(t)))
	inside := wire{t, c}
	kinds, _ = inside.ask(5)
	require.Equal(t, []uint32{1<<31 + 3}, kinds, "TLS in TLS")
	inside.open()

	w = knock(t, uri)
	w.put(uint64(wOption), 1, 0)
	w.gone()

	// An option smuggled in behind STARTTLS is not taken for one under TLS.
	w = knock(t, uri)
	w.put(uint64(wOption), 5, 0, uint64(wOption), 8, 0)
	w.get(20)
	require.Error(t, tls.Client(w.Conn, config).HandshakeContext(timed(t)))

	for name, change := range map[string]func(*tls.Config){
		"TLS 1.2":        func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 },
		"no certificate": func(c *tls.Config) { c.Certificates = nil },
	} {
		w := knock(t, uri)
		w.ask(5)
		config := config.Clone()
		change(config)
		c := tls.Client(w.Conn, config)
		c.HandshakeContext(timed(t))
		wire{t, c}.put(uint64(wOption), 3, 0)
		require.Nil(t, wire{t, c}.get(20), name)
	}
}
