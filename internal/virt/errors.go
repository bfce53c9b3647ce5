package virt

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vmferry/vmferry/share"
	"libvirt.org/go/libvirt"
)

// Failed is an error of libvirt with the kind of package share that it belongs
// to, if any. Both are reachable: errors.Is with the kind or a
// libvirt.ErrorNumber, errors.As with a libvirt.Error.
type Failed struct {
	What string // what was tried
	Kind error  // one of share's kinds, errors.ErrUnsupported, or nil
	Err  error
}

// Error leaves out libvirt's numbers, which say nothing to a reader.
func (e *Failed) Error() string {
	text := e.Err.Error()
	if le := (libvirt.Error{}); errors.As(e.Err, &le) && le.Message != "" {
		text = le.Message
	}
	return e.What + ": " + text
}

// Unwrap returns the kind and the native error.
func (e *Failed) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Err}
	}
	return []error{e.Kind, e.Err}
}

// Error adds what was tried and the kind to an error of libvirt. It returns nil
// for nil, and other errors with what was tried.
func Error(what string, err error) error {
	if err == nil {
		return nil
	}
	le := libvirt.Error{}
	if f := (*Failed)(nil); errors.As(err, &f) || !errors.As(err, &le) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return &Failed{What: what, Kind: kindOf(le), Err: err}
}

var kinds = map[libvirt.ErrorNumber]error{
	libvirt.ERR_NO_DOMAIN:             share.ErrNotExist,
	libvirt.ERR_NO_STORAGE_POOL:       share.ErrNotExist,
	libvirt.ERR_NO_STORAGE_VOL:        share.ErrNotExist,
	libvirt.ERR_NO_NETWORK:            share.ErrNotExist,
	libvirt.ERR_NO_SECRET:             share.ErrNotExist,
	libvirt.ERR_NO_DOMAIN_SNAPSHOT:    share.ErrNotExist,
	libvirt.ERR_NO_DOMAIN_CHECKPOINT:  share.ErrNotExist,
	libvirt.ERR_NO_DOMAIN_BACKUP:      share.ErrNotExist,
	libvirt.ERR_NO_DOMAIN_METADATA:    share.ErrNotExist,
	libvirt.ERR_DEVICE_MISSING:        share.ErrNotExist,
	libvirt.ERR_DOM_EXIST:             share.ErrExist,
	libvirt.ERR_STORAGE_VOL_EXIST:     share.ErrExist,
	libvirt.ERR_NETWORK_EXIST:         share.ErrExist,
	libvirt.ERR_AUTH_FAILED:           share.ErrDenied,
	libvirt.ERR_AUTH_CANCELLED:        share.ErrDenied,
	libvirt.ERR_AUTH_UNAVAILABLE:      share.ErrDenied,
	libvirt.ERR_ACCESS_DENIED:         share.ErrDenied,
	libvirt.ERR_OPERATION_DENIED:      share.ErrDenied,
	libvirt.ERR_NO_CONNECT:            share.ErrUnavailable,
	libvirt.ERR_RPC:                   share.ErrUnavailable,
	libvirt.ERR_INVALID_CONN:          share.ErrUnavailable,
	libvirt.ERR_UNKNOWN_HOST:          share.ErrUnavailable,
	libvirt.ERR_NO_SERVER:             share.ErrUnavailable,
	libvirt.ERR_SSH:                   share.ErrUnavailable,
	libvirt.ERR_LIBSSH:                share.ErrUnavailable,
	libvirt.ERR_AGENT_UNRESPONSIVE:    share.ErrUnavailable,
	libvirt.ERR_OPERATION_TIMEOUT:     share.ErrInUse,
	libvirt.ERR_RESOURCE_BUSY:         share.ErrInUse,
	libvirt.ERR_BLOCK_COPY_ACTIVE:     share.ErrInUse,
	libvirt.ERR_INVALID_ARG:           share.ErrInvalid,
	libvirt.ERR_XML_ERROR:             share.ErrInvalid,
	libvirt.ERR_XML_DETAIL:            share.ErrInvalid,
	libvirt.ERR_XML_INVALID_SCHEMA:    share.ErrInvalid,
	libvirt.ERR_OPERATION_UNSUPPORTED: errors.ErrUnsupported,
	libvirt.ERR_ARGUMENT_UNSUPPORTED:  errors.ErrUnsupported,
	libvirt.ERR_CONFIG_UNSUPPORTED:    errors.ErrUnsupported,
	libvirt.ERR_NO_SUPPORT:            errors.ErrUnsupported,
}

// texts tell apart what libvirt reports under its codes for everything: the
// operating system's own words, which QEMU passes on too.
var texts = []struct {
	part string
	kind error
}{ // the first that fits
	{"Permission denied", share.ErrDenied},
	{"Operation not permitted", share.ErrDenied},
	{"Failed to connect", share.ErrUnavailable}, // to a socket that is not there, too
	{"nable to connect", share.ErrUnavailable},
	{"No space left on device", share.ErrNoSpace},
	{"Disk quota exceeded", share.ErrNoSpace},
	{"No such file or directory", share.ErrNotExist},
	{"File exists", share.ErrExist},
	{"ertificate", share.ErrDenied},
	{"Connection refused", share.ErrUnavailable},
	{"Connection reset", share.ErrUnavailable},
	{"Connection timed out", share.ErrUnavailable},
	{"No route to host", share.ErrUnavailable},
	{"Network is unreachable", share.ErrUnavailable},
	{"Broken pipe", share.ErrUnavailable},
	{"client socket is closed", share.ErrUnavailable},
	{"End of file while reading", share.ErrUnavailable},
	{"Cannot recv data", share.ErrUnavailable},
	{"Cannot write data", share.ErrUnavailable},
}

func kindOf(e libvirt.Error) error {
	if k, ok := kinds[e.Code]; ok {
		return k
	}
	for _, t := range texts {
		if strings.Contains(e.Message, t.part) {
			return t.kind
		}
	}
	return nil
}

// Gone reports whether err says that the connection itself is dead.
func Gone(err error) bool {
	le := libvirt.Error{}
	if !errors.As(err, &le) {
		return false
	}
	return kindOf(le) == share.ErrUnavailable
}
