package nbd

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmferry/vmferry/share"
)

// ContextAllocation is the metadata context of the specification. Its flags
// are those of [share.ExtentState].
const ContextAllocation = "base:allocation"

// DirtyBitmap is the metadata context under which QEMU and libvirt offer the
// dirty bitmap of that name. Bit 0 of its flags means dirty.
func DirtyBitmap(name string) string { return "qemu:dirty-bitmap:" + name }

const flagDirty = 1

// Extent is a run of bytes with one status in some metadata context.
type Extent struct {
	Off, Len int64
	Flags    uint32 // their meaning is the context's
}

// End is the offset behind the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// BlockStatus describes the n bytes from off in a metadata context that was
// selected: NBD_CMD_BLOCK_STATUS. The extents are in order and without a gap,
// neighbours with the same flags merged. The answer may stop early, after at
// least one extent; the caller goes on behind it. It fails with
// [share.ErrNotExist] if the context was not selected.
func (c *Client) BlockStatus(ctx context.Context, context string, off, n int64) ([]Extent, error) {
	k := c.pick()
	id, ok := k.contexts[context]
	if !ok {
		return nil, fmt.Errorf("nbd: metadata context %s was not selected; name it in MetaContexts: %w", quote(context), share.ErrNotExist)
	}
	if err := c.checkRange(CmdBlockStatus, off, n); err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, c.usable(ctx)
	}
	o := newOp(1)
	defer o.unref()
	r := &o.pieces[0]
	r.op, r.cmd, r.off, r.n, r.ctx = o, CmdBlockStatus, off, min(n, maxBodiless), id
	if err := c.run(ctx, o, k); err != nil {
		return nil, err
	}
	return o.extents, nil
}

// Extents describes the n bytes from off by base:allocation. It may stop
// early; see [share.ListExtents]. Without that context it fails with
// errors.ErrUnsupported.
func (c *Client) Extents(ctx context.Context, off, n int64) ([]share.Extent, error) {
	if err := c.checkRange(CmdBlockStatus, off, n); err != nil {
		return nil, err
	}
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	if _, ok := c.conns[0].contexts[ContextAllocation]; !ok {
		return nil, fmt.Errorf("nbd: the server does not tell allocation: %w", errors.ErrUnsupported)
	}
	raw, err := c.BlockStatus(ctx, ContextAllocation, off, n)
	if err != nil {
		return nil, err
	}
	all := make([]share.Extent, len(raw))
	for i, e := range raw {
		all[i] = share.Extent{Off: e.Off, Len: e.Len, State: share.ExtentState(e.Flags) & (share.ExtentHole | share.ExtentZero)}
	}
	return all, nil
}

// DirtyExtents lists what the dirty bitmap of that name calls dirty in all n
// bytes from off: parts whose content has changed, in order, neighbours
// merged, all in the state data. The context DirtyBitmap(name) must have been
// selected, else it fails with [share.ErrNotExist].
func (c *Client) DirtyExtents(ctx context.Context, name string, off, n int64) ([]share.Extent, error) {
	if err := c.checkRange(CmdBlockStatus, off, n); err != nil {
		return nil, err
	}
	var dirty []share.Extent
	for end := off + n; off < end; {
		part, err := c.BlockStatus(ctx, DirtyBitmap(name), off, end-off)
		if err != nil {
			return nil, err
		}
		for _, e := range part {
			off = e.End()
			if e.Flags&flagDirty == 0 {
				continue
			}
			if k := len(dirty); k > 0 && dirty[k-1].End() == e.Off {
				dirty[k-1].Len += e.Len
				continue
			}
			dirty = append(dirty, share.Extent{Off: e.Off, Len: e.Len})
		}
	}
	return dirty, nil
}
