package local

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// operation is what a program that dies was about.
type operation struct {
	prepare func(t testing.TB, s share.Share)
	do      func(ctx context.Context, s share.Share) error
	after   func(t testing.TB, s share.Share)
	qcow2   bool
}

var operations = map[string]operation{
	"create-raw":   createOperation(disk("v", share.Raw)),
	"create-qcow2": createOperation(disk("v", share.Qcow2)),
	"create-full":  createOperation(share.Spec{Name: "v", Kind: share.Disk, Size: share.MiB, Preallocate: true}),
	"create-tree":  createOperation(share.Spec{Name: "v", Kind: share.Tree}),

	"delete-raw":   deleteOperation(disk("v", share.Raw)),
	"delete-qcow2": deleteOperation(disk("v", share.Qcow2)),
	"delete-tree":  deleteOperation(share.Spec{Name: "v", Kind: share.Tree}),

	"publish": {
		prepare: func(t testing.TB, s share.Share) { create(t, s, disk("v", share.Raw)) },
		do: func(ctx context.Context, s share.Share) error {
			_, err := s.Publish(ctx, "v", []share.Access{{Client: share.LocalHost(), Mode: share.ReadWrite}})
			return err
		},
		after: func(t testing.TB, s share.Share) {
			v, err := s.Stat(t.Context(), "v")
			require.NoError(t, err)
			require.Equal(t, []share.Access{{Client: share.LocalHost(), Mode: share.ReadWrite}}, v.Access)
		},
	},

	"grow-raw":     resizeOperation(share.Raw, 8*share.MiB),
	"grow-qcow2":   resizeOperation(share.Qcow2, 8*share.MiB),
	"shrink-raw":   resizeOperation(share.Raw, 2*share.MiB),
	"shrink-qcow2": resizeOperation(share.Qcow2, 2*share.MiB),

	"snapshot": {
		qcow2: true,
		prepare: func(t testing.TB, s share.Share) {
			create(t, s, disk("v", share.Qcow2))
			write(t, s, "v", "content", 0)
		},
		do: func(ctx context.Context, s share.Share) error {
			_, err := share.TakeSnapshot(ctx, s, "v", "s")
			return err
		},
		after: func(t testing.TB, s share.Share) {
			all, err := share.ListSnapshots(t.Context(), s, "v")
			require.NoError(t, err)
			require.Len(t, all, 1)
			require.Equal(t, "content", read(t, s, "v", 0, 7))
		},
	},
	"roll-back": {
		qcow2: true,
		prepare: func(t testing.TB, s share.Share) {
			create(t, s, disk("v", share.Qcow2))
			write(t, s, "v", "content", 0)
			_, err := share.TakeSnapshot(t.Context(), s, "v", "1") // looks like an ID
			require.NoError(t, err)
			_, err = share.Resize(t.Context(), s, "v", 8*share.MiB, nil)
			require.NoError(t, err)
			write(t, s, "v", "another", 0)
		},
		do: func(ctx context.Context, s share.Share) error { return share.RollBack(ctx, s, "v", "1") },
		after: func(t testing.TB, s share.Share) {
			v, err := s.Stat(t.Context(), "v")
			require.NoError(t, err)
			require.Equal(t, 4*share.MiB, v.Size, "the size that it had")
			require.Equal(t, "content", read(t, s, "v", 0, 7))
		},
	},
}

// TestOpenTidiesUp: what a killed program left takes no space until somebody
// asks for that volume; what another program is at work on is left alone.
func TestOpenTidiesUp(t *testing.T) {
	for name, op := range operations {
		if op.qcow2 {
			continue
		}
		for n := 0; ; n++ {
			dir := t.TempDir()
			s := open(t, dir, nil)
			op.prepare(t, s)
			killed := killHelper(t, name, n, dir)
			require.NoError(t, s.Close())

			tmp := func() []string {
				left, err := filepath.Glob(filepath.Join(dir, storeDir, tmpDir, "*"))
				require.NoError(t, err)
				return left
			}
			before := tmp()
			locked, err := openDir(dir, nil)
			require.NoError(t, err)
			lock, err := locked.store.tryLock(locksDir + "/v")
			require.NoError(t, err)
			s = open(t, dir, nil)
			require.Equal(t, before, tmp(), "%s: the lock is held, and step %d was tidied up", name, n)
			require.NoError(t, s.Close())
			require.NoError(t, lock.Close())
			require.NoError(t, locked.Close())

			s = open(t, dir, nil)
			require.Empty(t, tmp(), "%s: left after step %d", name, n)
			require.NoError(t, s.Close())
			if !killed {
				break
			}
		}
	}
}

// TestOpenerKilled: what a program had open is free soon after its death.
func TestOpenerKilled(t *testing.T) {
	for _, format := range []share.Format{share.Raw, share.Qcow2} {
		if format == share.Qcow2 {
			needTools(t, "qemu-img", "qemu-nbd")
		}
		dir := t.TempDir()
		s := open(t, dir, nil)
		create(t, s, disk("v", format))
		require.True(t, killHelper(t, "open", 0, dir))
		require.Eventually(t, func() bool {
			d, err := share.OpenDevice(t.Context(), s, "v", nil)
			if err == nil {
				_ = d.Close()
			}
			return err == nil
		}, 10*time.Second, 10*time.Millisecond)
		require.Equal(t, "flushed", read(t, s, "v", 0, 7))
		l, err := share.LockVolume(t.Context(), s, "v", "o")
		require.NoError(t, err, "a lock that a dead program held")
		require.NoError(t, l.Release())
	}
}

