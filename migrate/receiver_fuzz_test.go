package migrate

import (
	"net"
	"testing"
	"time"

	"github.com/vmferry/vmferry/internal/wire"
	"github.com/vmferry/vmferry/share/sharetest"
)

// FuzzReceiver gives a receiver what a sender with a bad day says after a good
// hello. It may answer or hang up, and must do so soon.
func FuzzReceiver(f *testing.F) {
	record := func(h wire.Header, p []byte) []byte {
		a, b := net.Pipe()
		go func() { _ = wire.Write(a, h, p); a.Close() }()
		out := make([]byte, 1<<16)
		n := 0
		for {
			k, err := b.Read(out[n:])
			n += k
			if err != nil {
				return out[:n]
			}
		}
	}
	f.Add(record(wire.Header{Type: wire.Data, ID: 1, Len: 4096, Epoch: 1, Generation: 1}, make([]byte, 4096)))
	f.Add(record(wire.Header{Type: wire.Hash, ID: 1, Len: 1 << 16, Epoch: 1}, nil))
	f.Add(record(wire.Header{Type: wire.Flush, ID: 1}, []byte(`[{"Off":0,"Len":4096}]`)))
	f.Add(record(wire.Header{Type: wire.Root, ID: 1}, nil))
	f.Add(record(wire.Header{Type: wire.Zero, ID: 1, Len: 8192, Epoch: 1}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := NewReceiver(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Expect("disk", sharetest.NewDevice(1<<16)); err != nil {
			t.Fatal(err)
		}
		c, s := net.Pipe()
		if !r.enter(s) {
			t.Fatal("refused")
		}
		go func() { defer r.leave(s); r.serve(s) }()
		hello, _ := wire.Encode(wire.HelloBody{Versions: []int{1}, Disk: "disk", Session: "0123456789abcdef0123456789abcdef", Epoch: 1, Size: 1 << 16, Block: 4096})
		go func() { // what it answers
			in := wire.NewReader(c)
			for {
				h, err := in.Next(wire.MaxPayload)
				if err != nil || in.Payload(make([]byte, h.Length)) != nil {
					return
				}
			}
		}()
		_ = wire.Write(c, wire.Header{Type: wire.Hello}, hello)
		_, _ = c.Write(b)
		c.Close()
		ended := make(chan struct{})
		go func() { r.Close(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatal("the receiver does not end")
		}
	})
}
