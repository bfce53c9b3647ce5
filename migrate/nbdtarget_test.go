package migrate_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
)

// Where no receiver of ours runs, any NBD server takes the disk; what it holds
// is read back.
func TestMoveToForeignServers(t *testing.T) {
	for name, serve := range map[string]func(socket, image string) *exec.Cmd{
		"nbdkit": func(socket, image string) *exec.Cmd { return exec.Command("nbdkit", "-f", "-U", socket, "file", image) },
		"qemu-nbd raw": func(socket, image string) *exec.Cmd {
			return exec.Command("qemu-nbd", "-t", "-e", "8", "-f", "raw", "--discard=unmap", "-k", socket, image)
		},
		"qemu-nbd qcow2": func(socket, image string) *exec.Cmd {
			_ = os.Remove(image)
			if err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", image, "4194816").Run(); err != nil {
				return exec.Command("false")
			}
			return exec.Command("qemu-nbd", "-t", "-e", "8", "-f", "qcow2", "--discard=unmap", "-k", socket, image)
		},
	} {
		t.Run(name, func(t *testing.T) {
			needs(t, "nbdkit", "qemu-nbd", "qemu-img")
			dir := t.TempDir()
			socket, image := filepath.Join(dir, "s"), filepath.Join(dir, "image")
			require.NoError(t, os.WriteFile(image, nil, 0o600))
			require.NoError(t, os.Truncate(image, diskSize+512))
			server := serve(socket, image)
			require.NoError(t, server.Start())
			t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
			require.Eventually(t, func() bool { _, err := os.Stat(socket); return err == nil }, 10*time.Second, 5*time.Millisecond)

			ctx := context.Background()
			client, err := nbd.Dial(ctx, (&nbd.URI{Network: "unix", Address: socket}).String(), nil)
			require.NoError(t, err)
			t.Cleanup(func() { client.Close() })
			r := newRig(t, 1, client)
			r.write()
			res, err := r.wait(r.start(nil))
			require.NoError(t, err)
			require.Equal(t, "read back", res.Disks[0].Proof)
			r.stillWrites()
			require.NoError(t, r.stop())
			require.NoError(t, r.writer.Check(ctx, client))
		})
	}
}

// The server dies in the middle: the guest goes on, and the move says so.
func TestForeignServerDies(t *testing.T) {
	needs(t, "nbdkit")
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	server := exec.Command("nbdkit", "-f", "-U", socket, "--filter=delay", "memory", "4194816", "wdelay=20ms")
	require.NoError(t, server.Start())
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	require.Eventually(t, func() bool { _, err := os.Stat(socket); return err == nil }, 10*time.Second, 5*time.Millisecond)
	client, err := nbd.Dial(context.Background(), (&nbd.URI{Network: "unix", Address: socket}).String(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	r := newRig(t, 1, client)
	r.write()
	job := r.start(&migrate.Options{Streams: 1})
	require.Eventually(t, func() bool { return job.Progress().Sent() > 0 }, 10*time.Second, time.Millisecond)
	require.NoError(t, server.Process.Kill())
	_, err = r.wait(job)
	require.ErrorIs(t, err, share.ErrUnavailable)
	r.stillWrites()
}
