package nbd_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
)

// timed is a context that ends before the test would.
func timed(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// socketDir is a directory whose name is short enough for socket paths.
func socketDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "nbd")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// serve serves dev as the default export on a unix socket.
func serve(t testing.TB, e nbd.Export, opts *nbd.ServerOptions) (*nbd.Server, string) {
	s, err := nbd.NewServer(opts)
	require.NoError(t, err)
	require.NoError(t, s.Add("", e))
	path := filepath.Join(socketDir(t), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	run(t, s, l)
	return s, "nbd+unix:///?socket=" + path
}

func run(t testing.TB, s *nbd.Server, l net.Listener) {
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.NoError(t, <-served)
	})
}

func dial(t testing.TB, uri string, opts *nbd.ClientOptions) *nbd.Client {
	c, err := nbd.Dial(timed(t), uri, opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// pattern fills p so that every 8 bytes name their place and the seed.
func pattern(p []byte, off int64, seed byte) []byte {
	for i := range p {
		at := off + int64(i)
		p[i] = byte(at>>(8*(uint(at)&3)))*31 ^ byte(at>>12) ^ seed | 1
	}
	return p
}

func read(t testing.TB, d share.Device, off, n int64) []byte {
	p := make([]byte, n)
	require.NoError(t, d.ReadAt(timed(t), p, off))
	return p
}

// same compares long contents without printing them.
func same(t testing.TB, want, got []byte) {
	t.Helper()
	require.Equal(t, len(want), len(got))
	if bytes.Equal(want, got) {
		return
	}
	for i := range want {
		if want[i] != got[i] {
			t.Fatalf("contents differ from offset %d on: %#x, not %#x", i, got[i], want[i])
		}
	}
}
