package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Bounds on what a server may send in reply to one option.
const (
	maxReplies   = 10000
	maxListBytes = 8 << 20
)

// handshake is the client's side of the negotiation on one connection. It
// reads exactly what belongs to each message: what follows STARTTLS in the
// clear is never taken for something said under TLS.
type handshake struct {
	conn     net.Conn // TLS once that is up
	raw      net.Conn
	noZeroes bool
	buf      []byte

	structured bool
	contexts   map[string]uint32
	info       ExportInfo
	flags      uint16
}

// guard bounds f, which does I/O on conn, by ctx and by timeout.
func guard(ctx context.Context, conn net.Conn, timeout time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("nbd: the peer took longer than %v for the handshake: %w", timeout, share.ErrUnavailable))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := f()
	if !stop() {
		// The deadline is set or about to be: the connection is of no use.
		cause := context.Cause(ctx)
		if errors.Is(cause, share.ErrUnavailable) {
			return cause
		}
		return fmt.Errorf("nbd: handshake: %w", cause)
	}
	return err
}

func (h *handshake) read(n int) ([]byte, error) {
	if cap(h.buf) < n {
		h.buf = make([]byte, n)
	}
	b := h.buf[:n]
	if _, err := io.ReadFull(h.conn, b); err != nil {
		return nil, lost("the handshake", err)
	}
	return b, nil
}

func (h *handshake) write(b []byte) error {
	if _, err := h.conn.Write(b); err != nil {
		return lost("the handshake", err)
	}
	return nil
}

// greet exchanges magic numbers and flags.
func (h *handshake) greet() error {
	b, err := h.read(16)
	if err != nil {
		return err
	}
	if binary.BigEndian.Uint64(b) != magicInit {
		return violation("the greeting is not an NBD server's")
	}
	switch binary.BigEndian.Uint64(b[8:]) {
	case magicOption:
	case magicOldstyle:
		return fmt.Errorf("nbd: the server speaks the oldstyle handshake, which has neither TLS nor export names: %w", errors.ErrUnsupported)
	default:
		return violation("the second magic number is %#x", binary.BigEndian.Uint64(b[8:]))
	}
	if b, err = h.read(2); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint16(b)
	if flags&flagFixedNewstyle == 0 {
		return fmt.Errorf("nbd: the server does not speak the fixed newstyle handshake: %w", errors.ErrUnsupported)
	}
	h.noZeroes = flags&flagNoZeroes != 0
	return h.write(binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes))))
}

// exchange sends an option and hands each reply but the closing ACK to each.
func (h *handshake) exchange(o option, export string, data []byte, each func(kind uint32, data []byte) error) error {
	if err := h.write(append(appendOption(nil, o, len(data)), data...)); err != nil {
		return err
	}
	total := 0
	for range maxReplies {
		b, err := h.read(sizeOptReply)
		if err != nil {
			return err
		}
		f := newFields(b)
		magic, of, kind, n := f.u64(), option(f.u32()), f.u32(), f.u32()
		if magic != magicOptReply || of != o {
			return violation("the answer to %v has magic %#x and is for %v", o, magic, of)
		}
		if total += int(min(n, maxListBytes)); n > maxOption || total > maxListBytes {
			return violation("the answer to %v has %d bytes", o, n)
		}
		if b, err = h.read(int(n)); err != nil {
			return err
		}
		switch {
		case kind == repAck:
			return nil
		case kind&repErr != 0:
			return &NegotiationError{Option: o.String(), Export: export, Message: printable(b), code: kind}
		case each == nil:
			return violation("the answer to %v is of type %d", o, kind)
		}
		if err := each(kind, b); err != nil {
			return err
		}
	}
	return violation("more than %d answers to %v", maxReplies, o)
}

// startTLS upgrades the connection. It is the first option where it is used.
func (h *handshake) startTLS(ctx context.Context, config *tls.Config) error {
	if err := h.exchange(optStartTLS, "", nil, nil); err != nil {
		if n := (*NegotiationError)(nil); errors.As(err, &n) {
			return fmt.Errorf("nbd: the server offers no TLS, and without it nothing is sent: %w: %w", share.ErrDenied, err)
		}
		return err
	}
	c := tls.Client(h.conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("nbd: TLS handshake: %w: %w", share.ErrDenied, err)
	}
	h.conn = c
	return nil
}

// structuredReplies asks for them; an old server may refuse.
func (h *handshake) structuredReplies() error {
	err := h.exchange(optStructuredReply, "", nil, nil)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	h.structured = err == nil
	return err
}

