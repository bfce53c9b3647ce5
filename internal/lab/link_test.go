package lab_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmferry/vmferry/internal/lab"
)

// connect makes a TCP connection from one host to another.
func connect(t *testing.T, ctx context.Context, from, to *lab.Host) (near, far net.Conn) {
	ln, err := to.Listen(ctx, "tcp", to.Addr()+":0")
	require.NoError(t, err)
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := ln.Accept()
		accepted <- c
	}()
	near, err = from.Dial(ctx, "tcp", ln.Addr().String())
	require.NoError(t, err)
	far = <-accepted
	require.NotNil(t, far)
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// passes says whether a byte gets from one end to the other in time.
func passes(t *testing.T, near, far net.Conn, patience time.Duration) bool {
	_, err := near.Write([]byte{1})
	require.NoError(t, err, "a cut is silent")
	require.NoError(t, far.SetReadDeadline(time.Now().Add(patience)))
	_, err = io.ReadFull(far, make([]byte, 1))
	if err != nil {
		require.ErrorIs(t, err, os.ErrDeadlineExceeded, "a cut is silent")
	}
	return err == nil
}

func TestCutAndHeal(t *testing.T) {
	l := lab.Start(t, &lab.Options{Hosts: 3})
	ctx := testContext(t)
	a, b, c := l.Host(0), l.Host(1), l.Host(2)
	aNear, aFar := connect(t, ctx, a, b)
	cNear, cFar := connect(t, ctx, a, c)
	require.True(t, passes(t, aNear, aFar, time.Second))

	require.NoError(t, l.Cut(ctx, b, a))
	require.NoError(t, l.Cut(ctx, a, b), "twice is once")
	require.False(t, passes(t, aNear, aFar, 300*time.Millisecond))
	require.True(t, passes(t, cNear, cFar, time.Second), "only one link is cut")
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err := a.Dial(short, "tcp", b.Addr()+":16509")
	var timeout net.Error
	require.True(t, errors.As(err, &timeout) && timeout.Timeout(), "silence, not %v", err)
	require.NoError(t, l.Heal(ctx, a, b))
	require.True(t, passes(t, aNear, aFar, 10*time.Second), "TCP recovers")

	require.NoError(t, l.Cut(ctx, a, nil))
	require.False(t, passes(t, cNear, cFar, 300*time.Millisecond))
	out, err := a.Virsh(ctx, "hostname")
	require.NoError(t, err, "the lab itself still reaches the host")
	require.Equal(t, a.Name(), out)
	require.NoError(t, l.Heal(ctx, a, nil))
	require.True(t, passes(t, cNear, cFar, 10*time.Second))
	require.Error(t, l.Cut(ctx, a, a))
}

func TestShape(t *testing.T) {
	l := lab.Start(t, nil)
	ctx := testContext(t)
	a, b := l.Host(0), l.Host(1)
	near, far := connect(t, ctx, a, b)
	const size = 4 << 20
	transfer := func(from, to net.Conn) time.Duration {
		began := time.Now()
		go func() { _, _ = from.Write(make([]byte, size)) }()
		_, err := io.CopyN(io.Discard, to, size)
		require.NoError(t, err)
		return time.Since(began)
	}
	const free, limited = 500 * time.Millisecond, 750 * time.Millisecond
	require.Less(t, transfer(near, far), free)
	require.NoError(t, a.Shape(ctx, 40e6)) // 4 MiB take 0.84 s
	for _, d := range []time.Duration{transfer(near, far), transfer(far, near)} {
		require.Greater(t, d, limited)
		require.Less(t, d, 3*limited)
	}
	require.NoError(t, a.Shape(ctx, 0))
	require.NoError(t, a.Shape(ctx, 0), "twice is once")
	require.Less(t, transfer(near, far), free)
}
