package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/vmferry/vmferry/share"
)

// openImage opens the image of a disk. What it opens is a regular file with
// this one name, in this directory: a link that was put in its place, or a
// file that has another name elsewhere, is ErrWrongDevice.
func (d *dir) openImage(r *record, write bool) (*os.File, error) {
	before, err := d.root.Lstat(r.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("volume %w: it is recorded, and its image is missing", share.ErrCorrupt)
	}
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("the image %w: it was replaced by what is not a regular file (%v)", share.ErrWrongDevice, before.Mode().Type())
	}
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := d.root.OpenFile(r.Name, flag, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil {
		switch {
		case !os.SameFile(before, st):
			err = fmt.Errorf("the image %w: it was replaced while it was opened", share.ErrWrongDevice)
		case links(st) != 1:
			err = fmt.Errorf("the image %w: it has %d names, and another may be someone else's", share.ErrWrongDevice, links(st))
		default:
			err = checkContainer(f, r, st.Size())
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func links(st fs.FileInfo) uint64 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return uint64(s.Nlink)
	}
	return 1
}

// allocated is the space that a file takes.
func allocated(st fs.FileInfo) share.Bytes {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return share.Bytes(s.Blocks) * 512
	}
	return -1
}

// checkContainer compares the file with the record before its first use.
func checkContainer(f *os.File, r *record, size int64) error {
	if r.Format == share.Qcow2 {
		h, err := readQcow2(f)
		if err != nil {
			return err
		}
		size = int64(h.Size)
	}
	if size == int64(r.Size) || (r.State == resizing || r.State == rolling) && size == int64(r.Target) {
		return nil
	}
	return fmt.Errorf("the image %w: the disk has %d bytes, and %d are recorded", share.ErrCorrupt, size, int64(r.Size))
}
