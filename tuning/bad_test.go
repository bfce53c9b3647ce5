package tuning

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

const (
	readAhead = "/sys/block/vda/queue/read_ahead_kb"
	swappy    = "/proc/sys/vm/swappiness"
)

// Nothing is half-done: what a scope's failing step leaves is what was there.
func TestFailuresRevertTheirScope(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(k *kernel)
		kind  error
		text  string
	}{
		"read-only sysfs": {func(k *kernel) { k.refuse = map[string]error{readAhead: syscall.EROFS} }, share.ErrDenied, "read-only"},
		"not root":        {func(k *kernel) { k.refuse = map[string]error{readAhead: syscall.EACCES} }, share.ErrDenied, "permission denied"},
		"vanished":        {func(k *kernel) { k.refuse = map[string]error{readAhead: syscall.ENODEV} }, share.ErrNotExist, "no such device"},
		"refused":         {func(k *kernel) { k.refuse = map[string]error{readAhead: syscall.EINVAL} }, share.ErrInvalid, "invalid argument"},
		"busy":            {func(k *kernel) { k.refuse = map[string]error{readAhead: syscall.EBUSY} }, share.ErrInUse, "busy"},
		"rounded":         {func(k *kernel) { k.round = map[string]string{readAhead: "4092\n"} }, share.ErrInvalid, "read back 4092"},
		"ignored":         {func(k *kernel) { k.round = map[string]string{readAhead: "128\n"} }, share.ErrInvalid, "read back 128"},
	} {
		t.Run(name, func(t *testing.T) {
			sys, dir := newKernel(t, nil)
			before := contents(t, dir)
			plan := planFor(t, sys, Throughput)
			c.spoil(sys)
			if name == "rounded" { // taking back is not rounded
				once := sys.round
				sys.at = func(p string) {
					if p == "after write "+readAhead {
						delete(once, readAhead)
					}
				}
			}
			j := openJournal(t, filepath.Join(t.TempDir(), "journal"))
			done, err := Apply(context.Background(), sys, j, plan, nil)
			require.ErrorIs(t, err, c.kind)
			require.ErrorContains(t, err, c.text)
			require.ErrorContains(t, err, "read")
			require.Contains(t, done.Failed, BlockDevice)
			require.NotEmpty(t, done.Done, "other scopes are done")
			for _, s := range done.Done {
				require.NotEqual(t, BlockDevice, s.Scope)
			}
			after := contents(t, dir)
			for p, v := range before {
				if strings.Contains(p, "/block/") {
					require.Equal(t, v, after[p], p)
				}
			}
			for _, h := range j.Held() {
				require.NotEqual(t, BlockDevice, h.Scope)
			}
			sys.refuse, sys.round = nil, nil
			_, err = Revert(context.Background(), sys, j, nil)
			require.NoError(t, err)
			require.Equal(t, before, contents(t, dir))
		})
	}
}

