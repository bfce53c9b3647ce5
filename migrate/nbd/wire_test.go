package nbd_test

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// wire speaks NBD by hand, right or wrong, as either side. Its numbers are
// written out here once more, from the specification.
type wire struct {
	t testing.TB
	net.Conn
}

const (
	wInit   = 0x4e42444d41474943
	wOption = 0x49484156454f5054
	wReply  = 0x3e889045565a9
)

// be puts values together: big-endian integers by their types, and strings.
func be(values ...any) []byte {
	var b []byte
	for _, v := range values {
		switch v := v.(type) {
		case string:
			b = append(b, v...)
		case []byte:
			b = append(b, v...)
		case uint16:
			b = binary.BigEndian.AppendUint16(b, v)
		case uint32:
			b = binary.BigEndian.AppendUint32(b, v)
		case uint64:
			b = binary.BigEndian.AppendUint64(b, v)
		case int:
			b = binary.BigEndian.AppendUint32(b, uint32(v))
		default:
			panic("be")
		}
	}
	return b
}

// put sends; that the other side has left is not an error here.
func (w wire) put(values ...any) { w.Write(be(values...)) }

// get receives n bytes, or nil if the other side has left.
func (w wire) get(n int) []byte {
	b := make([]byte, n)
	w.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(w, b); err != nil {
		return nil
	}
	return b
}

// gone waits until the other side closes the connection.
func (w wire) gone() {
	w.t.Helper()
	w.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := io.Copy(io.Discard, w)
	if n, ok := err.(net.Error); ok && n.Timeout() {
		w.t.Fatal("the connection was not closed")
	}
}

// As a server.

// fake is a server that runs script on each connection.
func fake(t testing.TB, script func(w wire)) string {
	path := filepath.Join(socketDir(t), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				script(wire{t, c})
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return unixURI(path, "")
}

func (w wire) greet() bool {
	w.put(uint64(wInit), uint64(wOption), uint16(3))
	return w.get(4) != nil
}

// option receives an option.
func (w wire) option() (o uint32, data []byte) {
	h := w.get(16)
	if h == nil {
		return 0, nil
	}
	return binary.BigEndian.Uint32(h[8:]), w.get(int(binary.BigEndian.Uint32(h[12:])))
}

// answer sends a reply to an option.
func (w wire) answer(o, kind uint32, values ...any) {
	b := be(values...)
	w.put(uint64(wReply), o, kind, len(b), b)
}

// enter negotiates structured replies, base:allocation as number 1, and an
// export of 1 MiB that can do everything.
func (w wire) enter() bool {
	if !w.greet() {
		return false
	}
	for {
		switch o, _ := w.option(); o {
		case 8:
			w.answer(o, 1)
		case 10:
			w.answer(o, 4, 1, "base:allocation")
			w.answer(o, 1)
		case 7:
			w.answer(o, 3, uint16(0), uint64(1<<20), uint16(0xffd))
			w.answer(o, 1)
			return true
		case 0:
			return false
		default:
			w.answer(o, 1<<31+1)
		}
	}
}

type asked struct {
	cmd    uint16
	cookie uint64
	off    uint64
	n      uint32
}

// request receives a request, with the data of a write.
func (w wire) request() (asked, bool) {
	h := w.get(28)
	if h == nil {
		return asked{}, false
	}
	a := asked{binary.BigEndian.Uint16(h[6:]), binary.BigEndian.Uint64(h[8:]), binary.BigEndian.Uint64(h[16:]), binary.BigEndian.Uint32(h[24:])}
	if a.cmd == 1 {
		w.get(int(a.n))
	}
	return a, true
}

// chunk sends a part of a structured reply.
func (w wire) chunk(done bool, kind uint16, cookie uint64, values ...any) {
	b := be(values...)
	flags := uint16(0)
	if done {
		flags = 1
	}
	w.put(0x668e33ef, flags, kind, cookie, len(b), b)
}

// As a client.

// knock connects to uri and greets.
func knock(t testing.TB, uri string) wire {
	c, err := net.Dial("unix", socketOf(t, uri))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	w := wire{t, c}
	require.Equal(t, be(uint64(wInit), uint64(wOption), uint16(3)), w.get(18))
	w.put(3)
	return w
}

// ask sends an option and returns the types of the replies, and the data of
// the last.
func (w wire) ask(o uint32, values ...any) (kinds []uint32, data []byte) {
	b := be(values...)
	w.put(uint64(wOption), o, len(b), b)
	for {
		h := w.get(20)
		if h == nil {
			return kinds, nil
		}
		require.EqualValues(w.t, uint64(wReply), binary.BigEndian.Uint64(h))
		require.Equal(w.t, o, binary.BigEndian.Uint32(h[8:]))
		kind := binary.BigEndian.Uint32(h[12:])
		data = w.get(int(binary.BigEndian.Uint32(h[16:])))
		kinds = append(kinds, kind)
		if kind == 1 || kind >= 1<<31 {
			return kinds, data
		}
	}
}

// open goes into transmission on the default export.
func (w wire) open() wire {
	kinds, _ := w.ask(8)
	require.Equal(w.t, []uint32{1}, kinds)
	kinds, _ = w.ask(10, 0, 1, 15, "base:allocation")
	require.Equal(w.t, []uint32{4, 1}, kinds)
	kinds, _ = w.ask(7, 0, uint16(0))
	require.Equal(w.t, uint32(1), kinds[len(kinds)-1])
	return w
}

func (w wire) send(flags, cmd uint16, cookie, off uint64, n int, data ...any) {
	w.put(0x25609513, flags, cmd, cookie, off, n, be(data...))
}

// reply receives one chunk and returns its type, cookie and payload.
func (w wire) reply() (kind uint16, cookie uint64, data []byte) {
	w.t.Helper()
	h := w.get(20)
	require.NotNil(w.t, h, "the connection was closed")
	return binary.BigEndian.Uint16(h[6:]), binary.BigEndian.Uint64(h[8:]), w.get(int(binary.BigEndian.Uint32(h[16:])))
}
