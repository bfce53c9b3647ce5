package local

import (
	"context"
	"fmt"

	"github.com/vmferry/vmferry/share"
)

// OpenDevice implements [share.DeviceOpener]. The device holds QEMU's image
// locks: a guest that runs on the image, or another writer here or in another
// program, is [share.ErrInUse]. A reader of a raw image is let in beside a
// writer, and sees what is written; one of a qcow2 image is not.
//
// The blocks of a qcow2 image are served by a qemu-nbd of the device's own,
// which takes some milliseconds to start; a snapshot's, too.
func (d *dir) OpenDevice(ctx context.Context, name string, opts *share.OpenOptions) (share.Device, error) {
	if opts == nil {
		opts = &share.OpenOptions{}
	}
	return run(ctx, d, "open", name, func(ctx context.Context) (share.Device, error) {
		c, err := d.beginExisting(ctx, name)
		if err != nil {
			return nil, err
		}
		defer c.end()
		switch {
		case c.rec.Kind != share.Disk:
			return nil, &share.UnsupportedError{What: "the block view of a tree", Reason: "only disks have blocks"}
		case opts.VolumeID != "" && opts.VolumeID != c.rec.ID:
			return nil, fmt.Errorf("volume %w: its ID is %q, not %q", share.ErrWrongDevice, c.rec.ID, opts.VolumeID)
		}
		if opts.Snapshot != "" {
			if err := share.CheckName(opts.Snapshot); err != nil {
				return nil, fmt.Errorf("snapshot: %w", err)
			}
		}
		if c.rec.Format == share.Qcow2 {
			return c.openQcow2(ctx, opts)
		}
		return c.openRaw(opts)
	})
}
