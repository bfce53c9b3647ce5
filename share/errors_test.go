package share_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

var allKinds = []error{
	share.ErrNotExist, share.ErrExist, share.ErrInUse, share.ErrUnavailable, share.ErrDenied, share.ErrInvalid,
	share.ErrNoSpace, share.ErrCorrupt, share.ErrWrongDevice, share.ErrWedged, share.ErrClosed,
}

func TestKindsAreDistinct(t *testing.T) {
	twins := map[error]error{
		share.ErrNotExist: fs.ErrNotExist, share.ErrExist: fs.ErrExist, share.ErrDenied: fs.ErrPermission,
		share.ErrInvalid: fs.ErrInvalid, share.ErrClosed: fs.ErrClosed,
	}
	for _, a := range allKinds {
		for _, b := range allKinds {
			require.Equal(t, a == b, errors.Is(share.WrapError("op", "b", "v", fmt.Errorf("x: %w", a)), b), "%v is %v", a, b)
		}
		for _, twin := range []error{fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, fs.ErrInvalid, fs.ErrClosed} {
			require.Equal(t, twins[a] == twin, errors.Is(a, twin), "%v is %v", a, twin)
		}
		require.NotErrorIs(t, a, errors.ErrUnsupported)
	}
}

func TestRetryable(t *testing.T) {
	for _, k := range allKinds {
		require.Equal(t, k == share.ErrUnavailable || k == share.ErrInUse, share.Retryable(fmt.Errorf("x: %w", k)), "%v", k)
	}
	require.False(t, share.Retryable(nil))
	require.False(t, share.Retryable(errors.New("other")))
	for _, end := range []error{context.Canceled, context.DeadlineExceeded, share.ErrWedged} {
		require.False(t, share.Retryable(errors.Join(share.ErrUnavailable, end)), "%v", end)
	}
}

func TestError(t *testing.T) {
	native := &os.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}
	err := share.WrapError("stat", "local", "vm\n1", fmt.Errorf("%w: %w", share.ErrNotExist, native))
	require.Equal(t, `local: stat "vm\n1": does not exist: open /x: no such file or directory`, err.Error())
	var path *os.PathError
	require.ErrorAs(t, err, &path)
	var e *share.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "stat", e.Op)

	require.NoError(t, share.WrapError("stat", "local", "v", nil))
	require.Same(t, err, share.WrapError("create", "nfs", "w", err), "wrapped once")
	require.Equal(t, "stat: is closed", (&share.Error{Op: "stat", Err: share.ErrClosed}).Error())
	long := share.WrapError("stat", "b", strings.Repeat("a", 10000), share.ErrInvalid).Error()
	require.Less(t, len(long), 500)
}

func TestTypedErrors(t *testing.T) {
	var err error = &share.MismatchError{Field: "size", Have: "1 bytes", Want: "2 bytes"}
	require.ErrorIs(t, err, share.ErrExist)
	require.ErrorIs(t, err, fs.ErrExist)
	require.NotErrorIs(t, err, share.ErrInvalid)
	require.Equal(t, "exists and differs: size is 1 bytes, not 2 bytes", err.Error())

	err = &share.UnsupportedError{What: "snapshot", Reason: "use qcow2"}
	require.ErrorIs(t, err, errors.ErrUnsupported)
	require.Equal(t, "snapshot is not supported: use qcow2", err.Error())
	require.Equal(t, "x is not supported", (&share.UnsupportedError{What: "x"}).Error())
	for _, k := range allKinds {
		require.NotErrorIs(t, err, k)
	}
}
