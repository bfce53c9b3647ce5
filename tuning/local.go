package tuning

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Local is the machine that the program runs on, or a tree of files that looks
// like one. It is a [System], a [Keeper] and, on the machine itself, a [Runner].
// Its methods may be called concurrently.
//
// Reading needs no privilege for most of /proc and /sys; writing needs root.
type Local struct {
	root *os.Root
	dir  string
	name string
}

// LocalOptions say which tree is meant. The zero value is the machine itself.
type LocalOptions struct {
	// Root is a directory in place of "/". Nothing outside it is touched,
	// wherever links in it point, and no programs are run.
	Root string
	// Name is the machine's name, its host name when empty.
	Name string
}

// OpenLocal opens the local machine. The caller closes it.
func OpenLocal(opts *LocalOptions) (*Local, error) {
	if opts == nil {
		opts = new(LocalOptions)
	}
	l := &Local{dir: opts.Root, name: opts.Name}
	if l.dir == "" {
		l.dir = "/"
	}
	if l.name == "" {
		l.name = "local"
		if h, err := os.Hostname(); err == nil && l.dir == "/" {
			l.name = h
		}
	}
	var err error
	if l.root, err = os.OpenRoot(l.dir); err != nil {
		return nil, fileError("open", l.dir, err)
	}
	return l, nil
}

// Close gives the tree back. Closing again returns nil.
func (l *Local) Close() error { return l.root.Close() }

// Name is the machine's name.
func (l *Local) Name() string { return l.name }

