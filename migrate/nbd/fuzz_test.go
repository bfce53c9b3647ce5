package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/vmferry/vmferry/share"
)

// script is a connection whose other side says what it has to say and leaves.
type script struct {
	io.Reader
	mu     sync.Mutex
	closed bool
}

func newScript(b []byte) *script { return &script{Reader: bytes.NewReader(b)} }

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, net.ErrClosed
	}
	return len(p), nil
}

func (s *script) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *script) LocalAddr() net.Addr              { return &net.UnixAddr{Name: "here", Net: "unix"} }
func (s *script) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "there", Net: "unix"} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// join puts integers, big-endian by their types, and strings together.
func join(values ...any) []byte {
	var b bytes.Buffer
	for _, v := range values {
		switch v := v.(type) {
		case string:
			b.WriteString(v)
		case []byte:
			b.Write(v)
		default:
			binary.Write(&b, binary.BigEndian, v)
		}
	}
	return b.Bytes()
}

// FuzzReplies feeds server bytes to the client's receiver, with a read, a
// block status and a write in flight.
func FuzzReplies(f *testing.F) {
	const n = 4096
	cookie := func(i uint64) uint64 { return 1<<32 | i }
	data := make([]byte, n)
	chunk := func(done, kind uint16, i uint64, payload []byte) []byte {
		return append(appendChunk(nil, done, kind, cookie(i), uint32(len(payload))), payload...)
	}
	f.Add(chunk(1, chunkOffsetData, 0, join(uint64(8192), data)))
	f.Add(join(chunk(0, chunkOffsetData, 0, join(uint64(8192), data[:100])), chunk(0, chunkOffsetHole, 0, join(uint64(8192+200), uint32(n-200))),
		chunk(1, chunkOffsetData, 0, join(uint64(8292), data[:100]))))
	f.Add(chunk(1, chunkBlockStatus, 1, join(uint32(5), uint32(512), uint32(3), uint32(512), uint32(0))))
	f.Add(join(chunk(1, chunkNone, 2, nil), chunk(1, chunkError, 0, join(uint32(5), uint16(3), "bad"))))
	f.Add(chunk(1, chunkErrorOffset, 0, join(uint32(5), uint16(3), "bad", uint64(9000))))
	f.Add(appendSimple(nil, EIO, cookie(2)))
	f.Add(appendSimple(nil, 0, cookie(2)))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := newScript(in)
		c := newConn(&handshake{conn: s, raw: s, structured: true}, func(int64) {}, func(error, bool) {})
		guardian := bytes.Repeat([]byte{0xaa}, n+200)
		var all []*op
		for _, r := range []request{
			{cmd: CmdRead, off: 8192, n: n, buf: guardian[100 : 100+n : 100+n]},
			{cmd: CmdBlockStatus, off: 0, n: 1 << 20, ctx: 5},
			{cmd: CmdWrite, off: 0, n: n},
		} {
			o := newOp(1)
			r.op, r.phase = o, sent
			o.pieces[0] = r
			o.open.Add(1)
			o.refs.Add(1)
			c.submit(&o.pieces[0])
			o.open.Add(-1)
			all = append(all, o)
		}
		c.fail(c.receive())
		for i, o := range all {
			select {
			case <-o.done:
			default:
				t.Fatalf("request %d was not ended", i)
			}
			for at, e := int64(0), o.extents; len(e) > 0; e = e[1:] {
				if e[0].Off != at || e[0].Len <= 0 || e[0].End() > 1<<20 {
					t.Fatalf("extents %v", o.extents)
				}
				at = e[0].End()
			}
		}
		for i, b := range guardian {
			if (i < 100 || i >= 100+n) && b != 0xaa {
				t.Fatal("bytes outside the buffer were written")
			}
		}
	})
}

// FuzzServerHandshake feeds server bytes to the client's negotiation.
func FuzzServerHandshake(f *testing.F) {
	answer := func(o option, kind uint32, data []byte) []byte {
		return append(appendOptReply(nil, o, kind, len(data)), data...)
	}
	greeting := join(uint64(magicInit), uint64(magicOption), uint16(3))
	good := join(greeting, answer(optStructuredReply, repAck, nil),
		answer(optSetMetaContext, repMetaContext, join(uint32(1), ContextAllocation)), answer(optSetMetaContext, repAck, nil),
		answer(optGo, repInfo, join(uint16(infoExport), uint64(1<<20), uint16(0xffd))),
		answer(optGo, repInfo, join(uint16(infoBlockSize), uint32(512), uint32(4096), uint32(1<<25))),
		answer(optGo, repInfo, join(uint16(infoDescription), "a disk")),
		answer(optGo, repAck, nil))
	f.Add(good)
	f.Add(join(greeting, answer(optStructuredReply, repErrUnsupported, []byte("no")), answer(optGo, repErrUnsupported, nil),
		uint64(1<<20), uint16(1)))
	f.Add(join(greeting, answer(optStructuredReply, repErrTLSRequired, nil)))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := newScript(in)
		h := &handshake{conn: s, raw: s}
		if h.greet() != nil || h.enter("", nil) != nil {
			return
		}
		b := h.info.BlockSizes
		if h.info.Size < 0 || b.Minimum <= 0 || b.Maximum < b.Minimum {
			t.Fatalf("accepted %+v", h.info)
		}
	})
}

