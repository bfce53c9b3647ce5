package kvm_test

import (
	"context"
	"maps"
	"os"

	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/tuning"
	"github.com/vmferry/vmferry/tuning/kvm"
)

func TestMain(m *testing.M) { lab.Main(m) }

// rig is a guest with fio and one disk, behind its agent.
type rig struct {
	dom *kvm.Domain
	sys *tuning.Guest
}

func newRig(t *testing.T) *rig {
	l := lab.Start(t, &lab.Options{Hosts: 1})
	ctx := testContext(t, 100*time.Second)
	h := l.Host(0)
	g, err := l.NewGuest(ctx, h, &lab.GuestOptions{
		Memory: 640, VCPUs: 1, Tools: []string{"busybox", "fio"},
		Disks: []lab.Disk{{Path: "data.raw", Format: "raw", Size: 256 << 20}},
	})
	require.NoError(t, err)
	// QEMU would merge what the guest's kernel was told not to.
	xml := strings.Replace(g.XML(), "<domain type='qemu'>", "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>", 1)
	xml = strings.Replace(xml, "</domain>", `<qemu:override><qemu:device alias='virtio-disk0'><qemu:frontend>
		<qemu:property name='request-merging' type='bool' value='false'/></qemu:frontend></qemu:device></qemu:override></domain>`, 1)
	require.NoError(t, os.WriteFile(h.OutsidePath(h.ImagePath("guest.xml")), []byte(xml), 0o644))
	_, err = h.Virsh(ctx, "define", h.OutsidePath(h.ImagePath("guest.xml")))
	require.NoError(t, err)
	require.NoError(t, g.Boot(ctx, h))
	dom, err := kvm.Dial(ctx, h.URI(), g.UUID)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, dom.Close()) })
	r := &rig{dom, dom.System()}
	require.Eventually(t, func() bool { _, err := r.sys.ReadFile(ctx, "/proc/version"); return err == nil }, 30*time.Second, 50*time.Millisecond)
	return r
}

