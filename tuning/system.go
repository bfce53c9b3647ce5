package tuning

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/vmferry/vmferry/share"
)

// System is a machine whose settings are read and written. Paths are absolute
// and clean. Errors wrap share's kinds: [share.ErrNotExist] for what is not
// there or vanished, [share.ErrDenied] for what may not be touched,
// [share.ErrInvalid] for what is not a regular file or a value that the kernel
// refuses.
//
// Implementations may be called concurrently.
type System interface {
	// Name says which machine it is, for people.
	Name() string
	// ReadFile returns a regular file's content, 4 MiB at most.
	ReadFile(ctx context.Context, path string) ([]byte, error)
	// Glob returns the paths that match, sorted; "*" and "?" stay within a path
	// element. No match is no error, a directory that may not be read is.
	Glob(ctx context.Context, pattern string) ([]string, error)
	// SetFile writes data to a file of the kernel's that is there, in one
	// write. It creates nothing and follows no link in the last element.
	SetFile(ctx context.Context, path string, data []byte) error
}

// Runner is a System that can run programs.
type Runner interface {
	// Run runs a program without a shell and returns its standard output,
	// 16 MiB at most. A program that is not there is [share.ErrNotExist]; one
	// that fails is an error with the end of its standard error.
	Run(ctx context.Context, argv ...string) ([]byte, error)
}

// Keeper is a System that can keep files of ours.
type Keeper interface {
	// PutFile replaces a file as a whole, durably, or creates it with mode
	// 0644, in a directory that is there. A link is [share.ErrInvalid].
	PutFile(ctx context.Context, path string, data []byte) error
	// RemoveFile removes a file. One that is not there is no error.
	RemoveFile(ctx context.Context, path string) error
}

const (
	maxFile   = 4 << 20
	maxOutput = 16 << 20
)

// identity is which machine a value was changed on, and in which boot.
type identity struct{ Machine, Boot string }

const (
	bootIDFile    = "/proc/sys/kernel/random/boot_id"
	machineIDFile = "/etc/machine-id"
)

// identify reads the machine's identity. Without a boot's there is an error: a
// journal could not tell a reboot.
func identify(ctx context.Context, sys System) (identity, error) {
	boot, err := sys.ReadFile(ctx, bootIDFile)
	if err != nil {
		return identity{}, fmt.Errorf("which boot this is: %w", err)
	}
	id := identity{Boot: strings.TrimSpace(string(boot)), Machine: sys.Name()}
	if m, err := sys.ReadFile(ctx, machineIDFile); err == nil && len(strings.TrimSpace(string(m))) > 0 {
		id.Machine = strings.TrimSpace(string(m))
	}
	if id.Boot == "" || len(id.Boot) > 64 || len(id.Machine) > 256 {
		return identity{}, fmt.Errorf("which boot this is: %s %w", bootIDFile, share.ErrInvalid)
	}
	return id, nil
}

// checkPath refuses what is not absolute and clean.
func checkPath(path string) error {
	if !strings.HasPrefix(path, "/") || !fs.ValidPath(path[1:]) && path != "/" || strings.ContainsAny(path, "\n\x00") {
		return fmt.Errorf("path %s %w; it must be absolute, without dots as elements", quote(path), share.ErrInvalid)
	}
	return nil
}

// fileError gives an error of the operating system the kind that it belongs to.
func fileError(what, path string, err error) error {
	if err == nil {
		return nil
	}
	var kind error
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENOTDIR):
		kind = share.ErrNotExist
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		kind = share.ErrDenied
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ERANGE), errors.Is(err, syscall.ELOOP):
		kind = share.ErrInvalid
	case errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.EAGAIN):
		kind = share.ErrInUse
	case errors.Is(err, syscall.EOPNOTSUPP):
		kind = errors.ErrUnsupported
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.ENOMEM):
		kind = share.ErrNoSpace
	}
	if kind == nil || errors.Is(err, kind) && kind != share.ErrNotExist {
		return fmt.Errorf("%s %s: %w", what, path, err)
	}
	return &fileFailed{what: what, path: path, kind: kind, err: err}
}

// fileFailed carries a kind beside the native error, whose text says enough.
type fileFailed struct {
	what, path string
	kind, err  error
}

func (e *fileFailed) Error() string {
	text := e.err.Error()
	if pe := (*fs.PathError)(nil); errors.As(e.err, &pe) {
		text = pe.Err.Error()
	}
	return e.what + " " + e.path + ": " + text
}

func (e *fileFailed) Unwrap() []error { return []error{e.kind, e.err} }
