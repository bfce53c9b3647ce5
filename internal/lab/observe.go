package lab

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/vmferry/vmferry/internal/lab/record"
)

// Arrival is a heartbeat, and where and when the lab saw it.
type Arrival struct {
	At   time.Time // with the monotonic clock of the lab's program
	Host *Host     // whose cable it came from
	record.Beat
}

// Acked is what a disk's writer has acknowledged: every sequence from 1 to
// Sequence was written and flushed, on the ring given.
type Acked struct {
	Serial   string
	Ring     record.Ring
	Sequence uint64
	Errors   uint64 // writes that failed
}

// Gap is a time in which no heartbeat was seen.
type Gap struct {
	From, To time.Time
}

// Length is the time from the last heartbeat before the gap to the first after
// it.
func (g Gap) Length() time.Duration { return g.To.Sub(g.From) }

// Conflict is evidence that a guest ran twice: an arrival that no single
// history holds together with one that was seen before.
type Conflict struct {
	Before, After Arrival
	Reason        string
}

func (c Conflict) String() string {
	return fmt.Sprintf("%s: beat %d of instance %x from %s, after beat %d of instance %x from %s",
		c.Reason, c.After.Number, c.After.Instance, c.After.Host.Name(), c.Before.Number, c.Before.Instance, c.Before.Host.Name())
}

// Watch observes a guest from outside, from its start on. Its methods may be
// called concurrently.
type Watch struct {
	mu        sync.Mutex
	seen      []sight
	last      Arrival
	acked     map[string]Acked
	order     []string
	highest   map[uint64]Arrival // by instance: the beat with the highest number
	memory    uint64
	conflicts []Conflict
	news      chan struct{} // closed and replaced at each arrival
}

// sight is what is kept of every arrival.
type sight struct {
	at   time.Time
	host *Host
}

const mostConflicts = 100

func newWatch() *Watch {
	return &Watch{acked: map[string]Acked{}, highest: map[uint64]Arrival{}, news: make(chan struct{})}
}

func (w *Watch) arrive(a Arrival) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.judge(a) {
		return
	}
	w.seen = append(w.seen, sight{a.At, a.Host})
	w.last = a
	w.memory = max(w.memory, a.Memory.Errors)
	for _, d := range a.Disks {
		k, known := w.acked[d.Serial]
		if !known {
			w.order = append(w.order, d.Serial)
		}
		k.Serial, k.Ring = d.Serial, d.Ring
		k.Sequence, k.Errors = max(k.Sequence, d.Acked), max(k.Errors, d.Errors)
		w.acked[d.Serial] = k
	}
	close(w.news)
	w.news = make(chan struct{})
}

// judge looks for a second history and says whether the arrival is news.
func (w *Watch) judge(a Arrival) bool {
	before, known := w.highest[a.Instance]
	reason := ""
	switch {
	case known && a.Number == before.Number && reflect.DeepEqual(a.Beat, before.Beat):
		return false // the same datagram twice: switches may
	case known && a.Number <= before.Number:
		reason = "a beat with a number that was sent already"
	case known && w.last.Instance != a.Instance:
		before, reason = w.last, "an earlier boot beats on"
	default:
		// One boot never takes back what an earlier one acknowledged.
		for _, d := range a.Disks {
			if k := w.acked[d.Serial]; !known && d.Acked < k.Sequence {
				before, reason = w.last, fmt.Sprintf("disk %s came back at %d, behind %d", d.Serial, d.Acked, k.Sequence)
			}
		}
	}
	if reason != "" && len(w.conflicts) < mostConflicts {
		w.conflicts = append(w.conflicts, Conflict{Before: before, After: a, Reason: reason})
	}
	if !known || a.Number > before.Number {
		w.highest[a.Instance] = a
	}
	return true
}

// Last is the newest heartbeat; ok is false before the first.
func (w *Watch) Last() (a Arrival, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last, len(w.seen) > 0
}

// Beats is how many heartbeats were seen.
func (w *Watch) Beats() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.seen)
}

// Acked is what each disk has acknowledged, in the order of GuestOptions.
func (w *Watch) Acked() []Acked {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Acked
	for _, serial := range w.order {
		all = append(all, w.acked[serial])
	}
	return all
}

// LongestGap is the longest time without a heartbeat since a moment, the one
// that lasts now included. A gap that had begun before counts from since on.
func (w *Watch) LongestGap(since time.Time) Gap {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest := Gap{From: since, To: since}
	from := since
	consider := func(to time.Time) {
		if g := (Gap{from, to}); g.Length() > longest.Length() {
			longest = g
		}
		from = to
	}
	for _, s := range w.seen {
		if s.at.After(since) {
			consider(s.at)
		}
	}
	consider(time.Now())
	return longest
}

// MemoryErrors is how many pages the guest has found corrupt.
func (w *Watch) MemoryErrors() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.memory
}

// Conflicts is the evidence, if there is any, that the guest ran twice at a
// time or went back in time.
func (w *Watch) Conflicts() []Conflict {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Conflict(nil), w.conflicts...)
}

// Hosts are the hosts whose cable carried a heartbeat since a moment, in the
// order of their first.
func (w *Watch) Hosts(since time.Time) []*Host {
	w.mu.Lock()
	defer w.mu.Unlock()
	var hosts []*Host
	seen := map[*Host]bool{}
	for _, s := range w.seen {
		if s.at.After(since) && !seen[s.host] {
			seen[s.host] = true
			hosts = append(hosts, s.host)
		}
	}
	return hosts
}

// Until waits for a heartbeat that satisfies cond, the last one included, and
// returns it.
func (w *Watch) Until(ctx context.Context, cond func(Arrival) bool) (Arrival, error) {
	for {
		w.mu.Lock()
		last, any, news := w.last, len(w.seen) > 0, w.news
		w.mu.Unlock()
		if any && cond(last) {
			return last, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return last, fmt.Errorf("lab: waiting for a heartbeat: %w", context.Cause(ctx))
		}
	}
}

// Healthy returns an error that names everything a Watch can hold against a
// guest: memory errors, failed writes, signs of a second copy.
func (w *Watch) Healthy() error {
	if n := w.MemoryErrors(); n > 0 {
		return fmt.Errorf("lab: guest found %d corrupt pages of memory", n)
	}
	for _, k := range w.Acked() {
		if k.Errors > 0 {
			return fmt.Errorf("lab: %d writes to disk %s failed in the guest", k.Errors, k.Serial)
		}
	}
	if c := w.Conflicts(); len(c) > 0 {
		return fmt.Errorf("lab: guest ran twice: %v (%d such beats)", c[0], len(c))
	}
	return nil
}
