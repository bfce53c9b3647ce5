package nbd

import "net"

// sender gathers the pieces of messages and sends them with as few system
// calls as it can: one writev for a plain socket. It is used by one goroutine
// at a time. What was added by ref must not change before flush returned.
type sender struct {
	conn     net.Conn
	vectored bool

	scratch []byte      // copies of small pieces
	from    int         // where the part of scratch begins that is not in vec
	vec     net.Buffers // refers to scratch and to pieces added by ref
	store   net.Buffers // vec's memory: writing consumes vec
}

// smallPiece is the size up to which a piece is rather copied than sent alone
// where pieces cannot be gathered: a TLS record's.
const smallPiece = 16 << 10

func newSender(c net.Conn) *sender {
	s := &sender{conn: c, scratch: make([]byte, 0, 4<<10), store: make(net.Buffers, 0, 16)}
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
		s.vectored = true
	}
	return s
}

// copied returns the scratch memory to append a small piece to; keep takes it
// back.
func (s *sender) copied() []byte { return s.scratch }
func (s *sender) keep(b []byte)  { s.scratch = b }

// ref adds a piece without copying it.
func (s *sender) ref(b []byte) {
	if !s.vectored && len(b) <= smallPiece {
		s.scratch = append(s.scratch, b...)
		return
	}
	s.cut()
	s.store = append(s.store, b)
}

// cut makes what was copied since the last cut a piece of store.
func (s *sender) cut() {
	if s.from < len(s.scratch) {
		// Should scratch move when it grows, this part stays valid where it is.
		s.store = append(s.store, s.scratch[s.from:len(s.scratch):len(s.scratch)])
		s.from = len(s.scratch)
	}
}

// flush sends everything.
func (s *sender) flush() error {
	s.cut()
	s.vec = s.store
	_, err := s.vec.WriteTo(s.conn)
	clear(s.store)
	s.store, s.vec = s.store[:0], nil
	s.scratch, s.from = s.scratch[:0], 0
	return err
}
