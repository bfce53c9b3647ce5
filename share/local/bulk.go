package local

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bulkWrite is the least that is written past the page cache, and bulkAlign
// what such a write is a multiple of, in the file and in memory. Where a whole
// disk arrives, the cache costs a second copy, a page to be found for each 4 KiB,
// and the pages of everything else on the host; and the flush at the end waits
// for all of it at once. Small writes are better off in the cache.
const (
	bulkWrite = 256 << 10
	bulkAlign = 4096
)

// openBulk opens the file again with O_DIRECT. It returns nil where the file
// system has no such thing; everything then goes through the cache. The kernel
// keeps both ways coherent. The new one carries no image locks, and needs none:
// it lives and ends with f.
func openBulk(f *os.File) *os.File {
	var bulk *os.File
	err := control(f, func(fd int) error {
		direct, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err == nil {
			bulk = os.NewFile(uintptr(direct), f.Name())
		}
		return err
	})
	if err != nil {
		return nil
	}
	return bulk
}

// writeBulk writes p past the page cache, and reports whether it is of the
// shape for that. What the file system refuses after all changed nothing.
func (r *rawFile) writeBulk(p []byte, off int64) (bool, error) {
	if r.bulk == nil || len(p) < bulkWrite || len(p)%bulkAlign != 0 || off%bulkAlign != 0 || uintptr(unsafe.Pointer(&p[0]))%bulkAlign != 0 {
		return false, nil
	}
	_, err := r.bulk.WriteAt(p, off)
	if errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	return true, err
}
