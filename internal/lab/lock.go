package lab

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// errLocked says that a living process holds the lock.
var errLocked = errors.New("lab: locked by another process")

// lockFile opens path and takes its flock. The lock lasts until the file is
// closed, at the latest until the process ends, however it ends.
func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("lab: lock %s: %w", path, err)
	}
	return f, nil
}

// awaitLock is lockFile for an exclusive lock that another process may hold for
// a while.
func awaitLock(ctx context.Context, path string) (f *os.File, err error) {
	err = poll(ctx, "lock "+path, func() (bool, error) {
		f, err = lockFile(path, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, errLocked) {
			return false, nil
		}
		return err == nil, err
	})
	return f, err
}
