package kvm_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/kvm"
	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// reach has sockets of host 0 found from outside of it.
func (r *rig) reach() *kvm.ExportOptions {
	return &kvm.ExportOptions{NBD: &nbd.ClientOptions{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, r.lab.Host(0).OutsidePath(address))
	}}}
}

func (r *rig) export(g *lab.Guest) *kvm.Export {
	r.Helper()
	e, err := r.guest(0, g).Export(r.ctx(), r.reach())
	require.NoError(r, err)
	return e
}

// startQuiet starts a guest and waits for its agent, which must not come up while a
// backup begins; see [kvm.Export].
func (r *rig) startQuiet(disks ...lab.Disk) *lab.Guest {
	r.Helper()
	g := r.start(0, lab.GuestOptions{Disks: disks})
	r.quiet(g)
	return g
}

func (r *rig) quiet(g *lab.Guest) {
	r.Helper()
	require.Eventually(r, func() bool {
		_, err := r.lab.Host(0).Virsh(r.ctx(), "qemu-agent-command", g.UUID, `{"execute":"guest-ping"}`)
		return err == nil
	}, 30*time.Second, 50*time.Millisecond, "the guest's agent")
}

// copier is a consumer with a copy in memory.
type copier struct {
	migrate.Cursor
	source share.Device
	to     *sharetest.MemDevice
}

func (r *rig) copier(d *kvm.ExportDisk, from migrate.From) *copier {
	r.Helper()
	c, err := d.NewCursor(r.ctx(), from)
	require.NoError(r, err)
	return &copier{c, d.Source(), sharetest.NewDevice(d.Size())}
}

// pass copies what one pass leases, and returns how much that was.
func (c *copier) pass(ctx context.Context) (n int64, err error) {
	buf := make([]byte, 1<<20)
	for {
		l, err := c.Lease(ctx, 8<<20)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		for _, r := range l.Ranges {
			for off := r.Off; off < r.End(); off += int64(len(buf)) {
				p := buf[:min(int64(len(buf)), r.End()-off)]
				if err := c.source.ReadAt(ctx, p, off); err != nil {
					return n, fmt.Errorf("%w; %w", err, c.Nack(l))
				}
				if err := c.to.WriteAt(ctx, p, off); err != nil {
					return n, err
				}
			}
		}
		n += l.Bytes()
		if err := c.Ack(l); err != nil {
			return n, err
		}
	}
}

func (r *rig) pass(c *copier) int64 {
	r.Helper()
	n, err := c.pass(r.ctx())
	require.NoError(r, err)
	return n
}

func sum(t require.TestingT, d share.Device) string {
	p := make([]byte, d.Size())
	require.NoError(t, d.ReadAt(context.Background(), p, 0))
	s := sha256.Sum256(p)
	return hex.EncodeToString(s[:])
}

