package local

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

func TestLifecycle(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	s, err := Open(ctx, dir, nil)
	require.NoError(t, err)
	defer s.Close()
	require.NoError(t, share.CheckCapabilities(s))

	spec := share.Spec{Name: "vm1", Kind: share.Disk, Size: 10 * share.MiB}
	v, err := share.Create(ctx, s, spec)
	require.NoError(t, err)
	again, err := share.Create(ctx, s, spec)
	require.NoError(t, err)
	require.Equal(t, v, again)
	require.Zero(t, v.Allocated)

	sources, err := s.Publish(ctx, "vm1", []share.Access{{Client: share.LocalHost(), Mode: share.ReadWrite}})
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "vm1"), sources[0].File.Path)
	require.ErrorIs(t, share.Delete(ctx, s, "vm1"), share.ErrInUse)

	d, err := share.OpenDevice(ctx, s, "vm1", nil)
	require.NoError(t, err)
	require.NoError(t, d.WriteAt(ctx, []byte("hello"), 4096))
	require.NoError(t, d.Flush(ctx))
	exts, err := share.ListExtents(ctx, d, 0, d.Size())
	require.NoError(t, err)
	require.Len(t, exts, 3)
	require.NoError(t, d.Close())

	_, err = s.Publish(ctx, "vm1", nil)
	require.NoError(t, err)
	require.NoError(t, share.Delete(ctx, s, "vm1"))
	require.NoError(t, share.Delete(ctx, s, "vm1"))
	left, err := os.ReadDir(filepath.Join(dir, ".vmferry", "tmp"))
	require.NoError(t, err)
	require.Empty(t, left)
	_, err = s.Stat(ctx, "vm1")
	require.ErrorIs(t, err, share.ErrNotExist)

	_, err = share.Create(ctx, s, share.Spec{Name: "t", Kind: share.Tree})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "t", "f"), nil, 0o600))
	all, err := share.List(ctx, s)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.NoError(t, share.Delete(ctx, s, "t"))
	require.NoDirExists(t, filepath.Join(dir, "t"))
}

// TestAudit: each change leaves a record of what was and what is.
func TestAudit(t *testing.T) {
	ctx := t.Context()
	var logs syncBuffer
	s := open(t, t.TempDir(), &Options{Shared: true, Logger: slog.New(slog.NewTextHandler(&logs, nil))})
	create(t, s, disk("v", share.Raw))
	sources, err := s.Publish(ctx, "v", rw)
	require.NoError(t, err)
	require.True(t, sources[0].Shared)
	_, err = s.Publish(ctx, "v", rw)
	require.NoError(t, err)
	_, err = s.Publish(ctx, "v", nil)
	require.NoError(t, err)
	_, err = share.Resize(ctx, s, "v", 8*share.MiB, nil)
	require.NoError(t, err)
	require.NoError(t, share.Delete(ctx, s, "v"))
	lines := strings.Split(strings.TrimSpace(logs.String()), "\n")
	require.Len(t, lines, 5, "%s", logs.String())
	for i, want := range []string{"volume created", "after=\"[{Client:local Mode:rw", "before=\"[{Client:local Mode:rw", "before=4194304 after=8388608", "volume deleted"} {
		require.Contains(t, lines[i], want)
		require.Contains(t, lines[i], "volume=v")
	}
}
