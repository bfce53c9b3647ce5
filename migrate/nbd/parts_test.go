package nbd

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/vmferry/vmferry/share"
)

// TestSpans compares with a map of bytes.
func TestSpans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const n = 64
		var s spans
		var model [n]bool
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			from := rapid.Int64Range(0, n-1).Draw(t, "from")
			to := rapid.Int64Range(from+1, n).Draw(t, "to")
			free := true
			for i := from; i < to; i++ {
				free = free && !model[i]
			}
			if s.add(from, to) != free {
				t.Fatalf("add %d-%d to %v: free is %v", from, to, s, free)
			}
			if free {
				for i := from; i < to; i++ {
					model[i] = true
				}
			}
			all := true
			for _, b := range model {
				all = all && b
			}
			if s.cover(n) != all {
				t.Fatalf("%v covers all: %v", s, all)
			}
			for i := 1; i < len(s); i++ {
				if s[i-1].to >= s[i].from {
					t.Fatalf("%v is not in order, or not merged", s)
				}
			}
		}
	})
}

func TestBudget(t *testing.T) {
	b := newBudget(100)
	ctx := context.Background()
	first := newWaiter()
	require.NoError(t, b.acquire(ctx, 60, &first))
	// A large one waits, and small ones behind it do not overtake.
	order := make(chan int64, 2)
	var wg sync.WaitGroup
	for _, n := range []int64{500, 10} {
		wg.Go(func() {
			w := newWaiter()
			if b.acquire(ctx, n, &w) == nil {
				order <- n
				b.release(n)
			}
		})
		require.Eventually(t, func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.last != nil && b.last.n == min(n, 100)
		}, time.Second, time.Millisecond)
	}
	require.Empty(t, order)
	b.release(60)
	require.EqualValues(t, 500, <-order)
	require.EqualValues(t, 10, <-order)
	wg.Wait()
	require.Zero(t, b.used)

	// Who gives up leaves the queue, wherever he is in it.
	require.NoError(t, b.acquire(ctx, 100, &first))
	g, _ := errgroup.WithContext(ctx)
	var got, gaveUp atomic.Int64
	for i := range 30 {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, time.Duration(1+i%3*30)*time.Millisecond)
			defer cancel()
			w := newWaiter()
			if err := b.acquire(ctx, 30, &w); err != nil {
				gaveUp.Add(1)
				return nil
			}
			got.Add(1)
			b.release(30)
			return nil
		})
	}
	time.Sleep(15 * time.Millisecond)
	b.release(100)
	require.NoError(t, g.Wait())
	require.EqualValues(t, 30, got.Load()+gaveUp.Load())
	require.Positive(t, gaveUp.Load())
	require.Zero(t, b.used)
	require.Nil(t, b.first)
	require.Nil(t, b.last)
}

func TestBuffers(t *testing.T) {
	for _, n := range []int64{0, 1, 4096, 4097, 1 << 20, 1<<20 + 1, 32 << 20} {
		size := bufferSize(n)
		require.GreaterOrEqual(t, size, n)
		require.True(t, size == 4096 || size < 2*n)
		b := newBuffer(n)
		require.Len(t, b.b, int(size))
		b.free()
	}
	require.True(t, isZero(nil))
	p := make([]byte, 10000)
	require.True(t, isZero(p))
	for _, at := range []int{0, 4095, 4096, 8192, 9999} {
		p[at] = 1
		require.False(t, isZero(p))
		p[at] = 0
	}
}

func TestURI(t *testing.T) {
	for in, want := range map[string]URI{
		"nbd://example.com:10810/disk":                      {Network: "tcp", Address: "example.com:10810", Export: "disk"},
		"nbd://example.com":                                 {Network: "tcp", Address: "example.com:10809"},
		"nbd://example.com/":                                {Network: "tcp", Address: "example.com:10809"},
		"nbd://example.com//disk":                           {Network: "tcp", Address: "example.com:10809", Export: "/disk"},
		"nbd://example.com/hello%20world":                   {Network: "tcp", Address: "example.com:10809", Export: "hello world"},
		"nbds://[::1]:5/x":                                  {Network: "tcp", Address: "[::1]:5", Export: "x", TLS: true},
		"nbd+unix:///disk?socket=nbd.sock":                  {Network: "unix", Address: "nbd.sock", Export: "disk"},
		"nbds+unix:///?socket=%2Frun%2Fs&tls-hostname=h":    {Network: "unix", Address: "/run/s", TLS: true, TLSHostname: "h"},
		"nbds://h/?tls-type=x509&tls-verify-peer=1":         {Network: "tcp", Address: "h:10809", TLS: true},
		"nbd+unix:///a%2Fb?socket=/with%20space%26%3F%23.s": {Network: "unix", Address: "/with space&?#.s", Export: "a/b"},
		"nbd+unix:///?socket=%00abstract":                   {Network: "unix", Address: "\x00abstract"},
	} {
		got, err := ParseURI(in)
		require.NoError(t, err, in)
		require.Equal(t, want, *got, in)
		again, err := ParseURI(got.String())
		require.NoError(t, err, got.String())
		require.Equal(t, want, *again, in)
	}
	for _, in := range []string{
		"", "host", "http://host/", "nbd:", "nbd://", "nbd:opaque", "nbd://:10809/", "nbd://host:0/", "nbd://host:99999/", "nbd://host:x/",
		"nbd://user:secret@host/", "nbd://host/?socket=/s", "nbd+unix:///", "nbd+unix://host/?socket=/s", "nbd+unix:///?socket=",
		"nbd+unix:///?socket=a&socket=b", "nbd+unix:///?socket=a%00b", "nbd://host/?tls-type=psk", "nbd://host/?tls-verify-peer=0",
		"nbd://host/?unknown=1", "nbd://host/#fragment", "nbd://host/%00", "nbd://host/%ff", "nbd://host/?%zz", "nbd://::", "nbd://a%20b/",
	} {
		_, err := ParseURI(in)
		require.ErrorIs(t, err, share.ErrInvalid, in)
		require.NotContains(t, err.Error(), "secret")
	}
}

func TestErrors(t *testing.T) {
	// What a device's error becomes on the wire comes back as the same kind.
	for _, kind := range []error{share.ErrDenied, share.ErrNoSpace, share.ErrInvalid, errors.ErrUnsupported} {
		require.ErrorIs(t, &Error{Code: errnoOf(share.WrapError("write", "local", "v", kind))}, kind)
	}
	require.Equal(t, "nbd: read failed at the server: EIO: disk on fire", (&Error{Code: EIO, Message: "disk on fire"}).Error())
	require.Equal(t, `nbd: GO of export "x": there is no such export`, (&NegotiationError{Option: "GO", Export: "x", code: repErrUnknown}).Error())
	require.Equal(t, "a[31mb", printable([]byte("a\x1b[31m\nb\xff")))
	require.Len(t, printable(make([]byte, 10)), 0)
}
