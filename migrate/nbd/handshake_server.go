package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// maxOptions is how many options a client may send on one connection.
const maxOptions = 64

// errGone ends a negotiation that the client ended, as it may.
var errGone = errors.New("nbd: the client left during the negotiation")

// negotiate is the server's side of the handshake. When it returns nil,
// t.export is set and transmission begins. Like the client it reads exactly
// what belongs to each message.
func (t *session) negotiate(ctx context.Context) error {
	b := binary.BigEndian.AppendUint64(nil, magicInit)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	if _, err := t.conn.Write(b); err != nil {
		return lost("greeting", err)
	}
	if err := t.get(b[:4]); err != nil {
		return errGone
	}
	flags := binary.BigEndian.Uint32(b)
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return violation("the client has flags %#x", flags)
	}
	t.noZeroes = flags&flagNoZeroes != 0
	for n := range maxOptions {
		var h [sizeOption]byte
		if err := t.get(h[:]); err != nil {
			if n == 0 && errors.Is(err, io.EOF) {
				return errGone // a port scan, or a probe
			}
			return lost("negotiating", err)
		}
		f := newFields(h[:])
		magic, o, length := f.u64(), option(f.u32()), f.u32()
		if magic != magicOption {
			return violation("an option has the magic %#x", magic)
		}
		if length > maxOption {
			t.answer(o, repErrTooBig, nil)
			return violation("%v has %d bytes", o, length)
		}
		data := make([]byte, length)
		if err := t.get(data); err != nil {
			return lost("negotiating", err)
		}
		done, err := t.option(ctx, o, data)
		if err != nil || done {
			return err
		}
	}
	return violation("the client sent more than %d options", maxOptions)
}

func (t *session) get(b []byte) error {
	_, err := io.ReadFull(t.conn, b)
	return err
}

// answer sends one reply to an option.
func (t *session) answer(o option, kind uint32, data []byte) error {
	if _, err := t.conn.Write(append(appendOptReply(nil, o, kind, len(data)), data...)); err != nil {
		return lost("negotiating", err)
	}
	return nil
}

func (t *session) refuse(o option, kind uint32, why string) error {
	return t.answer(o, kind, []byte(why))
}

// option answers one option, and reports whether transmission begins.
func (t *session) option(ctx context.Context, o option, data []byte) (bool, error) {
	if t.srv.tls != nil && !t.secure && o != optStartTLS && o != optAbort {
		if o == optExportName {
			return false, violation("the client asked for an export before TLS")
		}
		return false, t.refuse(o, repErrTLSRequired, "STARTTLS first")
	}
	switch o {
	case optAbort:
		t.answer(o, repAck, nil)
		return false, errGone
	case optStartTLS:
		return false, t.startTLS(ctx, data)
	case optStructuredReply:
		if len(data) != 0 {
			return false, t.refuse(o, repErrInvalid, "there is data")
		}
		t.structured = true
		return false, t.answer(o, repAck, nil)
	case optList:
		return false, t.list(ctx, data)
	case optListMetaContext, optSetMetaContext:
		return false, t.meta(ctx, o, data)
	case optInfo, optGo:
		return t.inform(ctx, o, data)
	case optExportName:
		return true, t.exportName(ctx, string(data))
	}
	return false, t.refuse(o, repErrUnsupported, "")
}

// startTLS upgrades the connection. What was negotiated before is forgotten;
// as TLS is demanded where there is any, that is nothing.
func (t *session) startTLS(ctx context.Context, data []byte) error {
	switch {
	case t.srv.tls == nil:
		return t.refuse(optStartTLS, repErrPolicy, "TLS is not configured")
	case t.secure || len(data) != 0:
		return t.refuse(optStartTLS, repErrInvalid, "TLS is up already, or there is data")
	}
	if err := t.answer(optStartTLS, repAck, nil); err != nil {
		return err
	}
	c := tls.Server(t.conn, t.srv.tls)
	if err := c.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("nbd: TLS handshake: %w", err)
	}
	t.conn, t.secure = c, true
	t.info.PeerCertificates = c.ConnectionState().PeerCertificates
	return nil
}

// list names the exports that the client may see.
func (t *session) list(ctx context.Context, data []byte) error {
	if len(data) != 0 {
		return t.refuse(optList, repErrInvalid, "there is data")
	}
	for _, name := range t.srv.names() {
		x, no := t.srv.lookup(ctx, t, name)
		if no != 0 {
			continue
		}
		if err := t.answer(optList, repServer, append(appendString(nil, name), x.Description...)); err != nil {
			return err
		}
	}
	return t.answer(optList, repAck, nil)
}

