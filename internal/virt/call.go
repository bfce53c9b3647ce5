package virt

import (
	"context"
	"fmt"

	"github.com/vmferry/vmferry/share"
)

// Read runs f, a call into libvirt that changes nothing, and returns its result
// or, where ctx ends first, an error that wraps [share.ErrUnavailable] and the
// context's cause. A call cannot be taken back from libvirt: one that is left
// behind ends by itself some day, and free, if not nil, then gets its result.
func Read[T any](ctx context.Context, what string, f func() (T, error), free func(T)) (T, error) {
	v, err, left := run(ctx, f, free)
	if left {
		return v, fmt.Errorf("%s: libvirt does not answer and %w: %w", what, share.ErrUnavailable, err)
	}
	return v, Error(what, err)
}

// Change is Read for a call that changes something: left behind, its outcome is
// unknown, and the error wraps [share.ErrWedged].
func Change[T any](ctx context.Context, what string, f func() (T, error), free func(T)) (T, error) {
	v, err, left := run(ctx, f, free)
	if left {
		return v, fmt.Errorf("%s: libvirt does not answer, and the call %w: %w", what, share.ErrWedged, err)
	}
	return v, Error(what, err)
}

// run waits for f or the end of ctx; left says that it was the latter.
func run[T any](ctx context.Context, f func() (T, error), free func(T)) (v T, err error, left bool) {
	if ctx.Err() != nil {
		return v, context.Cause(ctx), true
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err, false
	case <-ctx.Done():
	}
	select {
	case r := <-done: // both at once: the result counts
		return r.v, r.err, false
	default:
	}
	if free != nil {
		go func() {
			if r := <-done; r.err == nil {
				free(r.v)
			}
		}()
	}
	return v, context.Cause(ctx), true
}
