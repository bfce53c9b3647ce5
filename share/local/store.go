package local

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
)

// store is the folder .vmferry of a share's directory:
//
//	share.json        the identity of the share
//	volumes/NAME.json the record of a volume
//	tmp/NAME.ID       volumes and records on their way in or out
//	locks/NAME        held (flock) by who changes the volume
//	owners/NAME       held (flock) by who locked the volume; see share.Locker
//
// Whoever holds the lock of a name may change its record, and remove what of
// that name is in tmp.
type store struct {
	root *os.Root
	id   string
	step func(name string) // see dir.step
}

const (
	storeDir   = ".vmferry"
	volumesDir = "volumes"
	tmpDir     = "tmp"
	locksDir   = "locks"
	ownersDir  = "owners"

	idBytes = 16
)

func newID() string {
	var b [idBytes]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// openStore opens the folder of the directory, and makes it if it is not there.
func openStore(root *os.Root) (_ *store, err error) {
	if err := mkdir(root, storeDir); err != nil {
		return nil, err
	}
	st, err := root.Lstat(storeDir)
	if err != nil {
		return nil, err
	}
	switch {
	case !st.IsDir():
		return nil, fmt.Errorf("%s %w: it is not a directory", storeDir, share.ErrWrongDevice)
	case st.Mode().Perm()&0o022 != 0:
		return nil, fmt.Errorf("%s of mode %04o: access %w; others must not write there", storeDir, st.Mode().Perm(), share.ErrDenied)
	}
	s := &store{}
	if s.root, err = root.OpenRoot(storeDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.root.Close()
		}
	}()
	if now, err := s.root.Stat("."); err != nil || !os.SameFile(st, now) {
		return nil, fmt.Errorf("%s %w: it was replaced", storeDir, errors.Join(share.ErrWrongDevice, err))
	}
	for _, sub := range []string{volumesDir, tmpDir, locksDir, ownersDir} {
		if err := mkdir(s.root, sub); err != nil {
			return nil, err
		}
	}
	return s, s.identify()
}

// mkdir makes a private directory unless there is one, and makes it durable.
func mkdir(root *os.Root, name string) error {
	err := root.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(root, ".")
}

// identify reads the share's identity, or makes one. Of several programs that
// make one at the same time, one wins.
func (s *store) identify() error {
	const name = "share.json"
	type identity struct {
		Version  int    `json:"version"`
		Identity string `json:"identity"`
	}
	if st, err := s.root.Lstat(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	} else if st == nil {
		doc, err := seal(identity{recordVersion, newID()})
		if err != nil {
			return err
		}
		tmp := "share." + newID()
		if err := s.writeFile(tmp, doc); err != nil {
			return err
		}
		err = s.root.Link(tmp, name)
		_ = s.root.Remove(tmp)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := syncDir(s.root, "."); err != nil {
			return err
		}
	}
	b, err := s.read(name)
	if err != nil {
		return err
	}
	var have identity
	if err := unseal(b, &have); err != nil {
		return fmt.Errorf("%s/%s: %w", storeDir, name, err)
	}
	s.id = have.Identity
	return nil
}

func (s *store) close() error { return s.root.Close() }

func recordName(name string) string { return volumesDir + "/" + name + ".json" }

// load reads the record of a volume; nil if there is none.
func (s *store) load(name string) (*record, error) {
	b, err := s.read(recordName(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := unseal(b, r); err != nil {
		return nil, fmt.Errorf("%s/%s: %w", storeDir, recordName(name), err)
	}
	return r, r.check(name)
}

// save makes r the record of its volume, durably. The caller holds the lock.
func (s *store) save(r *record) error {
	r.Version = recordVersion
	doc, err := seal(r)
	if err != nil {
		return err
	}
	tmp := tmpDir + "/" + r.Name + "." + newID()
	if err := s.writeFile(tmp, doc); err != nil {
		return err
	}
	s.step("record: written")
	if err := s.root.Rename(tmp, recordName(r.Name)); err != nil {
		return err
	}
	s.step("record: renamed")
	return syncDir(s.root, volumesDir)
}

// forget removes the record of a volume, durably.
func (s *store) forget(name string) error {
	if err := s.root.Remove(recordName(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.step("record: removed")
	return syncDir(s.root, volumesDir)
}

// names lists the volumes that have a record, sorted.
func (s *store) names() ([]string, error) {
	f, err := s.root.Open(volumesDir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	files, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, file := range files {
		if name, ok := strings.CutSuffix(file, ".json"); ok && share.CheckName(name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// leftovers lists what of the volume is in tmp.
func (s *store) leftovers(name string) ([]string, error) {
	files, err := s.inTemp()
	return slices.DeleteFunc(files, func(file string) bool { return volumeOf(file) != name }), err
}

// unfinished lists the volumes of which there is something in tmp.
func (s *store) unfinished() ([]string, error) {
	files, err := s.inTemp()
	var names []string
	for _, file := range files {
		if name := volumeOf(file); share.CheckName(name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), err
}

func (s *store) inTemp() ([]string, error) {
	f, err := s.root.Open(tmpDir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// volumeOf is the name of the volume that a file in tmp belongs to.
func volumeOf(file string) string { return file[:max(0, strings.LastIndexByte(file, '.'))] }

// read returns the content of a file.
func (s *store) read(name string) ([]byte, error) {
	f, err := s.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxRecord {
		return nil, fmt.Errorf("%s/%s %w: it is not a regular file, or too large", storeDir, name, share.ErrCorrupt)
	}
	return io.ReadAll(io.LimitReader(f, maxRecord))
}

// writeFile makes a new file with that content, durably but for its name.
func (s *store) writeFile(name string, content []byte) error {
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		_ = s.root.Remove(name)
	}
	return err
}

// syncDir makes the names in a directory durable.
func syncDir(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// errLocked says that another holds a lock file.
var errLocked = fmt.Errorf("lock %w", share.ErrInUse)

// tryLock takes a lock file, made if need be, without waiting. Closing the
// file gives it back; the death of the program, too.
func (s *store) tryLock(name string) (*os.File, error) {
	for {
		f, err := s.root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := control(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, errLocked
			}
			return nil, fmt.Errorf("flock: %w", err)
		}
		// The holder before may have removed the file: then the lock is of no
		// worth.
		mine, err := f.Stat()
		if err == nil {
			var there fs.FileInfo
			if there, err = s.root.Lstat(name); err == nil && os.SameFile(mine, there) {
				return f, nil
			}
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// lock takes the lock of a volume, and waits for it until ctx ends. Polling is
// what a context can end; whoever holds the lock does so briefly.
func (s *store) lock(ctx context.Context, name string) (*os.File, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		f, err := s.tryLock(locksDir + "/" + name)
		if !errors.Is(err, errLocked) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another change of the volume: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

// unlock gives the lock of a volume back, and removes its file if there is no
// volume for it.
func (s *store) unlock(name string, f *os.File) {
	if _, err := s.root.Lstat(recordName(name)); errors.Is(err, fs.ErrNotExist) {
		_ = s.root.Remove(locksDir + "/" + name)
	}
	_ = f.Close()
}

// control calls f with the file's descriptor, which stays open meanwhile.
func control(file *os.File, f func(fd int) error) error {
	c, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := c.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
