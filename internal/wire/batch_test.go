package wire

import (
	"bytes"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// writes counts the writes of a connection.
type writes struct {
	net.Conn
	n int
}

func (w *writes) Write(p []byte) (int, error) {
	w.n++
	return len(p), nil
}

// TestBatchedLeavesNothingBehind: what is written while a frame is held goes out
// in few pieces, whole, and at once when it is not.
func TestBatchedLeavesNothingBehind(t *testing.T) {
	counted := &writes{}
	b := NewBatched(counted)
	_, err := b.Write([]byte("at once"))
	require.NoError(t, err)
	require.Equal(t, 1, counted.n)
	b.hold()
	for range 64 {
		_, err := b.Write(bytes.Repeat([]byte{1}, 16<<10))
		require.NoError(t, err)
	}
	require.NoError(t, b.release())
	require.Equal(t, 1+4, counted.n)
	require.NoError(t, b.release(), "nothing is left")
	require.Equal(t, 1+4, counted.n)

	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	b = NewBatched(here)
	want := bytes.Repeat([]byte("0123456789abcdef"), batch/8)
	go func() {
		b.hold()
		for p := want; len(p) > 0; p = p[min(len(p), 1000):] {
			_, _ = b.Write(p[:min(len(p), 1000)])
		}
		_ = b.release()
	}()
	got := make([]byte, len(want))
	_, err = io.ReadFull(NewBatched(there), got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}
