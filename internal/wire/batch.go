package wire

import (
	"bufio"
	"crypto/tls"
	"net"
	"sync"
)

// Batched is what lies between TLS and the network. TLS makes records of 16 KiB
// at most, and reads and writes each with a system call of its own; a frame of
// half a MiB would take thirty-two of them on either side. Here what belongs to
// one frame leaves together, and is read as it comes.
type Batched struct {
	net.Conn
	in *bufio.Reader

	mu   sync.Mutex
	held bool
	out  []byte
}

const batch = 256 << 10

// NewBatched is for the connection given to tls.Client or tls.Server.
func NewBatched(c net.Conn) *Batched {
	return &Batched{Conn: c, in: bufio.NewReaderSize(c, batch)}
}

func (b *Batched) Read(p []byte) (int, error) { return b.in.Read(p) }

// Write sends p, or keeps it for what follows while a frame is written.
func (b *Batched) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.held {
		return b.Conn.Write(p)
	}
	if len(b.out)+len(p) > batch {
		if err := b.send(); err != nil {
			return 0, err
		}
	}
	if b.out == nil {
		b.out = make([]byte, 0, batch)
	}
	if len(p) > batch {
		return b.Conn.Write(p)
	}
	b.out = append(b.out, p...)
	return len(p), nil
}

// send writes what is kept, under the lock.
func (b *Batched) send() error {
	if len(b.out) == 0 {
		return nil
	}
	_, err := b.Conn.Write(b.out)
	b.out = b.out[:0]
	return err
}

func (b *Batched) hold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = true
}

func (b *Batched) release() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = false
	return b.send()
}

// batchOf is the Batched below c, or nil.
func batchOf(c net.Conn) *Batched {
	if t, ok := c.(*tls.Conn); ok {
		b, _ := t.NetConn().(*Batched)
		return b
	}
	return nil
}
