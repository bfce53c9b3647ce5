package kvm_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/kvm"
)

func TestMain(m *testing.M) { lab.Main(m) }

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

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Minute)
	r.Cleanup(cancel)
	return ctx
}

func (r *rig) connect(i int) *kvm.Host {
	h, err := kvm.Connect(r.ctx(), r.lab.Host(i).URI(), &kvm.ConnectOptions{KeepAlive: 2 * time.Second})
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
	o.Plaintext = true // the lab's hosts have no certificates
	job, err := kvm.Migrate(r.ctx(), r.guest(from, g), r.hosts[1-from], &o)
	require.NoError(r, err)
	if os.Getenv("VMFERRY_TRACE") != "" {
		go func() {
			for e := range job.Events(r.ctx()) {
				r.Logf("%v %v %v %s %v", e.Progress.Elapsed.Round(time.Millisecond), e.Phase, e.Kind, e.Text, e.Err)
			}
		}()
	}
	return job.Wait(r.ctx())
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

func TestMirrorRaw(t *testing.T) {
	r := newRig(t)
	g := r.start(0, lab.GuestOptions{Dirty: 10 << 20, Disks: []lab.Disk{disk("a.raw", "raw")}})
	began := time.Now()
	res, err := r.move(g, 0, kvm.MigrateOptions{})
	require.NoError(t, err)
	require.Equal(t, migrate.PhaseDone, res.Phase)
	t.Logf("%+v; gap from outside %v", res, g.Watch().LongestGap(began).Length())
	r.runsOn(1, g)
}
