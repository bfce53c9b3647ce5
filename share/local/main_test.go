package local

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// The test program is also the one that is killed: see TestKilled.
const helperEnv = "VMFERRY_LOCAL_HELPER" // "operation step directory"

func TestMain(m *testing.M) {
	if job := os.Getenv(helperEnv); job != "" {
		f := strings.SplitN(job, " ", 3)
		step, _ := strconv.Atoi(f[1])
		op := operations[f[0]]
		if f[0] == "open" {
			op.do, step = openAndDie, 1000
		}
		dieAt(f[2], step, op)
	}
	os.Exit(m.Run())
}

// dieAt runs an operation in this process, which ends by SIGKILL at the nth
// step, or with code 0 if there is none.
func dieAt(dir string, n int, op operation) {
	d, err := openDir(dir, &Options{})
	if err == nil {
		d.hook = func(string) {
			if n--; n < 0 {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
		err = op.do(context.Background(), d.withTools())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// needTools skips the test where QEMU's tools are missing, or fails it where
// the laboratory is required.
func needTools(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("VMFERRY_LAB") == "required" {
				t.Fatalf("%s is missing; internal/lab/install.sh brings it", name)
			}
			t.Skipf("%s is missing; internal/lab/install.sh brings it (Debian: qemu-utils)", name)
		}
	}
}

// open opens a directory as a share for the time of the test.
func open(t testing.TB, dir string, opts *Options) share.Share {
	t.Helper()
	s, err := Open(t.Context(), dir, opts)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func disk(name string, format share.Format) share.Spec {
	return share.Spec{Name: name, Kind: share.Disk, Format: format, Size: 4 * share.MiB}
}

// create makes a volume.
func create(t testing.TB, s share.Share, spec share.Spec) share.Volume {
	t.Helper()
	v, err := share.Create(t.Context(), s, spec)
	require.NoError(t, err)
	return v
}

// write opens a disk, writes text at off, and closes it.
func write(t testing.TB, s share.Share, name, text string, off int64) {
	t.Helper()
	d, err := share.OpenDevice(t.Context(), s, name, nil)
	require.NoError(t, err)
	require.NoError(t, d.WriteAt(t.Context(), []byte(text), off))
	require.NoError(t, d.Flush(t.Context()))
	require.NoError(t, d.Close())
}

// read opens a disk, reads n bytes at off, and closes it.
func read(t testing.TB, s share.Share, name string, off int64, n int) string {
	t.Helper()
	d, err := share.OpenDevice(t.Context(), s, name, &share.OpenOptions{ReadOnly: true})
	require.NoError(t, err)
	p := make([]byte, n)
	require.NoError(t, d.ReadAt(t.Context(), p, off))
	require.NoError(t, d.Close())
	return string(p)
}