// openAndDie writes to the disk v and dies with it open and locked.
func openAndDie(ctx context.Context, s share.Share) error {
	d, err := share.OpenDevice(ctx, s, "v", nil)
	if err != nil {
		return err
	}
	if _, err := share.LockVolume(ctx, s, "v", "o"); err != nil {
		return err
	}
	if err := d.WriteAt(ctx, []byte("flushed"), 0); err != nil {
		return err
	}
	if err := d.Flush(ctx); err != nil {
		return err
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func createOperation(spec share.Spec) operation {
	return operation{
		qcow2:   spec.Format == share.Qcow2,
		prepare: func(testing.TB, share.Share) {},
		do: func(ctx context.Context, s share.Share) error {
			_, err := share.Create(ctx, s, spec)
			return err
		},
		after: func(t testing.TB, s share.Share) {
			v, err := s.Stat(t.Context(), "v")
			require.NoError(t, err)
			require.NoError(t, spec.Match(v))
			if spec.Kind == share.Disk {
				require.Equal(t, string(make([]byte, 512)), read(t, s, "v", 0, 512))
			}
		},
	}
}

func deleteOperation(spec share.Spec) operation {
	return operation{
		qcow2: spec.Format == share.Qcow2,
		prepare: func(t testing.TB, s share.Share) {
			create(t, s, spec)
			if spec.Kind == share.Tree {
				path := s.Info().URL[len("local://"):]
				require.NoError(t, os.MkdirAll(filepath.Join(path, "v", "a", "b"), 0o755))
				require.NoError(t, os.WriteFile(filepath.Join(path, "v", "a", "b", "c"), []byte("x"), 0o600))
			}
		},
		do: func(ctx context.Context, s share.Share) error { return share.Delete(ctx, s, "v") },
		after: func(t testing.TB, s share.Share) {
			_, err := s.Stat(t.Context(), "v")
			require.ErrorIs(t, err, share.ErrNotExist)
		},
	}
}

func resizeOperation(format share.Format, size share.Bytes) operation {
	return operation{
		qcow2: format == share.Qcow2,
		prepare: func(t testing.TB, s share.Share) {
			create(t, s, disk("v", format))
			write(t, s, "v", "content", 0)
		},
		do: func(ctx context.Context, s share.Share) error {
			_, err := share.Resize(ctx, s, "v", size, &share.ResizeOptions{Shrink: true})
			return err
		},
		after: func(t testing.TB, s share.Share) {
			v, err := s.Stat(t.Context(), "v")
			require.NoError(t, err)
			require.Equal(t, size, v.Size)
			require.Equal(t, "content", read(t, s, "v", 0, 7))
		},
	}
}

// TestKilled: a program that is killed at any step of any operation leaves
// what the same call, made by another program, brings to the same end.
func TestKilled(t *testing.T) {
	for name, op := range operations {
		t.Run(name, func(t *testing.T) {
			if op.qcow2 {
				needTools(t, "qemu-img", "qemu-nbd")
			}
			wanted := ""
			for n := -1; ; n++ { // at first without being killed
				dir := t.TempDir()
				s := open(t, dir, nil)
				op.prepare(t, s)
				killed := n >= 0 && killHelper(t, name, n, dir)
				if op.qcow2 && killed {
					checkImage(t, dir, "v")
				}
				for range 2 {
					require.NoError(t, op.do(t.Context(), s), "after step %d", n)
				}
				op.after(t, s)
				_, err := share.List(t.Context(), s)
				require.NoError(t, err)
				require.NoError(t, s.Close())
				s = open(t, dir, nil)
				op.after(t, s)

				if left := tree(t, dir); n < 0 {
					wanted = left
				} else {
					require.Equal(t, wanted, left, "files after step %d", n)
				}
				if n >= 0 && !killed {
					require.Positive(t, n, "the operation has no step")
					t.Logf("%d steps", n)
					return
				}
			}
		})
	}
}

// killHelper runs an operation in a program that is killed at step n, and
// reports whether it got there.
func killHelper(t testing.TB, name string, n int, dir string) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", helperEnv, name, n, dir))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(t, ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL, "%v: %s", err, out)
	return true
}

// checkImage has qemu-img look for corruption, if there is an image. Clusters
// that leaked are none: qemu-img exits 3 for those.
func checkImage(t testing.TB, dir, name string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
		return
	}
	cmd := exec.CommandContext(t.Context(), "qemu-img", "check", "-q", "-f", "qcow2", "--", filepath.Join(dir, name))
	out, err := cmd.CombinedOutput()
	if err != nil {
		require.Equal(t, 3, cmd.ProcessState.ExitCode(), "%s", out)
	}
}

// tree lists what is in a directory, without what is random in the names.
func tree(t testing.TB, dir string) string {
	t.Helper()
	out := ""
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		st, err := e.Info()
		out += fmt.Sprintf("%s %v\n", rel, st.Mode())
		return err
	}))
	return out
}