var refusals = map[uint32]string{
	repErrShutdown: "the server is going down",
	repErrUnknown:  "no such export",
	repErrPolicy:   "not allowed",
}

// metaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaRequest struct {
	export  string
	queries []string
}

func parseMeta(data []byte) (m metaRequest, ok bool) {
	f := newFields(data)
	m.export = f.str()
	n := f.u32()
	if uint64(n) > uint64(len(f.b))/4 { // each has at least its length
		return m, false
	}
	for range n {
		m.queries = append(m.queries, f.str())
	}
	return m, f.ok && len(f.b) == 0
}

// matches: a query names a context; to list, one that ends in a colon names
// all that begin so, and no query at all names all.
func (m metaRequest) matches(o option, name string) bool {
	if o == optListMetaContext && len(m.queries) == 0 {
		return true
	}
	for _, q := range m.queries {
		if q == name || o == optListMetaContext && strings.HasSuffix(q, ":") && strings.HasPrefix(name, q) {
			return true
		}
	}
	return false
}

func (t *session) meta(ctx context.Context, o option, data []byte) error {
	if o == optSetMetaContext {
		t.selected, t.selectedOf = nil, nil // whatever comes of this one
	}
	m, ok := parseMeta(data)
	if !ok {
		return t.refuse(o, repErrInvalid, "malformed")
	}
	if !t.structured {
		return t.refuse(o, repErrInvalid, "STRUCTURED_REPLY first")
	}
	x, no := t.srv.lookup(ctx, t, m.export)
	if no != 0 {
		return t.refuse(o, no, refusals[no])
	}
	for i, c := range x.contexts {
		if !m.matches(o, c.Name()) {
			continue
		}
		id := uint32(i)
		if o == optSetMetaContext {
			t.selected, t.selectedOf = append(t.selected, id), x
		}
		if err := t.answer(o, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), c.Name()...)); err != nil {
			return err
		}
	}
	return t.answer(o, repAck, nil)
}

// infoRequest is the data of INFO and GO.
type infoRequest struct {
	export string
	asks   []uint16
}

func parseInfo(data []byte) (r infoRequest, ok bool) {
	f := newFields(data)
	r.export = f.str()
	n := f.u16()
	if int(n) > len(f.b)/2 {
		return r, false
	}
	for range n {
		r.asks = append(r.asks, f.u16())
	}
	return r, f.ok && len(f.b) == 0
}

// inform answers INFO and GO. Export and block sizes are always told.
func (t *session) inform(ctx context.Context, o option, data []byte) (bool, error) {
	r, ok := parseInfo(data)
	if !ok {
		return false, t.refuse(o, repErrInvalid, "malformed")
	}
	x, no := t.srv.lookup(ctx, t, r.export)
	if no != 0 {
		return false, t.refuse(o, no, refusals[no])
	}
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(x.size))
	b = binary.BigEndian.AppendUint16(b, x.flags(t.structured))
	if err := t.answer(o, repInfo, b); err != nil {
		return false, err
	}
	b = binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, v := range []int64{x.BlockSizes.Minimum, x.BlockSizes.Preferred, x.BlockSizes.Maximum} {
		b = binary.BigEndian.AppendUint32(b, uint32(min(v, math.MaxUint32)))
	}
	if err := t.answer(o, repInfo, b); err != nil {
		return false, err
	}
	told := map[uint16]bool{}
	for _, ask := range r.asks {
		if told[ask] {
			continue
		}
		told[ask] = true
		text := x.name
		switch {
		case ask == infoDescription && x.Description != "":
			text = x.Description
		case ask != infoName:
			continue
		}
		if err := t.answer(o, repInfo, append(binary.BigEndian.AppendUint16(nil, ask), text...)); err != nil {
			return false, err
		}
	}
	if o == optGo && !t.open(x) {
		return false, t.refuse(o, repErrUnknown, refusals[repErrUnknown])
	}
	return o == optGo, t.answer(o, repAck, nil)
}

// exportName is the way into transmission of old clients. It has no refusal.
func (t *session) exportName(ctx context.Context, name string) error {
	x, no := t.srv.lookup(ctx, t, name)
	if no != 0 || !t.open(x) {
		return fmt.Errorf("nbd: the client asked for export %s by EXPORT_NAME: %s", quote(name), refusals[no])
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(x.size))
	b = binary.BigEndian.AppendUint16(b, x.flags(t.structured))
	if !t.noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	if _, err := t.conn.Write(b); err != nil {
		return lost("negotiating", err)
	}
	return nil
}

// open binds the session to x.
func (t *session) open(x *served) bool {
	if !t.srv.enter(t, x) {
		return false
	}
	if t.selectedOf != x {
		t.selected = nil
	}
	return true
}
