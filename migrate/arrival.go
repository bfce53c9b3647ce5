package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"sync"

	"github.com/vmferry/vmferry/internal/wire"
	"github.com/vmferry/vmferry/share"
)

// arrival is a disk that a receiver expects.
type arrival struct {
	name string
	dev  share.Device
	opts *ReceiverOptions

	joining sync.Mutex // one change of session at a time
	mu      sync.Mutex
	epoch   uint64 // of the last session; smaller ones are over
	session *session
	readers map[string]*session // sessions that ask for hashes, by their names
}

// join returns the session that hello belongs to, and begins it if it is new.
func (a *arrival) join(ctx context.Context, hello wire.HelloBody) (*session, error) {
	a.joining.Lock()
	defer a.joining.Unlock()
	if hello.ReadOnly {
		return a.joinReader(hello)
	}
	a.mu.Lock()
	s, epoch := a.session, a.epoch
	a.mu.Unlock()
	switch {
	case hello.Epoch < epoch:
		return nil, &StaleError{Stamp: Stamp{Epoch: hello.Epoch}, Newer: Stamp{Epoch: epoch}}
	case hello.Epoch == epoch && s != nil && s.hello.Session == hello.Session && s.hello.Size == hello.Size && s.hello.Block == hello.Block:
		return s, nil
	case hello.Epoch == epoch:
		return nil, fmt.Errorf("another sender sends this disk in epoch %d: it %w", epoch, share.ErrInUse)
	}
	// From here on the older sender is locked out; what it has under way ends
	// before the new one begins.
	a.mu.Lock()
	a.epoch = hello.Epoch
	a.mu.Unlock()
	if err := a.endSession(ctx, &StaleError{Stamp: Stamp{Epoch: epoch}, Newer: Stamp{Epoch: hello.Epoch}}); err != nil {
		return nil, fmt.Errorf("writes of an older session do not end: %w: %w", share.ErrWedged, err)
	}
	s = &session{arrival: a, hello: hello, conns: map[net.Conn]bool{}}
	s.target = newDeviceTarget(a.dev, hello.Size, hello.Block, a.opts.ReadBack)
	a.mu.Lock()
	a.session = s
	a.mu.Unlock()
	return s, nil
}

// maxReaders bounds the sessions that ask for hashes of one disk at once.
const maxReaders = 4

// joinReader returns the session of a sender that asks for hashes.
func (a *arrival) joinReader(hello wire.HelloBody) (*session, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.readers[hello.Session]; s != nil {
		if s.hello.Size != hello.Size || s.hello.Block != hello.Block {
			return nil, fmt.Errorf("%w: connections of one session differ", share.ErrInvalid)
		}
		return s, nil
	}
	if len(a.readers) >= maxReaders {
		return nil, fmt.Errorf("hashing this disk: it %w by %d others", share.ErrInUse, maxReaders)
	}
	if a.readers == nil {
		a.readers = map[string]*session{}
	}
	s := &session{arrival: a, hello: hello, conns: map[net.Conn]bool{}}
	s.target = newDeviceTarget(a.dev, hello.Size, hello.Block, false)
	a.readers[hello.Session] = s
	return s, nil
}

// endReaders closes the connections of those who ask for hashes.
func (a *arrival) endReaders(why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, s := range a.readers {
		s.end(why)
		delete(a.readers, name)
	}
}

