package kvm_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"libvirt.org/go/libvirt"

	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/migrate/kvm"
	"github.com/vmferry/vmferry/share"
)

// What is known to forbid a move is said before anything starts.
func TestRefused(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	a, b := r.lab.Host(0), r.lab.Host(1)
	g := r.start(0, lab.GuestOptions{Disks: []lab.Disk{disk("a.raw", "raw"), disk("b.qcow2", "qcow2")}})
	was := r.before(g, 0)

	refused := func(o kvm.MigrateOptions, kind error, parts ...string) {
		t.Helper()
		o.Plaintext = true
		_, err := kvm.Migrate(ctx, r.guest(0, g), r.hosts[1], &o)
		require.ErrorIs(t, err, kind)
		for _, p := range parts {
			require.ErrorContains(t, err, p)
		}
		t.Log(err)
	}
	disks := func(target string, d kvm.DiskMove) kvm.MigrateOptions {
		return kvm.MigrateOptions{Disks: map[string]kvm.DiskMove{target: d}}
	}

	refused(disks("vdz", kvm.DiskMove{}), share.ErrInvalid, "vdz", "vda")
	refused(disks("vda", kvm.DiskMove{To: fileAt("/nowhere/at/all/a.raw", share.Raw)}), share.ErrNotExist, "vda", "/nowhere")
	refused(disks("vda", kvm.DiskMove{Overwrite: true}), share.ErrNotExist, "vda")
	refused(disks("vda", kvm.DiskMove{Policy: kvm.Shared}), share.ErrInvalid, "not shared")
	refused(disks("vda", kvm.DiskMove{Policy: kvm.Shared, To: fileAt("/x/a.qcow2", share.Qcow2)}), share.ErrInvalid, "keeps its format")
	refused(disks("vda", kvm.DiskMove{To: fileAt("relative", share.Raw)}), share.ErrInvalid)

	require.NoError(t, b.CreateImage(ctx, "a.raw", "raw", 32<<20))
	require.NoError(t, b.CreateImage(ctx, "b.qcow2", "raw", 64<<20))
	refused(kvm.MigrateOptions{}, share.ErrExist, "vda", "vdb")
	both := kvm.MigrateOptions{Disks: map[string]kvm.DiskMove{"vda": {Overwrite: true}, "vdb": {Overwrite: true}}}
	refused(both, share.ErrExist, "size is 33554432 bytes, not 67108864 bytes", "format is raw, not qcow2")
	var m *share.MismatchError
	_, err := kvm.Migrate(ctx, r.guest(0, g), r.hosts[1], &both)
	require.True(t, errors.As(err, &m))
	for _, f := range []string{"a.raw", "b.qcow2"} {
		require.NoError(t, os.Remove(b.OutsidePath(f)))
	}

	// Its own host.
	_, err = kvm.Migrate(ctx, r.guest(0, g), r.connect(0), nil)
	require.ErrorIs(t, err, share.ErrInvalid)

	// A guest of that name, and one of that UUID.
	for _, other := range []lab.GuestOptions{{Name: g.Name}, {Name: "another", UUID: g.UUID}} {
		taken, err := r.lab.NewGuest(ctx, b, &other)
		require.NoError(t, err)
		require.NoError(t, taken.Define(ctx, b))
		refused(kvm.MigrateOptions{}, share.ErrExist, "taken")
		_, err = b.Virsh(ctx, "undefine", taken.UUID)
		require.NoError(t, err)
	}

	// No certificates: TLS is the default.
	job, err := kvm.Migrate(ctx, r.guest(0, g), r.hosts[1], nil)
	require.NoError(t, err)
	_, err = job.Wait(ctx)
	require.ErrorContains(t, err, "TLS")

	// A block job, and a guest that stands.
	_, err = a.Virsh(ctx, "blockcopy", g.UUID, "vda", a.ImagePath("copy.raw"), "--format", "raw", "--transient-job", "--bandwidth", "1")
	require.NoError(t, err)
	refused(kvm.MigrateOptions{}, share.ErrInUse, "vda")
	_, err = a.Virsh(ctx, "blockjob", g.UUID, "vda", "--abort")
	require.NoError(t, err)
	_, err = a.Virsh(ctx, "suspend", g.UUID)
	require.NoError(t, err)
	refused(kvm.MigrateOptions{}, share.ErrInvalid, "paused")
	_, err = a.Virsh(ctx, "resume", g.UUID)
	require.NoError(t, err)
	r.untouched(g, 0, was)

	// A daemon that hangs.
	out, err := b.Command(ctx, "sh", "-c", "kill -STOP $(cat /run/libvirtd.pid)").CombinedOutput()
	require.NoError(t, err, "%s", out)
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	began := time.Now()
	_, err = kvm.Migrate(short, r.guest(0, g), r.hosts[1], &kvm.MigrateOptions{Plaintext: true})
	require.ErrorIs(t, err, share.ErrUnavailable)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(began), 3*time.Second)
	out, err = b.Command(ctx, "sh", "-c", "kill -CONT $(cat /run/libvirtd.pid)").CombinedOutput()
	require.NoError(t, err, "%s", out)
	r.runsOn(0, g)
}

// A server that accepts and says nothing.
func TestConnectToASilentServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err = kvm.Connect(ctx, "qemu+unix:///system?socket="+path, nil)
	require.ErrorIs(t, err, share.ErrUnavailable)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(began), 2*time.Second)

	_, err = kvm.Connect(t.Context(), "qemu+unix:///system?socket="+path+".gone", nil)
	require.ErrorIs(t, err, share.ErrUnavailable)
}

// A borrowed connection stays the caller's.
func TestBorrow(t *testing.T) {
	c, err := libvirt.NewConnect("test:///default")
	require.NoError(t, err)
	h, err := kvm.Borrow(c)
	require.NoError(t, err)
	g, err := h.Guest(t.Context(), "test")
	require.NoError(t, err)
	byUUID, err := h.Guest(t.Context(), g.UUID())
	require.NoError(t, err)
	require.Equal(t, "test", byUUID.Name())
	d, err := g.Native(t.Context())
	require.NoError(t, err)
	require.NoError(t, d.Free())
	native, err := h.Native(t.Context())
	require.NoError(t, err)
	require.NotNil(t, native)
	_, err = h.Guest(t.Context(), "nobody")
	require.ErrorIs(t, err, share.ErrNotExist)
	require.ErrorIs(t, err, libvirt.ERR_NO_DOMAIN)
	require.NoError(t, h.Close())
	require.NoError(t, h.Close())
	_, err = h.Guest(t.Context(), "test")
	require.ErrorIs(t, err, share.ErrClosed)
	alive, err := c.IsAlive()
	require.NoError(t, err)
	require.True(t, alive)
	_, err = c.Close()
	require.NoError(t, err)
}
