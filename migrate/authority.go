package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Record says who may run a guest. It changes only by compare-and-swap in an
// [Authority], and its epoch only grows.
type Record struct {
	Guest string `json:"guest"`
	// Epoch counts the changes of owner from 1.
	Epoch uint64 `json:"epoch"`
	// Owner is the host that may run the guest in this epoch, by the name that
	// [Move] gives it.
	Owner string `json:"owner"`
}

// Authority is the store of records. It is asked by both sides and must be
// reachable from both; a file on shared storage or a cluster's store.
type Authority interface {
	// Load returns the guest's record; the zero Record if there is none.
	Load(ctx context.Context, guest string) (Record, error)
	// Swap replaces the record old by new, atomically and durably. The zero
	// Record stands for there being none. An error that is [ErrLost] says that
	// the record was another one, and nothing changed. After any other error
	// it is unknown whether it changed, now or later.
	Swap(ctx context.Context, guest string, old, new Record) error
}

// ErrLost is the error of a swap whose old record was not the current one.
var ErrLost = errors.New("the authority's record is another one")

// MemAuthority is an [Authority] within this program: enough where both sides
// of a move are served by it. The zero value is empty and ready.
type MemAuthority struct {
	mu      sync.Mutex
	records map[string]Record
}

// Load returns the guest's record.
func (a *MemAuthority) Load(ctx context.Context, guest string) (Record, error) {
	if err := ctx.Err(); err != nil {
		return Record{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.records[guest], nil
}

// Swap replaces the record.
func (a *MemAuthority) Swap(ctx context.Context, guest string, old, new Record) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: nothing was swapped: %w", ErrLost, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.records[guest] != old {
		return fmt.Errorf("%w: it is %+v, not %+v", ErrLost, a.records[guest], old)
	}
	if a.records == nil {
		a.records = map[string]Record{}
	}
	a.records[guest] = new
	return nil
}