// metaContexts selects or lists contexts, and returns them by name.
func (h *handshake) metaContexts(o option, export string, queries []string) (map[string]uint32, error) {
	data := appendString(nil, export)
	data = binary.BigEndian.AppendUint32(data, uint32(len(queries)))
	for _, q := range queries {
		data = appendString(data, q)
	}
	found := map[string]uint32{}
	err := h.exchange(o, export, data, func(kind uint32, b []byte) error {
		f := newFields(b)
		id, name := f.u32(), string(f.b)
		if kind != repMetaContext || !f.ok || checkString(name) != nil {
			return violation("the answer to %v is malformed", o)
		}
		if _, twice := found[name]; twice {
			return violation("the context %s is answered twice", quote(name))
		}
		found[name] = id
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// selectContexts makes base:allocation and the wanted contexts ready for
// block status. A wanted one that is not there is an error: taken for empty,
// a dirty bitmap would lose writes.
func (h *handshake) selectContexts(export string, want []string) error {
	queries := []string{ContextAllocation}
	for _, w := range want {
		if err := checkString(w); err != nil {
			return err
		}
		if !slices.Contains(queries, w) {
			queries = append(queries, w)
		}
	}
	if h.structured {
		found, err := h.metaContexts(optSetMetaContext, export, queries)
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		ids := map[uint32]bool{}
		for name, id := range found {
			if !slices.Contains(queries, name) || ids[id] {
				return violation("the context %s was not asked for, or its number is taken", quote(name))
			}
			ids[id] = true
		}
		h.contexts = found
	}
	for _, w := range want {
		if _, ok := h.contexts[w]; !ok {
			return fmt.Errorf("nbd: the server has no metadata context %s for export %s: %w", quote(w), quote(export), share.ErrNotExist)
		}
	}
	return nil
}

// query asks INFO or GO about an export. After GO the connection is in
// transmission.
func (h *handshake) query(o option, export string) error {
	data := appendString(nil, export)
	asks := []uint16{infoName, infoDescription, infoBlockSize}
	data = binary.BigEndian.AppendUint16(data, uint16(len(asks)))
	for _, a := range asks {
		data = binary.BigEndian.AppendUint16(data, a)
	}
	h.info = ExportInfo{Name: export}
	sized := false
	err := h.exchange(o, export, data, func(kind uint32, b []byte) error {
		if kind != repInfo {
			return violation("the answer to %v is of type %d", o, kind)
		}
		f := newFields(b)
		switch f.u16() {
		case infoExport:
			size, flags := f.u64(), f.u16()
			if !f.ok || len(f.b) != 0 {
				return violation("the export information has %d bytes", len(b))
			}
			sized = true
			return h.setSize(size, flags)
		case infoName:
			h.info.Canonical = printable(f.b)
		case infoDescription:
			h.info.Description = printable(f.b)
		case infoBlockSize:
			s := share.BlockSizes{Minimum: int64(f.u32()), Preferred: int64(f.u32()), Maximum: int64(f.u32())}
			if !f.ok || len(f.b) != 0 || s.Minimum <= 0 || s.Minimum&(s.Minimum-1) != 0 ||
				s.Preferred&(s.Preferred-1) != 0 || s.Preferred < s.Minimum || s.Maximum < s.Minimum {
				return violation("the block sizes are %+v", s)
			}
			h.info.BlockSizes = s
		}
		return nil
	})
	if err == nil && !sized {
		err = violation("the server did not tell the export's size")
	}
	return err
}

// exportName is the way into transmission of servers without GO.
func (h *handshake) exportName(export string) error {
	if err := h.write(append(appendOption(nil, optExportName, len(export)), export...)); err != nil {
		return err
	}
	n := 10
	if !h.noZeroes {
		n += 124
	}
	b, err := h.read(n)
	if err != nil {
		// A refusal has no other form.
		return fmt.Errorf("nbd: the server closed the connection when asked for export %s; perhaps it has none of that name: %w", quote(export), err)
	}
	f := newFields(b)
	h.info = ExportInfo{Name: export}
	return h.setSize(f.u64(), f.u16())
}

func (h *handshake) setSize(size uint64, flags uint16) error {
	if size > math.MaxInt64 {
		return violation("the export's size is %d bytes", size)
	}
	if flags&flagHasFlags == 0 {
		flags = 0
	}
	h.info.Size, h.flags = int64(size), flags
	h.info.ReadOnly = flags&flagReadOnly != 0
	h.info.Rotational = flags&flagRotational != 0
	h.info.MultiConn = flags&flagCanMultiConn != 0
	if h.info.BlockSizes == (share.BlockSizes{}) {
		h.info.BlockSizes = share.BlockSizes{Minimum: 1, Preferred: 4096, Maximum: defaultMax}
	}
	return nil
}

// enter negotiates everything and ends in transmission.
func (h *handshake) enter(export string, contexts []string) error {
	if err := h.structuredReplies(); err != nil {
		return err
	}
	if err := h.selectContexts(export, contexts); err != nil {
		return err
	}
	err := h.query(optGo, export)
	if n := (*NegotiationError)(nil); errors.As(err, &n) && n.code == repErrUnsupported {
		err = h.exportName(export)
	}
	return err
}

// abort says goodbye before transmission.
func (h *handshake) abort() {
	h.write(appendOption(nil, optAbort, 0))
	h.conn.Close()
}
