package sharetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Fault is one thing that goes wrong with a call.
type Fault struct {
	// Op is the call that it hits; "" is any. Devices: read, write, flush,
	// zero, discard, extents, close. Shares: stat, publish, create, delete,
	// list, resize, snapshot, snapshots, roll back, delete snapshot, clone,
	// open, changes, lock, release, health, close.
	Op string
	// N is which of the calls of Op it hits, counted from 1; 0 is each.
	N int
	// Err is what the call returns: share.ErrNoSpace, syscall.EIO, ….
	// Nil with no Hang is a Delay alone.
	Err error
	// After has the call take effect before it fails: the acknowledgement is
	// lost.
	After bool
	// Part has a write take effect for so many bytes from its beginning before
	// it fails.
	Part int64
	// Torn has a write take effect for some sectors of 512 bytes before it
	// fails.
	Torn bool
	// Delay comes before anything else. The context ends it.
	Delay time.Duration
	// Hang has the call wait until its context ends and return its error; with
	// After, Part or Torn when it has had that effect. Err is not used.
	Hang bool
}

// Schedule says which calls go wrong. One may be given to several wrappers; it
// may be used from several goroutines at once.
type Schedule struct {
	mu       sync.Mutex
	script   []Fault
	seen     []int // calls that matched script[i]
	rnd      *rand.Rand
	rate     float64
	off      bool
	calls    int
	injected []string
}

// Script hits the calls that the faults name.
func Script(faults ...Fault) *Schedule {
	return &Schedule{script: faults, seen: make([]int, len(faults)), rnd: rand.New(rand.NewPCG(1, 1))}
}

// Seeded hits each call with a probability of rate, with one of the faults
// whose Op matches, at random; their N is not used. The same seed and the same
// order of calls give the same faults.
func Seeded(seed uint64, rate float64, faults ...Fault) *Schedule {
	return &Schedule{script: faults, rate: rate, rnd: rand.New(rand.NewPCG(seed, 2))}
}

// Stop ends the faults: what is called from now on goes well.
func (s *Schedule) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off = true
}

// Injected lists the calls that were hit, as "op #number of the call".
func (s *Schedule) Injected() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.injected...)
}

// next is the fault for a call of op.
func (s *Schedule) next(op string) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	f, hit := s.pick(op)
	if hit {
		s.injected = append(s.injected, fmt.Sprintf("%s #%d", op, s.calls))
	}
	return f, hit
}

func (s *Schedule) pick(op string) (hit Fault, found bool) {
	if s.off {
		return hit, false
	}
	if s.seen == nil { // by seed
		if s.rnd.Float64() >= s.rate {
			return hit, false
		}
		var fit []Fault
		for _, f := range s.script {
			if f.Op == "" || f.Op == op {
				fit = append(fit, f)
			}
		}
		if len(fit) == 0 {
			return hit, false
		}
		return fit[s.rnd.IntN(len(fit))], true
	}
	for i, f := range s.script {
		if f.Op != "" && f.Op != op {
			continue
		}
		s.seen[i]++
		if !found && (f.N == 0 || f.N == s.seen[i]) {
			hit, found = f, true
		}
	}
	return hit, found
}

// tears decides for each sector whether it is written.
func (s *Schedule) tears() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rnd.IntN(2) == 0
}

// faulty makes one call under the schedule. partly does what a fault with Part
// or Torn does instead of the whole; nil where a call has no parts.
func faulty[T any](ctx context.Context, s *Schedule, op string, do func() (T, error), partly func(Fault) error) (T, error) {
	var none T
	f, hit := s.next(op)
	if !hit {
		return do()
	}
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-ctx.Done():
			return none, ctx.Err()
		}
	}
	if f.Err == nil && !f.Hang {
		return do()
	}
	switch {
	case f.After:
		if _, err := do(); err != nil {
			return none, err
		}
	case partly != nil && (f.Part > 0 || f.Torn):
		if err := partly(f); err != nil {
			return none, err
		}
	}
	if f.Hang {
		<-ctx.Done()
		return none, ctx.Err()
	}
	return none, f.Err
}
