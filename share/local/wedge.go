package local

import (
	"context"
	"fmt"
	"time"

	"github.com/vmferry/vmferry/share"
)

// grace is how long a call goes on after its context ended, for a file system
// that answers. One that does not is given up: see share.ErrWedged.
const grace = time.Second

// await runs f and returns what it returns. When ctx ends, f is expected to
// notice soon; if it hangs in the kernel, as on a file server that is gone,
// await leaves it alone and reports ErrWedged. What f holds stays held until
// it ends.
func await[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	type result struct {
		v   T
		err error
	}
	ch := make(chan result, 1)
	go func() {
		r := result{err: errEnded}
		defer func() { ch <- r }()
		r.v, r.err = f(ctx)
	}()
	select {
	case r := <-ch:
		return r.v, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-ch:
		return r.v, r.err
	case <-time.After(grace):
	}
	go func() { // nobody will take what f opens
		if r := <-ch; r.err == nil {
			if c, ok := any(r.v).(closer); ok {
				_ = c.Close()
			}
		}
	}()
	return none, wedged(ctx.Err())
}

// errEnded is returned where f ended its goroutine.
var errEnded = fmt.Errorf("the operation %w", context.Canceled)

func wedged(cause error) error {
	return fmt.Errorf("the file system %w: it did not answer within %v after the call was to end: %w", share.ErrWedged, grace, cause)
}
