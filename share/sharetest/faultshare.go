package sharetest

import (
	"context"

	"github.com/vmferry/vmferry/share"
)

// FaultyShare returns s with faults. It has exactly the optional interfaces
// that s has, each through the schedule, as are the devices and locks that come
// from it; it has no Unwrap: nothing goes past it.
func FaultyShare(s share.Share, sched *Schedule) share.Share { return &faultyShare{s, sched} }

type faultyShare struct {
	beneath share.Share
	s       *Schedule
}

func (f *faultyShare) Info() share.Info { return f.beneath.Info() }

func (f *faultyShare) Stat(ctx context.Context, name string) (share.Volume, error) {
	return faulty(ctx, f.s, "stat", func() (share.Volume, error) { return f.beneath.Stat(ctx, name) }, nil)
}

func (f *faultyShare) Publish(ctx context.Context, name string, access []share.Access) ([]share.Source, error) {
	return faulty(ctx, f.s, "publish", func() ([]share.Source, error) { return f.beneath.Publish(ctx, name, access) }, nil)
}

func (f *faultyShare) Close() error {
	return f.call(context.Background(), "close", f.beneath.Close)
}

func (f *faultyShare) call(ctx context.Context, op string, do func() error) error {
	_, err := faulty(ctx, f.s, op, func() (struct{}, error) { return struct{}{}, do() }, nil)
	return err
}

// As implements [share.Asser].
func (f *faultyShare) As(target any) bool {
	switch t := target.(type) {
	case *share.Creator:
		return standIn(f, t, func(b share.Creator) share.Creator { return faultyCreator{f, b} })
	case *share.Deleter:
		return standIn(f, t, func(b share.Deleter) share.Deleter { return faultyDeleter{f, b} })
	case *share.Lister:
		return standIn(f, t, func(b share.Lister) share.Lister { return faultyLister{f, b} })
	case *share.Resizer:
		return standIn(f, t, func(b share.Resizer) share.Resizer { return faultyResizer{f, b} })
	case *share.Snapshotter:
		return standIn(f, t, func(b share.Snapshotter) share.Snapshotter { return faultySnapshotter{f, b} })
	case *share.Cloner:
		return standIn(f, t, func(b share.Cloner) share.Cloner { return faultyCloner{f, b} })
	case *share.DeviceOpener:
		return standIn(f, t, func(b share.DeviceOpener) share.DeviceOpener { return faultyOpener{f, b} })
	case *share.ChangeLister:
		return standIn(f, t, func(b share.ChangeLister) share.ChangeLister { return faultyChangeLister{f, b} })
	case *share.Locker:
		return standIn(f, t, func(b share.Locker) share.Locker { return faultyLocker{f, b} })
	case *share.Healther:
		return standIn(f, t, func(b share.Healther) share.Healther { return faultyHealther{f, b} })
	}
	return false
}

// standIn sets *target to wrap of what the share beneath has of that kind.
func standIn[T any](f *faultyShare, target *T, wrap func(T) T) bool {
	beneath, ok := share.As[T](f.beneath)
	if ok {
		*target = wrap(beneath)
	}
	return ok
}

type faultyCreator struct {
	f *faultyShare
	b share.Creator
}

func (w faultyCreator) Create(ctx context.Context, spec share.Spec) (share.Volume, error) {
	return faulty(ctx, w.f.s, "create", func() (share.Volume, error) { return w.b.Create(ctx, spec) }, nil)
}

type faultyDeleter struct {
	f *faultyShare
	b share.Deleter
}

func (w faultyDeleter) Delete(ctx context.Context, name string) error {
	return w.f.call(ctx, "delete", func() error { return w.b.Delete(ctx, name) })
}

type faultyLister struct {
	f *faultyShare
	b share.Lister
}

func (w faultyLister) List(ctx context.Context) ([]share.Volume, error) {
	return faulty(ctx, w.f.s, "list", func() ([]share.Volume, error) { return w.b.List(ctx) }, nil)
}

type faultyResizer struct {
	f *faultyShare
	b share.Resizer
}

func (w faultyResizer) Resize(ctx context.Context, name string, size share.Bytes, opts *share.ResizeOptions) (share.Volume, error) {
	return faulty(ctx, w.f.s, "resize", func() (share.Volume, error) { return w.b.Resize(ctx, name, size, opts) }, nil)
}

type faultySnapshotter struct {
	f *faultyShare
	b share.Snapshotter
}

func (w faultySnapshotter) Snapshot(ctx context.Context, volume, name string) (share.Snapshot, error) {
	return faulty(ctx, w.f.s, "snapshot", func() (share.Snapshot, error) { return w.b.Snapshot(ctx, volume, name) }, nil)
}

func (w faultySnapshotter) Snapshots(ctx context.Context, volume string) ([]share.Snapshot, error) {
	return faulty(ctx, w.f.s, "snapshots", func() ([]share.Snapshot, error) { return w.b.Snapshots(ctx, volume) }, nil)
}

func (w faultySnapshotter) RollBack(ctx context.Context, volume, name string) error {
	return w.f.call(ctx, "roll back", func() error { return w.b.RollBack(ctx, volume, name) })
}

func (w faultySnapshotter) DeleteSnapshot(ctx context.Context, volume, name string) error {
	return w.f.call(ctx, "delete snapshot", func() error { return w.b.DeleteSnapshot(ctx, volume, name) })
}

type faultyCloner struct {
	f *faultyShare
	b share.Cloner
}

func (w faultyCloner) Clone(ctx context.Context, volume, snapshot, name string) (share.Volume, error) {
	return faulty(ctx, w.f.s, "clone", func() (share.Volume, error) { return w.b.Clone(ctx, volume, snapshot, name) }, nil)
}

type faultyOpener struct {
	f *faultyShare
	b share.DeviceOpener
}

func (w faultyOpener) OpenDevice(ctx context.Context, name string, opts *share.OpenOptions) (share.Device, error) {
	return faulty(ctx, w.f.s, "open", func() (share.Device, error) {
		d, err := w.b.OpenDevice(ctx, name, opts)
		if err != nil {
			return nil, err
		}
		return FaultyDevice(d, w.f.s), nil
	}, nil)
}

type faultyChangeLister struct {
	f *faultyShare
	b share.ChangeLister
}

func (w faultyChangeLister) Changes(ctx context.Context, volume, from, to string) ([]share.Extent, error) {
	return faulty(ctx, w.f.s, "changes", func() ([]share.Extent, error) { return w.b.Changes(ctx, volume, from, to) }, nil)
}

type faultyLocker struct {
	f *faultyShare
	b share.Locker
}

func (w faultyLocker) Lock(ctx context.Context, volume, owner string) (share.Lock, error) {
	return faulty(ctx, w.f.s, "lock", func() (share.Lock, error) {
		l, err := w.b.Lock(ctx, volume, owner)
		if err != nil {
			return nil, err
		}
		return faultyLock{w.f, l}, nil
	}, nil)
}

type faultyLock struct {
	f *faultyShare
	b share.Lock
}

func (w faultyLock) Release() error {
	return w.f.call(context.Background(), "release", w.b.Release)
}

type faultyHealther struct {
	f *faultyShare
	b share.Healther
}

func (w faultyHealther) Health(ctx context.Context) (share.Health, error) {
	return faulty(ctx, w.f.s, "health", func() (share.Health, error) { return w.b.Health(ctx) }, nil)
}
