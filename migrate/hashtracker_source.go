package migrate

import (
	"context"

	"github.com/vmferry/vmferry/share"
)

// Source is the device as consumers must read it, the Source of a [DiskMove]:
// what goes through it is hashed for those who lease it. It is the tracked
// device in all else; closing it closes that.
func (t *HashTracker) Source() share.Device { return &hashSource{t.dev, t} }

// hashSource has no Unwrap: neither reads nor extents may pass it by.
type hashSource struct {
	share.Device
	t *HashTracker
}

// ReadAt reads, and lets the cursors know what; see [share.Device].
func (s *hashSource) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := s.Device.ReadAt(ctx, p, off); err != nil {
		return err
	}
	// Parts of blocks say nothing about the whole.
	block := s.t.block
	for i := roundUp(off, block) / block; ; i++ {
		from := i*block - off
		to := min((i+1)*block, s.t.size) - off
		if from >= to || to > int64(len(p)) {
			return nil
		}
		s.t.observe(i, i, func() blockHash { return hashOf(p[from:to]) })
	}
}

// Extents lists the tracked device's extents. Who hears that blocks are zeros
// has read them.
func (s *hashSource) Extents(ctx context.Context, off, n int64) ([]share.Extent, error) {
	list, err := share.ListExtents(ctx, s.Device, off, n)
	if err != nil {
		return nil, err
	}
	for _, z := range wholeZeros(list, s.t.block, s.t.size) {
		s.t.observe(z.Off/s.t.block, (z.End()-1)/s.t.block, func() blockHash { return blockHash{} })
	}
	return list, nil
}

// BlockSizes are the tracked device's; see [share.BlockSizer].
func (s *hashSource) BlockSizes() share.BlockSizes { return share.SizesOf(s.Device) }

// Identity is the tracked device's; see [share.Identifier].
func (s *hashSource) Identity() string { return share.IdentityOf(s.Device) }

// observe tells the cursors that have leased them what the blocks from first to
// last, both included, were read as.
func (t *HashTracker) observe(first, last int64, hash func() blockHash) {
	t.mu.Lock()
	var who []*hashCursor
	for c := range t.cursors {
		if c.leasedIn(first, last) {
			who = append(who, c)
		}
	}
	t.mu.Unlock()
	if len(who) == 0 {
		return
	}
	h := hash()
	for _, c := range who {
		for i := first; i <= last; i++ {
			if c.leasedIn(i, i) {
				c.observe(i, h)
			}
		}
	}
}
