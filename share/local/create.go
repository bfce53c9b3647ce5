package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
)

// Create implements [share.Creator]. The image or directory is made under a
// temporary name and linked into place; a file of that name that is there is
// never replaced. A tree has no size: use 0.
func (d *dir) Create(ctx context.Context, spec share.Spec) (share.Volume, error) {
	return run(ctx, d, "create", spec.Name, func(ctx context.Context) (share.Volume, error) {
		spec, err := spec.For(d.info)
		if err != nil {
			return share.Volume{}, err
		}
		if spec.Kind == share.Tree && spec.Size != 0 {
			return share.Volume{}, &share.UnsupportedError{What: "a limit on a tree", Reason: "a plain directory has no quota; use size 0"}
		}
		c, err := d.begin(ctx, spec.Name)
		if err != nil {
			return share.Volume{}, err
		}
		defer c.end()
		if c.rec == nil {
			if err := c.create(ctx, spec); err != nil {
				return share.Volume{}, err
			}
			d.log(ctx, "volume created", c.rec, "kind", c.rec.Kind, "format", c.rec.Format, "size", int64(c.rec.Size))
		}
		v, err := d.describe(c.rec)
		if err == nil {
			err = spec.Match(v)
		}
		if err != nil {
			return share.Volume{}, err
		}
		return v, nil
	})
}

// create makes the volume. Each step leaves what recoverCreate finishes or
// undoes.
func (c *change) create(ctx context.Context, spec share.Spec) error {
	d := c.d
	c.rec = &record{
		State: creating, Name: spec.Name, ID: newID(), Kind: spec.Kind, Format: spec.Format, Size: spec.Size,
		Created: time.Now().UTC().Round(0),
	}
	if st, err := d.lstat(spec.Name); err != nil {
		return err
	} else if st != nil {
		return errForeign
	}
	err := c.make(ctx, spec)
	if err == nil {
		d.step("create: made")
		err = d.store.save(c.rec)
	}
	if err == nil {
		d.step("create: recorded")
		err = c.place()
	}
	if err == nil {
		d.step("create: placed")
		c.rec.State = ready
		return d.store.save(c.rec)
	}
	// Undo: place is the only step that shows, and it failed.
	return errors.Join(err, d.store.forget(c.name), c.sweep())
}

// errForeign says that the name is taken by what is not a volume.
var errForeign = &share.MismatchError{Field: "origin", Have: "a file that this share did not make", Want: "a volume of it"}

// make makes the image or directory under its temporary name, durably.
func (c *change) make(ctx context.Context, spec share.Spec) error {
	d := c.d
	if spec.Kind == share.Tree {
		if err := d.root.Mkdir(c.temp(), 0o700); err != nil {
			return err
		}
		f, err := d.root.Open(c.temp())
		if err != nil {
			return err
		}
		return errors.Join(d.give(f, d.opts.DirMode, 0o700), f.Sync(), f.Close())
	}
	f, err := d.root.OpenFile(c.temp(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := d.makeImage(ctx, f, spec); err != nil {
		return err
	}
	return errors.Join(d.give(f, d.opts.FileMode, 0o600), f.Sync(), f.Close())
}

// give sets the group and mode of a new file.
func (d *dir) give(f *os.File, mode, def fs.FileMode) error {
	if mode == 0 {
		mode = def
	}
	if d.gid >= 0 {
		if err := f.Chown(-1, d.gid); err != nil {
			return err
		}
	}
	return f.Chmod(mode)
}

// makeImage gives a new file the content of an empty disk.
func (d *dir) makeImage(ctx context.Context, f *os.File, spec share.Spec) error {
	if spec.Preallocate {
		if err := hasRoom(f, spec.Size); err != nil {
			return err
		}
	}
	if spec.Format == share.Qcow2 {
		return d.makeQcow2(ctx, f, spec)
	}
	if err := f.Truncate(int64(spec.Size)); err != nil {
		return err
	}
	if !spec.Preallocate {
		return nil
	}
	return allocate(ctx, f, int64(spec.Size))
}

// hasRoom refuses to preallocate what the file system has no room for, before
// that takes from the others what is left.
func hasRoom(f *os.File, size share.Bytes) error {
	var st unix.Statfs_t
	if err := control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return fmt.Errorf("fstatfs: %w", err)
	}
	if free := share.Bytes(st.Bavail) * share.Bytes(st.Bsize); size > free {
		return fmt.Errorf("the file system %w: %s are to be allocated, and %s are free", share.ErrNoSpace, size, free)
	}
	return nil
}

// allocate takes the space of the first size bytes: fallocate(2) in pieces, so
// that the context is heeded; zeros where the file system has none.
func allocate(ctx context.Context, f *os.File, size int64) error {
	const piece = 1 << 30
	zeros := []byte(nil)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(piece, size-off)
		if zeros == nil {
			err := control(f, func(fd int) error { return unix.Fallocate(fd, 0, off, n) })
			if err == nil {
				off += n
				continue
			}
			if !notSupported(err) {
				return fmt.Errorf("fallocate: %w", err)
			}
			zeros = make([]byte, 1<<20)
		}
		n = min(n, int64(len(zeros)))
		if _, err := f.WriteAt(zeros[:n], off); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// place gives the volume its name: link(2) for an image, which replaces
// nothing; rename(2) for a directory, which replaces an empty one at most.
func (c *change) place() error {
	d := c.d
	if c.rec.Kind == share.Disk {
		if err := d.root.Link(c.temp(), c.name); err != nil {
			if errors.Is(err, fs.ErrExist) {
				return errForeign
			}
			return err
		}
		d.step("create: linked")
		if err := d.root.Remove(c.temp()); err != nil {
			return errors.Join(err, d.root.Remove(c.name))
		}
	} else if err := d.root.Rename(c.temp(), c.name); err != nil {
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, fs.ErrExist) {
			return errForeign
		}
		return err
	}
	return syncDir(d.root, ".")
}

// recoverCreate finishes a creation if the volume got its name, and undoes it
// otherwise.
func (c *change) recoverCreate() error {
	made, err := c.d.lstat(c.temp())
	if err != nil {
		return err
	}
	placed, err := c.d.lstat(c.name)
	if err != nil {
		return err
	}
	if placed == nil || made != nil && !os.SameFile(made, placed) {
		c.rec = nil
		return c.d.store.forget(c.name)
	}
	if made != nil {
		if err := c.d.root.Remove(c.temp()); err != nil {
			return err
		}
	}
	if err := syncDir(c.d.root, "."); err != nil {
		return err
	}
	c.rec.State = ready
	return c.d.store.save(c.rec)
}

// notSupported reports whether the file system lacks the operation.
func notSupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL)
}
