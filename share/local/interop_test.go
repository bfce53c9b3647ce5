package local

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// TestImagesAreQEMUs: what is made and written here QEMU's tools read as the
// same disk, and it takes no more space than its data.
func TestImagesAreQEMUs(t *testing.T) {
	needTools(t, "qemu-img", "qemu-nbd")
	ctx := t.Context()
	dir := t.TempDir()
	s := open(t, dir, nil)
	const size = 64 * share.MiB
	for _, format := range []share.Format{share.Raw, share.Qcow2} {
		create(t, s, share.Spec{Name: string(format), Kind: share.Disk, Format: format, Size: size})
		d, err := share.OpenDevice(ctx, s, string(format), nil)
		require.NoError(t, err)
		rnd := rand.New(rand.NewPCG(1, 2))
		for range 40 {
			p := bytes.Repeat([]byte{byte(rnd.Uint32() | 1)}, 1+rnd.IntN(64<<10))
			off := rnd.Int64N(int64(size) - int64(len(p)))
			require.NoError(t, d.WriteAt(ctx, p, off))
			require.NoError(t, share.ZeroRange(ctx, d, off/2, int64(len(p)), 0))
		}
		require.NoError(t, d.Flush(ctx))
		require.NoError(t, d.Close())

		out, err := exec.CommandContext(ctx, "qemu-img", "info", "--output=json", filepath.Join(dir, string(format))).Output()
		require.NoError(t, err)
		var info struct {
			Format      string `json:"format"`
			VirtualSize int64  `json:"virtual-size"`
			ActualSize  int64  `json:"actual-size"`
			Specific    struct {
				Data struct {
					Compat  string
					Corrupt bool
				}
			} `json:"format-specific"`
		}
		require.NoError(t, json.Unmarshal(out, &info))
		require.Equal(t, string(format), info.Format)
		require.Equal(t, int64(size), info.VirtualSize)
		require.Less(t, info.ActualSize, int64(8*share.MiB), "the image is not sparse")
		v, err := s.Stat(ctx, string(format))
		require.NoError(t, err)
		require.Equal(t, info.ActualSize, int64(v.Allocated))
		checkImageStrictly(t, dir, format)
	}
	out, err := exec.CommandContext(ctx, "qemu-img", "compare", "-f", "raw", "-F", "qcow2",
		filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func checkImageStrictly(t testing.TB, dir string, format share.Format) {
	t.Helper()
	if format != share.Qcow2 {
		return
	}
	out, err := exec.CommandContext(t.Context(), "qemu-img", "check", "-f", "qcow2", filepath.Join(dir, string(format))).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// TestServerKilled: what was flushed survives the death of qemu-nbd, calls that
// follow say so, and the image can be opened again.
func TestServerKilled(t *testing.T) {
	needTools(t, "qemu-img", "qemu-nbd")
	ctx := t.Context()
	s := open(t, t.TempDir(), &Options{Format: share.Qcow2})
	create(t, s, disk("v", share.Qcow2))
	d, err := share.OpenDevice(ctx, s, "v", nil)
	require.NoError(t, err)
	require.NoError(t, d.WriteAt(ctx, []byte("flushed"), 0))
	require.NoError(t, d.Flush(ctx))
	require.NoError(t, d.WriteAt(ctx, []byte("not"), 1<<20))
	q := d.(*device).blocks.(*qcow2Image)
	require.NoError(t, q.server.cmd.Process.Signal(syscall.SIGKILL))
	<-q.server.done
	require.NoDirExists(t, q.server.dir)
	err = d.WriteAt(ctx, []byte("x"), 0)
	require.ErrorIs(t, err, share.ErrUnavailable)
	require.ErrorIs(t, d.Flush(ctx), share.ErrUnavailable)
	require.NoError(t, d.Close())
	require.Equal(t, "flushed", read(t, s, "v", 0, 7))
}

// TestToolsSayWhy: what QEMU's programs say is in the error, and no more than
// is good for a line.
func TestToolsSayWhy(t *testing.T) {
	var said tail
	for range 1000 {
		_, _ = said.Write([]byte("noise\x1b[31m\n"))
	}
	_, _ = said.Write([]byte("Failed to get \"write\" lock\n"))
	err := said.explain("qemu-img resize", exec.ErrNotFound)
	require.ErrorIs(t, err, share.ErrInUse)
	require.ErrorIs(t, err, exec.ErrNotFound)
	require.Contains(t, err.Error(), `Failed to get "write" lock`)
	require.Less(t, len(err.Error()), tailMost+100)
	require.NotContains(t, err.Error(), "\n")
	require.NotContains(t, err.Error(), "\x1b")
}