// endSession closes the session's connections and waits for the last write.
func (a *arrival) endSession(ctx context.Context, why error) error {
	a.mu.Lock()
	s := a.session
	a.mu.Unlock()
	if s == nil {
		return nil
	}
	s.end(why)
	idle := make(chan struct{})
	go func() {
		s.work.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		a.mu.Lock()
		if a.session == s {
			a.session = nil
		}
		a.mu.Unlock()
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// session is one sender at work on one disk, over several connections.
type session struct {
	arrival *arrival
	hello   wire.HelloBody
	target  *deviceTarget
	work    sync.WaitGroup // connections, each with its requests under way

	mu    sync.Mutex
	conns map[net.Conn]bool
	ended error
}

func (s *session) proof() string {
	if s.target.readBack {
		return "read back"
	}
	return "received"
}

func (s *session) add(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return false
	}
	s.conns[c] = true
	s.work.Add(1)
	return true
}

func (s *session) remove(c net.Conn) {
	s.mu.Lock()
	delete(s.conns, c)
	last := len(s.conns) == 0
	s.mu.Unlock()
	if last && s.hello.ReadOnly {
		s.arrival.mu.Lock()
		delete(s.arrival.readers, s.hello.Session)
		s.arrival.mu.Unlock()
	}
	s.work.Done()
}

func (s *session) end(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		s.ended = why
	}
	for c := range s.conns {
		c.Close()
	}
}

// requestsUnderWay bounds how many requests of one connection are carried out
// at once; further ones wait in the connection.
const requestsUnderWay = 16

// payloads are buffers for what arrives, and for what it is decompressed to.
var payloads = sync.Pool{New: func() any { b := make([]byte, wire.MaxPayload); return &b }}

// serve carries out the requests of one connection until it ends.
func (s *session) serve(ctx context.Context, conn net.Conn, in *wire.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		under sync.WaitGroup
		slots = make(chan struct{}, requestsUnderWay)
		write sync.Mutex
	)
	defer under.Wait()
	defer conn.Close() // before the wait: an answer that nobody takes must not hold it up
	for {
		h, err := in.Next(wire.MaxPayload)
		if err == io.EOF || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		buf := payloads.Get().(*[]byte)
		p := (*buf)[:h.Length]
		if err := in.Payload(p); err != nil {
			payloads.Put(buf)
			return err
		}
		if h.Type == wire.Bye {
			payloads.Put(buf)
			return nil
		}
		slots <- struct{}{}
		under.Go(func() {
			defer func() { <-slots }()
			answer, err := s.handle(ctx, h, p)
			payloads.Put(buf)
			write.Lock()
			defer write.Unlock()
			reply := wire.Header{Type: wire.Done, ID: h.ID, Epoch: h.Epoch, Generation: h.Generation}
			if err != nil {
				err = writeFailure(conn, reply, err)
			} else {
				err = wire.Write(conn, reply, answer)
			}
			if err != nil {
				conn.Close()
			}
		})
	}
}

// handle carries out one request. p is the connection's again when it returns.
func (s *session) handle(ctx context.Context, h wire.Header, p []byte) ([]byte, error) {
	switch h.Type {
	case wire.Blank:
		list, err := s.target.blank(ctx)
		if err != nil {
			return nil, err
		}
		return answerRanges(list)
	case wire.Root:
		root, err := s.target.root(ctx)
		return []byte(root), err
	case wire.Flush:
		if s.hello.ReadOnly {
			return nil, errReadOnly
		}
		return nil, s.commit(ctx, p)
	}
	r, err := s.rangeOf(h)
	if err != nil {
		return nil, err
	}
	if h.Type == wire.Hash {
		if r.Len/s.hello.Block > wire.MaxPayload/int64(len(hash{}))-1 {
			return nil, fmt.Errorf("%w: hashes of %d bytes at once", share.ErrInvalid, r.Len)
		}
		leaves, err := s.target.hashes(ctx, r)
		out := make([]byte, 0, len(leaves)*len(hash{}))
		for _, l := range leaves {
			out = append(out, l[:]...)
		}
		return out, err
	}
	if s.hello.ReadOnly {
		return nil, errReadOnly
	}
	if h.Epoch != s.hello.Epoch {
		return nil, &StaleError{Off: r.Off, Stamp: Stamp{h.Epoch, h.Generation}, Newer: Stamp{Epoch: s.hello.Epoch}}
	}
	st := Stamp{h.Epoch, h.Generation}
	switch h.Type {
	case wire.Zero, wire.Discard:
		return nil, s.target.zero(ctx, st, r)
	case wire.Data:
		return nil, s.data(ctx, h, st, r, p)
	}
	return nil, fmt.Errorf("%w: a request of type %d", share.ErrInvalid, h.Type)
}

