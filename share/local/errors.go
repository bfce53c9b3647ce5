package local

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
)

// kindOf adds the kind of failure to an error of the operating system. An
// error that has a kind keeps it.
func kindOf(err error) error {
	if err == nil {
		return nil
	}
	for _, k := range kinds {
		if errors.Is(err, k) {
			return err
		}
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		switch errno {
		case unix.ENOENT, unix.ENOTDIR:
			return fmt.Errorf("%w: %w", share.ErrNotExist, err)
		case unix.EACCES, unix.EPERM, unix.EROFS:
			return fmt.Errorf("%w: %w", share.ErrDenied, err)
		case unix.ENOSPC, unix.EDQUOT, unix.EFBIG:
			return fmt.Errorf("%w: %w", share.ErrNoSpace, err)
		case unix.ELOOP:
			return fmt.Errorf("%w: %w", share.ErrWrongDevice, err)
		case unix.ESTALE, unix.ETIMEDOUT, unix.EHOSTDOWN, unix.ENOTCONN, unix.ENOLCK:
			return fmt.Errorf("%w: %w", share.ErrUnavailable, err)
		}
	}
	if errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("%w: %w", share.ErrClosed, err)
	}
	return err
}

var kinds = []error{
	share.ErrNotExist, share.ErrExist, share.ErrInUse, share.ErrUnavailable, share.ErrDenied,
	share.ErrInvalid, share.ErrNoSpace, share.ErrCorrupt, share.ErrWrongDevice, share.ErrWedged,
	share.ErrClosed, errors.ErrUnsupported,
}
