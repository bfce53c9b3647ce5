package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vmferry/vmferry/share"
)

// change is the right to change one volume: the lock of its name.
type change struct {
	d    *dir
	name string
	file *os.File
	rec  *record // nil: there is no such volume
}

// begin waits for the right to change a volume, finishes or undoes what a
// crashed program left of it, and reads its record.
func (d *dir) begin(ctx context.Context, name string) (*change, error) {
	file, err := d.store.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	return d.enter(ctx, name, file)
}

// enter is begin with the lock of the name, which it takes over.
func (d *dir) enter(ctx context.Context, name string, file *os.File) (_ *change, err error) {
	c := &change{d: d, name: name, file: file}
	if c.rec, err = d.store.load(name); err == nil {
		err = c.recover(ctx)
	}
	if err != nil {
		c.end()
		return nil, err
	}
	return c, nil
}

// tidy finishes or undoes what crashed programs left of any volume, so that the
// space is not lost until somebody asks for that volume. What is being changed
// now is left alone, and what cannot be tidied up for its own call to report.
func (d *dir) tidy(ctx context.Context) {
	names, err := d.store.unfinished()
	if err != nil {
		return
	}
	for _, name := range names {
		if file, err := d.store.tryLock(locksDir + "/" + name); err == nil {
			if c, err := d.enter(ctx, name, file); err == nil {
				c.end()
			}
		}
	}
}

func (c *change) end() { c.d.store.unlock(c.name, c.file) }

// beginExisting is begin for a volume that must be there.
func (d *dir) beginExisting(ctx context.Context, name string) (*change, error) {
	c, err := d.begin(ctx, name)
	if err == nil && c.rec == nil {
		c.end()
		return nil, fmt.Errorf("volume %w", share.ErrNotExist)
	}
	return c, err
}

// recover brings a volume that was left between two states into one.
func (c *change) recover(ctx context.Context) error {
	if c.rec != nil {
		var err error
		switch c.rec.State {
		case creating:
			err = c.recoverCreate()
		case deleting:
			err = c.remove()
		case resizing:
			err = c.finishResize(ctx)
		case rolling:
			err = c.recoverRollBack()
		}
		if err != nil {
			return fmt.Errorf("finishing what an earlier call left %s: %w", c.rec.State, err)
		}
	}
	return c.sweep()
}

// recoverRollBack records what the image has become. Whether it was rolled
// back the caller cannot know and will repeat.
func (c *change) recoverRollBack() error {
	f, err := c.d.openImage(c.rec, true)
	if err != nil {
		return err
	}
	defer f.Close()
	return c.finishRollBack(f)
}

// sweep removes what of the volume is in tmp: nobody is at work on it. Of a
// volume that is not there it removes the owner's lock file, too.
func (c *change) sweep() error {
	st := c.d.store
	files, err := st.leftovers(c.name)
	for _, file := range files {
		err = errors.Join(err, st.root.RemoveAll(tmpDir+"/"+file))
	}
	if owner := ownersDir + "/" + c.name; c.rec == nil {
		if _, gone := st.root.Lstat(owner); gone == nil {
			if f, held := st.tryLock(owner); held == nil {
				err = errors.Join(err, st.root.Remove(owner), f.Close())
			}
		}
	}
	return err
}

// temp is the path, from the share's directory, of the volume while it is on
// its way in or out.
func (c *change) temp() string { return storeDir + "/" + tmpDir + "/" + c.rec.temp() }

// lstat is Lstat, and nil for what is not there.
func (d *dir) lstat(path string) (fs.FileInfo, error) {
	st, err := d.root.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return st, err
}
