package sharetest_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// How the test of a backend looks. Here the backend is the one in memory.
func ExampleRun() {
	test := func(t *testing.T) { // func TestConformance(t *testing.T)
		sharetest.Run(t, sharetest.Harness{
			Clients: []share.Client{share.LocalHost()},
			New: func(t testing.TB) sharetest.Storage {
				pool := sharetest.NewMem(nil)
				return sharetest.Storage{
					Open: func(t testing.TB) share.Share { return pool.Reopen() },
				}
			},
		})
	}
	_ = test
	// Output:
}

// A disk that loses power in the middle of its work.
func ExampleMemDevice_Crash() {
	ctx := context.Background()
	d := sharetest.NewDevice(1 << 20)
	_ = d.WriteAt(ctx, []byte("first"), 0)
	_ = d.Flush(ctx)
	_ = d.WriteAt(ctx, []byte("later"), 512)

	d = d.Crash(3) // the seed decides what becomes of what was not flushed
	p := make([]byte, 5)
	_ = d.ReadAt(ctx, p, 0)
	fmt.Printf("%s\n", p)
	// Output: first
}

// A server that does the work, and whose answer gets lost.
func ExampleFaultyShare() {
	ctx := context.Background()
	mem := sharetest.NewMem(nil)
	s := sharetest.FaultyShare(mem, sharetest.Script(
		sharetest.Fault{Op: "create", N: 1, Err: share.ErrUnavailable, After: true},
	))
	spec := share.Spec{Name: "vm1", Kind: share.Disk, Size: share.GiB}
	_, err := share.Create(ctx, s, spec)
	fmt.Println(err, share.Retryable(err))
	v, err := share.Create(ctx, s, spec) // finds what the first call made
	fmt.Println(v.Name, err)
	// Output:
	// is unavailable true
	// vm1 <nil>
}
