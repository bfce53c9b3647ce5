package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vmferry/vmferry/share"
)

// memory is a device for tests: it keeps bytes, knows which blocks were
// zeroed or discarded, and can be paused or made to fail.
type memory struct {
	mu     sync.RWMutex
	data   []byte
	hole   []bool // by block
	pause  chan struct{}
	failed map[int64]error // by offset of the request
	calls  map[string]int
	closed bool
}

const memBlock = 4096

func newMemory(size int64) *memory {
	m := &memory{data: make([]byte, size), hole: make([]bool, (size+memBlock-1)/memBlock), calls: map[string]int{}}
	for i := range m.hole {
		m.hole[i] = true
	}
	return m
}

func (m *memory) begin(ctx context.Context, what string, off, n int64) error {
	m.mu.Lock()
	m.calls[what]++
	pause, err := m.pause, m.failed[off]
	m.mu.Unlock()
	if pause != nil {
		select {
		case <-pause:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return share.CheckRange(int64(len(m.data)), off, n)
}

func (m *memory) count(what string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[what]
}

// content is a copy of what is stored.
func (m *memory) content() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Clone(m.data)
}

// setPause makes all later calls wait until resume is called.
func (m *memory) setPause() (resume func()) {
	c := make(chan struct{})
	m.mu.Lock()
	m.pause = c
	m.mu.Unlock()
	return sync.OnceFunc(func() {
		m.mu.Lock()
		m.pause = nil
		m.mu.Unlock()
		close(c)
	})
}

func (m *memory) fail(off int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed == nil {
		m.failed = map[int64]error{}
	}
	m.failed[off] = err
}

func (m *memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := m.begin(ctx, "read", off, int64(len(p))); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	copy(p, m.data[off:])
	return nil
}

func (m *memory) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := m.begin(ctx, "write", off, int64(len(p))); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:], p)
	m.mark(off, int64(len(p)), false)
	return nil
}

func (m *memory) mark(off, n int64, hole bool) {
	for b := off / memBlock; n > 0 && b <= (off+n-1)/memBlock; b++ {
		if whole := b*memBlock >= off && (b+1)*memBlock <= off+n; !hole || whole {
			m.hole[b] = hole
		}
	}
}

func (m *memory) Zero(ctx context.Context, off, n int64, flags share.ZeroFlags) error {
	if err := m.begin(ctx, fmt.Sprintf("zero%d", flags), off, n); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	m.mark(off, n, flags&share.ZeroKeepAllocated == 0)
	return nil
}

func (m *memory) Discard(ctx context.Context, off, n int64) error {
	if err := m.begin(ctx, "discard", off, n); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	m.mark(off, n, true)
	return nil
}

func (m *memory) Extents(ctx context.Context, off, n int64) ([]share.Extent, error) {
	if err := m.begin(ctx, "extents", off, n); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []share.Extent
	for at, end := off, off+n; at < end; {
		b := at / memBlock
		to := min(end, (b+1)*memBlock)
		state := share.ExtentData
		if m.hole[b] {
			state = share.ExtentHole | share.ExtentZero
		}
		if k := len(all); k > 0 && all[k-1].State == state {
			all[k-1].Len += to - at
		} else {
			all = append(all, share.Extent{Off: at, Len: to - at, State: state})
		}
		at = to
	}
	return all, nil
}

func (m *memory) Flush(ctx context.Context) error { return m.begin(ctx, "flush", 0, 0) }
func (m *memory) Size() int64                     { return int64(len(m.data)) }
func (m *memory) Close() error                    { m.closed = true; return nil }

var errBroken = errors.New("the device is broken")

// plain hides every optional interface of a device.
type plain struct{ share.Device }