// A plan that does not fit any more is refused before anything is written.
func TestRefusedPlans(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string, p *Plan)
		want  string
	}{
		"changed by hand": {func(t *testing.T, dir string, _ *Plan) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, swappy), []byte("33\n"), 0o644))
		}, "no longer"},
		"rebooted": {func(t *testing.T, dir string, _ *Plan) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, bootIDFile), []byte("other\n"), 0o644))
		}, "last boot"},
		"another machine": {func(t *testing.T, dir string, _ *Plan) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, machineIDFile), []byte("other\n"), 0o644))
		}, "another machine"},
		"device gone": {func(t *testing.T, dir string, _ *Plan) {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, "/sys/devices/virtual/block/vda")))
		}, "no such file"},
		"a link where a file should be": {func(t *testing.T, dir string, _ *Plan) {
			p := filepath.Join(dir, "/sys/devices/virtual/block/vda/queue/read_ahead_kb")
			require.NoError(t, os.Rename(p, p+"2"))
			require.NoError(t, os.Symlink("read_ahead_kb2", p))
		}, "symbolic link"},
		"a link out of the tree": {func(t *testing.T, dir string, _ *Plan) {
			p := filepath.Join(dir, swappy)
			require.NoError(t, os.Remove(p))
			require.NoError(t, os.Symlink("/proc/sys/vm/swappiness", p))
		}, "escapes"},
		"a FIFO": {func(t *testing.T, dir string, _ *Plan) {
			p := filepath.Join(dir, swappy)
			require.NoError(t, os.Remove(p))
			require.NoError(t, syscall.Mkfifo(p, 0o644))
		}, "not a regular file"},
		"edited":         {func(t *testing.T, _ string, p *Plan) { p.Steps[0].To = "11" }, "hash"},
		"another path":   {func(t *testing.T, _ string, p *Plan) { p.Steps[0].Path = "/etc/passwd"; p.Hash = p.sum() }, "is at"},
		"another object": {func(t *testing.T, _ string, p *Plan) { p.Steps[len(p.Steps)-1].Object = "../x"; p.Hash = p.sum() }, "of object"},
		"out of range":   {func(t *testing.T, _ string, p *Plan) { p.Steps[0].To = "1000"; p.Hash = p.sum() }, "takes numbers"},
		"no such knob":   {func(t *testing.T, _ string, p *Plan) { p.Steps[0].Knob = "x"; p.Hash = p.sum() }, "no knob"},
		"read only knob": {func(t *testing.T, _ string, p *Plan) { p.Steps[0].Knob = "nfs.hard"; p.Hash = p.sum() }, "not written"},
		"twice":          {func(t *testing.T, _ string, p *Plan) { p.Steps = append(p.Steps, p.Steps[0]); p.Hash = p.sum() }, "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			sys, dir := newKernel(t, nil)
			plan := planFor(t, sys, Throughput)
			c.spoil(t, dir, &plan)
			before := map[string]string{}
			if name != "a FIFO" {
				before = contents(t, dir)
			}
			j := openJournal(t, filepath.Join(t.TempDir(), "journal"))
			_, err := Apply(ctx, sys, j, plan, nil)
			require.Error(t, err)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n")
			if name == "a link where a file should be" { // found by writing: its scope is taken back
				_, err = Revert(ctx, sys, j, &RevertOptions{Knobs: []string{"vm.dirty-ratio", "vm.swappiness", "nic.tx-queue-len"}})
				require.NoError(t, err)
			}
			if name != "a FIFO" {
				require.Equal(t, before, contents(t, dir))
			}
			require.Empty(t, j.Held())
		})
	}
}

// What somebody else has changed since is theirs, and what a reboot has undone
// is nobody's.
func TestRevertTakesOnlyWhatIsOurs(t *testing.T) {
	ctx := context.Background()
	sys, dir := newKernel(t, nil)
	before := contents(t, dir)
	j := openJournal(t, filepath.Join(t.TempDir(), "journal"))
	_, err := Apply(ctx, sys, j, planFor(t, sys, Throughput), nil)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, swappy), []byte("42\n"), 0o644))
	require.NoError(t, os.Remove(filepath.Join(dir, "/sys/class/net/eth0/tx_queue_len")))
	out, err := Revert(ctx, sys, j, nil)
	require.NoError(t, err)
	require.Len(t, out.Left, 2)
	after := contents(t, dir)
	require.Equal(t, "42\n", after[swappy])
	delete(before, "/sys/class/net/eth0/tx_queue_len")
	before[swappy] = "42\n"
	require.Equal(t, before, after)
	again, err := Revert(ctx, sys, j, nil)
	require.NoError(t, err)
	require.Empty(t, again.Restored)

	// After a reboot.
	_, err = Apply(ctx, sys, j, planFor(t, sys, Throughput), nil)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, bootIDFile), []byte("next\n"), 0o644))
	rebooted := contents(t, dir)
	out, err = Revert(ctx, sys, j, nil)
	require.NoError(t, err)
	require.Empty(t, out.Restored)
	require.NotEmpty(t, out.Left)
	require.Equal(t, rebooted, contents(t, dir))
	require.Empty(t, j.Held())
}

