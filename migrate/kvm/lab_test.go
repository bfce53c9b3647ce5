package kvm_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/kvm"
	"github.com/vmferry/vmferry/share"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	lab.Main(m)
}

// rig is a lab with two hosts, both connected.
type rig struct {
	*testing.T
	lab   *lab.Lab
	hosts [2]*kvm.Host
}

func newRig(t *testing.T) *rig {
	t.Helper()
	lab.Require(t)
	r := &rig{T: t, lab: lab.Start(t, nil)}
	for i := range r.hosts {
		r.hosts[i] = r.connect(i)
	}
	return r
}

// with is the same lab for a subtest, which leaves it empty.
func (r *rig) with(t *testing.T) *rig {
	r = &rig{T: t, lab: r.lab, hosts: r.hosts}
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, h := range r.lab.Hosts() {
			names, err := h.Virsh(ctx, "list", "--all", "--name")
			require.NoError(r, err)
			for _, name := range strings.Fields(names) {
				_, _ = h.Virsh(ctx, "destroy", name) // or it is off
				_, _ = h.Virsh(ctx, "undefine", name)
			}
			files, err := filepath.Glob(filepath.Join(h.Dir(), "*"))
			require.NoError(r, err)
			for _, f := range files {
				require.NoError(r, os.Remove(f))
			}
		}
	})
	return r
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Minute)
	r.Cleanup(cancel)
	return ctx
}

func (r *rig) connect(i int) *kvm.Host {
	var h *kvm.Host
	var err error
	// A daemon that has just started may hang up on its first clients.
	for range 50 {
		h, err = kvm.Connect(r.ctx(), r.lab.Host(i).URI(), &kvm.ConnectOptions{KeepAlive: 2 * time.Second})
		if !share.Retryable(err) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	require.NoError(r, err)
	r.Cleanup(func() { require.NoError(r, h.Close()) })
	return h
}

func (r *rig) start(i int, o lab.GuestOptions) *lab.Guest {
	r.Helper()
	g, err := r.lab.StartGuest(r.ctx(), r.lab.Host(i), &o)
	require.NoError(r, err)
	return g
}

func (r *rig) guest(i int, g *lab.Guest) *kvm.Guest {
	k, err := r.hosts[i].Guest(r.ctx(), g.UUID)
	require.NoError(r, err)
	return k
}

func disk(name, format string) lab.Disk {
	return lab.Disk{Path: name, Format: format, Size: 64 << 20, Writes: 100}
}

// move moves the guest and waits.
func (r *rig) move(g *lab.Guest, from int, o kvm.MigrateOptions) (migrate.Result, error) {
	r.Helper()
	return r.begin(g, from, o).Wait(r.ctx())
}

// begin starts a move. The lab's hosts have no certificates.
func (r *rig) begin(g *lab.Guest, from int, o kvm.MigrateOptions) *migrate.Job {
	r.Helper()
	o.Plaintext = true
	job, err := kvm.Migrate(r.ctx(), r.guest(from, g), r.hosts[1-from], &o)
	require.NoError(r, err)
	r.Cleanup(func() { _ = job.Close() })
	if os.Getenv("VMFERRY_TRACE") != "" {
		go func() {
			for e := range job.Events(r.ctx()) {
				r.Logf("%v %v %v %s %v", e.Progress.Elapsed.Round(time.Millisecond), e.Phase, e.Kind, e.Text, e.Err)
			}
		}()
	}
	return job
}

// slow keeps a job in pre-copy for a few seconds.
const slow = 12 * share.MiB

// await returns when the job reports what cond waits for.
func (r *rig) await(job *migrate.Job, cond func(migrate.Event) bool) {
	r.Helper()
	for e := range job.Events(r.ctx()) {
		if cond(e) {
			return
		}
		require.NotEqual(r, migrate.JobEnded, e.Kind, "the job ended before: %v", e.Err)
	}
	require.Fail(r, "the event did not come")
}

// copying is pre-copy with some of the memory and disk gone over.
func copying(e migrate.Event) bool {
	return e.Kind == migrate.Progressed && e.Phase == migrate.PhaseCopying && e.Progress.Sent() > 4<<20
}

// pausing is the moment at which the guest stands still.
func pausing(e migrate.Event) bool { return e.Kind == migrate.GuestPaused }

// before is what a failed move must leave as it was.
type before struct {
	live, stored string
}

func (r *rig) before(g *lab.Guest, i int) before {
	r.Helper()
	var b before
	var err error
	b.live, err = r.lab.Host(i).Virsh(r.ctx(), "dumpxml", g.UUID)
	require.NoError(r, err)
	// The guest's agent comes up when it likes.
	b.live = strings.ReplaceAll(b.live, "state='connected'", "state='disconnected'")
	b.stored, err = r.lab.Host(i).Virsh(r.ctx(), "dumpxml", "--inactive", g.UUID)
	require.NoError(r, err)
	return b
}

// untouched checks that the guest is on host i as it was, and that the other
// host has nothing of it.
func (r *rig) untouched(g *lab.Guest, i int, b before) {
	r.Helper()
	r.runsOn(i, g)
	now := r.before(g, i)
	require.Equal(r, strings.Split(b.live, "\n"), strings.Split(now.live, "\n"), "live definition")
	require.Equal(r, strings.Split(b.stored, "\n"), strings.Split(now.stored, "\n"), "stored definition")
	r.nothingOn(1 - i)
}

func (r *rig) nothingOn(i int) {
	r.Helper()
	h := r.lab.Host(i)
	for _, what := range [][]string{{"list", "--all", "--name"}, {"pool-list", "--all", "--name"}} {
		out, err := h.Virsh(r.ctx(), what...)
		require.NoError(r, err)
		require.Empty(r, out, "%v on host %d", what, i)
	}
	files, err := os.ReadDir(h.Dir())
	require.NoError(r, err)
	require.Empty(r, files, "files on host %d", i)
}

// runsOn checks that exactly one copy runs, on that host, and that it holds
// every write and has an intact memory.
func (r *rig) runsOn(i int, g *lab.Guest, disks ...lab.Disk) {
	r.Helper()
	ctx := r.ctx()
	began := time.Now()
	_, err := g.Watch().Until(ctx, func(a lab.Arrival) bool { return a.At.After(began) && a.Host == r.lab.Host(i) })
	require.NoError(r, err)
	hosts, err := r.lab.Running(ctx, g)
	require.NoError(r, err)
	require.Equal(r, []*lab.Host{r.lab.Host(i)}, hosts, "where the guest runs")
	processes, err := r.lab.Processes(g)
	require.NoError(r, err)
	require.Len(r, processes, 1, "QEMU processes")
	require.NoError(r, g.Watch().Healthy())
	_, err = g.Verify(ctx, r.lab.Host(i), disks...)
	require.NoError(r, err)
}
