package local

import (
	"context"
	"fmt"
	"os"

	"github.com/vmferry/vmferry/share"
)

// qemuDir is a directory as a share where QEMU's tools are installed: qcow2
// images have internal snapshots, by qemu-img snapshot. They are taken, rolled
// back to and removed only while nobody has the image open.
type qemuDir struct{ *dir }

var _ share.Snapshotter = qemuDir{}

// Snapshot implements [share.Snapshotter]: qemu-img snapshot -c.
func (d qemuDir) Snapshot(ctx context.Context, volume, name string) (share.Snapshot, error) {
	return onSnapshots(ctx, d, "snapshot", volume, name, func(ctx context.Context, c *change, f *os.File) (share.Snapshot, error) {
		s, err := findSnapshot(f, name)
		if err == nil {
			return describeSnapshot(volume, s), nil
		}
		if err := c.free(f); err != nil {
			return share.Snapshot{}, err
		}
		if err := c.snapshotCommand(ctx, f, "snapshot taken", "-c", name); err != nil {
			return share.Snapshot{}, err
		}
		s, err = findSnapshot(f, name)
		return describeSnapshot(volume, s), err
	})
}

// Snapshots implements [share.Snapshotter]. Snapshots that others made, with
// names that are not ones of this module, are left out.
func (d qemuDir) Snapshots(ctx context.Context, volume string) ([]share.Snapshot, error) {
	return onSnapshots(ctx, d, "list snapshots of", volume, "any", func(_ context.Context, _ *change, f *os.File) ([]share.Snapshot, error) {
		found, err := listSnapshots(f)
		var all []share.Snapshot
		for _, s := range found {
			if share.CheckName(s.name) == nil {
				all = append(all, describeSnapshot(volume, s))
			}
		}
		return all, err
	})
}

// RollBack implements [share.Snapshotter]: qemu-img snapshot -a. A disk that
// was resized since has the size that it had.
func (d qemuDir) RollBack(ctx context.Context, volume, name string) error {
	_, err := onSnapshots(ctx, d, "roll back", volume, name, func(ctx context.Context, c *change, f *os.File) (struct{}, error) {
		s, err := findSnapshot(f, name)
		if err != nil {
			return struct{}{}, err
		}
		if err := c.free(f); err != nil {
			return struct{}{}, err
		}
		c.rec.State, c.rec.Target = rolling, s.size
		if err := d.store.save(c.rec); err != nil {
			return struct{}{}, err
		}
		d.step("roll back: recorded")
		// By its ID: qemu-img takes a name that looks like an ID for one.
		if err := c.snapshotCommand(ctx, f, "volume rolled back", "-a", s.id); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, c.finishRollBack(f)
	})
	return err
}

// DeleteSnapshot implements [share.Snapshotter]: qemu-img snapshot -d.
func (d qemuDir) DeleteSnapshot(ctx context.Context, volume, name string) error {
	_, err := onSnapshots(ctx, d, "delete a snapshot of", volume, name, func(ctx context.Context, c *change, f *os.File) (struct{}, error) {
		if all, err := listSnapshots(f); err != nil || !hasSnapshot(all, name) {
			return struct{}{}, err
		}
		if err := c.free(f); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, c.snapshotCommand(ctx, f, "snapshot deleted", "-d", name)
	})
	return err
}

// onSnapshots runs f with the image of a qcow2 disk.
func onSnapshots[T any](ctx context.Context, d qemuDir, op, volume, name string, f func(context.Context, *change, *os.File) (T, error)) (T, error) {
	return run(ctx, d.dir, op, volume, func(ctx context.Context) (T, error) {
		var none T
		if err := share.CheckName(name); err != nil {
			return none, fmt.Errorf("snapshot: %w", err)
		}
		c, err := d.beginExisting(ctx, volume)
		if err != nil {
			return none, err
		}
		defer c.end()
		if c.rec.Format != share.Qcow2 {
			return none, errNoSnapshots
		}
		image, err := d.openImage(c.rec, true)
		if err != nil {
			return none, err
		}
		defer image.Close()
		return f(ctx, c, image)
	})
}

var errNoSnapshots = &share.UnsupportedError{What: "snapshot", Reason: "only qcow2 images have them"}

// snapshotCommand runs qemu-img snapshot, and makes its work durable.
func (c *change) snapshotCommand(ctx context.Context, f *os.File, what, action, name string) error {
	if err := c.d.tools.runImg(ctx, f, "snapshot", "-q", action, name, "--", imageNode); err != nil {
		return err
	}
	c.d.step(what + ": done")
	if err := f.Sync(); err != nil {
		return err
	}
	c.d.log(ctx, what, c.rec, "snapshot", name)
	return nil
}

// finishRollBack records the size that an image has after rolling back, or has
// still.
func (c *change) finishRollBack(f *os.File) error {
	h, err := readQcow2(f)
	if err != nil {
		return err
	}
	c.rec.State, c.rec.Size, c.rec.Target = ready, h.Size, 0
	return c.d.store.save(c.rec)
}

func listSnapshots(f *os.File) ([]qcow2Snapshot, error) {
	h, err := readQcow2(f)
	if err != nil {
		return nil, err
	}
	return h.readSnapshots(f)
}

func hasSnapshot(all []qcow2Snapshot, name string) bool {
	for _, s := range all {
		if s.name == name {
			return true
		}
	}
	return false
}

func findSnapshot(f *os.File, name string) (qcow2Snapshot, error) {
	all, err := listSnapshots(f)
	if err != nil {
		return qcow2Snapshot{}, err
	}
	for _, s := range all {
		if s.name == name {
			return s, nil
		}
	}
	return qcow2Snapshot{}, fmt.Errorf("snapshot %q %w", name, share.ErrNotExist)
}

func describeSnapshot(volume string, s qcow2Snapshot) share.Snapshot {
	return share.Snapshot{Name: s.name, Volume: volume, Size: s.size, Created: s.created}
}
