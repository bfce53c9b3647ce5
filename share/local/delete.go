package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/vmferry/vmferry/share"
)

// Delete implements [share.Deleter]. An image that QEMU holds is in use, too.
// A tree goes with all that is in it; it disappears at once, and its files are
// removed before Delete returns.
func (d *dir) Delete(ctx context.Context, name string) error {
	_, err := run(ctx, d, "delete", name, func(ctx context.Context) (struct{}, error) {
		c, err := d.begin(ctx, name)
		if err != nil {
			return struct{}{}, err
		}
		defer c.end()
		if c.rec == nil {
			return struct{}{}, nil
		}
		return struct{}{}, c.delete(ctx)
	})
	return err
}

func (c *change) delete(ctx context.Context) error {
	if len(c.rec.Access) > 0 {
		return fmt.Errorf("volume %w: it is published; publish it with an empty set first", share.ErrInUse)
	}
	owner, err := c.d.store.tryLock(ownersDir + "/" + c.name)
	if errors.Is(err, errLocked) {
		return fmt.Errorf("volume %w: it is locked", share.ErrInUse)
	}
	if err != nil {
		return err
	}
	defer owner.Close()
	if c.rec.Kind == share.Disk {
		f, err := c.d.openImage(c.rec, true)
		switch {
		case errors.Is(err, share.ErrCorrupt), errors.Is(err, share.ErrWrongDevice):
			// Nobody can have it open through us; it goes as it is.
		case err != nil:
			return err
		default:
			defer f.Close()
			if err := lockImage(f, aloneOn); err != nil {
				return err
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	c.rec.State = deleting
	if err := c.d.store.save(c.rec); err != nil {
		return err
	}
	c.d.step("delete: recorded")
	c.d.log(ctx, "volume deleted", c.rec)
	if err := c.remove(); err != nil {
		return err
	}
	_ = owner.Close()
	return c.sweep()
}

// remove takes a volume that is to be deleted out of its place, and forgets
// it. The record goes before the content, so that what takes the name later is
// never mistaken for the volume.
func (c *change) remove() error {
	d := c.d
	moved, err := d.lstat(c.temp())
	if err != nil {
		return err
	}
	if moved == nil {
		if err := d.root.Rename(c.name, c.temp()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		d.step("delete: moved")
	}
	if err := syncDir(d.root, "."); err != nil {
		return err
	}
	if err := d.store.forget(c.name); err != nil {
		return err
	}
	d.step("delete: forgotten")
	c.rec = nil
	return nil
}
