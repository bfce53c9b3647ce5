package local

import (
	"context"
	"errors"
	"os"

	"github.com/vmferry/vmferry/share"
)

// Resize implements [share.Resizer], for disks that nobody has open; one that
// is open is [share.ErrInUse].
func (d *dir) Resize(ctx context.Context, name string, size share.Bytes, opts *share.ResizeOptions) (share.Volume, error) {
	return run(ctx, d, "resize", name, func(ctx context.Context) (share.Volume, error) {
		c, err := d.beginExisting(ctx, name)
		if err != nil {
			return share.Volume{}, err
		}
		defer c.end()
		if c.rec.Kind != share.Disk {
			return share.Volume{}, &share.UnsupportedError{What: "a limit on a tree", Reason: "a plain directory has no quota"}
		}
		if err := share.CheckResize(c.rec.Size, size, opts); err != nil {
			return share.Volume{}, err
		}
		if size != c.rec.Size {
			before := c.rec.Size
			if err := c.resize(ctx, size); err != nil {
				return share.Volume{}, err
			}
			d.log(ctx, "volume resized", c.rec, "before", int64(before), "after", int64(size))
		}
		return d.describe(c.rec)
	})
}

func (c *change) resize(ctx context.Context, size share.Bytes) error {
	f, err := c.d.openImage(c.rec, true)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := c.free(f); err != nil {
		return err
	}
	was := *c.rec
	c.rec.State, c.rec.Target = resizing, size
	if err := c.d.store.save(c.rec); err != nil {
		return err
	}
	c.d.step("resize: recorded")
	if err := c.finishResize(ctx); err != nil {
		return c.abandonResize(&was, err)
	}
	return nil
}

// free returns ErrInUse if anyone has the image open.
func (c *change) free(f *os.File) error {
	if err := lockImage(f, aloneOn); err != nil {
		return err
	}
	return unlockImage(f)
}

// finishResize brings the image to its target and records it. It may be
// repeated.
func (c *change) finishResize(ctx context.Context) error {
	f, err := c.d.openImage(c.rec, true)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := c.resizeImage(ctx, f); err != nil {
		return err
	}
	c.d.step("resize: done")
	c.rec.State, c.rec.Size, c.rec.Target = ready, c.rec.Target, 0
	return c.d.store.save(c.rec)
}

func (c *change) resizeImage(ctx context.Context, f *os.File) error {
	if c.rec.Format == share.Qcow2 {
		if err := c.free(f); err != nil {
			return err
		}
		return c.d.resizeQcow2(ctx, f, c.rec.Target)
	}
	if err := lockImage(f, aloneOn); err != nil {
		return err
	}
	if err := f.Truncate(int64(c.rec.Target)); err != nil {
		return err
	}
	return f.Sync()
}

// abandonResize goes back to the record from before a resize that failed, if
// the image still has that size.
func (c *change) abandonResize(was *record, cause error) error {
	f, err := c.d.openImage(was, true)
	if err != nil {
		return cause // the next call finishes it
	}
	defer f.Close()
	*c.rec = *was
	return errors.Join(cause, c.d.store.save(was))
}
