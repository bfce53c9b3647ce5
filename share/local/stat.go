package local

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmferry/vmferry/share"
)

// Stat implements [share.Share].
func (d *dir) Stat(ctx context.Context, name string) (share.Volume, error) {
	return run(ctx, d, "stat", name, func(context.Context) (share.Volume, error) {
		v, access, err := d.look(name)
		v.Access = access
		return v, err
	})
}

// List implements [share.Lister]. With an error it still returns the volumes
// whose record can be read.
func (d *dir) List(ctx context.Context) ([]share.Volume, error) {
	return runAll(ctx, d, "list", func(ctx context.Context) ([]share.Volume, error) {
		names, err := d.store.names()
		if err != nil {
			return nil, err
		}
		var all []share.Volume
		var errs []error
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			v, _, err := d.look(name)
			switch {
			case err == nil:
				all = append(all, v)
			case !errors.Is(err, share.ErrNotExist):
				errs = append(errs, fmt.Errorf("volume %q: %w", name, err))
			}
		}
		return all, errors.Join(errs...)
	})
}

// look describes a volume without taking its lock: records change by rename.
func (d *dir) look(name string) (share.Volume, []share.Access, error) {
	for last := ""; ; {
		r, err := d.store.load(name)
		if err != nil {
			return share.Volume{}, nil, err
		}
		if !r.exists() {
			return share.Volume{}, nil, fmt.Errorf("volume %w", share.ErrNotExist)
		}
		v, err := d.describe(r)
		if errors.Is(err, share.ErrCorrupt) && last != r.ID {
			last = r.ID // it may have been deleted between the two looks
			continue
		}
		return v, r.Access, err
	}
}

// describe is the volume of a record, with what its image tells.
func (d *dir) describe(r *record) (share.Volume, error) {
	v := share.Volume{
		Name: r.Name, ID: r.ID, Kind: r.Kind, Format: r.Format, Size: r.Size, Allocated: -1, Created: r.Created,
	}
	st, err := d.lstat(r.Name)
	switch {
	case err != nil:
		return share.Volume{}, err
	case st == nil:
		return share.Volume{}, fmt.Errorf("volume %w: it is recorded, and missing", share.ErrCorrupt)
	case r.Kind == share.Tree && !st.IsDir(), r.Kind == share.Disk && !st.Mode().IsRegular():
		return share.Volume{}, fmt.Errorf("volume %w: it was replaced (%v)", share.ErrWrongDevice, st.Mode().Type())
	}
	if r.Kind == share.Disk {
		v.Allocated = allocated(st)
	}
	return v, nil
}
