package tuning

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

func applied(t *testing.T) (sys *kernel, dir string, j *Journal, before map[string]string) {
	t.Helper()
	sys, dir = newKernel(t, nil)
	before = contents(t, dir)
	j = openJournal(t, filepath.Join(t.TempDir(), "journal"))
	_, err := Apply(context.Background(), sys, j, planFor(t, sys, Throughput), nil)
	require.NoError(t, err)
	return sys, dir, j, before
}

// What is held is kept in files of our own, removable again; nobody else's file
// is touched.
func TestPersist(t *testing.T) {
	ctx := context.Background()
	sys, dir, j, before := applied(t)
	out, err := Persist(ctx, sys, j, nil)
	require.NoError(t, err)
	require.Equal(t, []string{sysctlKept, udevKept}, out.Files)
	require.Contains(t, out.NotKept["/sys/class/net/eth0/tx_queue_len"], "identity")
	now := contents(t, dir)
	require.Contains(t, now[sysctlKept], "vm/swappiness = 10\n")
	require.Contains(t, now[udevKept], `ATTR{serial}=="disk-0", ATTR{queue/read_ahead_kb}="4096"`)
	again, err := Persist(ctx, sys, j, nil)
	require.NoError(t, err)
	require.Equal(t, out, again)
	require.Equal(t, now, contents(t, dir))
	// Our own lines are no myths, and not malformed.
	r, err := Check(ctx, sys, nil)
	require.NoError(t, err)
	require.Empty(t, r.Select(Mythical, Malformed))

	_, err = Revert(ctx, sys, j, nil)
	require.NoError(t, err)
	require.NoError(t, Unpersist(ctx, sys, j))
	require.NoError(t, Unpersist(ctx, sys, j))
	require.Equal(t, before, contents(t, dir))

	// Somebody else's.
	_, err = Apply(ctx, sys, j, planFor(t, sys, Throughput), nil)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, sysctlKept), []byte("mine = 1\n"), 0o644))
	_, err = Persist(ctx, sys, j, nil)
	require.ErrorIs(t, err, share.ErrExist)
	require.NoError(t, os.Remove(filepath.Join(dir, sysctlKept)))
	_, err = Persist(ctx, sys, j, nil)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, sysctlKept), []byte("edited\n"), 0o644))
	require.ErrorIs(t, Unpersist(ctx, sys, j), share.ErrExist)
	require.Equal(t, "edited\n", contents(t, dir)[sysctlKept])
	require.NoError(t, os.Remove(filepath.Join(dir, sysctlKept)))
	require.NoError(t, os.Symlink("README", filepath.Join(dir, sysctlKept)))
	_, err = Persist(ctx, sys, j, nil)
	require.Error(t, err)
	require.Equal(t, "\n", contents(t, dir)["/etc/sysctl.d/README"])
}

// Killed between any two steps of Persist, the next one brings the files in
// line, and Unpersist takes them away.
func TestPersistKilled(t *testing.T) {
	ctx := context.Background()
	type ended struct{}
	for n := 1; ; n++ {
		dir := memoryDir(t)
		root, path := filepath.Join(dir, "root"), filepath.Join(dir, "journal")
		plant(t, root, machine)
		before := contents(t, root)
		sys := openKernel(t, root)
		j, err := OpenJournal(path)
		require.NoError(t, err)
		_, err = Apply(ctx, sys, j, planFor(t, sys, Throughput), nil)
		require.NoError(t, err)
		c := &counter{n: n, end: func() { panic(ended{}) }}
		j.at = c.pass
		whole := func() (whole bool) {
			defer func() { _ = recover() }()
			_, err := Persist(ctx, sys, j, nil)
			require.NoError(t, err)
			return true
		}()
		j.mu.TryLock()
		j.mu.Unlock()
		require.NoError(t, j.Close())
		j = openJournal(t, path)
		if n%2 == 0 {
			_, err = Persist(ctx, sys, j, nil)
			require.NoError(t, err)
		}
		require.NoError(t, Unpersist(ctx, sys, j))
		_, err = Revert(ctx, sys, j, nil)
		require.NoError(t, err)
		require.Equal(t, before, contents(t, root), "point %d", n)
		if whole {
			require.Greater(t, n, 6)
			break
		}
	}
}

