package nbd

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/vmferry/vmferry/share"
)

// Export is a device as a [Server] offers it.
type Export struct {
	// Device is what is served. It stays the caller's, who closes it after
	// the export was removed or the server has ended. A *nbd.Error from it
	// chooses the code that clients get; other errors are mapped by their
	// share kind, and their text stays here.
	Device share.Device
	// ReadOnly refuses all commands that write.
	ReadOnly bool
	// Description is text for people, in lists of exports.
	Description string
	// BlockSizes are told to clients, and Minimum and Maximum are enforced.
	// Fields that are 0 come from the device. Maximum is at most the
	// server's MaxRequest.
	BlockSizes share.BlockSizes
	// Contexts are metadata contexts beside base:allocation, which every
	// export has.
	Contexts []MetaContext
}

// MetaContext tells a status for ranges of an export, such as a dirty bitmap.
type MetaContext interface {
	// Name is the context's full name, such as DirtyBitmap("backup"). It
	// does not change.
	Name() string
	// BlockStatus describes the n bytes from off, in order and without a
	// gap. It may stop early, after at least one extent. It may be called
	// from several goroutines at once.
	BlockStatus(ctx context.Context, off, n int64) ([]Extent, error)
}

// maxExtents bounds one answer to block status, for each context.
const maxExtents = 16 << 10

// served is an Export that was checked and completed.
type served struct {
	Export
	name     string
	size     int64
	contexts []MetaContext // base:allocation is the first; the index is the number
}

func newServed(name string, e Export, most int64) (*served, error) {
	if err := checkString(name); err != nil {
		return nil, err
	}
	if err := checkString(e.Description); err != nil {
		return nil, err
	}
	if e.Device == nil {
		return nil, fmt.Errorf("nbd: export %s has no device: %w", quote(name), share.ErrInvalid)
	}
	own := share.SizesOf(e.Device)
	own.Minimum = max(own.Minimum, 1)
	b := &e.BlockSizes
	if b.Minimum == 0 {
		b.Minimum = own.Minimum
	}
	if b.Preferred == 0 {
		b.Preferred = max(own.Preferred, b.Minimum, 512)
	}
	if b.Maximum == 0 {
		b.Maximum = math.MaxInt64
	}
	if own.Maximum != 0 {
		b.Maximum = min(b.Maximum, own.Maximum)
	}
	b.Maximum = min(b.Maximum, most)
	b.Maximum -= b.Maximum % max(b.Minimum, 1)
	if b.Minimum < own.Minimum || b.Minimum&(b.Minimum-1) != 0 || b.Preferred&(b.Preferred-1) != 0 ||
		b.Preferred < b.Minimum || b.Maximum < b.Preferred {
		return nil, fmt.Errorf("nbd: export %s: block sizes %+v do not fit each other or the device's %+v: %w", quote(name), *b, own, share.ErrInvalid)
	}
	x := &served{Export: e, name: name, size: e.Device.Size(), contexts: []MetaContext{allocation{e.Device}}}
	seen := map[string]bool{ContextAllocation: true}
	for _, m := range e.Contexts {
		if err := checkString(m.Name()); err != nil {
			return nil, err
		}
		if seen[m.Name()] {
			return nil, fmt.Errorf("nbd: export %s has the metadata context %s twice: %w", quote(name), quote(m.Name()), share.ErrInvalid)
		}
		seen[m.Name()] = true
		x.contexts = append(x.contexts, m)
	}
	return x, nil
}

// flags are the transmission flags. One Device is shared by all connections,
// so a flush on one covers them all.
func (x *served) flags(structured bool) uint16 {
	f := uint16(flagHasFlags | flagSendFlush | flagSendFUA | flagCanMultiConn)
	if structured {
		f |= flagSendDF
	}
	if x.ReadOnly {
		return f | flagReadOnly
	}
	f |= flagSendWriteZeroes
	if _, ok := share.DeviceAs[share.Zeroer](x.Device); ok {
		f |= flagSendFastZero
	}
	if _, ok := share.DeviceAs[share.Discarder](x.Device); ok {
		f |= flagSendTrim
	}
	return f
}

// allocation is the context base:allocation of a device.
type allocation struct{ dev share.Device }

func (a allocation) Name() string { return ContextAllocation }

func (a allocation) BlockStatus(ctx context.Context, off, n int64) ([]Extent, error) {
	l, ok := share.DeviceAs[share.ExtentLister](a.dev)
	if !ok {
		return []Extent{{Off: off, Len: n}}, nil
	}
	part, err := l.Extents(ctx, off, n)
	if errors.Is(err, errors.ErrUnsupported) {
		return []Extent{{Off: off, Len: n}}, nil
	}
	all := make([]Extent, len(part))
	for i, e := range part {
		all[i] = Extent{Off: e.Off, Len: e.Len, Flags: uint32(e.State)}
	}
	return all, err
}

// status asks m, and checks what it says as a client would.
func (x *served) status(ctx context.Context, m MetaContext, off, n int64, most int) ([]Extent, error) {
	part, err := m.BlockStatus(ctx, off, n)
	if err != nil {
		return nil, err
	}
	if len(part) == 0 {
		return nil, fmt.Errorf("nbd: metadata context %s described nothing of %d+%d", quote(m.Name()), off, n)
	}
	all := part[:0:0]
	for at, end := off, off+n; len(part) > 0 && at < end; part = part[1:] {
		e := part[0]
		if e.Off != at || e.Len <= 0 {
			return nil, fmt.Errorf("nbd: metadata context %s answered %+v where offset %d was due", quote(m.Name()), e, at)
		}
		e.Len = min(e.Len, end-at)
		at = e.End()
		if k := len(all); k > 0 && all[k-1].Flags == e.Flags {
			all[k-1].Len += e.Len
			continue
		}
		if len(all) == most {
			break
		}
		all = append(all, e)
	}
	for _, e := range all {
		if e.End()%x.BlockSizes.Minimum == 0 || e.End() == x.size {
			continue
		}
		// The client may not see such a border. Of allocation it is always
		// right to say less.
		if _, ok := m.(allocation); !ok {
			return nil, fmt.Errorf("nbd: metadata context %s has a border at %d, which is not a multiple of the block size %d", quote(m.Name()), e.End(), x.BlockSizes.Minimum)
		}
		return []Extent{{Off: off, Len: n}}, nil
	}
	return all, nil
}