// strict is a device that fails the test for a call outside its range.
type strict struct {
	t    *testing.T
	data []byte
}

func (d strict) check(off, n int64) {
	if share.CheckRange(int64(len(d.data)), off, n) != nil {
		d.t.Errorf("the device was asked for %d+%d", off, n)
	}
}

func (d strict) ReadAt(_ context.Context, p []byte, off int64) error {
	d.check(off, int64(len(p)))
	copy(p, d.data[off:])
	return nil
}

func (d strict) WriteAt(_ context.Context, p []byte, off int64) error {
	d.check(off, int64(len(p)))
	return nil
}

func (d strict) Discard(_ context.Context, off, n int64) error { d.check(off, n); return nil }
func (d strict) Flush(context.Context) error                   { return nil }
func (d strict) Size() int64                                   { return int64(len(d.data)) }
func (d strict) Close() error                                  { return nil }

// FuzzClient feeds client bytes to a whole session of the server.
func FuzzClient(f *testing.F) {
	opt := func(o option, data ...any) []byte {
		b := join(data...)
		return append(appendOption(nil, o, len(b)), b...)
	}
	flags := join(uint32(3))
	enter := join(flags, opt(optStructuredReply), opt(optSetMetaContext, uint32(0), uint32(1), uint32(15), ContextAllocation), opt(optGo, uint32(0), uint16(1), uint16(3)))
	ask := func(cmd Command, bits uint16, off uint64, n uint32) []byte {
		return appendRequest(nil, header{bits, cmd, 7, off, n})
	}
	f.Add(join(enter, ask(CmdRead, 0, 0, 4096), ask(CmdBlockStatus, 0, 0, 1<<16), ask(CmdWrite, 1, 0, 4), "data", ask(CmdFlush, 0, 0, 0), ask(CmdDisconnect, 0, 0, 0)))
	f.Add(join(enter, ask(CmdTrim, 0, 0, 1<<16), ask(CmdWriteZeroes, 2, 4096, 4096), ask(CmdRead, 4, 1<<15, 1<<15)))
	f.Add(join(flags, opt(optList), opt(optInfo, uint32(0), uint16(0)), opt(optListMetaContext, uint32(0), uint32(0)), opt(optAbort)))
	f.Add(join(flags, opt(optExportName), ask(CmdRead, 0, 0, 512)))
	f.Add(join(flags, opt(optStartTLS), opt(99, "what")))
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := NewServer(&ServerOptions{MaxRequest: 32 << 10, MaxConnBytes: 64 << 10, MaxRequests: 4, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Add("", Export{Device: strict{t, make([]byte, 64<<10)}}); err != nil {
			t.Fatal(err)
		}
		s.ServeConn(context.Background(), newScript(in))
		if s.budget.used != 0 {
			t.Fatalf("%d bytes of the budget are gone", s.budget.used)
		}
	})
}

// FuzzOptions parses the data of options.
func FuzzOptions(f *testing.F) {
	f.Add(join(uint32(3), "abc", uint32(1), uint32(15), ContextAllocation))
	f.Add(join(uint32(3), "abc", uint16(2), uint16(1), uint16(3)))
	f.Fuzz(func(t *testing.T, in []byte) {
		if m, ok := parseMeta(in); ok {
			b := appendString(nil, m.export)
			b = binary.BigEndian.AppendUint32(b, uint32(len(m.queries)))
			for _, q := range m.queries {
				b = appendString(b, q)
			}
			if !bytes.Equal(b, in) {
				t.Fatalf("%q was read as %+v", in, m)
			}
		}
		if r, ok := parseInfo(in); ok {
			b := appendString(nil, r.export)
			b = binary.BigEndian.AppendUint16(b, uint16(len(r.asks)))
			for _, a := range r.asks {
				b = binary.BigEndian.AppendUint16(b, a)
			}
			if !bytes.Equal(b, in) {
				t.Fatalf("%q was read as %+v", in, r)
			}
		}
	})
}

// FuzzURI: what is accepted is written so that it reads back.
func FuzzURI(f *testing.F) {
	for _, s := range []string{
		"nbd://host", "nbd://host:10809/export", "nbds://[::1]:5/a%20b", "nbd+unix:///?socket=/run/s", "nbds+unix:///x?socket=s&tls-hostname=h",
		"nbd://host//disk", "nbd+unix:///?socket=%00/abstract", "nbd://u:p@host", "nbd://host/?tls-verify-peer=0", "nbd:opaque",
		"nbd+unix:////x?socket=s", "nbd://host%25eth0/", "nbd://[fe80::1%25eth0]/",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		u, err := ParseURI(in)
		if err != nil {
			return
		}
		v, err := ParseURI(u.String())
		if err != nil || *u != *v {
			t.Fatalf("%q is %+v, written as %q, read as %+v, %v", in, u, u.String(), v, err)
		}
	})
}
