package nbd

import (
	"sync"
	"sync/atomic"
)

// maxPieces is how many requests one call has in flight at most.
const maxPieces = 64

// op is one call of the Client: a few requests (pieces), on any connections.
// It is pooled with its pieces, and goes back into the pool when neither the
// caller nor a connection refers to it any more. A piece whose caller left
// stays with its connection until the server has answered it.
type op struct {
	pieces []request
	open   atomic.Int32  // pieces the caller waits for, and 1 while it sends
	refs   atomic.Int32  // the caller and the pieces that connections hold
	done   chan struct{} // capacity 1: open has become 0
	waiter waiter

	mu  sync.Mutex
	err error // the first of the pieces'

	extents []Extent // of block status
}

// request is one command on one connection. All below conn is guarded by
// conn.mu, except that buf's bytes belong to the sender while phase is
// sending, and to the receiver while receiving is set.
type request struct {
	op   *op
	conn *conn
	cmd  Command
	bits uint16 // command flags
	off  int64
	n    int64
	cost int64  // bytes of the Client's budget
	ctx  uint32 // metadata context of block status

	cookie    uint64
	next      *request // in the conn's queue
	buf       []byte   // nil once the caller has left
	phase     phase
	receiving bool
	finished  bool // answered, or failed with the connection
	left      bool // the caller does not wait for it
	signaled  bool // the caller knows
	err       error

	// What follows is the receiver's own.
	refused *Error // the server's first error
	seen    spans  // of a read: the parts answered
	told    bool   // of a block status: the context has been answered
}

type phase uint8

const (
	queued phase = iota
	sending
	sent
)

var ops = sync.Pool{New: func() any {
	return &op{pieces: make([]request, 1), done: make(chan struct{}, 1), waiter: newWaiter()}
}}

func newOp(pieces int) *op {
	o := ops.Get().(*op)
	if pieces > cap(o.pieces) {
		o.pieces = make([]request, pieces)
	}
	o.pieces = o.pieces[:pieces]
	o.open.Store(1)
	o.refs.Store(1)
	o.err, o.extents = nil, nil
	return o
}

// unref gives a reference up; the last one recycles the op.
func (o *op) unref() {
	if o.refs.Add(-1) > 0 {
		return
	}
	for i := range o.pieces {
		seen := o.pieces[i].seen
		o.pieces[i] = request{seen: seen[:0]}
	}
	o.err, o.extents = nil, nil
	ops.Put(o)
}

func (o *op) fail(err error) {
	if err == nil {
		return
	}
	o.mu.Lock()
	if o.err == nil {
		o.err = err
	}
	o.mu.Unlock()
}

// arrived counts a piece that the caller need not wait for any more.
func (o *op) arrived() {
	if o.open.Add(-1) == 0 {
		o.done <- struct{}{}
	}
}

// span is a part of a read, from its beginning.
type span struct{ from, to int64 }

// spans are disjoint parts in order, with neighbours merged.
type spans []span

// maxSpans bounds how a server may scatter one answer.
const maxSpans = 1024

// add notes a part that was answered. It is false if some of it was before,
// or if the parts are too many.
func (s *spans) add(from, to int64) bool {
	a := *s
	i := len(a)
	for i > 0 && a[i-1].from >= from { // nearly always zero steps
		i--
	}
	if i > 0 && a[i-1].to > from || i < len(a) && a[i].from < to {
		return false
	}
	left := i > 0 && a[i-1].to == from
	right := i < len(a) && a[i].from == to
	switch {
	case left && right:
		a[i-1].to = a[i].to
		*s = append(a[:i], a[i+1:]...)
	case left:
		a[i-1].to = to
	case right:
		a[i].from = from
	case len(a) == maxSpans:
		return false
	default:
		a = append(a, span{})
		copy(a[i+1:], a[i:])
		a[i] = span{from, to}
		*s = a
	}
	return true
}

// cover reports whether the parts are all of n bytes.
func (s spans) cover(n int64) bool { return len(s) == 1 && s[0] == span{0, n} }
