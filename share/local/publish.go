package local

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/vmferry/vmferry/share"
)

// Publish implements [share.Share]. The access is recorded and the path of the
// volume handed on; who may open it the file's mode decides. While it is
// published a volume cannot be deleted.
func (d *dir) Publish(ctx context.Context, name string, access []share.Access) ([]share.Source, error) {
	return run(ctx, d, "publish", name, func(ctx context.Context) ([]share.Source, error) {
		if err := share.CheckAccess(d.info, access); err != nil {
			return nil, err
		}
		for _, a := range access {
			if a.Credential != nil {
				return nil, fmt.Errorf("%w: local clients prove nothing, and a credential was given for %s", share.ErrInvalid, a.Client)
			}
		}
		c, err := d.beginExisting(ctx, name)
		if err != nil {
			return nil, err
		}
		defer c.end()
		path, err := d.pathOf(c.rec)
		if err != nil && len(access) > 0 {
			return nil, err
		}
		if set := share.SortAccess(access); !slices.Equal(set, c.rec.Access) {
			before := c.rec.Access
			c.rec.Access = set
			if err := d.store.save(c.rec); err != nil {
				return nil, err
			}
			d.log(ctx, "volume published", c.rec, "before", before, "after", set)
		}
		var sources []share.Source
		for _, a := range access {
			sources = append(sources, share.Source{
				Kind:     c.rec.Kind,
				Format:   c.rec.Format,
				VolumeID: c.rec.ID,
				ReadOnly: a.Mode == share.ReadOnly,
				Shared:   d.opts.Shared,
				File:     &share.FileSource{Path: path},
			})
		}
		return sources, nil
	})
}

// pathOf is the path by which others find the volume. It must lead to the very
// file that this share holds: the directory may have been moved.
func (d *dir) pathOf(r *record) (string, error) {
	if _, err := d.describe(r); err != nil {
		return "", err
	}
	path := filepath.Join(d.path, r.Name)
	ours, err := d.root.Lstat(r.Name)
	if err != nil {
		return "", err
	}
	theirs, err := os.Lstat(path)
	if err != nil || !os.SameFile(ours, theirs) {
		return "", fmt.Errorf("%s %w: the share's directory was moved or covered; open it again", path, share.ErrWrongDevice)
	}
	return path, nil
}