// image is the digest of a guest's disk, which must stand still.
func (r *rig) image(d lab.Disk) string {
	r.Helper()
	flat := r.lab.Host(0).OutsidePath(d.Path) + ".flat"
	defer os.Remove(flat)
	out, err := r.lab.Host(0).Command(r.ctx(), "qemu-img", "convert", "-U", "-f", d.Format, "-O", "raw", d.Path, d.Path+".flat").CombinedOutput()
	require.NoError(r, err, "%s", out)
	f, err := os.Open(flat)
	require.NoError(r, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(r, err)
	return hex.EncodeToString(h.Sum(nil))
}

// holds checks that a copy has every write that the guest was told of.
func (r *rig) holds(g *lab.Guest, d lab.Disk, c share.Device) {
	r.Helper()
	p := make([]byte, c.Size())
	require.NoError(r, c.ReadAt(r.ctx(), p, 0))
	path := r.lab.Host(0).ImagePath("copy-" + d.Serial)
	outside := r.lab.Host(0).OutsidePath(path)
	require.NoError(r, os.WriteFile(outside, p, 0o600))
	defer os.Remove(outside)
	_, err := g.Verify(r.ctx(), r.lab.Host(0), lab.Disk{Path: path, Format: "raw", Serial: d.Serial, Block: d.Block, Slots: d.Slots})
	require.NoError(r, err)
}

// exportGone checks that nothing of an export is left.
func (r *rig) exportGone(g *lab.Guest, e *kvm.Export) {
	r.Helper()
	require.NoError(r, e.Close(r.ctx()))
	require.NoError(r, e.Close(r.ctx()))
	r.nothingOfExports(g)
}

func (r *rig) nothingOfExports(g *lab.Guest) {
	r.Helper()
	h := r.lab.Host(0)
	list, err := h.Virsh(r.ctx(), "checkpoint-list", g.UUID, "--name")
	require.NoError(r, err)
	require.Empty(r, strings.TrimSpace(list))
	_, err = h.Virsh(r.ctx(), "backup-dumpxml", g.UUID)
	require.Error(r, err, "a backup runs")
	require.False(r, r.hasBitmaps(g))
	sockets, err := filepath.Glob(filepath.Join(h.OutsidePath(kvm.SocketDir), "vmferry*"))
	require.NoError(r, err)
	require.Empty(r, sockets)
	files, err := os.ReadDir(h.Dir())
	require.NoError(r, err)
	require.Len(r, files, len(g.Disks), "scratch files: %v", files)
}

func (r *rig) hasBitmaps(g *lab.Guest) bool {
	r.Helper()
	nodes, err := r.lab.Host(0).Virsh(r.ctx(), "qemu-monitor-command", g.UUID, `{"execute":"query-block"}`)
	require.NoError(r, err)
	return strings.Contains(nodes, `"dirty-bitmaps":[{`)
}

func (r *rig) virsh(args ...string) {
	r.Helper()
	_, err := r.lab.Host(0).Virsh(r.ctx(), args...)
	require.NoError(r, err)
}

// suspended is a guest of which the engine moves the disks, and which then
// stands still, to be compared.
type suspended struct {
	r *rig
	g *lab.Guest
}

func (s suspended) Name() string { return s.g.Name }
func (s suspended) Pause(ctx context.Context) error {
	_, err := s.r.lab.Host(0).Virsh(ctx, "suspend", s.g.UUID)
	return err
}
func (s suspended) Resume(ctx context.Context, _ uint64) error {
	_, err := s.r.lab.Host(0).Virsh(ctx, "resume", s.g.UUID)
	return err
}
func (s suspended) Relinquish(context.Context, uint64) error { return nil }
func (s suspended) Activate(context.Context, uint64) error   { return nil }

// The engine moves two disks that the guest writes, while a backup follows the
// same ones; both end with what the guest wrote.
func TestExportMovesDisks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.startQuiet(disk("a.qcow2", "qcow2"), disk("b.qcow2", "qcow2"))
	e := r.export(g)
	move := migrate.Move{ID: "m", Guest: suspended{r, g}, Source: "a", Destination: "b"}
	var copies []*sharetest.MemDevice
	var backups []*copier
	for _, d := range e.Disks() {
		to := sharetest.NewDevice(d.Size())
		copies = append(copies, to)
		move.Disks = append(move.Disks, migrate.DiskMove{Name: d.Target(), Source: d.Source(), Tracker: d, Destination: to})
		backups = append(backups, r.copier(d, migrate.FromAll))
	}
	var backup sync.WaitGroup
	stop := make(chan struct{})
	backup.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(150 * time.Millisecond):
			}
			for _, b := range backups {
				if _, err := b.pass(r.ctx()); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	began := time.Now()
	job, err := migrate.Start(r.ctx(), move, &migrate.Options{MaxDowntime: time.Millisecond, StallRounds: 2, NotConverging: migrate.SwitchIfNotConverging})
	require.NoError(t, err)
	res, err := job.Wait(r.ctx())
	require.NoError(t, err)
	close(stop)
	backup.Wait()
	t.Logf("%v, %d rounds, downtime %v, %+v", time.Since(began).Round(time.Millisecond), res.Rounds, job.Progress().Downtime, e.Stats())
	require.Zero(t, e.Stats().HashRounds)
	require.Positive(t, e.Stats().Marked)
	for i, d := range g.Disks {
		r.pass(backups[i])
		require.Zero(t, r.pass(backups[i]))
		require.Zero(t, backups[i].Dirty())
		want := r.image(d)
		require.Equal(t, want, sum(t, copies[i]), "the move's copy of %s", d.Path)
		require.Equal(t, want, sum(t, backups[i].to), "the backup's copy of %s", d.Path)
		r.holds(g, d, copies[i])
		require.NoError(t, backups[i].Close())
	}
	r.virsh("resume", g.UUID)
	r.exportGone(g, e)
	require.NoError(t, g.Watch().Healthy())
}