func testContext(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func (r *rig) set(t *testing.T, path, value string) {
	t.Helper()
	require.NoError(t, r.sys.SetFile(testContext(t, 20*time.Second), path, []byte(value)))
}

// values are those of all knobs that can be written.
func (r *rig) values(t *testing.T) map[string]string {
	t.Helper()
	rep, err := tuning.Check(testContext(t, 60*time.Second), r.sys, &tuning.CheckOptions{Class: tuning.Throughput, Myths: []tuning.Myth{}})
	require.NoError(t, err)
	out := map[string]string{}
	for _, f := range rep.Findings {
		if f.Writable {
			out[f.Path] = f.Current
		}
	}
	return out
}

const vda = "/sys/block/vda/queue/"

// In a guest with a kernel of its own, on a disk that does 100 requests and
// 8 MiB a second.
func TestGuest(t *testing.T) {
	r := newRig(t)
	ctx := testContext(t, 15*time.Minute)
	limit := tuning.DiskLimit{IOPS: 100, BytesPerSecond: 8 << 20}
	_, err := tuning.LimitDisk(ctx, r.dom, "vda", limit)
	require.NoError(t, err)
	r.set(t, vda+"read_ahead_kb", "4")
	r.set(t, vda+"max_sectors_kb", "16")
	r.set(t, vda+"nomerges", "2")

	began := time.Now()
	before := r.values(t)
	t.Logf("check of %d values through the agent: %v", len(before), time.Since(began))
	require.Equal(t, "4", before[vda+"read_ahead_kb"])
	require.Greater(t, len(before), 20)

	t.Run("measure", func(t *testing.T) { measure(t, r, before) })
	t.Run("killed", func(t *testing.T) { killed(t, r, before) })
	t.Run("cgroup", func(t *testing.T) { cgroup(t, r) })
	t.Run("limit", func(t *testing.T) { limits(t, r) })
	t.Run("definition", func(t *testing.T) { definition(t, r) })
}

// measure: three that help are kept, three placebos are recognised, a harmful
// one is reverted. A verdict is wrong once in a hundred times by its nature, and
// more often while the machine has other work; so the whole is measured up to
// three times, and everything must come back each time.
func measure(t *testing.T, r *rig, before map[string]string) {
	want := map[string]tuning.Outcome{
		"block.read-ahead": tuning.Kept, "block.max-sectors-kb": tuning.Kept, "block.nomerges": tuning.Kept, "too small requests": tuning.Harmful,
		"vm.vfs-cache-pressure": tuning.NoEffect, "net.somaxconn": tuning.NoEffect, "net.tcp-slow-start-after-idle": tuning.NoEffect,
	}
	for try := 1; ; try++ {
		got := measureOnce(t, r, before)
		if try == 3 || maps.Equal(want, got) {
			require.Equal(t, want, got)
			return
		}
		t.Logf("try %d: %v", try, got)
	}
}

func measureOnce(t *testing.T, r *rig, before map[string]string) map[string]tuning.Outcome {
	ctx := testContext(t, 5*time.Minute)
	j, err := tuning.OpenJournal(filepath.Join(t.TempDir(), "journal"))
	require.NoError(t, err)
	defer j.Close()
	run := func(o tuning.Objective, pairs int, job []string, changes ...tuning.Change) []tuning.Verdict {
		t.Helper()
		rep, err := tuning.Check(ctx, r.sys, &tuning.CheckOptions{Class: tuning.Throughput, Myths: []tuning.Myth{}, Knobs: some(changes)})
		require.NoError(t, err)
		plan, err := rep.Plan(&tuning.PlanOptions{OnlySet: true, Set: changes})
		require.NoError(t, err)
		require.NotEmpty(t, plan.Steps)
		began := time.Now()
		v, err := tuning.Measure(ctx, r.sys, j, plan, &tuning.Fio{Class: tuning.Throughput, File: "/dev/vda", Time: 300 * time.Millisecond, Job: append([]string{"ramp_time=100ms"}, job...)},
			&tuning.MeasureOptions{Objective: o, Pairs: pairs})
		require.NoError(t, err)
		for _, v := range v {
			t.Log(v)
		}
		t.Logf("%d changes in %v", len(v), time.Since(began).Round(time.Millisecond))
		return v
	}
	got := map[string]tuning.Outcome{}
	merged := run(tuning.Bandwidth, 4, []string{"ioengine=libaio", "direct=1", "bs=4k", "iodepth=64", "iodepth_batch_submit=32", "iodepth_batch_complete_min=32"},
		tuning.Change{Knob: "block.nomerges", Value: "0"}) // small neighbours, many at a time
	// Smaller requests, on a disk that counts them.
	harmful := run(tuning.Bandwidth, 3, []string{"direct=1", "bs=64k"}, tuning.Change{Knob: "block.max-sectors-kb", Value: "4"})
	got["too small requests"] = harmful[0].Outcome
	require.Equal(t, before[vda+"max_sectors_kb"], r.read(t, vda+"max_sectors_kb"), "reverted at once")
	for _, v := range [][]tuning.Verdict{
		merged,
		run(tuning.Bandwidth, 4, []string{"direct=1", "bs=64k"}, tuning.Change{Knob: "block.max-sectors-kb", Value: "1280"}),
		run(tuning.Bandwidth, 5, []string{"ioengine=mmap", "rw=read", "bs=4k", "fadvise_hint=0", "runtime=600ms"}, tuning.Change{Knob: "block.read-ahead", Value: "64"}),
		run(tuning.Bandwidth, 3, []string{"direct=1", "bs=64k"},
			tuning.Change{Knob: "vm.vfs-cache-pressure", Value: "50"}, tuning.Change{Knob: "net.somaxconn", Value: "8192"}, tuning.Change{Knob: "net.tcp-slow-start-after-idle", Value: "0"}),
	} {
		for _, v := range v {
			got[v.Step.Knob] = v.Outcome
		}
	}
	kept := 0
	for _, o := range got {
		if o == tuning.Kept {
			kept++
		}
	}
	require.Len(t, j.Held(), kept, "what was kept is held, and nothing else")
	out, err := tuning.Revert(ctx, r.sys, j, nil)
	require.NoError(t, err)
	require.Len(t, out.Restored, kept)
	require.Empty(t, out.Left)
	require.Equal(t, before, r.values(t))
	return got
}

func (r *rig) read(t *testing.T, path string) string {
	t.Helper()
	b, err := r.sys.ReadFile(testContext(t, 20*time.Second), path)
	require.NoError(t, err)
	return strings.TrimSpace(string(b))
}

// some are the knobs that the changes are of.
func some(changes []tuning.Change) (out []tuning.Knob) {
	for _, c := range changes {
		k, _ := tuning.FindKnob(tuning.Knobs(), c.Knob)
		out = append(out, k)
	}
	return out
}

type ended struct{}

// stopper ends the program, or what stands for it, at the n-th write.
type stopper struct {
	tuning.System
	n, seen int
}

func (s *stopper) SetFile(ctx context.Context, path string, data []byte) error {
	s.point()
	defer s.point()
	return s.System.SetFile(ctx, path, data)
}

func (s *stopper) point() {
	if s.seen++; s.seen == s.n {
		panic(ended{})
	}
}

// killed: the real kernel's values come back from each point between two
// writes, a scheduler's queue included, which the kernel sets anew.
func killed(t *testing.T, r *rig, _ map[string]string) {
	ctx := testContext(t, 5*time.Minute)
	r.set(t, vda+"nr_requests", "100")
	changes := []tuning.Change{
		{Knob: "block.scheduler", Object: "vda", Value: "none"}, {Knob: "block.read-ahead", Value: "4096"},
		{Knob: "vm.dirty-ratio", Value: "40"}, {Knob: "vm.nr-hugepages", Value: "4"},
	}
	knobs := append(some(changes), some([]tuning.Change{{Knob: "block.nr-requests"}, {Knob: "block.wbt"}})...)
	rep, err := tuning.Check(ctx, r.sys, &tuning.CheckOptions{Class: tuning.Throughput, Knobs: knobs, Myths: []tuning.Myth{}})
	require.NoError(t, err)
	plan, err := rep.Plan(&tuning.PlanOptions{OnlySet: true, Set: changes})
	require.NoError(t, err)
	var paths []string
	for _, f := range rep.Findings {
		if f.Current != "" {
			paths = append(paths, f.Path)
		}
	}
	require.Len(t, paths, 6)
	values := func() map[string]string {
		out := map[string]string{}
		for _, p := range paths {
			out[p] = r.read(t, p)
		}
		return out
	}
	before := values()
	require.Equal(t, "100", before[vda+"nr_requests"])
	path := filepath.Join(t.TempDir(), "journal")
	points := 0
	for n := 1; ; n++ {
		j, err := tuning.OpenJournal(path)
		require.NoError(t, err)
		s := &stopper{System: r.sys, n: n}
		whole := func() (whole bool) {
			defer func() {
				if p := recover(); p != nil && p != (ended{}) {
					panic(p)
				}
			}()
			_, err := tuning.Apply(ctx, s, j, plan, nil)
			require.NoError(t, err)
			require.Equal(t, "4096", r.read(t, vda+"read_ahead_kb"))
			require.Contains(t, r.read(t, vda+"scheduler"), "[none]")
			require.NotEqual(t, "100", r.read(t, vda+"nr_requests"), "the kernel has set it anew")
			_, err = tuning.Revert(ctx, s, j, nil)
			require.NoError(t, err)
			return true
		}()
		require.NoError(t, j.Close())
		j, err = tuning.OpenJournal(path)
		require.NoError(t, err)
		_, err = tuning.Revert(ctx, r.sys, j, nil)
		require.NoError(t, err)
		require.Equal(t, before, values(), "point %d", n)
		require.Empty(t, j.Held())
		require.NoError(t, j.Close())
		if whole {
			break
		}
		points++
	}
	require.GreaterOrEqual(t, points, 16)
	t.Logf("%d points", points)
}

// cgroup: io.max of a group is read back, and kept to.
func cgroup(t *testing.T, r *rig) {
	ctx := testContext(t, 60*time.Second)
	sh := func(script string) {
		t.Helper()
		_, err := r.sys.Run(ctx, "sh", "-c", script)
		require.NoError(t, err)
	}
	_, err := tuning.LimitDisk(ctx, r.dom, "vda", tuning.DiskLimit{})
	require.NoError(t, err)
	sh("mount -t cgroup2 none /sys/fs/cgroup && echo +io > /sys/fs/cgroup/cgroup.subtree_control && mkdir /sys/fs/cgroup/daemon")
	c, err := tuning.NewCgroup(r.sys, "/daemon")
	require.NoError(t, err)
	device := r.read(t, "/sys/block/vda/dev")
	l := tuning.DiskLimit{ReadBytesPerSecond: 4 << 20, ReadIOPS: 200}
	was, err := tuning.LimitDisk(ctx, c, device, l)
	require.NoError(t, err)
	require.Zero(t, was)
	have, err := c.Limit(ctx, device)
	require.NoError(t, err)
	require.Equal(t, l, have)
	done := make(chan error, 1)
	go func() {
		_, err := r.sys.Run(ctx, "sh", "-c", "echo $$ > /sys/fs/cgroup/daemon/cgroup.procs; exec fio --name=x --filename=/dev/vda --readonly --rw=randread --bs=64k --direct=1 --time_based --runtime=3 --ioengine=libaio --iodepth=8")
		done <- err
	}()
	p, err := tuning.MeasurePlateau(ctx, c, device, l, time.Second)
	require.NoError(t, err)
	require.NoError(t, <-done)
	t.Logf("io.max 4 MiB/s: %v/s, %.0f IOPS", share.Bytes(p.BytesPerSecond), p.IOPS)
	require.True(t, tuning.Plateau{BytesPerSecond: p.BytesPerSecond}.Within(tuning.DiskLimit{BytesPerSecond: 4 << 20}, 0.25))
	require.Greater(t, p.BytesPerSecond, float64(2<<20))
	_, err = tuning.LimitDisk(ctx, c, device, was)
	require.NoError(t, err)
	for _, bad := range []tuning.DiskLimit{{IOPS: 1}, {ReadIOPS: 1, RequestSize: 4096}, {ReadIOPS: -1}} {
		_, err := tuning.LimitDisk(ctx, c, device, bad)
		require.Error(t, err, "%+v", bad)
	}
	_, err = tuning.LimitDisk(ctx, c, "999:99", l)
	require.Error(t, err)
}

// limits: QEMU's throttling through libvirt, live, kept to on the plateau.
func limits(t *testing.T, r *rig) {
	ctx := testContext(t, 60*time.Second)
	l := tuning.DiskLimit{IOPS: 100, MaxIOPS: 400, MaxLength: time.Second, RequestSize: 64 << 10}
	before, err := tuning.LimitDisk(ctx, r.dom, "vda", l)
	require.NoError(t, err)
	require.Zero(t, before.IOPS)
	done := make(chan error, 1)
	go func() {
		_, err := (&tuning.Fio{Class: tuning.Latency, File: "/dev/vda", Time: 3 * time.Second}).Run(ctx, r.sys)
		done <- err
	}()
	require.NoError(t, func() error { time.Sleep(400 * time.Millisecond); return nil }())
	p, err := tuning.MeasurePlateau(ctx, r.dom, "vda", l, time.Second)
	require.NoError(t, err)
	require.NoError(t, <-done)
	t.Logf("100 IOPS: %.1f IOPS, mean latency %v", p.IOPS, p.Mean)
	require.True(t, p.Within(l, 0.1), "%+v", p)
	require.Greater(t, p.IOPS, 80.0)
	_, err = tuning.LimitDisk(ctx, r.dom, "vda", before)
	require.NoError(t, err)
	have, err := r.dom.Limit(ctx, "vda")
	require.NoError(t, err)
	require.Zero(t, have.IOPS)
	_, err = tuning.LimitDisk(ctx, r.dom, "vdz", l)
	require.Error(t, err)
}

// definition: kept for the next start, if nobody changed it meanwhile, and
// gone back to.
func definition(t *testing.T, r *rig) {
	ctx := testContext(t, 20*time.Second)
	before, err := r.dom.Definition(ctx)
	require.NoError(t, err)
	after := strings.Replace(before, "<vcpu placement='static'>1</vcpu>", "<vcpu placement='static'>1</vcpu>\n  <iothreads>1</iothreads>", 1)
	require.NotEqual(t, before, after)
	made, err := r.dom.Define(ctx, before, after)
	require.NoError(t, err)
	require.Contains(t, made, "<iothreads>1</iothreads>")
	_, err = r.dom.Define(ctx, before, after)
	require.ErrorIs(t, err, share.ErrExist)
	_, err = r.dom.Define(ctx, made, strings.Replace(made, "<uuid>", "<uuid>0", 1))
	require.ErrorIs(t, err, share.ErrInvalid)
	back, err := r.dom.Define(ctx, made, before)
	require.NoError(t, err)
	require.Equal(t, before, back)
}
