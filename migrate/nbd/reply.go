package nbd

import (
	"encoding/binary"
	"errors"
	"io"
)

// receive reads answers until the connection ends, and says why it did.
// Nothing that a server sends is believed before it is checked against the
// request: lengths before memory is taken, ranges before bytes are stored.
func (c *conn) receive() error {
	for {
		b, err := c.in.Peek(sizeSimple)
		if err != nil {
			return lost("waiting for answers", c.cause(err, len(b) > 0))
		}
		magic := binary.BigEndian.Uint32(b)
		switch {
		case magic == magicSimple:
			code, cookie := Errno(binary.BigEndian.Uint32(b[4:])), binary.BigEndian.Uint64(b[8:])
			c.in.Discard(sizeSimple)
			err = c.simple(code, cookie)
		case magic == magicChunk && c.structured:
			if b, err = c.in.Peek(sizeChunk); err != nil {
				return lost("waiting for answers", c.cause(err, true))
			}
			k := chunk{
				done:   binary.BigEndian.Uint16(b[4:])&chunkFlagDone != 0,
				kind:   binary.BigEndian.Uint16(b[6:]),
				length: int64(binary.BigEndian.Uint32(b[16:])),
			}
			cookie := binary.BigEndian.Uint64(b[8:])
			c.in.Discard(sizeChunk)
			err = c.structuredReply(k, cookie)
		default:
			return violation("an answer has the magic %#x", magic)
		}
		if err != nil {
			return err
		}
		c.received.Add(1)
	}
}