// Two plans on one value: the first original is what comes back.
func TestPlansOnTop(t *testing.T) {
	ctx := context.Background()
	sys, dir := newKernel(t, nil)
	before := contents(t, dir)
	j := openJournal(t, filepath.Join(t.TempDir(), "journal"))
	for _, v := range []string{"10", "30", "5"} {
		r, err := Check(ctx, sys, nil)
		require.NoError(t, err)
		p, err := r.Plan(&PlanOptions{OnlySet: true, Set: []Change{{Knob: "vm.swappiness", Value: v}}})
		require.NoError(t, err)
		require.Len(t, p.Steps, 1)
		_, err = Apply(ctx, sys, j, p, nil)
		require.NoError(t, err)
	}
	require.Len(t, j.Held(), 1)
	require.Equal(t, "60", j.Held()[0].Original)
	_, err := Revert(ctx, sys, j, nil)
	require.NoError(t, err)
	require.Equal(t, before, contents(t, dir))
}

func TestJournalRefusals(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	j := openJournal(t, path)
	_, err := OpenJournal(path)
	require.ErrorIs(t, err, share.ErrInUse)
	require.NoError(t, j.add(record{Op: opBegin, Plan: "x"}))
	require.NoError(t, j.add(record{Op: opEnd, Plan: "x"}))
	require.NoError(t, j.Close())
	require.NoError(t, j.Close())
	require.ErrorIs(t, j.add(record{Op: opBegin}), share.ErrClosed)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	b[3] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o600))
	_, err = OpenJournal(path)
	require.ErrorIs(t, err, share.ErrCorrupt)
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())

	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink(path, link))
	_, err = OpenJournal(link)
	require.Error(t, err)
	_, err = OpenJournal(dir)
	require.Error(t, err)
	_, err = OpenJournal(filepath.Join(dir, "none", "journal"))
	require.ErrorIs(t, err, share.ErrNotExist)
}

// A journal that has become long is rewritten as what is held.
func TestJournalIsCompacted(t *testing.T) {
	path := filepath.Join(memoryDir(t), "journal")
	sys, dir := newKernel(t, nil)
	before := contents(t, dir)
	ctx := context.Background()
	j, err := OpenJournal(path)
	require.NoError(t, err)
	_, err = Apply(ctx, sys, j, planFor(t, sys, Throughput), nil)
	require.NoError(t, err)
	for range 20 {
		require.NoError(t, j.add(record{Op: opLeft, Why: strings.Repeat("x", 60000)}))
	}
	held := j.Held()
	require.NoError(t, j.Close())
	j, err = OpenJournal(path)
	require.NoError(t, err)
	require.Equal(t, held, j.Held())
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Less(t, st.Size(), int64(32<<10))
	_, err = OpenJournal(path)
	require.ErrorIs(t, err, share.ErrInUse)
	require.NoError(t, j.Close())
	j = openJournal(t, path)
	_, err = Revert(ctx, sys, j, nil)
	require.NoError(t, err)
	require.Equal(t, before, contents(t, dir))
}

// An interrupted Apply is reverted before the next.
func TestInterrupted(t *testing.T) {
	sys, _ := newKernel(t, nil)
	ctx := context.Background()
	j := openJournal(t, filepath.Join(t.TempDir(), "journal"))
	plan := planFor(t, sys, Throughput)
	require.NoError(t, j.add(record{Op: opBegin, Plan: plan.Hash}))
	_, err := Apply(ctx, sys, j, plan, nil)
	require.ErrorIs(t, err, share.ErrInUse)
	_, err = Revert(ctx, sys, j, nil)
	require.NoError(t, err)
	_, err = Apply(ctx, sys, j, plan, nil)
	require.NoError(t, err)
}

// A caller that has gone leaves nothing half-done.
func TestCancelled(t *testing.T) {
	sys, dir := newKernel(t, nil)
	before := contents(t, dir)
	plan := planFor(t, sys, Throughput)
	var points int
	for n := 1; ; n++ {
		ctx, cancel := context.WithCancel(context.Background())
		c := &counter{n: n, end: cancel}
		sys.at = c.pass
		j := openJournal(t, filepath.Join(t.TempDir(), "journal"))
		_, err := Apply(ctx, sys, j, plan, nil)
		sys.at = nil
		cancel()
		_, err2 := Revert(context.Background(), sys, j, nil)
		require.NoError(t, err2)
		require.Equal(t, before, contents(t, dir))
		if err == nil && len(c.seen) < n {
			break
		}
		points++
	}
	require.Positive(t, points)
}

