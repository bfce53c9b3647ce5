package wire

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// frame is the bytes of one frame.
func frame(t testing.TB, h Header, payload []byte) []byte {
	a, b := net.Pipe()
	errs := make(chan error, 1)
	go func() { errs <- errors.Join(Write(a, h, payload), a.Close()) }()
	got, err := io.ReadAll(b)
	require.NoError(t, err)
	require.NoError(t, <-errs)
	return got
}

func TestRoundTrip(t *testing.T) {
	h := Header{Type: Data, Flags: Compressed, ID: 1, Off: 2, Len: 3, Epoch: 4, Generation: math.MaxUint64}
	r := NewReader(bytes.NewReader(append(frame(t, h, []byte("payload")), frame(t, Header{Type: Bye}, nil)...)))
	got, err := r.Next(MaxPayload)
	require.NoError(t, err)
	h.Length = 7
	require.Equal(t, h, got)
	p := make([]byte, 7)
	require.NoError(t, r.Payload(p))
	require.Equal(t, "payload", string(p))
	got, err = r.Next(0)
	require.NoError(t, err)
	require.NoError(t, r.Payload(nil))
	require.Equal(t, Bye, got.Type)
	_, err = r.Next(0)
	require.Equal(t, io.EOF, err)
}

// Whichever bit flips, the frame is refused.
func TestEveryBitIsGuarded(t *testing.T) {
	good := frame(t, Header{Type: Data, ID: 9, Off: 4096, Len: 16}, []byte("sixteen bytes ok"))
	for i := range len(good) * 8 {
		bad := bytes.Clone(good)
		bad[i/8] ^= 1 << (i % 8)
		r := NewReader(bytes.NewReader(bad))
		h, err := r.Next(1 << 10)
		if err == nil {
			err = r.Payload(make([]byte, h.Length))
		}
		require.ErrorIs(t, err, ErrProtocol, "bit %d", i)
	}
	for n := 1; n < len(good); n++ {
		r := NewReader(bytes.NewReader(good[:n]))
		h, err := r.Next(1 << 10)
		if err == nil {
			err = r.Payload(make([]byte, h.Length))
		}
		require.ErrorIs(t, err, ErrProtocol, "cut at %d", n)
	}
}

func TestLengthIsBoundedFirst(t *testing.T) {
	b := frame(t, Header{Type: Data}, make([]byte, 100))
	_, err := NewReader(bytes.NewReader(b)).Next(99)
	require.ErrorIs(t, err, ErrTooLong)
}

func TestCompression(t *testing.T) {
	p := bytes.Repeat([]byte("guest "), 10_000)
	c, err := Compress(nil, p)
	require.NoError(t, err)
	require.Less(t, len(c), len(p)/10)
	got := make([]byte, len(p))
	require.NoError(t, Decompress(got, c))
	require.Equal(t, p, got)
	require.ErrorIs(t, Decompress(got[:len(p)-1], c), ErrProtocol, "longer than announced")
	require.ErrorIs(t, Decompress(append(got, 0), c), ErrProtocol, "shorter than announced")
	require.ErrorIs(t, Decompress(got, []byte("no zstd")), ErrProtocol)
	bomb, err := Compress(nil, make([]byte, 64<<20))
	require.NoError(t, err)
	require.ErrorIs(t, Decompress(make([]byte, 4096), bomb), ErrProtocol)
}

func FuzzReader(f *testing.F) {
	f.Add(frame(f, Header{Type: Data, Len: 3}, []byte("abc")))
	f.Add(frame(f, Header{Type: Hello}, []byte(`{"versions":[1]}`)))
	f.Add([]byte("vF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b))
		for {
			h, err := r.Next(1 << 16)
			if err != nil {
				return
			}
			p := make([]byte, h.Length)
			if err := r.Payload(p); err != nil {
				return
			}
			var hello HelloBody
			_ = Decode(p, &hello)
			_ = Decompress(make([]byte, min(h.Len, 1<<16)), p)
		}
	})
}

func BenchmarkCRC(b *testing.B) {
	p := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	var h Header
	var buf [headerSize]byte
	for b.Loop() {
		h.put(&buf, p)
	}
}
