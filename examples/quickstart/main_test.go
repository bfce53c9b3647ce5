package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share/sharetest"
)

// The example as its users run it: another program, without cgo.
func TestQuickstart(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "run", ".", "-json", "-size", "64M", "-dir", t.TempDir())
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	require.NoError(t, cmd.Run(), "%s", &said)
	var fig figures
	require.NoError(t, json.Unmarshal(out.Bytes(), &fig), "%s", &out)
	require.True(t, fig.Verified)
	require.Equal(t, int64(64<<20), fig.DiskBytes)
	require.GreaterOrEqual(t, fig.SentBytes, int64(32<<20))
	require.Positive(t, fig.AfterSwitch)
	require.Positive(t, fig.DowntimeMS)
	require.Contains(t, said.String(), "done")
}

// A record that was acknowledged and is not there is found.
func TestWriterNotices(t *testing.T) {
	ctx := context.Background()
	d := sharetest.NewDevice(1 << 20)
	w := newWriter(d, 1<<20)
	require.NoError(t, w.fill(ctx))
	for range 100 {
		require.NoError(t, w.put(ctx))
	}
	require.NoError(t, w.check(ctx, d))
	require.NoError(t, d.WriteAt(ctx, record(7), 6*slot)) // the one before
	require.ErrorContains(t, w.check(ctx, d), "slot 6 holds record 7")
	require.NoError(t, d.WriteAt(ctx, record(7+w.slots), 6*slot))
	require.NoError(t, w.check(ctx, d))
	require.NoError(t, d.WriteAt(ctx, []byte{1}, 200*slot+99)) // torn
	require.Error(t, w.check(ctx, d))
}

func TestBadSize(t *testing.T) {
	for _, size := range []string{"", "x", "-1", "100"} {
		_, err := run(context.Background(), size, 1, t.TempDir(), os.Stderr)
		require.Error(t, err, size)
	}
}
