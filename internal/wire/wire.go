// Package wire is the protocol between the sender and the receiver of a disk:
// how frames look, and how they are read from a peer that may be broken or
// hostile. What they mean is package migrate's; docs are in migrate/WIRE.md.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
)

// Version is the version of the protocol. A peer that speaks none in common is
// refused with a clear error.
const Version = 1

// MaxPayload bounds the payload of a frame in bytes. A header that announces
// more is refused before anything is allocated.
const MaxPayload = 4 << 20

// MaxHello bounds the payload of the frames of the handshake.
const MaxHello = 16 << 10

// Type says what a frame is.
type Type uint8

// Requests go from the sender to the receiver, answers back. Each request but
// Bye has one answer with its ID.
const (
	Hello   Type = 1 + iota // request: who is there and which disk arrives; JSON
	Data                    // request: put the payload at Off
	Zero                    // request: make Len bytes from Off zero
	Discard                 // request: give Len bytes from Off back; they read as zeros
	Flush                   // request: make durable all that was acknowledged
	Hash                    // request: the hashes of the blocks of Len bytes from Off
	Root                    // request: the root of the hash tree
	Blank                   // request: which ranges read as zeros
	Bye                     // request without answer: the session ends in order
	Welcome                 // answer to Hello; JSON
	Done                    // answer: it is done; the payload is the result, if any
	Failed                  // answer: it is not, or may not be; the payload is a Failure as JSON
)

// Flags of a frame.
const (
	// Compressed: the payload of Data is a zstd frame; Len is its length when
	// decompressed.
	Compressed = 1 << iota
)

// Header is what every frame begins with.
type Header struct {
	Type  Type
	Flags uint8
	// Length is the payload's length in bytes on the wire.
	Length uint32
	// ID tells the requests of a connection apart.
	ID uint64
	// Off and Len are a range of the disk in bytes.
	Off, Len uint64
	// Epoch and Generation order the writes to one block.
	Epoch, Generation uint64
}

// headerSize is the size of a header on the wire: the fields in order, in
// network byte order, after two bytes of magic, and before a CRC32C of header
// and payload.
const headerSize = 2 + 1 + 1 + 4 + 5*8 + 4

const magic = 0x7646 // "vF"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Errors of a peer that does not keep to the protocol. All wrap ErrProtocol.
var (
	ErrProtocol = errors.New("the peer broke the protocol")
	ErrMagic    = fmt.Errorf("%w: it does not speak vmferry's", ErrProtocol)
	ErrChecksum = fmt.Errorf("%w: a frame was damaged on its way", ErrProtocol)
	ErrTooLong  = fmt.Errorf("%w: a frame is longer than allowed", ErrProtocol)
)

// put encodes h, with the checksum over it and the payload, into b.
func (h *Header) put(b *[headerSize]byte, payload []byte) {
	be := binary.BigEndian
	be.PutUint16(b[0:], magic)
	b[2], b[3] = byte(h.Type), h.Flags
	be.PutUint32(b[4:], h.Length)
	for i, v := range [...]uint64{h.ID, h.Off, h.Len, h.Epoch, h.Generation} {
		be.PutUint64(b[8+8*i:], v)
	}
	sum := crc32.Checksum(b[:headerSize-4], castagnoli)
	be.PutUint32(b[headerSize-4:], crc32.Update(sum, castagnoli, payload))
}

// Write writes one frame; h.Length is set from the payload. Header and payload
// go out in one system call where the connection can. Frames are written one
// after the other; what error there is, is of the whole frame.
func Write(c net.Conn, h Header, payload []byte) error {
	b := batchOf(c)
	if b == nil {
		return write(c, h, payload)
	}
	b.hold()
	return errors.Join(write(c, h, payload), b.release())
}

func write(c net.Conn, h Header, payload []byte) error {
	h.Length = uint32(len(payload))
	var b [headerSize]byte
	h.put(&b, payload)
	if len(payload) == 0 {
		_, err := c.Write(b[:])
		return err
	}
	bufs := net.Buffers{b[:], payload}
	_, err := bufs.WriteTo(c)
	return err
}

// Reader reads the frames of one connection.
type Reader struct {
	r   io.Reader
	buf [headerSize]byte
	sum uint32 // what is checked so far of the frame under way
	len uint32 // what is left of its payload
}

// NewReader reads from r, which should be buffered a little.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next reads the next header. The payload must be read with Payload before the
// next one. A payload over max bytes is ErrTooLong; io.EOF comes only between
// frames.
func (r *Reader) Next(max uint32) (Header, error) {
	if _, err := io.ReadFull(r.r, r.buf[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: it ended within a header: %w", ErrProtocol, err)
		}
		return Header{}, err
	}
	be := binary.BigEndian
	if be.Uint16(r.buf[:]) != magic {
		return Header{}, ErrMagic
	}
	h := Header{Type: Type(r.buf[2]), Flags: r.buf[3], Length: be.Uint32(r.buf[4:])}
	for i, v := range [...]*uint64{&h.ID, &h.Off, &h.Len, &h.Epoch, &h.Generation} {
		*v = be.Uint64(r.buf[8+8*i:])
	}
	if h.Length > max {
		return h, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, h.Length, max)
	}
	r.sum = crc32.Checksum(r.buf[:headerSize-4], castagnoli)
	r.len = h.Length
	return h, nil
}

// Payload reads the payload of the frame whose header was read last into p,
// which has its length, and checks the frame.
func (r *Reader) Payload(p []byte) error {
	if uint32(len(p)) != r.len {
		return fmt.Errorf("read a payload of %d bytes into %d", r.len, len(p))
	}
	r.len = 0
	if _, err := io.ReadFull(r.r, p); err != nil {
		return fmt.Errorf("%w: it ended within a frame: %w", ErrProtocol, err)
	}
	if crc32.Update(r.sum, castagnoli, p) != binary.BigEndian.Uint32(r.buf[headerSize-4:]) {
		return ErrChecksum
	}
	return nil
}
