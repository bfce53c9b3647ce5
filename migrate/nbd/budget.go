package nbd

import (
	"context"
	"sync"
)

// budget is a number of bytes that requests in flight share. It is fair: who
// came first is served first, so that small requests cannot starve a large
// one. In the steady state it allocates nothing.
type budget struct {
	total int64

	mu          sync.Mutex
	used        int64
	first, last *waiter
}

// waiter is a place in the queue of a budget. It is part of a request, and
// in one queue at a time.
type waiter struct {
	n     int64
	next  *waiter
	ready chan struct{} // of capacity 1
}

func newWaiter() waiter { return waiter{ready: make(chan struct{}, 1)} }

func newBudget(total int64) *budget { return &budget{total: total} }

// acquire takes n bytes, which are to be released. More than the whole budget
// counts as the whole budget: such a request goes alone.
func (b *budget) acquire(ctx context.Context, n int64, w *waiter) error {
	if b.try(n, w) {
		return nil
	}
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for p, at := (*waiter)(nil), b.first; at != nil; p, at = at, at.next {
		if at != w {
			continue
		}
		if p == nil {
			b.first = w.next
		} else {
			p.next = w.next
		}
		if b.last == w {
			b.last = p
		}
		b.grant() // the next one may be smaller
		return ctx.Err()
	}
	<-w.ready // granted while we came here: keep it
	return nil
}

// try takes n bytes if they are free, else puts w into the queue.
func (b *budget) try(n int64, w *waiter) bool {
	n = min(n, b.total)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.first == nil && b.used+n <= b.total {
		b.used += n
		return true
	}
	w.n, w.next = n, nil
	if b.last == nil {
		b.first = w
	} else {
		b.last.next = w
	}
	b.last = w
	return false
}

func (b *budget) release(n int64) {
	b.mu.Lock()
	b.used -= min(n, b.total)
	b.grant()
	b.mu.Unlock()
}

func (b *budget) grant() {
	for w := b.first; w != nil && b.used+w.n <= b.total; w = b.first {
		b.used += w.n
		b.first = w.next
		if b.first == nil {
			b.last = nil
		}
		w.ready <- struct{}{}
	}
}
