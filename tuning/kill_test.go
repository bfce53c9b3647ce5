package tuning

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// counter ends the program, or what stands for it, at the n-th point.
type counter struct {
	n    int
	end  func()
	seen []string
}

func (c *counter) pass(point string) {
	c.seen = append(c.seen, point)
	if len(c.seen) == c.n {
		c.end()
	}
}

// course applies a plan and reverts it.
func course(ctx context.Context, sys System, j *Journal) error {
	r, err := Check(ctx, sys, &CheckOptions{Class: Throughput})
	if err != nil {
		return err
	}
	p, err := r.Plan(&PlanOptions{Set: []Change{{Knob: "net.tcp-rmem", Value: "4096 131072 16777216"}}})
	if err != nil {
		return err
	}
	if _, err := Apply(ctx, sys, j, p, nil); err != nil {
		return err
	}
	_, err = Revert(ctx, sys, j, nil)
	return err
}

// memoryDir is a directory in memory where there is one: these tests sync
// thousands of times, and end programs, not power.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "vmferry-tuning-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

const killEnv = "VMFERRY_TUNING_KILL"

// TestMain is also the program that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(killEnv); dir != "" {
		n, _ := strconv.Atoi(os.Args[1])
		if err := killed(dir, n); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func killed(dir string, n int) error {
	l, err := OpenLocal(&LocalOptions{Root: filepath.Join(dir, "root"), Name: "fake"})
	if err != nil {
		return err
	}
	j, err := OpenJournal(filepath.Join(dir, "journal"))
	if err != nil {
		return err
	}
	c := &counter{n: n, end: func() {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}}
	j.at = c.pass
	return course(context.Background(), &kernel{Local: l, at: c.pass}, j)
}

// A program that is killed, really, at each point of applying and reverting
// leaves what the next Revert brings back to what it was.
func TestKilledAnywhere(t *testing.T) {
	dir := memoryDir(t)
	root := filepath.Join(dir, "root")
	plant(t, root, machine)
	before := contents(t, root)
	ctx := context.Background()
	points := 0
	for n := 1; ; n++ {
		cmd := exec.Command(os.Args[0], strconv.Itoa(n))
		cmd.Env = append(os.Environ(), killEnv+"="+dir)
		out, err := cmd.CombinedOutput()
		if err == nil {
			require.Equal(t, before, contents(t, root), "the whole course")
			break
		}
		require.ErrorContains(t, err, "signal: killed", "%s", out)
		points++
		j, err := OpenJournal(filepath.Join(dir, "journal"))
		require.NoError(t, err)
		_, err = Revert(ctx, openKernel(t, root), j, nil)
		require.NoError(t, err, "point %d", n)
		require.Equal(t, before, contents(t, root), "point %d", n)
		require.Empty(t, j.Held())
		require.Empty(t, j.Interrupted())
		require.NoError(t, j.Close())
	}
	require.Greater(t, points, 50)
	t.Logf("%d points", points)
}

// The same, killed again at each point of the Revert that follows.
func TestKilledTwice(t *testing.T) {
	dir := memoryDir(t)
	root, journal := filepath.Join(dir, "root"), filepath.Join(dir, "journal")
	plant(t, root, machine)
	before := contents(t, root)
	ctx := context.Background()
	type ended struct{}
	run := func(n int, f func(sys System, j *Journal) error) (whole bool) {
		j, err := OpenJournal(journal)
		require.NoError(t, err)
		defer j.Close()
		c := &counter{n: n, end: func() { panic(ended{}) }}
		j.at = c.pass
		sys := openKernel(t, root)
		sys.at = c.pass
		defer func() {
			if p := recover(); p != nil {
				require.Equal(t, ended{}, p)
				j.mu.TryLock()
				j.mu.Unlock()
			}
		}()
		require.NoError(t, f(sys, j))
		return true
	}
	pairs := 0
	for n := 1; ; n += 8 { // each of the first is killed above
		whole := false
		for m := 1; ; m++ {
			_ = os.Remove(journal)
			if whole = run(n, func(sys System, j *Journal) error { return course(ctx, sys, j) }); whole {
				break
			}
			again := run(m, func(sys System, j *Journal) error {
				_, err := Revert(ctx, sys, j, nil)
				return err
			})
			run(0, func(sys System, j *Journal) error {
				_, err := Revert(ctx, sys, j, nil)
				require.Empty(t, j.Held())
				return err
			})
			require.Equal(t, before, contents(t, root), "points %d, %d", n, m)
			pairs++
			if again {
				break
			}
		}
		if whole {
			break
		}
	}
	t.Logf("%d pairs of points", pairs)
	require.Greater(t, pairs, 150)
}

// A record that was cut short at any byte was not acted upon.
func TestTornRecord(t *testing.T) {
	sys, dir := newKernel(t, nil)
	before := contents(t, dir)
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "journal")
	j := openJournal(t, path)
	_, err := Apply(ctx, sys, j, planFor(t, sys, Throughput), nil)
	require.NoError(t, err)
	require.NoError(t, j.Close())
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	last := len(whole) - 2
	for whole[last] != '\n' {
		last--
	}
	for cut := last + 1; cut < len(whole); cut += 7 {
		torn := filepath.Join(t.TempDir(), "journal")
		require.NoError(t, os.WriteFile(torn, whole[:cut], 0o600))
		j := openJournal(t, torn)
		require.NotEmpty(t, j.Held())
		require.NotEmpty(t, j.Interrupted(), "its end was cut off")
		require.NoError(t, j.Close())
	}
	_, err = Revert(ctx, sys, openJournal(t, path), nil)
	require.NoError(t, err)
	require.Equal(t, before, contents(t, dir))
}
