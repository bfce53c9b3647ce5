package share

import (
	"context"
	"fmt"
	"time"
)

// Creator is a [Share] that can make volumes.
type Creator interface {
	// Create makes the volume, or returns the one that is there if spec
	// describes it. Another one of that name is an [ErrExist] with the field
	// that differs, and is left alone. A volume that Create made reads as
	// zeros, and shows up whole or not at all, also after a crash.
	Create(ctx context.Context, spec Spec) (Volume, error)
}

// Create makes a volume; see [Creator].
func Create(ctx context.Context, s Share, spec Spec) (Volume, error) {
	if c, ok := As[Creator](s); ok {
		return c.Create(ctx, spec)
	}
	return Volume{}, unsupported("create", s, CanCreate, spec.Name)
}

// Deleter is a [Share] that can remove volumes.
type Deleter interface {
	// Delete removes the volume with its snapshots. A volume that is not
	// there is no error. One that is published or open is [ErrInUse], and is
	// left alone.
	Delete(ctx context.Context, name string) error
}

// Delete removes a volume; see [Deleter].
func Delete(ctx context.Context, s Share, name string) error {
	if d, ok := As[Deleter](s); ok {
		return d.Delete(ctx, name)
	}
	return unsupported("delete", s, CanDelete, name)
}

// Lister is a [Share] that can name its volumes.
type Lister interface {
	// List returns the volumes sorted by name, without their access. What is
	// not a volume of this share is left out.
	List(ctx context.Context) ([]Volume, error)
}

// List returns the volumes of s; see [Lister].
func List(ctx context.Context, s Share) ([]Volume, error) {
	if l, ok := As[Lister](s); ok {
		return l.List(ctx)
	}
	return nil, unsupported("list", s, CanList, "")
}

// Resizer is a [Share] whose volumes can change their size.
type Resizer interface {
	// Resize sets the size of the volume. The size that it has already is no
	// error. Less than it has is [ErrInvalid] unless opts allow it. Devices
	// that are open and guests that run see the new size only as far as the
	// backend documents.
	Resize(ctx context.Context, name string, size Bytes, opts *ResizeOptions) (Volume, error)
}

// ResizeOptions change how [Resizer] works; nil is the zero value.
type ResizeOptions struct {
	// Shrink allows to cut off, and lose, what lies behind the new end.
	Shrink bool
}

// CheckResize returns an error wrapping [ErrInvalid] if a disk of size have may
// not be given the size want under those options. Backends call it first.
func CheckResize(have, want Bytes, opts *ResizeOptions) error {
	switch {
	case want <= 0 || want%512 != 0:
		return fmt.Errorf("%w: a disk's size is a positive multiple of 512 bytes, not %d", ErrInvalid, int64(want))
	case want < have && (opts == nil || !opts.Shrink):
		return fmt.Errorf("%w: %d bytes are less than the %d that it has; allow it with Shrink, and lose what lies behind", ErrInvalid, int64(want), int64(have))
	}
	return nil
}

// Resize sets the size of a volume; see [Resizer].
func Resize(ctx context.Context, s Share, name string, size Bytes, opts *ResizeOptions) (Volume, error) {
	if r, ok := As[Resizer](s); ok {
		return r.Resize(ctx, name, size, opts)
	}
	return Volume{}, unsupported("resize", s, CanResize, name)
}

// Snapshot is the frozen state of a volume at one moment.
type Snapshot struct {
	Name    string
	Volume  string
	Size    Bytes
	Created time.Time
}

// Snapshotter is a [Share] whose volumes have snapshots. A volume whose format
// has none is an errors.ErrUnsupported.
type Snapshotter interface {
	// Snapshot freezes the state of the volume under a name (see
	// [CheckName]). A snapshot of that name that is there is returned as it is.
	Snapshot(ctx context.Context, volume, name string) (Snapshot, error)
	// Snapshots lists them from the oldest to the newest.
	Snapshots(ctx context.Context, volume string) ([]Snapshot, error)
	// RollBack makes the volume as it was at the snapshot, which stays.
	RollBack(ctx context.Context, volume, name string) error
	// DeleteSnapshot removes the snapshot; there being none is no error.
	DeleteSnapshot(ctx context.Context, volume, name string) error
}

// TakeSnapshot freezes the state of a volume; see [Snapshotter].
func TakeSnapshot(ctx context.Context, s Share, volume, name string) (Snapshot, error) {
	if n, ok := As[Snapshotter](s); ok {
		return n.Snapshot(ctx, volume, name)
	}
	return Snapshot{}, unsupported("snapshot", s, CanSnapshot, volume)
}

// ListSnapshots lists the snapshots of a volume; see [Snapshotter].
func ListSnapshots(ctx context.Context, s Share, volume string) ([]Snapshot, error) {
	if n, ok := As[Snapshotter](s); ok {
		return n.Snapshots(ctx, volume)
	}
	return nil, unsupported("list snapshots of", s, CanSnapshot, volume)
}

