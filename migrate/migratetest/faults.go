package migratetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
)

// Fault is what happens to one call.
type Fault uint8

const (
	// None: the call does what it should.
	None Fault = iota
	// Before: the call fails and has no effect.
	Before
	// After: the call has its effect, and the caller gets an error.
	After
	// Late: the caller gets an error, and the effect comes later; see
	// [Store.DeliverLate]. Where a thing cannot happen late it is Before.
	Late
	// Hang: the call waits for the end of its context, without effect.
	Hang
)

func (f Fault) String() string {
	return [...]string{"none", "before", "after", "late", "hang"}[f]
}

// InjectedError is the error of a call that was made to fail.
type InjectedError struct {
	Op    string
	Fault Fault
}

func (e *InjectedError) Error() string {
	return fmt.Sprintf("%s: injected fault (%s its effect)", e.Op, e.Fault)
}

// Faults decides for each call what happens to it. A nil Faults lets all
// succeed.
type Faults func(op string) Fault

// Script lets the calls of an operation fail in order: the first as the first
// element says, and so on; the rest succeed.
func Script(script map[string][]Fault) Faults {
	var mu sync.Mutex
	n := map[string]int{}
	return func(op string) Fault {
		mu.Lock()
		defer mu.Unlock()
		i := n[op]
		n[op]++
		if i < len(script[op]) {
			return script[op][i]
		}
		return None
	}
}

// Seeded lets one call in n fail, in a way that the seed decides.
func Seeded(seed uint64, n int, of ...Fault) Faults {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 1))
	return func(string) Fault {
		mu.Lock()
		defer mu.Unlock()
		if rng.IntN(n) > 0 {
			return None
		}
		return of[rng.IntN(len(of))]
	}
}

// run calls effect as the fault for op wants it.
func (f Faults) run(ctx context.Context, op string, effect func() error) error {
	fault := None
	if f != nil {
		fault = f(op)
	}
	switch fault {
	case Before, Late:
		return &InjectedError{op, fault}
	case Hang:
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if err := effect(); err != nil {
		return err
	}
	if fault == After {
		return &InjectedError{op, fault}
	}
	return nil
}