// What a bitmap cannot tell is compared: after QEMU was killed, after somebody
// removed the checkpoint, and always with a raw disk.
func TestExportWithoutBitmaps(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.startQuiet(disk("a.qcow2", "qcow2"), disk("b.raw", "raw"))
	e := r.export(g)
	var all []*copier
	for _, d := range e.Disks() {
		all = append(all, r.copier(d, migrate.FromAll))
	}
	rounds := func() {
		for range 3 {
			for _, c := range all {
				r.pass(c)
			}
		}
	}
	compare := func(what string) {
		r.virsh("suspend", g.UUID)
		rounds()
		for i, d := range g.Disks {
			require.Zero(t, r.pass(all[i]), what)
			require.Equal(t, r.image(d), sum(t, all[i].to), "%s: %s", what, d.Path)
			r.holds(g, d, all[i].to)
		}
		r.virsh("resume", g.UUID)
	}
	rounds()
	require.Zero(t, e.Stats().HashRounds)
	compare("bitmaps")

	list, err := r.lab.Host(0).Virsh(r.ctx(), "checkpoint-list", g.UUID, "--name")
	require.NoError(t, err)
	for _, name := range strings.Fields(list) {
		r.virsh("checkpoint-delete", g.UUID, name)
	}
	began := time.Now()
	n := r.pass(all[0])
	t.Logf("checkpoint removed: %v in %v, %+v", share.Bytes(n), time.Since(began).Round(time.Millisecond), e.Stats())
	require.Equal(t, 1, e.Stats().HashRounds)
	require.Less(t, n, int64(40<<20), "less than the disk")
	compare("checkpoint removed")

	require.NoError(t, r.lab.Host(0).KillQEMU(r.ctx(), g))
	require.Eventually(t, func() bool {
		_, err = all[0].pass(r.ctx())
		return err != nil
	}, 10*time.Second, 10*time.Millisecond)
	require.ErrorIs(t, err, share.ErrUnavailable)
	require.NoError(t, g.Boot(r.ctx(), r.lab.Host(0)))
	r.quiet(g)
	began = time.Now()
	n = r.pass(all[0])
	t.Logf("QEMU killed: %v in %v, %+v", share.Bytes(n), time.Since(began).Round(time.Millisecond), e.Stats())
	require.Equal(t, 2, e.Stats().HashRounds)
	require.Less(t, n, int64(40<<20), "less than the disk")
	compare("QEMU killed")
	for _, c := range all {
		require.NoError(t, c.Close())
	}
	r.exportGone(g, e)

	o := r.reach()
	o.Disks = []string{"vdb"} // raw alone: there is no checkpoint at all
	e, err = r.guest(0, g).Export(r.ctx(), o)
	require.NoError(t, err)
	all = []*copier{r.copier(e.Disk("vdb"), migrate.FromAll)}
	g.Disks = g.Disks[1:]
	compare("raw")
	g.Disks = append([]lab.Disk{{}}, g.Disks...) // whose files are counted
	r.exportGone(g, e)
}

// Exports of programs that are dead are removed, those that live are not.
func TestExportLeftBehind(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.startQuiet(disk("a.qcow2", "qcow2"))
	left, err := kvm.ExportByDead(r.ctx(), r.guest(0, g), r.reach())
	require.NoError(t, err)
	r.pass(r.copier(left.Disks()[0], migrate.FromAll))
	left.Die()

	e := r.export(g)
	_, err = r.guest(0, g).Export(r.ctx(), r.reach())
	require.ErrorIs(t, err, share.ErrInUse)
	r.pass(r.copier(e.Disks()[0], migrate.FromAll))
	require.True(t, r.hasBitmaps(g))
	r.exportGone(g, e)

	// Over TCP, with the scratch file elsewhere.
	e, err = r.guest(0, g).Export(r.ctx(), &kvm.ExportOptions{Address: "127.0.0.1:10811", ScratchDir: kvm.SocketDir,
		Disks: []string{"vda"}, NBD: &nbd.ClientOptions{DialContext: r.lab.Host(0).Dial}})
	require.NoError(t, err)
	c := r.copier(e.Disk("vda"), migrate.FromNow)
	require.Less(t, r.pass(c), int64(40<<20))
	require.NoError(t, c.Close())
	r.exportGone(g, e)

	left, err = kvm.ExportByStranger(r.ctx(), r.guest(0, g), r.reach())
	require.NoError(t, err)
	require.NotNil(t, left.Disk("vda"))
	_, err = r.guest(0, g).Export(r.ctx(), r.reach())
	require.ErrorIs(t, err, share.ErrInUse)
	left.Die()
	o := r.reach()
	o.TakeOver = true
	e, err = r.guest(0, g).Export(r.ctx(), o)
	require.NoError(t, err)
	// Whoever was taken over notices.
	_, err = r.copier(left.Disks()[0], migrate.FromAll).pass(r.ctx())
	require.ErrorIs(t, err, share.ErrInUse)
	require.NoError(t, left.Close(r.ctx()), "nothing is its own any more")
	require.ErrorIs(t, e.Disk("vda").Source().WriteAt(r.ctx(), []byte{1}, 0), share.ErrDenied)
	r.exportGone(g, e)

	e = r.export(g)
	r.virsh("destroy", g.UUID)
	require.NoError(t, e.Close(r.ctx()))
	list, err := r.lab.Host(0).Virsh(r.ctx(), "checkpoint-list", g.UUID, "--name")
	require.NoError(t, err)
	require.Empty(t, strings.TrimSpace(list))
	_, err = r.guest(0, g).Export(r.ctx(), r.reach())
	require.ErrorIs(t, err, share.ErrUnavailable)
}