var errReadOnly = fmt.Errorf("writing in a session that asks for hashes is %w", share.ErrDenied)

func (s *session) data(ctx context.Context, h wire.Header, st Stamp, r Range, p []byte) error {
	if r.Len > wire.MaxPayload {
		return fmt.Errorf("%w: %d bytes in one request", share.ErrInvalid, r.Len)
	}
	if h.Flags&wire.Compressed != 0 {
		buf := payloads.Get().(*[]byte)
		defer payloads.Put(buf)
		if err := wire.Decompress((*buf)[:r.Len], p); err != nil {
			return err
		}
		p = (*buf)[:r.Len]
	}
	if int64(len(p)) != r.Len {
		return fmt.Errorf("%w: %d bytes of data for %d of disk", share.ErrInvalid, len(p), r.Len)
	}
	return s.target.write(ctx, st, r.Off, p, hashBlocks(p, s.hello.Block))
}

func (s *session) commit(ctx context.Context, p []byte) error {
	var written []Range
	if len(p) > 0 {
		if err := json.Unmarshal(p, &written); err != nil {
			return fmt.Errorf("%w: %w", share.ErrInvalid, err)
		}
	}
	for _, r := range written {
		if err := s.check(r); err != nil {
			return err
		}
	}
	return s.target.commit(ctx, written)
}

// rangeOf is the range of a request, which must be one of whole blocks.
func (s *session) rangeOf(h wire.Header) (Range, error) {
	if h.Off > math.MaxInt64 || h.Len > math.MaxInt64 {
		return Range{}, fmt.Errorf("%w: a range of %d+%d", share.ErrInvalid, h.Off, h.Len)
	}
	r := Range{int64(h.Off), int64(h.Len)}
	return r, s.check(r)
}

func (s *session) check(r Range) error {
	if err := share.CheckRange(s.hello.Size, r.Off, r.Len); err != nil {
		return err
	}
	if r.Len == 0 || r.Off%s.hello.Block != 0 || r.Len%s.hello.Block != 0 && r.End() != s.hello.Size {
		return fmt.Errorf("%w: the range %d+%d is not of whole blocks of %d", share.ErrInvalid, r.Off, r.Len, s.hello.Block)
	}
	return nil
}

// failureKinds are the errors that cross the wire as a code.
var failureKinds = map[wire.Code]error{
	wire.CodeInvalid:     share.ErrInvalid,
	wire.CodeDenied:      share.ErrDenied,
	wire.CodeNotExist:    share.ErrNotExist,
	wire.CodeInUse:       share.ErrInUse,
	wire.CodeNoSpace:     share.ErrNoSpace,
	wire.CodeUnavailable: share.ErrUnavailable,
	wire.CodeWrongDevice: share.ErrWrongDevice,
	wire.CodeWedged:      share.ErrWedged,
	wire.CodeVersion:     errors.ErrUnsupported,
	wire.CodeStale:       ErrStale,
}

// ErrStale is wrapped by the errors of a sender that was replaced by a later
// one.
var ErrStale = errors.New("a later attempt has taken over")

// codeOf is the code of an error.
func codeOf(err error) wire.Code {
	var stale *StaleError
	var version *versionError
	var diverged *DivergedError
	switch {
	case errors.As(err, &stale):
		return wire.CodeStale
	case errors.As(err, &version):
		return wire.CodeVersion
	case errors.As(err, &diverged):
		return wire.CodeDiverged
	}
	for code, kind := range failureKinds {
		if errors.Is(err, kind) {
			return code
		}
	}
	return wire.CodeFailed
}

// sanitize makes text from a peer fit to be shown: one line, without control
// characters, not too long.
func sanitize(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}