// RollBack makes a volume as it was at a snapshot; see [Snapshotter].
func RollBack(ctx context.Context, s Share, volume, name string) error {
	if n, ok := As[Snapshotter](s); ok {
		return n.RollBack(ctx, volume, name)
	}
	return unsupported("roll back", s, CanSnapshot, volume)
}

// DeleteSnapshot removes a snapshot; see [Snapshotter].
func DeleteSnapshot(ctx context.Context, s Share, volume, name string) error {
	if n, ok := As[Snapshotter](s); ok {
		return n.DeleteSnapshot(ctx, volume, name)
	}
	return unsupported("delete a snapshot of", s, CanSnapshot, volume)
}

// Cloner is a [Share] that makes a volume from another one without copying
// all of its bytes.
type Cloner interface {
	// Clone makes the volume name with the content of volume, or of its
	// snapshot if that is not "". A clone of that origin and name that is
	// there is returned as it is.
	Clone(ctx context.Context, volume, snapshot, name string) (Volume, error)
}

// Clone makes a volume from another one; see [Cloner].
func Clone(ctx context.Context, s Share, volume, snapshot, name string) (Volume, error) {
	if c, ok := As[Cloner](s); ok {
		return c.Clone(ctx, volume, snapshot, name)
	}
	return Volume{}, unsupported("clone", s, CanClone, volume)
}

// DeviceOpener is a [Share] whose disks this program can open.
type DeviceOpener interface {
	// OpenDevice opens the blocks of a disk. A writer is alone: while one is
	// open, another OpenDevice for writing is [ErrInUse]. A reader beside it
	// sees what it writes, or is ErrInUse too where the format does not allow
	// that. The device's Identity is the volume's ID. It outlives ctx, and
	// ends with the share.
	OpenDevice(ctx context.Context, name string, opts *OpenOptions) (Device, error)
}

// OpenOptions change how [DeviceOpener] works; nil is the zero value.
type OpenOptions struct {
	// ReadOnly opens the disk without the right to write.
	ReadOnly bool
	// Snapshot opens a snapshot of that name; it is read-only.
	Snapshot string
	// VolumeID, if not "", is the identity that the volume must have; another
	// one is [ErrWrongDevice].
	VolumeID string
}

// OpenDevice opens the blocks of a disk; see [DeviceOpener].
func OpenDevice(ctx context.Context, s Share, name string, opts *OpenOptions) (Device, error) {
	if o, ok := As[DeviceOpener](s); ok {
		return o.OpenDevice(ctx, name, opts)
	}
	return nil, unsupported("open", s, CanOpenDevice, name)
}

// ChangeLister is a [Share] that knows what changed between two snapshots.
type ChangeLister interface {
	// Changes returns the extents of the volume that may differ between the
	// snapshots from and to, in order, without overlap. An empty from is the
	// state before the first write, an empty to is the state now. None that
	// differs is left out; some that do not differ may be there.
	Changes(ctx context.Context, volume, from, to string) ([]Extent, error)
}

// Changes returns what changed between two snapshots; see [ChangeLister].
func Changes(ctx context.Context, s Share, volume, from, to string) ([]Extent, error) {
	if c, ok := As[ChangeLister](s); ok {
		return c.Changes(ctx, volume, from, to)
	}
	return nil, unsupported("list changes of", s, CanListChanges, volume)
}

// Locker is a [Share] that keeps two owners from writing one volume.
type Locker interface {
	// Lock gives the volume to owner (a name; see [CheckName]) until the lock
	// is released, or the share is closed, or the program that holds it dies.
	// Another owner's lock is [ErrInUse]; the same owner's, from another
	// handle, too. It does not wait.
	Lock(ctx context.Context, volume, owner string) (Lock, error)
}

// Lock is a volume held for one owner.
type Lock interface {
	// Release gives the volume back. A second Release returns nil.
	Release() error
}

// LockVolume gives a volume to one owner; see [Locker].
func LockVolume(ctx context.Context, s Share, volume, owner string) (Lock, error) {
	if l, ok := As[Locker](s); ok {
		return l.Lock(ctx, volume, owner)
	}
	return nil, unsupported("lock", s, CanLock, volume)
}

// Healther is a [Share] that can tell how it is.
type Healther interface {
	// Health asks the server or the file system. An answer that could not be
	// had is an [ErrUnavailable], not a Health.
	Health(ctx context.Context) (Health, error)
}

// Health is the state of a share.
type Health struct {
	// OK says that volumes can be read and written now.
	OK bool
	// Problems say what is wrong or soon will be, one sentence each.
	Problems []string
	// Size and Free are the capacity behind the share; -1 where unknown.
	Size, Free Bytes
}

// CheckHealth returns the state of a share; see [Healther].
func CheckHealth(ctx context.Context, s Share) (Health, error) {
	if h, ok := As[Healther](s); ok {
		return h.Health(ctx)
	}
	return Health{}, unsupported("report the health of", s, CanReportHealth, "")
}
