package migratetest

import (
	"context"
	"sync"

	"github.com/vmferry/vmferry/migrate"
)

// Store is a [migrate.Authority] in memory whose replies can be lost, and whose
// swaps can be late. Its operations are "load" and "swap".
type Store struct {
	migrate.MemAuthority
	faults Faults

	mu   sync.Mutex
	late []func()
}

// NewStore makes a store that fails as f says.
func NewStore(f Faults) *Store { return &Store{faults: f} }

// Load returns the guest's record.
func (s *Store) Load(ctx context.Context, guest string) (rec migrate.Record, err error) {
	err = s.faults.run(ctx, "load", func() error {
		rec, err = s.MemAuthority.Load(ctx, guest)
		return err
	})
	return rec, err
}

// Swap replaces a record.
func (s *Store) Swap(ctx context.Context, guest string, old, new migrate.Record) error {
	f := func(op string) Fault {
		fault := None
		if s.faults != nil {
			fault = s.faults(op)
		}
		if fault == Late {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.late = append(s.late, func() { _ = s.MemAuthority.Swap(context.Background(), guest, old, new) })
		}
		return fault
	}
	return Faults(f).run(ctx, "swap", func() error { return s.MemAuthority.Swap(ctx, guest, old, new) })
}

// DeliverLate lets the swaps that were late happen now.
func (s *Store) DeliverLate() {
	s.mu.Lock()
	late := s.late
	s.late = nil
	s.mu.Unlock()
	for _, f := range late {
		f()
	}
}

// Truth returns the record without a fault, for a test's own questions.
func (s *Store) Truth(guest string) migrate.Record {
	rec, _ := s.MemAuthority.Load(context.Background(), guest)
	return rec
}

// Quiet is the same store without its faults.
func (s *Store) Quiet() migrate.Authority { return &s.MemAuthority }

// Unreliable is an authority with faults in its operations "load" and "swap".
func Unreliable(a migrate.Authority, f Faults) migrate.Authority { return &unreliable{a, f} }

type unreliable struct {
	a migrate.Authority
	f Faults
}

func (u *unreliable) Load(ctx context.Context, guest string) (rec migrate.Record, err error) {
	err = u.f.run(ctx, "load", func() error {
		rec, err = u.a.Load(ctx, guest)
		return err
	})
	return rec, err
}

func (u *unreliable) Swap(ctx context.Context, guest string, old, new migrate.Record) error {
	return u.f.run(ctx, "swap", func() error { return u.a.Swap(ctx, guest, old, new) })
}

// UnreliableJournal is a journal with faults in its operations "append" and
// "entries".
func UnreliableJournal(j migrate.Journal, f Faults) migrate.Journal { return &unreliableJournal{j, f} }

type unreliableJournal struct {
	j migrate.Journal
	f Faults
}

func (u *unreliableJournal) Append(ctx context.Context, e migrate.Entry) error {
	return u.f.run(ctx, "append", func() error { return u.j.Append(ctx, e) })
}

func (u *unreliableJournal) Entries(ctx context.Context) (list []migrate.Entry, err error) {
	err = u.f.run(ctx, "entries", func() error {
		list, err = u.j.Entries(ctx)
		return err
	})
	return list, err
}

// Journal is a [migrate.Journal] in memory. Its operation is "append".
type Journal struct {
	faults  Faults
	mu      sync.Mutex
	entries []migrate.Entry
}

// NewJournal makes a journal that fails as f says.
func NewJournal(f Faults) *Journal { return &Journal{faults: f} }

// Append keeps the entry.
func (j *Journal) Append(ctx context.Context, e migrate.Entry) error {
	return j.faults.run(ctx, "append", func() error {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.entries = append(j.entries, e)
		return nil
	})
}

// Entries returns what was appended. Its operation is "entries".
func (j *Journal) Entries(ctx context.Context) (list []migrate.Entry, err error) {
	err = j.faults.run(ctx, "entries", func() error {
		j.mu.Lock()
		defer j.mu.Unlock()
		list = append(list, j.entries...)
		return nil
	})
	return list, err
}

// Truth returns what was appended, without a fault.
func (j *Journal) Truth() []migrate.Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]migrate.Entry(nil), j.entries...)
}
