package local

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
)

// rawFile is an open raw image: bytes of the file are bytes of the disk. It
// goes through the page cache, long writes excepted: a write is durable after
// fdatasync(2).
type rawFile struct {
	file *os.File
	bulk *os.File // for long writes; may be nil

	// lost is the error of the first flush that failed. The kernel may then
	// have dropped what it could not write, and the next fdatasync would
	// succeed without it: so no later flush does.
	lost atomic.Pointer[error]
}

func (c *change) openRaw(opts *share.OpenOptions) (share.Device, error) {
	if opts.Snapshot != "" {
		return nil, errNoSnapshots
	}
	f, err := c.d.openImage(c.rec, !opts.ReadOnly)
	if err != nil {
		return nil, err
	}
	u := writerOf
	if opts.ReadOnly {
		u = readerOf
	}
	if err := lockImage(f, u); err != nil {
		_ = f.Close()
		return nil, err
	}
	sizes := share.BlockSizes{Minimum: 1, Preferred: 4096}
	r := &rawFile{file: f}
	if !opts.ReadOnly {
		r.bulk = openBulk(f)
	}
	return c.d.newDevice(r, c.rec, int64(c.rec.Size), sizes, opts.ReadOnly)
}

func (r *rawFile) interrupt() {}

func (r *rawFile) release() {
	if r.bulk != nil {
		_ = r.bulk.Close()
	}
	_ = r.file.Close()
}

func (r *rawFile) readAt(p []byte, off int64) error {
	_, err := r.file.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the image %w: it became shorter than the disk", share.ErrCorrupt)
	}
	return err
}

func (r *rawFile) writeAt(p []byte, off int64) error {
	if done, err := r.writeBulk(p, off); done {
		return err
	}
	_, err := r.file.WriteAt(p, off) // an error if it is short
	return err
}

func (r *rawFile) flush() error {
	if lost := r.lost.Load(); lost != nil {
		return *lost
	}
	err := control(r.file, unix.Fdatasync)
	if err != nil {
		err = fmt.Errorf("%w; what was written since the last flush may be lost: close the device and write it again", err)
		r.lost.CompareAndSwap(nil, &err)
	}
	return err
}

// zero is fallocate(2) with FALLOC_FL_PUNCH_HOLE, or FALLOC_FL_ZERO_RANGE
// where the space is to be kept or there are no holes.
func (r *rawFile) zero(off, n int64, flags share.ZeroFlags) error {
	if flags&share.ZeroKeepAllocated == 0 {
		if err := r.fallocate(unix.FALLOC_FL_PUNCH_HOLE, off, n); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	return r.fallocate(unix.FALLOC_FL_ZERO_RANGE, off, n)
}

func (r *rawFile) discard(off, n int64) error {
	return r.fallocate(unix.FALLOC_FL_PUNCH_HOLE, off, n)
}

func (r *rawFile) fallocate(mode uint32, off, n int64) error {
	if n == 0 {
		return nil // fallocate refuses it
	}
	err := control(r.file, func(fd int) error { return unix.Fallocate(fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, n) })
	if err != nil && notSupported(err) {
		return fmt.Errorf("fallocate: %w: %w", errors.ErrUnsupported, err)
	}
	return err
}

func (r *rawFile) extents(off, n int64) ([]share.Extent, error) { return fileExtents(r.file, off, n) }
