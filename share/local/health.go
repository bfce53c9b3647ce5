package local

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
)

// scarce is the share of space or inodes below which Health warns.
const scarce = 0.05

// Health implements [share.Healther] with statfs(2).
func (d *dir) Health(ctx context.Context) (share.Health, error) {
	return runAll(ctx, d, "report the health of", func(context.Context) (share.Health, error) {
		f, err := d.root.Open(".")
		if err != nil {
			return share.Health{}, err
		}
		defer f.Close()
		var st unix.Statfs_t
		if err := control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
			return share.Health{}, fmt.Errorf("the file system %w: fstatfs: %w", share.ErrUnavailable, err)
		}
		h := share.Health{
			OK:   true,
			Size: share.Bytes(st.Blocks) * share.Bytes(st.Bsize),
			Free: share.Bytes(st.Bavail) * share.Bytes(st.Bsize),
		}
		problem := func(fatal bool, format string, args ...any) {
			h.OK = h.OK && !fatal
			h.Problems = append(h.Problems, fmt.Sprintf(format, args...))
		}
		if st.Flags&unix.ST_RDONLY != 0 {
			problem(true, "the file system is mounted read-only")
		}
		if h.Size > 0 && float64(h.Free) < scarce*float64(h.Size) {
			problem(h.Free == 0, "%s of %s are free", h.Free, h.Size)
		}
		if st.Files > 0 && float64(st.Ffree) < scarce*float64(st.Files) {
			problem(st.Ffree == 0, "%d of %d inodes are free", st.Ffree, st.Files)
		}
		return h, nil
	})
}