// ReadFile implements [System]. On the machine itself links may point anywhere;
// in another tree they stay inside.
func (l *Local) ReadFile(ctx context.Context, path string) ([]byte, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	return await(ctx, "read "+path, func() ([]byte, error) {
		// Without blocking: a FIFO would wait for its writer.
		f, err := l.open(path, os.O_RDONLY|syscall.O_NONBLOCK)
		if err != nil {
			return nil, fileError("read", path, err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return nil, fileError("read", path, err)
		}
		if !st.Mode().IsRegular() {
			return nil, fmt.Errorf("read %s: not a regular file: %w", path, share.ErrInvalid)
		}
		b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
		if err != nil {
			return nil, fileError("read", path, err)
		}
		if len(b) > maxFile {
			return nil, fmt.Errorf("read %s: over %v: %w", path, share.Bytes(maxFile), share.ErrInvalid)
		}
		return b, nil
	})
}

func (l *Local) open(path string, flag int) (*os.File, error) {
	if l.dir == "/" && flag&(os.O_WRONLY|os.O_RDWR) == 0 {
		return os.OpenFile(path, flag, 0)
	}
	return l.root.OpenFile(path[1:], flag, 0)
}

// Glob implements [System].
func (l *Local) Glob(ctx context.Context, pattern string) ([]string, error) {
	if err := checkPath(pattern); err != nil {
		return nil, err
	}
	return await(ctx, "look for "+pattern, func() ([]string, error) {
		found := []string{""}
		for element := range strings.SplitSeq(pattern[1:], "/") {
			var next []string
			for _, dir := range found {
				if !strings.ContainsAny(element, "*?[") {
					next = append(next, dir+"/"+element)
					continue
				}
				names, err := l.readDir(dir)
				if err != nil && !errors.Is(err, share.ErrNotExist) {
					return nil, err
				}
				for _, n := range names {
					if ok, err := path.Match(element, n); err != nil {
						return nil, fmt.Errorf("pattern %s %w", quote(pattern), share.ErrInvalid)
					} else if ok {
						next = append(next, dir+"/"+n)
					}
				}
			}
			found = next
		}
		var there []string
		for _, p := range found {
			switch err := l.stat(p); {
			case err == nil:
				there = append(there, p)
			case !errors.Is(err, share.ErrNotExist):
				return nil, err
			}
		}
		slices.Sort(there)
		return there, nil
	})
}

func (l *Local) readDir(dir string) ([]string, error) {
	name := strings.TrimPrefix(dir, "/")
	if name == "" {
		name = "."
	}
	var f *os.File
	var err error
	if l.dir == "/" {
		f, err = os.Open("/" + name)
	} else {
		f, err = l.root.Open(name)
	}
	if err != nil {
		return nil, fileError("list", dir, err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	return names, fileError("list", dir, err)
}

func (l *Local) stat(p string) error {
	var err error
	if l.dir == "/" {
		_, err = os.Stat(p)
	} else {
		_, err = l.root.Stat(p[1:])
	}
	return fileError("look at", p, err)
}

// SetFile implements [System].
func (l *Local) SetFile(ctx context.Context, path string, data []byte) error {
	if err := checkPath(path); err != nil {
		return err
	}
	_, err := await(ctx, "write "+path, func() (struct{}, error) {
		return struct{}{}, l.setFile(path, data)
	})
	return err
}

func (l *Local) setFile(path string, data []byte) error {
	before, err := l.regular(path)
	if err != nil {
		return err
	}
	f, err := l.open(path, os.O_WRONLY|syscall.O_NONBLOCK)
	if err != nil {
		return fileError("write", path, err)
	}
	defer f.Close()
	after, err := f.Stat()
	if err != nil {
		return fileError("write", path, err)
	}
	if !os.SameFile(before, after) {
		return fmt.Errorf("write %s: it was exchanged meanwhile: %w", path, share.ErrInvalid)
	}
	_ = f.Truncate(0) // means something in a tree of plain files only
	n, err := f.Write(data)
	if err == nil && n != len(data) {
		err = io.ErrShortWrite
	}
	return fileError("write", path, err)
}

// regular is what lies at path, if that is a file and no link.
func (l *Local) regular(path string) (os.FileInfo, error) {
	st, err := l.root.Lstat(path[1:])
	if err != nil {
		return nil, fileError("write", path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("write %s: a %s where a file should be: %w", path, kindOf(st.Mode()), share.ErrInvalid)
	}
	return st, nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	case m.IsDir():
		return "directory"
	case m&fs.ModeNamedPipe != 0:
		return "FIFO"
	}
	return "device or socket"
}

// PutFile implements [Keeper]: a temporary file beside it, synced and renamed.
func (l *Local) PutFile(ctx context.Context, file string, data []byte) error {
	if err := checkPath(file); err != nil {
		return err
	}
	_, err := await(ctx, "write "+file, func() (struct{}, error) {
		if _, err := l.regular(file); err != nil && !errors.Is(err, share.ErrNotExist) {
			return struct{}{}, err
		}
		tmp := path.Join(path.Dir(file), "."+path.Base(file)+".new")
		_ = l.root.Remove(tmp[1:]) // of one that was killed
		f, err := l.root.OpenFile(tmp[1:], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return struct{}{}, fileError("write", file, err)
		}
		_, err = f.Write(data)
		if err == nil {
			err = f.Sync()
		}
		if e := f.Close(); err == nil {
			err = e
		}
		if err == nil {
			err = l.root.Rename(tmp[1:], file[1:])
		}
		if err != nil {
			_ = l.root.Remove(tmp[1:])
			return struct{}{}, fileError("write", file, err)
		}
		return struct{}{}, l.syncDir(file)
	})
	return err
}

// RemoveFile implements [Keeper].
func (l *Local) RemoveFile(ctx context.Context, file string) error {
	if err := checkPath(file); err != nil {
		return err
	}
	_, err := await(ctx, "remove "+file, func() (struct{}, error) {
		if _, err := l.regular(file); errors.Is(err, share.ErrNotExist) {
			return struct{}{}, nil
		} else if err != nil {
			return struct{}{}, err
		}
		if err := l.root.Remove(file[1:]); err != nil {
			return struct{}{}, fileError("remove", file, err)
		}
		return struct{}{}, l.syncDir(file)
	})
	return err
}

func (l *Local) syncDir(file string) error {
	d, err := l.root.Open(path.Dir(file)[1:])
	if err != nil {
		return fileError("sync the directory of", file, err)
	}
	defer d.Close()
	return fileError("sync the directory of", file, d.Sync())
}

// Run implements [Runner] on the machine itself.
func (l *Local) Run(ctx context.Context, argv ...string) ([]byte, error) {
	if l.dir != "/" {
		return nil, &share.UnsupportedError{What: "running " + argv[0], Reason: filepath.Clean(l.dir) + " is a tree of files, not a machine"}
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	out, said := &bounded{most: maxOutput}, &bounded{most: 4096}
	cmd.Stdout, cmd.Stderr = out, said
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("run %s: %w", argv[0], context.Cause(ctx))
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return nil, fileError("run", argv[0], fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("run %s: %w: %s", argv[0], err, strings.TrimSpace(string(said.b)))
	case out.over:
		return nil, fmt.Errorf("run %s: output over %v: %w", argv[0], share.Bytes(maxOutput), share.ErrInvalid)
	}
	return out.b, nil
}

// bounded keeps the first bytes that are written to it.
type bounded struct {
	b    []byte
	most int
	over bool
}

func (w *bounded) Write(p []byte) (int, error) {
	room := w.most - len(w.b)
	if len(p) > room {
		w.over = true
		w.b = append(w.b, p[:room]...)
	} else {
		w.b = append(w.b, p...)
	}
	return len(p), nil
}

// await runs f and waits for it or for the end of ctx. A file of the kernel's
// can block for ever: a queue that waits for a dead disk, a dead server's mount.
func await[T any](ctx context.Context, what string, f func() (T, error)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done: // both at once: the result counts
		return r.v, r.err
	// A call under way ends within microseconds, or is wedged.
	case <-time.After(50 * time.Millisecond):
		return zero, fmt.Errorf("%s: the call %w: %w", what, share.ErrWedged, context.Cause(ctx))
	}
}
