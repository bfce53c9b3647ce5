package local

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// holdWithQEMU has qemu-io open an image until the returned function is called.
func holdWithQEMU(t testing.TB, path string, format share.Format, args ...string) (release func()) {
	t.Helper()
	needTools(t, "qemu-io")
	cmd := exec.CommandContext(t.Context(), "qemu-io", append(args, "-f", string(format), path)...)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = cmd.Stdout
	require.NoError(t, cmd.Start())
	_, err = io.WriteString(in, "length\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(out).ReadString('\n') // it has the image open
	require.NoError(t, err, "%s", line)
	return func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}
}

// qemuCanOpen reports whether qemu-io gets the image.
func qemuCanOpen(t testing.TB, path string, format share.Format, args ...string) bool {
	t.Helper()
	args = append(args, "-f", string(format), "-c", "read 0 512", path)
	out, err := exec.CommandContext(t.Context(), "qemu-io", args...).CombinedOutput()
	if err != nil {
		require.Contains(t, string(out), "lock")
	}
	return err == nil
}

// TestQEMUIsKeptOut: who has an image open keeps out the others, be they QEMU
// or this package, as QEMU's own programs do.
func TestQEMUIsKeptOut(t *testing.T) {
	needTools(t, "qemu-img", "qemu-nbd", "qemu-io")
	for _, format := range []share.Format{share.Raw, share.Qcow2} {
		t.Run(string(format), func(t *testing.T) {
			ctx := t.Context()
			dir := t.TempDir()
			s := open(t, dir, &Options{Format: format})
			create(t, s, disk("v", format))
			path := filepath.Join(dir, "v")
			write := func() error {
				d, err := share.OpenDevice(ctx, s, "v", nil)
				if err == nil {
					_ = d.Close()
				}
				return err
			}
			read := func() error {
				d, err := share.OpenDevice(ctx, s, "v", &share.OpenOptions{ReadOnly: true})
				if err == nil {
					_ = d.Close()
				}
				return err
			}

			// QEMU writes.
			release := holdWithQEMU(t, path, format)
			require.ErrorIs(t, write(), share.ErrInUse)
			if format == share.Raw {
				require.NoError(t, read(), "a reader beside a writer")
			} else {
				require.ErrorIs(t, read(), share.ErrInUse, "QEMU may be changing the metadata")
			}
			_, err := share.Resize(ctx, s, "v", 8*share.MiB, nil)
			require.ErrorIs(t, err, share.ErrInUse)
			require.ErrorIs(t, share.Delete(ctx, s, "v"), share.ErrInUse)
			if format == share.Qcow2 {
				_, err = share.TakeSnapshot(ctx, s, "v", "s")
				require.ErrorIs(t, err, share.ErrInUse)
			}
			release()

			// QEMU reads.
			release = holdWithQEMU(t, path, format, "-r")
			if format == share.Raw {
				require.NoError(t, write(), "a writer beside a reader")
			} else {
				require.ErrorIs(t, write(), share.ErrInUse)
			}
			require.NoError(t, read())
			require.ErrorIs(t, share.Delete(ctx, s, "v"), share.ErrInUse)
			release()

			// We write.
			d, err := share.OpenDevice(ctx, s, "v", nil)
			require.NoError(t, err)
			require.False(t, qemuCanOpen(t, path, format))
			require.Equal(t, format == share.Raw, qemuCanOpen(t, path, format, "-r"), "a reader beside a writer")
			require.NoError(t, d.Close())

			// We read.
			d, err = share.OpenDevice(ctx, s, "v", &share.OpenOptions{ReadOnly: true})
			require.NoError(t, err)
			require.True(t, qemuCanOpen(t, path, format, "-r"))
			require.Equal(t, format == share.Raw, qemuCanOpen(t, path, format), "a writer beside a reader")
			require.NoError(t, d.Close())
			require.True(t, qemuCanOpen(t, path, format))
			require.NoError(t, write())
		})
	}
}

func TestLockTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	uses := map[string]use{"reader": readerOf, "writer": writerOf, "alone": aloneOn}
	together := map[string]bool{"reader reader": true, "reader writer": true, "writer reader": true}
	for a, first := range uses {
		for b, second := range uses {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			require.NoError(t, err)
			g, err := os.OpenFile(path, os.O_RDWR, 0)
			require.NoError(t, err)
			require.NoError(t, lockImage(f, first))
			pair := fmt.Sprintf("%s %s", a, b)
			err = lockImage(g, second)
			if together[pair] {
				require.NoError(t, err, pair)
			} else {
				require.ErrorIs(t, err, share.ErrInUse, pair)
				require.NoError(t, unlockImage(f))
				require.NoError(t, lockImage(g, second), "%s: one that gave up left locks, or unlocking did not", pair)
			}
			require.NoError(t, f.Close())
			require.NoError(t, g.Close())
		}
	}
}
