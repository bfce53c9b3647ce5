package nbd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/vmferry/vmferry/share"
)

// Errno is an error code on the wire. The protocol has a list of its own,
// which is Linux's errno for the few codes in it.
type Errno uint32

// The codes of the protocol.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// String is the code's name: "EIO".
func (e Errno) String() string {
	switch e {
	case EPERM:
		return "EPERM"
	case EIO:
		return "EIO"
	case ENOMEM:
		return "ENOMEM"
	case EINVAL:
		return "EINVAL"
	case ENOSPC:
		return "ENOSPC"
	case EOVERFLOW:
		return "EOVERFLOW"
	case ENOTSUP:
		return "ENOTSUP"
	case ESHUTDOWN:
		return "ESHUTDOWN"
	}
	return fmt.Sprintf("error %d", uint32(e))
}

// Error is a command that the server carried out without success. It wraps
// the [share] kind of its code: EPERM is [share.ErrDenied], ENOSPC
// [share.ErrNoSpace], EINVAL and EOVERFLOW [share.ErrInvalid], ESHUTDOWN
// [share.ErrUnavailable], ENOTSUP errors.ErrUnsupported; EIO and the others
// wrap none.
//
// A [Device] behind a [Server] may return one to choose the code that the
// client sees.
//
// [Device]: share.Device
type Error struct {
	Cmd     Command
	Code    Errno
	Message string // from the peer; control characters removed, at most 200 bytes
}

// Error is "nbd: server refused read: EIO: message".
func (e *Error) Error() string {
	s := fmt.Sprintf("nbd: %v failed at the server: %v", e.Cmd, e.Code)
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// Unwrap is the kind of Code, or nil.
func (e *Error) Unwrap() error {
	switch e.Code {
	case EPERM:
		return share.ErrDenied
	case EINVAL, EOVERFLOW:
		return share.ErrInvalid
	case ENOSPC:
		return share.ErrNoSpace
	case ENOTSUP:
		return errors.ErrUnsupported
	case ESHUTDOWN:
		return share.ErrUnavailable
	}
	return nil
}

// NegotiationError is an option that the server refused: an export that does
// not exist ([share.ErrNotExist]), one that policy or the lack of TLS forbids
// ([share.ErrDenied]), a server that is going down ([share.ErrUnavailable]),
// an option unknown to it (errors.ErrUnsupported).
type NegotiationError struct {
	Option  string // the specification's name: "GO"
	Export  string // the export asked for, if the option has one
	Message string // from the peer; control characters removed, at most 200 bytes
	code    uint32
}

// Error names the option, the export and the reason.
func (e *NegotiationError) Error() string {
	var why string
	switch e.code {
	case repErrUnsupported, repErrPlatform:
		why = "the server does not support it"
	case repErrPolicy:
		why = "the server's policy forbids it"
	case repErrInvalid:
		why = "the server calls it invalid"
	case repErrTLSRequired:
		why = "the server demands TLS; set TLS in the options or use nbds://"
	case repErrUnknown:
		why = "there is no such export"
	case repErrShutdown:
		why = "the server is going down"
	case repErrBlockSizeReq:
		why = "the server demands a negotiation of block sizes"
	case repErrTooBig:
		why = "the server calls it too big"
	default:
		why = fmt.Sprintf("refusal %#x", e.code)
	}
	s := "nbd: " + e.Option
	if e.Export != "" {
		s += " of export " + quote(e.Export)
	}
	s += ": " + why
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// Unwrap is the kind of the refusal.
func (e *NegotiationError) Unwrap() error {
	switch e.code {
	case repErrUnsupported, repErrPlatform:
		return errors.ErrUnsupported
	case repErrPolicy, repErrTLSRequired:
		return share.ErrDenied
	case repErrUnknown:
		return share.ErrNotExist
	case repErrShutdown:
		return share.ErrUnavailable
	case repErrInvalid, repErrBlockSizeReq, repErrTooBig:
		return share.ErrInvalid
	}
	return nil
}

// violation is a peer that broke the protocol.
func violation(format string, args ...any) error {
	return fmt.Errorf("nbd: the peer broke the protocol, connection ended: %s: %w", fmt.Sprintf(format, args...), share.ErrCorrupt)
}

// lost is a connection that ended without being asked to.
func lost(doing string, err error) error {
	return fmt.Errorf("nbd: connection lost while %s: %w: %w", doing, share.ErrUnavailable, err)
}

// errnoOf is the code for a device's error, for [Server].
func errnoOf(err error) Errno {
	var e *Error
	switch {
	case errors.As(err, &e) && e.Code != 0:
		return e.Code
	case errors.Is(err, share.ErrDenied):
		return EPERM
	case errors.Is(err, share.ErrNoSpace):
		return ENOSPC
	case errors.Is(err, share.ErrInvalid):
		return EINVAL
	case errors.Is(err, errors.ErrUnsupported):
		return ENOTSUP
	case errors.Is(err, share.ErrClosed), errors.Is(err, context.Canceled):
		return ESHUTDOWN
	}
	return EIO
}

// printable makes a peer's text safe to show: one line, no control
// characters, at most 200 bytes.
func printable(b []byte) string {
	const most = 200
	cut := false
	if len(b) > most {
		b, cut = b[:most], true
	}
	s := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(b), ""))
	if cut {
		s += "…"
	}
	return s
}

func quote(s string) string { return fmt.Sprintf("%q", printable([]byte(s))) }

// checkString applies the specification's rules for names.
func checkString(s string) error {
	switch {
	case len(s) > maxString:
		return fmt.Errorf("nbd: a name of %d bytes is too long, the protocol allows %d: %w", len(s), maxString, share.ErrInvalid)
	case strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s):
		return fmt.Errorf("nbd: the name %s is not UTF-8 without NUL: %w", quote(s), share.ErrInvalid)
	}
	return nil
}
