package nbd

import (
	"encoding/binary"
	"fmt"
)

// The numbers of the wire protocol, all big-endian. Names follow the
// specification (doc/proto.md of the NBD project) without its NBD_ prefix.

const (
	magicInit     = 0x4e42444d41474943 // "NBDMAGIC", first bytes of the server
	magicOption   = 0x49484156454f5054 // "IHAVEOPT"
	magicOldstyle = 0x0000420281861253
	magicOptReply = 0x0003e889045565a9
	magicRequest  = 0x25609513
	magicSimple   = 0x67446698
	magicChunk    = 0x668e33ef
)

// Handshake flags, of the server (16 bits) and of the client (32 bits).
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Transmission flags: what the export can do.
const (
	flagHasFlags        = 1 << 0
	flagReadOnly        = 1 << 1
	flagSendFlush       = 1 << 2
	flagSendFUA         = 1 << 3
	flagRotational      = 1 << 4
	flagSendTrim        = 1 << 5
	flagSendWriteZeroes = 1 << 6
	flagSendDF          = 1 << 7
	flagCanMultiConn    = 1 << 8
	flagSendFastZero    = 1 << 11
)

// An option is one exchange of the negotiation.
type option uint32

const (
	optExportName      option = 1
	optAbort           option = 2
	optList            option = 3
	optStartTLS        option = 5
	optInfo            option = 6
	optGo              option = 7
	optStructuredReply option = 8
	optListMetaContext option = 9
	optSetMetaContext  option = 10
)

func (o option) String() string {
	switch o {
	case optExportName:
		return "EXPORT_NAME"
	case optAbort:
		return "ABORT"
	case optList:
		return "LIST"
	case optStartTLS:
		return "STARTTLS"
	case optInfo:
		return "INFO"
	case optGo:
		return "GO"
	case optStructuredReply:
		return "STRUCTURED_REPLY"
	case optListMetaContext:
		return "LIST_META_CONTEXT"
	case optSetMetaContext:
		return "SET_META_CONTEXT"
	}
	return fmt.Sprintf("option %d", uint32(o))
}

// Replies to options; those with the top bit set are refusals.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4

	repErr             = 1 << 31
	repErrUnsupported  = repErr + 1
	repErrPolicy       = repErr + 2
	repErrInvalid      = repErr + 3
	repErrPlatform     = repErr + 4
	repErrTLSRequired  = repErr + 5
	repErrUnknown      = repErr + 6
	repErrShutdown     = repErr + 7
	repErrBlockSizeReq = repErr + 8
	repErrTooBig       = repErr + 9
)

// Kinds of information in a reply to INFO and GO.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Command is a request of the transmission phase.
type Command uint16

// The commands.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisconnect  Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
)

// writes reports whether the command changes the export.
func (c Command) writes() bool { return c == CmdWrite || c == CmdTrim || c == CmdWriteZeroes }

// String is the command's name in words: "read", "write zeroes".
func (c Command) String() string {
	switch c {
	case CmdRead:
		return "read"
	case CmdWrite:
		return "write"
	case CmdDisconnect:
		return "disconnect"
	case CmdFlush:
		return "flush"
	case CmdTrim:
		return "trim"
	case CmdWriteZeroes:
		return "write zeroes"
	case CmdBlockStatus:
		return "block status"
	}
	return fmt.Sprintf("command %d", uint16(c))
}

// Flags of commands.
const (
	cmdFlagFUA      = 1 << 0
	cmdFlagNoHole   = 1 << 1
	cmdFlagDF       = 1 << 2
	cmdFlagReqOne   = 1 << 3
	cmdFlagFastZero = 1 << 4
)

// Chunks of structured replies.
const (
	chunkFlagDone = 1 << 0

	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkErrBit      = 1 << 15
	chunkError       = chunkErrBit + 1
	chunkErrorOffset = chunkErrBit + 2
)

const (
	sizeRequest   = 28
	sizeSimple    = 16
	sizeChunk     = 20
	sizeOption    = 16
	sizeOptReply  = 20
	maxString     = 4096      // of a name or a message, by the specification
	maxOption     = 64 << 10  // of an option's data, or of a reply to one: ours
	maxStatus     = 8<<20 + 4 // of a block status chunk: a million extents
	defaultMax    = 32 << 20  // of a request, where the server says nothing
	maxErrorChunk = 6 + 1<<16 + 8
)

// header is a request's, decoded.
type header struct {
	flags  uint16
	cmd    Command
	cookie uint64
	off    uint64
	n      uint32
}

func appendRequest(b []byte, h header) []byte {
	b = binary.BigEndian.AppendUint32(b, magicRequest)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = binary.BigEndian.AppendUint16(b, uint16(h.cmd))
	b = binary.BigEndian.AppendUint64(b, h.cookie)
	b = binary.BigEndian.AppendUint64(b, h.off)
	return binary.BigEndian.AppendUint32(b, h.n)
}

func parseRequest(b []byte) (header, bool) {
	_ = b[sizeRequest-1]
	return header{
		flags:  binary.BigEndian.Uint16(b[4:]),
		cmd:    Command(binary.BigEndian.Uint16(b[6:])),
		cookie: binary.BigEndian.Uint64(b[8:]),
		off:    binary.BigEndian.Uint64(b[16:]),
		n:      binary.BigEndian.Uint32(b[24:]),
	}, binary.BigEndian.Uint32(b) == magicRequest
}

func appendSimple(b []byte, code Errno, cookie uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimple)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return binary.BigEndian.AppendUint64(b, cookie)
}

func appendChunk(b []byte, flags, kind uint16, cookie uint64, n uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, magicChunk)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, cookie)
	return binary.BigEndian.AppendUint32(b, n)
}

func appendOption(b []byte, o option, n int) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

func appendOptReply(b []byte, o option, kind uint32, n int) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOptReply)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, kind)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// fields takes values off the front of an option's data. After a value that
// is not there every other one is zero, and ok is false.
type fields struct {
	b  []byte
	ok bool
}

func newFields(b []byte) *fields { return &fields{b, true} }

func (f *fields) take(n uint64) []byte {
	if !f.ok || n > uint64(len(f.b)) {
		f.ok, f.b = false, nil
		return nil
	}
	v := f.b[:n]
	f.b = f.b[n:]
	return v
}

func (f *fields) u16() uint16 {
	if b := f.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (f *fields) u32() uint32 {
	if b := f.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (f *fields) u64() uint64 {
	if b := f.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// str takes a string with its length of 32 bits before it. One longer than
// the specification allows, or with a NUL, is not there.
func (f *fields) str() string {
	n := f.u32()
	if n > maxString {
		f.ok = false
	}
	s := string(f.take(uint64(n)))
	if checkString(s) != nil {
		f.ok = false
	}
	return s
}
