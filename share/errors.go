package share

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// The kinds of failure. Errors of this module wrap exactly one of them where
// one applies; test with errors.Is. The native error behind it (a *fs.PathError,
// a libvirt error, a C library's code) is reachable with errors.As.
// What a backend cannot do at all wraps errors.ErrUnsupported instead.
var (
	// ErrNotExist: there is no such volume, snapshot, guest or server object.
	// errors.Is(ErrNotExist, fs.ErrNotExist) holds.
	ErrNotExist error = &kind{"does not exist", fs.ErrNotExist}
	// ErrExist: the name is taken by something that differs from what was
	// asked for; a [*MismatchError] says in which field.
	ErrExist error = &kind{"exists", fs.ErrExist}
	// ErrInUse: a client, a lock or a job holds the object. It may be free later.
	ErrInUse error = &kind{"is in use", nil}
	// ErrUnavailable: the server, host or network does not answer, or cannot
	// now. The same call may succeed later.
	ErrUnavailable error = &kind{"is unavailable", nil}
	// ErrDenied: the credentials, the access set or the operating system
	// forbid it. errors.Is(ErrDenied, fs.ErrPermission) holds.
	ErrDenied error = &kind{"is denied", fs.ErrPermission}
	// ErrInvalid: the request itself is wrong, and will be whenever repeated.
	// errors.Is(ErrInvalid, fs.ErrInvalid) holds.
	ErrInvalid error = &kind{"is invalid", fs.ErrInvalid}
	// ErrNoSpace: the pool, file system or quota is full.
	ErrNoSpace error = &kind{"has no space left", nil}
	// ErrCorrupt: data or metadata is not what it must be. Nothing is
	// repaired without being asked.
	ErrCorrupt error = &kind{"is corrupt", nil}
	// ErrWrongDevice: the identity found is not the identity expected. Nothing
	// was written.
	ErrWrongDevice error = &kind{"is another device", nil}
	// ErrWedged: a call that the operating system or a C library does not let
	// go of was abandoned. Its outcome is unknown, and what it held stays
	// held until it ends.
	ErrWedged error = &kind{"is wedged", nil}
	// ErrClosed: the handle was closed. errors.Is(ErrClosed, fs.ErrClosed) holds.
	ErrClosed error = &kind{"is closed", fs.ErrClosed}
)

// kind is a sentinel that also matches its counterpart in io/fs.
type kind struct {
	text string
	twin error
}

func (k *kind) Error() string { return k.text }

func (k *kind) Is(target error) bool { return k.twin != nil && target == k.twin }

// Error says which operation failed on which volume of which backend.
type Error struct {
	Op      string // the operation, in lower case: "create", "publish"
	Backend string // the backend's name: "local", "nfs"
	Volume  string // the volume's name; empty where there is none
	Err     error  // what happened; wraps one of the kinds above where one applies
}

// Error is "backend: op volume: what happened".
func (e *Error) Error() string {
	s := e.Op
	if e.Volume != "" {
		s += " " + quote(e.Volume)
	}
	if e.Backend != "" {
		s = e.Backend + ": " + s
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// WrapError adds op, backend and volume to err. It returns nil for nil, and an
// error that is an *Error already as it is.
func WrapError(op, backend, volume string, err error) error {
	if err == nil {
		return nil
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return err
	}
	return &Error{Op: op, Backend: backend, Volume: volume, Err: err}
}

// MismatchError is an [ErrExist]: what is there differs from what was asked
// for in one field.
type MismatchError struct {
	Field      string // "size", "format", "kind"
	Have, Want string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("exists and differs: %s is %s, not %s", e.Field, e.Have, e.Want)
}

// Is makes the error an [ErrExist].
func (e *MismatchError) Is(target error) bool { return target == ErrExist || target == fs.ErrExist }

// UnsupportedError is an errors.ErrUnsupported with the reason.
type UnsupportedError struct {
	What   string // what was asked for: "snapshot"
	Reason string // why it cannot be had, and what can: "raw images have none; use qcow2"
}

func (e *UnsupportedError) Error() string {
	if e.Reason == "" {
		return e.What + " is not supported"
	}
	return e.What + " is not supported: " + e.Reason
}

// Is makes the error an errors.ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

// Retryable reports whether the same call may succeed later without anything
// else being changed by the caller: err is [ErrUnavailable] or [ErrInUse], and
// not the caller's own cancellation or deadline. [ErrWedged] is not retryable:
// its call is still under way.
func Retryable(err error) bool {
	if errors.Is(err, ErrWedged) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrInUse)
}

// quote makes a name of untrusted origin safe to show: control characters and
// quotes are escaped, and a long one is cut.
func quote(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return fmt.Sprintf("%q", s)
}