// A file that never answers does not hold the caller.
func TestWedged(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	never := make(chan struct{})
	defer close(never)
	_, err := await(ctx, "read /x", func() (int, error) { <-never; return 0, nil })
	require.ErrorIs(t, err, share.ErrWedged)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestPlanJSON(t *testing.T) {
	sys, _ := newKernel(t, nil)
	plan := planFor(t, sys, Latency)
	b, err := json.Marshal(plan)
	require.NoError(t, err)
	var back Plan
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, plan, back)
	require.NoError(t, back.Check(nil))

	r, err := Check(context.Background(), sys, nil)
	require.NoError(t, err)
	for _, o := range []PlanOptions{
		{Only: []string{"x"}},
		{Set: []Change{{Knob: "x", Value: "1"}}},
		{Set: []Change{{Knob: "vm.swappiness", Value: "1000"}}},
		{Set: []Change{{Knob: "nfs.hard", Value: "hard"}}},
		{Set: []Change{{Knob: "block.read-ahead", Object: "sdz", Value: "128"}}},
	} {
		_, err := r.Plan(&o)
		require.ErrorIs(t, err, share.ErrInvalid, "%+v", o)
	}
	require.True(t, errors.Is(&StaleError{}, share.ErrInvalid))
}

// What may not be read is unsure, what is nonsense is malformed, and neither
// stops a check.
func TestOddMachines(t *testing.T) {
	sys, dir := newKernel(t, map[string]string{
		swappy: "sixty\n", "/proc/sys/vm/dirty_bytes": "1000000\n",
		"/proc/self/mounts":      "nas:/a /mnt/a nfs4 rw,vers=4.0,rsize=65536,wsize=1048576,soft,proto=tcp,nconnect=8 0 0\nproc /proc proc rw 0 0\n",
		"/etc/multipath.conf":    "defaults {\n path_selector \"round-robin 0\"\n no_path_retry queue\n}\ndevices {\n device {\n  no_path_retry 12\n }\n}\n",
		"/etc/iscsi/iscsid.conf": "node.session.timeo.replacement_timeout = 20\n",
	})
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "/etc/sysctl.d/dir.conf"), 0o755))
	r, err := Check(context.Background(), sys, &CheckOptions{Class: Throughput})
	require.NoError(t, err)
	state := map[string]Finding{}
	for _, f := range r.Findings {
		state[f.ID+f.Object] = f
	}
	require.Equal(t, Malformed, state["vm.swappiness"].State)
	require.Equal(t, Good, state["vm.dirty-ratio"].State, "a limit in bytes rules")
	require.Equal(t, "512", state["block.max-sectors-kbvda"].Recommended, "what the hardware takes")
	require.Equal(t, "hard", state["nfs.hard/mnt/a"].Recommended)
	require.Equal(t, "4.1", state["nfs.vers/mnt/a"].Recommended)
	require.Equal(t, Good, state["nfs.nconnect/mnt/a"].State)
	require.Equal(t, "1048576", state["nfs.rsize/mnt/a"].Recommended)
	require.Contains(t, state["nfs.hard/mnt/a"].Remedy, "hard")
	require.Equal(t, "service-time 0", state["multipath.path-selector"].Recommended)
	require.Equal(t, "60", state["multipath.no-path-retry"].Recommended)
	require.Equal(t, "120", state["iscsi.replacement-timeout"].Recommended)
	require.Equal(t, Absent, state["thp.defrag"].State)
	require.NotContains(t, state, "block.read-aheadloop0")
	require.NotContains(t, state, "nic.tx-queue-lenbr0")
	_, err = Check(context.Background(), sys, &CheckOptions{Class: 77})
	require.ErrorIs(t, err, share.ErrInvalid)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = Check(ctx, sys, nil)
	require.ErrorIs(t, err, context.Canceled)
}
