package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate"
)

// A reader that does not read holds nothing up, and sees by the gap that it
// missed something, but never the end.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		finish := make(chan struct{})
		job := migrate.Go(context.Background(), "job", func(_ context.Context, r *migrate.Reporter) (migrate.Result, error) {
			for i := range 10_000 {
				r.Update(func(p *migrate.Progress) { p.Round = i })
			}
			<-finish
			return migrate.Result{Phase: migrate.PhaseDone}, nil
		})
		var seen []uint64
		first := true
		for e := range job.Events(context.Background()) {
			if first {
				first = false
				synctest.Wait() // the job is far ahead now
				close(finish)
			}
			seen = append(seen, e.Seq)
			if e.Kind == migrate.JobEnded {
				require.Equal(t, 9999, e.Progress.Round)
			}
		}
		require.Equal(t, uint64(10_002), seen[len(seen)-1])
		require.Less(t, len(seen), 10_002)
	})
}

// Several readers each see the same; one that leaves does not disturb.
func TestManyReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		job := migrate.Go(context.Background(), "job", func(ctx context.Context, r *migrate.Reporter) (migrate.Result, error) {
			for p := migrate.PhasePreparing; p <= migrate.PhaseVerifying; p++ {
				r.Enter(p)
				time.Sleep(time.Second)
			}
			r.Warn(errors.New("something"))
			return migrate.Result{Phase: migrate.PhaseFailed}, errors.New("the end")
		})
		counts := make(chan int)
		for range 3 {
			go func() {
				n := 0
				for range job.Events(context.Background()) {
					n++
				}
				counts <- n
			}()
		}
		for range job.Events(context.Background()) {
			break
		}
		left, cancel := context.WithCancel(context.Background())
		cancel()
		for range job.Events(left) {
		}
		for range 3 {
			require.Equal(t, 8, <-counts)
		}
		res, err := job.Wait(context.Background())
		require.EqualError(t, err, "the end")
		require.Equal(t, "job", res.ID)
		require.Equal(t, 5*time.Second, res.Total)
	})
}

func TestWaitEndsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		job := migrate.Go(context.Background(), "job", func(ctx context.Context, _ *migrate.Reporter) (migrate.Result, error) {
			<-ctx.Done()
			return migrate.Result{}, context.Cause(ctx)
		})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := job.Wait(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		select {
		case <-job.Done():
			t.Fatal("the end of the waiting ended the job")
		default:
		}
		require.NoError(t, job.Close())
		require.NoError(t, job.Close())
		_, err = job.Wait(context.Background())
		require.ErrorIs(t, err, migrate.ErrCancelled)
	})
}

// Downtime is the sum of the pauses.
func TestDowntime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		job := migrate.Go(context.Background(), "job", func(_ context.Context, r *migrate.Reporter) (migrate.Result, error) {
			for range 2 {
				r.Paused()
				r.Paused()
				time.Sleep(3 * time.Second)
				r.Resumed()
				r.Resumed()
				time.Sleep(time.Second)
			}
			return migrate.Result{}, nil
		})
		res, err := job.Wait(context.Background())
		require.NoError(t, err)
		require.Equal(t, 6*time.Second, res.Downtime)
		require.Equal(t, 8*time.Second, res.Total)
	})
}

func TestNames(t *testing.T) {
	for p := migrate.PhaseUnknown; p <= migrate.PhaseIndeterminate; p++ {
		require.NotContains(t, p.String(), "Phase(")
	}
	for p := migrate.PhaseUnknown; p <= migrate.PhaseIndeterminate; p++ {
		var back migrate.Phase
		require.NoError(t, back.UnmarshalText([]byte(p.String())))
		require.Equal(t, p, back)
	}
	for k := migrate.UnknownEvent; k <= migrate.JobEnded; k++ {
		var back migrate.EventKind
		require.NoError(t, back.UnmarshalText([]byte(k.String())))
		require.Equal(t, k, back)
	}
	require.Error(t, new(migrate.Phase).UnmarshalText([]byte("no phase")))
	require.Error(t, new(migrate.EventKind).UnmarshalText([]byte("no kind")))
	require.Equal(t, "Phase(99)", migrate.Phase(99).String())
	require.Equal(t, "phase", migrate.PhaseEntered.String())
	require.Equal(t, "EventKind(99)", migrate.EventKind(99).String())
}

func ExampleJob_Events() {
	job := migrate.Go(context.Background(), "vm1", func(_ context.Context, r *migrate.Reporter) (migrate.Result, error) {
		r.Enter(migrate.PhasePreparing)
		r.Enter(migrate.PhaseCopying)
		return migrate.Result{Phase: migrate.PhaseDone}, nil
	})
	for e := range job.Events(context.Background()) {
		fmt.Println(e.Kind, e.Phase)
	}
	// Output:
	// phase preparing
	// phase copying
	// phase done
	// ended done
}
