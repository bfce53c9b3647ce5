package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// longestTail is the longest path of a socket below a lab's directory.
const longestTail = "/h200/run/libvirt-sock-ro"

// newDir makes a directory of a new lab below base and takes its lock, which
// the kernel drops when the process ends. Directories whose lock nobody holds
// belonged to dead labs and are removed.
func newDir(ctx context.Context, base string) (dir string, lock io.Closer, err error) {
	if base == "" {
		base = os.TempDir()
	}
	if base, err = filepath.Abs(base); err != nil {
		return "", nil, fmt.Errorf("lab: %w", err)
	}
	for _, hidden := range []string{"/run", "/dev", "/proc", "/sys"} {
		if base == hidden || strings.HasPrefix(base, hidden+"/") {
			return "", nil, fmt.Errorf("lab: directory %s is not visible inside the hosts; choose another in Options.Dir or TMPDIR", base)
		}
	}
	root := filepath.Join(base, "vmferry-lab-"+strconv.Itoa(os.Getuid()))
	if err := os.Mkdir(root, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", nil, fmt.Errorf("lab: %w", err)
	}
	// In a directory that everybody may write to, the name may be another's.
	st, err := os.Lstat(root)
	if err != nil {
		return "", nil, fmt.Errorf("lab: %w", err)
	}
	if owner, ok := st.Sys().(*syscall.Stat_t); !ok || !st.IsDir() || int(owner.Uid) != os.Getuid() {
		return "", nil, fmt.Errorf("lab: %s is not a directory of user %d; choose another in Options.Dir", root, os.Getuid())
	}
	// One lab at a time makes or sweeps, so that no directory is seen
	// between its making and its locking.
	gate, err := awaitLock(ctx, filepath.Join(root, "lock"))
	if err != nil {
		return "", nil, err
	}
	defer gate.Close()
	if err := sweep(root); err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(root, ""); err != nil {
		return "", nil, fmt.Errorf("lab: %w", err)
	}
	if len(dir)+len(longestTail) > 107 {
		os.Remove(dir)
		return "", nil, fmt.Errorf("lab: %s is too long a path for unix sockets below it; choose a shorter one in Options.Dir or TMPDIR", base)
	}
	if lock, err = lockFile(filepath.Join(dir, "lock"), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		os.RemoveAll(dir)
		return "", nil, err
	}
	return dir, lock, nil
}

func sweep(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(root, e.Name())
		lock, err := lockFile(filepath.Join(dir, "lock"), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, errLocked) {
			continue
		}
		if err != nil {
			return err
		}
		err = removeDir(dir)
		lock.Close()
		if err != nil {
			return fmt.Errorf("lab: sweep what a dead lab left: %w", err)
		}
	}
	return nil
}

// removeDir removes dir. Processes that were killed a moment ago may still be
// on their way out and hold or make files.
func removeDir(dir string) error {
	var err error
	for range 50 {
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("lab: %w", err)
}