func (c *conn) cause(err error, within bool) error {
	if within && errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// simple is an answer without structure: an error, or success with all data.
func (c *conn) simple(code Errno, cookie uint64) error {
	r, err := c.begin(cookie)
	if err != nil {
		return err
	}
	switch {
	case code != 0:
		r.refused = &Error{Cmd: r.cmd, Code: code}
		if r.cmd == CmdRead && c.structured {
			err = violation("a read was answered without structure")
		}
	case r.cmd == CmdBlockStatus, r.cmd == CmdRead && c.structured:
		err = violation("%v was answered without structure", r.cmd)
	case r.cmd == CmdRead:
		err = c.fill(r, 0, r.n)
	}
	return c.finish(r, true, err)
}

// finish ends the receiving of r. An error is the connection's: it is noted
// before r's caller can go on.
func (c *conn) finish(r *request, final bool, err error) error {
	if err != nil {
		c.fail(err)
	}
	c.end(r, final)
	return err
}

type chunk struct {
	done   bool
	kind   uint16
	length int64
}

func (c *conn) structuredReply(k chunk, cookie uint64) error {
	r, err := c.begin(cookie)
	if err != nil {
		return err
	}
	switch {
	case k.kind == chunkNone:
		if k.length != 0 || !k.done {
			err = violation("an empty chunk has %d bytes or is not the last", k.length)
		}
	case k.kind == chunkOffsetData && r.cmd == CmdRead:
		err = c.data(r, k)
	case k.kind == chunkOffsetHole && r.cmd == CmdRead:
		err = c.hole(r, k)
	case k.kind == chunkBlockStatus && r.cmd == CmdBlockStatus:
		err = c.status(r, k)
	case k.kind&chunkErrBit != 0:
		err = c.errorChunk(r, k)
	default:
		err = violation("a chunk of type %d answers %v", k.kind, r.cmd)
	}
	if err == nil && k.done && r.refused == nil {
		switch {
		case r.cmd == CmdRead && !r.seen.cover(r.n):
			err = violation("a read of %d bytes was answered in part", r.n)
		case r.cmd == CmdBlockStatus && !r.told:
			err = violation("block status was answered without the context asked for")
		}
	}
	return c.finish(r, k.done, err)
}

// part checks that a chunk's range lies within the read and is new, and
// returns its place in the buffer.
func (c *conn) part(r *request, off uint64, n int64) (int64, error) {
	from := int64(off) - r.off
	if off > uint64(r.off+r.n) || from < 0 || n <= 0 || n > r.n-from {
		return 0, violation("a chunk %d+%d answers the read %d+%d", off, n, r.off, r.n)
	}
	if !r.seen.add(from, from+n) {
		return 0, violation("chunks of one read overlap or are scattered without end")
	}
	return from, nil
}

func (c *conn) data(r *request, k chunk) error {
	b, err := c.peek(8, k)
	if err != nil {
		return err
	}
	off := binary.BigEndian.Uint64(b)
	c.in.Discard(8)
	from, err := c.part(r, off, k.length-8)
	if err != nil {
		return err
	}
	return c.fill(r, from, k.length-8)
}

// fill reads n bytes to their place, or past, if the caller has left.
func (c *conn) fill(r *request, from, n int64) error {
	var err error
	if r.buf != nil {
		_, err = io.ReadFull(c.in, r.buf[from:from+n])
	} else {
		_, err = c.in.Discard(int(n))
	}
	if err != nil {
		return lost("receiving data", c.cause(err, true))
	}
	return nil
}

func (c *conn) hole(r *request, k chunk) error {
	if k.length != 12 {
		return violation("a hole chunk has %d bytes", k.length)
	}
	b, err := c.peek(12, k)
	if err != nil {
		return err
	}
	off, n := binary.BigEndian.Uint64(b), int64(binary.BigEndian.Uint32(b[8:]))
	c.in.Discard(12)
	from, err := c.part(r, off, n)
	if err == nil && r.buf != nil {
		clear(r.buf[from : from+n])
	}
	return err
}

// status reads the extents of one context. Of other contexts than the one
// asked for it only checks the form.
func (c *conn) status(r *request, k chunk) error {
	if k.length < 12 || (k.length-4)%8 != 0 || k.length > maxStatus {
		return violation("a block status chunk has %d bytes", k.length)
	}
	b, err := c.peek(4, k)
	if err != nil {
		return err
	}
	ours := binary.BigEndian.Uint32(b) == r.ctx
	c.in.Discard(4)
	if ours && r.told {
		return violation("a context was answered twice")
	}
	r.told = r.told || ours
	off, end := r.off, r.off+r.n
	for rest := k.length - 4; rest > 0; rest -= 8 {
		if b, err = c.peek(8, k); err != nil {
			return err
		}
		n, flags := int64(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:])
		c.in.Discard(8)
		if n == 0 || off >= end {
			return violation("block status has an empty extent or one behind the range")
		}
		// The last extent may reach beyond the range.
		n = min(n, end-off)
		if ours {
			all := r.op.extents
			if l := len(all); l > 0 && all[l-1].Flags == flags {
				all[l-1].Len += n
			} else {
				r.op.extents = append(all, Extent{Off: off, Len: n, Flags: flags})
			}
		}
		off += n
	}
	return nil
}

// errorChunk notes an error of the server. Kinds that are unknown are errors
// too, as their form begins alike.
func (c *conn) errorChunk(r *request, k chunk) error {
	if k.length < 6 || k.length > maxErrorChunk {
		return violation("an error chunk has %d bytes", k.length)
	}
	b := make([]byte, k.length)
	if _, err := io.ReadFull(c.in, b); err != nil {
		return lost("receiving an error", c.cause(err, true))
	}
	f := newFields(b)
	code := Errno(f.u32())
	text := f.take(uint64(f.u16()))
	if !f.ok || code == 0 {
		return violation("an error chunk is malformed")
	}
	if k.kind == chunkErrorOffset {
		if off := f.u64(); !f.ok || off < uint64(r.off) || off > uint64(r.off+r.n) {
			return violation("an error chunk is for offset %d, the request was for %d+%d", off, r.off, r.n)
		}
	}
	if r.refused == nil {
		r.refused = &Error{Cmd: r.cmd, Code: code, Message: printable(text)}
	}
	return nil
}

// peek returns the next n bytes of a chunk that has at least as many.
func (c *conn) peek(n int, k chunk) ([]byte, error) {
	if k.length < int64(n) {
		return nil, violation("a chunk of type %d has %d bytes", k.kind, k.length)
	}
	b, err := c.in.Peek(n)
	if err != nil {
		return nil, lost("receiving an answer", c.cause(err, true))
	}
	return b, nil
}