// A value that an administrator changes by hand is his, at once.
func TestWatch(t *testing.T) {
	sys, dir, j, _ := applied(t)
	_, err := Persist(context.Background(), sys, j, nil)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, swappy), []byte("33\n"), 0o644))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var left []Left
	require.NoError(t, Watch(ctx, sys, j, &WatchOptions{Every: time.Millisecond, Stepped: func(l Left) {
		if left = append(left, l); l.Path == swappy {
			require.NoError(t, os.Remove(filepath.Join(dir, "/sys/class/net/eth0/tx_queue_len")))
		} else {
			cancel()
		}
	}}))
	require.Len(t, left, 2)
	require.Equal(t, "33", left[0].Have)
	require.NotContains(t, contents(t, dir)[sysctlKept], "swappiness")
	require.Contains(t, contents(t, dir)[sysctlKept], "dirty_ratio")
	out, err := Revert(context.Background(), sys, j, nil)
	require.NoError(t, err)
	require.Empty(t, out.Left)
	require.Equal(t, "33\n", contents(t, dir)[swappy])
}

// A recorded machine answers a check as the machine did, and tells no secrets.
func TestSnapshot(t *testing.T) {
	ctx := context.Background()
	sys, _ := newKernel(t, map[string]string{
		"/etc/iscsi/iscsid.conf":  "node.session.auth.password = canary-1\nnode.session.queue_depth = 32\n",
		"/etc/samba/smb.conf":     "[global]\nldap admin secret = canary-2\n",
		"/etc/ceph/ceph.conf":     "[client]\nkey = canary-3\nrbd_cache = true\n",
		"/etc/libvirt/qemu/a.xml": "<domain><devices><graphics type='vnc' passwd='canary-4'/></devices></domain>\n",
		"/etc/fstab":              "//nas/a /a cifs username=u,password=canary-5 0 0\n",
	})
	want, err := Check(ctx, sys, &CheckOptions{Class: Latency})
	require.NoError(t, err)
	snap, err := Record(ctx, sys, nil)
	require.NoError(t, err)
	b, err := json.Marshal(snap)
	require.NoError(t, err)
	require.NotContains(t, string(b), "canary")
	var back Snapshot
	require.NoError(t, json.Unmarshal(b, &back))
	got, err := Check(ctx, &back, &CheckOptions{Class: Latency})
	require.NoError(t, err)
	require.Equal(t, want.Boot, got.Boot)
	require.Len(t, got.Findings, len(want.Findings))
	for i := range want.Findings {
		require.Equal(t, want.Findings[i].State, got.Findings[i].State, want.Findings[i].ID)
		require.Equal(t, want.Findings[i].Current, got.Findings[i].Current)
	}
	plan, err := got.Plan(nil)
	require.NoError(t, err)
	_, err = Apply(ctx, &back, openJournal(t, filepath.Join(t.TempDir(), "journal")), plan, nil)
	require.ErrorContains(t, err, "a record of a machine")
}

func TestGovernor(t *testing.T) {
	b := Budget{Baseline: time.Millisecond, MaxAdded: 2 * time.Millisecond, Least: share.MiB, Most: 100 * share.MiB}
	g, err := NewGovernor(b)
	require.NoError(t, err)
	// A disk whose latency rises with the rate of copying: the governor ends
	// near the rate that the budget allows, 40 MiB/s, whatever it began with.
	over := 0
	for i := range 200 {
		added := time.Duration(float64(2*time.Millisecond) * float64(g.Rate()) / float64(40*share.MiB))
		g.Observe(b.Baseline + added)
		if i > 50 && added > 3*time.Millisecond {
			over++
		}
	}
	require.Zero(t, over)
	require.InDelta(t, 36, float64(g.Rate())/float64(share.MiB), 8)
	for range 100 {
		g.Observe(time.Second)
	}
	require.Equal(t, share.MiB, g.Rate())
	for range 100 {
		g.Observe(0)
	}
	require.Equal(t, 100*share.MiB, g.Rate())
	for _, bad := range []Budget{{}, {MaxAdded: 1}, {MaxAdded: 1, Least: 2, Most: 1}, {Baseline: -1, MaxAdded: 1, Least: 1, Most: 1}} {
		_, err := NewGovernor(bad)
		require.ErrorIs(t, err, share.ErrInvalid)
	}
}

// slowDisk has a latency that rises with the rate.
type slowDisk struct {
	rate  share.Bytes
	count DiskCount
}

func (d *slowDisk) Limit(context.Context, string) (DiskLimit, error)  { return DiskLimit{}, nil }
func (d *slowDisk) SetLimit(context.Context, string, DiskLimit) error { return nil }
func (d *slowDisk) Count(context.Context, string) (DiskCount, error) {
	d.count.Reads += 100
	d.count.ReadTime += 100 * (time.Millisecond + time.Duration(float64(2*time.Millisecond)*float64(d.rate)/float64(40*share.MiB)))
	return d.count, nil
}

