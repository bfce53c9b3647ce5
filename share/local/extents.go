package local

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
)

// mostExtents bounds one answer; the caller asks again behind it.
const mostExtents = 4096

// fileExtents describes n bytes of a file from off by lseek(2) with SEEK_DATA
// and SEEK_HOLE. A hole reads as zeros; space that was allocated and never
// written counts as one. A file system that cannot tell answers data.
func fileExtents(f *os.File, off, n int64) ([]share.Extent, error) {
	var out []share.Extent
	end := off + n
	err := control(f, func(fd int) error {
		for off < end && len(out) < mostExtents {
			data, err := seek(fd, off, unix.SEEK_DATA, end)
			if err != nil {
				return err
			}
			if data > off {
				out = append(out, share.Extent{Off: off, Len: data - off, State: share.ExtentHole | share.ExtentZero})
				off = data
				continue
			}
			hole, err := seek(fd, off, unix.SEEK_HOLE, end)
			if err != nil {
				return err
			}
			if hole == off {
				continue // it was punched just now: look again
			}
			out = append(out, share.Extent{Off: off, Len: hole - off, State: share.ExtentData})
			off = hole
		}
		return nil
	})
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return append(out, share.Extent{Off: off, Len: end - off, State: share.ExtentData}), nil
	case err != nil:
		return nil, err
	}
	return out, nil
}

// seek is lseek, cut off at end. Behind the last data of a file there is
// nothing but hole.
func seek(fd int, off int64, whence int, end int64) (int64, error) {
	at, err := unix.Seek(fd, off, whence)
	if errors.Is(err, unix.ENXIO) {
		return end, nil
	}
	return min(at, end), err
}
