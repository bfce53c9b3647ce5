package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/vmferry/vmferry/share"
)

// Lock implements [share.Locker] with flock(2) on a file of the share. It keeps
// out other owners that ask for the lock, not programs that open the image;
// those the image's own locks keep out.
func (d *dir) Lock(ctx context.Context, volume, owner string) (share.Lock, error) {
	return run(ctx, d, "lock", volume, func(ctx context.Context) (share.Lock, error) {
		if err := share.CheckName(owner); err != nil {
			return nil, fmt.Errorf("owner: %w", err)
		}
		c, err := d.beginExisting(ctx, volume)
		if err != nil {
			return nil, err
		}
		defer c.end()
		name := ownersDir + "/" + volume
		f, err := d.store.tryLock(name)
		if errors.Is(err, errLocked) {
			return nil, fmt.Errorf("volume %w: it is locked by %q", share.ErrInUse, d.ownerOf(name))
		}
		if err != nil {
			return nil, err
		}
		err = f.Truncate(0)
		if err == nil {
			_, err = f.WriteAt([]byte(owner), 0)
		}
		l := &ownerLock{d: d, file: f}
		if err == nil {
			err = d.hold(l)
		}
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		return l, nil
	})
}

// ownerOf is the owner that a lock file names, for messages.
func (d *dir) ownerOf(name string) string {
	f, err := d.store.root.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 128))
	return string(b)
}

// ownerLock is a volume held for an owner.
type ownerLock struct {
	d    *dir
	file *os.File
	once sync.Once
}

// Release implements [share.Lock].
func (l *ownerLock) Release() error {
	l.once.Do(func() {
		_ = l.file.Truncate(0)
		_ = l.file.Close()
		l.d.drop(l)
	})
	return nil
}

// Close is Release, for when the share is closed.
func (l *ownerLock) Close() error { return l.Release() }