func TestGovern(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, err := NewGovernor(Budget{Baseline: time.Millisecond, MaxAdded: 2 * time.Millisecond, Least: share.MiB, Most: 100 * share.MiB})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		d := &slowDisk{}
		require.NoError(t, Govern(ctx, d, "vda", g, time.Second, func(r share.Bytes) { d.rate = r }))
		require.InDelta(t, 36, float64(d.rate)/float64(share.MiB), 8)
		require.Error(t, Govern(ctx, d, "vda", g, 0, nil))
	})
}

func TestAdviseMigration(t *testing.T) {
	gib := share.GiB
	for name, c := range map[string]struct {
		f     MigrationFacts
		check func(a MigrationAdvice) bool
	}{
		"an idle guest": {MigrationFacts{Memory: 4 * gib, DirtyRate: 10 * share.MiB, LinkRate: gib}, func(a MigrationAdvice) bool {
			return a.Converges == Yes && !a.AutoConverge && a.Channels == 0 && a.Rounds <= 2
		}},
		"a fast link": {MigrationFacts{Memory: 64 * gib, DirtyRate: gib, LinkRate: 5 * gib, SpareCPUs: 8}, func(a MigrationAdvice) bool { return a.Channels == 5 && a.Compression == "none" }},
		"a slow link": {MigrationFacts{Memory: 16 * gib, DirtyRate: 60 * share.MiB, LinkRate: 110 * share.MiB, SpareCPUs: 2, Compressible: 0.6}, func(a MigrationAdvice) bool {
			return a.Compression == "zstd" && a.ZstdLevel == 1 && a.Converges == Yes && a.Channels >= 2
		}},
		"busy":               {MigrationFacts{Memory: 16 * gib, DirtyRate: 2 * gib, LinkRate: gib}, func(a MigrationAdvice) bool { return a.Converges == No && a.AutoConverge && !a.PostCopy }},
		"busy, post-copy":    {MigrationFacts{Memory: 16 * gib, DirtyRate: 2 * gib, LinkRate: gib, PostCopy: Yes}, func(a MigrationAdvice) bool { return a.PostCopy && !a.AutoConverge }},
		"busy, dirty ring":   {MigrationFacts{Memory: 16 * gib, DirtyRate: 2 * gib, LinkRate: gib, DirtyRing: Yes}, func(a MigrationAdvice) bool { return a.DirtyLimit && !a.AutoConverge }},
		"barely":             {MigrationFacts{Memory: gib, DirtyRate: 95 * share.MiB, LinkRate: 100 * share.MiB, MaxDowntime: 10 * time.Second}, func(a MigrationAdvice) bool { return a.Converges == Inconclusive }},
		"nothing measured":   {MigrationFacts{Memory: gib}, func(a MigrationAdvice) bool { return a.Converges == Inconclusive && a.Bandwidth == 0 }},
		"a part of the link": {MigrationFacts{Memory: gib, LinkRate: gib, LinkShare: 0.5}, func(a MigrationAdvice) bool { return a.Bandwidth == gib/2 }},
	} {
		a, err := AdviseMigration(c.f)
		require.NoError(t, err, name)
		require.True(t, c.check(a), "%s: %+v", name, a)
		for id, why := range a.Reasons {
			k, ok := FindKnob(Knobs(), id)
			require.True(t, ok, id)
			require.NotEmpty(t, strings.TrimSpace(why))
			require.Equal(t, Migration, k.Scope)
		}
	}
	for _, bad := range []MigrationFacts{{}, {Memory: -1}, {Memory: 1, DirtyRate: -1}, {Memory: 1, Compressible: 1}, {Memory: 1, LinkShare: 2}} {
		_, err := AdviseMigration(bad)
		require.ErrorIs(t, err, share.ErrInvalid)
	}
}

func TestDiskLimit(t *testing.T) {
	for _, bad := range []DiskLimit{
		{BytesPerSecond: -1}, {BytesPerSecond: 1, ReadBytesPerSecond: 1}, {IOPS: 1, WriteIOPS: 1}, {MaxIOPS: 1}, {IOPS: 10, MaxIOPS: 5},
		{IOPS: 1, MaxIOPS: 2, MaxLength: time.Millisecond}, {MaxLength: time.Second}, {IOPS: 1e16},
	} {
		require.ErrorIs(t, bad.Check(), share.ErrInvalid, "%+v", bad)
	}
	require.NoError(t, DiskLimit{IOPS: 1, MaxIOPS: 2, MaxLength: time.Second, RequestSize: 4096}.Check())
	require.True(t, Plateau{IOPS: 105}.Within(DiskLimit{IOPS: 100}, 0.1))
	require.False(t, Plateau{IOPS: 115}.Within(DiskLimit{IOPS: 100}, 0.1))
	require.False(t, Plateau{BytesPerSecond: 300}.Within(DiskLimit{ReadBytesPerSecond: 100, WriteBytesPerSecond: 100}, 0.1))
}
