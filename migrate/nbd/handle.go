package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/vmferry/vmferry/share"
)

// task is a request under way in a session, with the memory for its data.
type task struct {
	header
	code   Errno // set if the request is refused as it stands
	buf    *buffer
	data   []byte
	held   int64 // bytes of the budgets
	waiter waiter

	status []contextStatus
}

type contextStatus struct {
	id      uint32
	extents []Extent
}

var tasks = sync.Pool{New: func() any { return &task{waiter: newWaiter()} }}

// check refuses what the protocol does not allow to ask for.
func (t *session) check(h header) Errno {
	var flags uint16 = cmdFlagFUA // allowed, if useless, with every command
	beyond := EINVAL
	changes, long := false, false
	switch h.cmd {
	case CmdRead:
		if t.structured {
			flags |= cmdFlagDF
		}
	case CmdWrite:
		beyond, changes = ENOSPC, true
	case CmdTrim:
		changes, long = true, true
	case CmdWriteZeroes:
		beyond, changes, long = ENOSPC, true, true
		flags |= cmdFlagNoHole | cmdFlagFastZero
	case CmdBlockStatus:
		long = true
		flags |= cmdFlagReqOne
		if len(t.selected) == 0 || h.n == 0 {
			return EINVAL
		}
	case CmdFlush:
		if h.off != 0 || h.n != 0 {
			return EINVAL
		}
	default:
		return EINVAL
	}
	size, sizes := uint64(t.export.size), t.export.BlockSizes
	least := uint64(sizes.Minimum)
	switch {
	case h.flags&^flags != 0:
		return EINVAL
	case changes && t.export.ReadOnly:
		return EPERM
	case h.off > size || uint64(h.n) > size-h.off:
		return beyond
	case h.off%least != 0 || uint64(h.n)%least != 0 && h.off+uint64(h.n) != size:
		return EINVAL
	case !long && int64(h.n) > sizes.Maximum:
		return EINVAL
	}
	return 0
}

func (t *session) worker() {
	for k := range t.work {
		code := k.code
		if code == 0 {
			if err := t.do(t.ctx, k); err != nil {
				code = errnoOf(err)
				t.log.Warn("nbd: command failed", "cmd", k.cmd, "off", k.off, "len", k.n, "code", code, "err", err)
			}
		}
		k.code = code
		t.reply(k)
	}
}

// do carries a checked request out.
func (t *session) do(ctx context.Context, k *task) error {
	dev, off, n := t.export.Device, int64(k.off), int64(k.n)
	var err error
	switch k.cmd {
	case CmdRead:
		return dev.ReadAt(ctx, k.data, off)
	case CmdWrite:
		err = dev.WriteAt(ctx, k.data, off)
	case CmdFlush:
		return dev.Flush(ctx)
	case CmdTrim:
		err = share.DiscardRange(ctx, dev, off, n)
	case CmdWriteZeroes:
		var flags share.ZeroFlags
		if k.flags&cmdFlagNoHole != 0 {
			flags |= share.ZeroKeepAllocated
		}
		if k.flags&cmdFlagFastZero != 0 {
			flags |= share.ZeroFast
		}
		err = share.ZeroRange(ctx, dev, off, n, flags)
	case CmdBlockStatus:
		most := maxExtents
		if k.flags&cmdFlagReqOne != 0 {
			most = 1
		}
		for _, id := range t.selected {
			extents, err := t.export.status(ctx, t.export.contexts[id], off, n, most)
			if err != nil {
				return err
			}
			k.status = append(k.status, contextStatus{id, extents})
		}
		return nil
	}
	if err == nil && k.flags&cmdFlagFUA != 0 {
		err = dev.Flush(ctx)
	}
	return err
}

// leastHole is the size from which a read of zeros is answered as a hole.
const leastHole = 4096

// reply queues the answer of k, and sends what is queued unless another worker
// is at it, who then sends this one too: many answers go with one system call.
func (t *session) reply(k *task) {
	t.answers <- k // a client that does not take its answers blocks the workers
	for len(t.answers) > 0 && t.mu.TryLock() {
		t.sendAnswers()
		t.mu.Unlock()
		// Who failed to lock has queued before: look again.
	}
}

// sendAnswers sends what is queued. A connection that does not take it ends.
func (t *session) sendAnswers() {
	t.batch = t.batch[:0]
	bytes := 0
	for len(t.answers) > 0 && bytes+len(t.out.copied()) < batchBytes {
		k := <-t.answers
		t.batch = append(t.batch, k)
		bytes += len(k.data)
		t.encode(k, k.code)
	}
	if !t.dead {
		t.writing.Store(t.tick.Load())
		err := t.out.flush()
		t.writing.Store(0)
		if err != nil {
			t.dead = true
			t.stop(fmt.Errorf("nbd: sending answers: %w", err))
		}
	}
	for _, k := range t.batch {
		t.release(k)
	}
}

// encode adds the answer of k to those to be sent.
func (t *session) encode(k *task, code Errno) {
	if t.dead {
		return
	}
	b := t.out.copied()
	switch {
	case !t.structured:
		t.out.keep(appendSimple(b, code, k.cookie))
		if code == 0 && len(k.data) > 0 && k.cmd == CmdRead {
			t.out.ref(k.data)
		}
	case code != 0:
		b = appendChunk(b, chunkFlagDone, chunkError, k.cookie, 6)
		b = binary.BigEndian.AppendUint32(b, uint32(code))
		t.out.keep(binary.BigEndian.AppendUint16(b, 0))
	case k.cmd == CmdRead && len(k.data) >= leastHole && isZero(k.data):
		b = appendChunk(b, chunkFlagDone, chunkOffsetHole, k.cookie, 12)
		b = binary.BigEndian.AppendUint64(b, k.off)
		t.out.keep(binary.BigEndian.AppendUint32(b, k.n))
	case k.cmd == CmdRead && len(k.data) > 0:
		b = appendChunk(b, chunkFlagDone, chunkOffsetData, k.cookie, 8+k.n)
		t.out.keep(binary.BigEndian.AppendUint64(b, k.off))
		t.out.ref(k.data)
	case k.cmd == CmdBlockStatus:
		for i, c := range k.status {
			var flags uint16
			if i == len(k.status)-1 {
				flags = chunkFlagDone
			}
			b = appendChunk(b, flags, chunkBlockStatus, k.cookie, uint32(4+8*len(c.extents)))
			b = binary.BigEndian.AppendUint32(b, c.id)
			for _, e := range c.extents {
				b = binary.BigEndian.AppendUint32(b, uint32(e.Len))
				b = binary.BigEndian.AppendUint32(b, e.Flags)
			}
		}
		t.out.keep(b)
	default:
		t.out.keep(appendChunk(b, chunkFlagDone, chunkNone, k.cookie, 0))
	}
}
