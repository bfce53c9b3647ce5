package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/migrate"
)

func TestMain(m *testing.M) { lab.Main(m) }

// read is a report as another program reads it.
type read struct {
	Verified bool
	Error    string
	Moves    []struct {
		From, To string
		Result   struct {
			Phase    string
			Downtime time.Duration `json:"downtime_ns"`
			Sent     int64         `json:"sent_bytes"`
			Disks    []struct{ Name string }
		}
		Gap     time.Duration `json:"gap_ns"`
		Writes  uint64
		Lost    int
		OneCopy bool `json:"one_copy"`
		Intact  bool
	}
}

// program builds the command as a user would.
func program(t *testing.T) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "livemigrate")
	out, err := exec.Command("go", "build", "-o", exe, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return exe
}

func TestLab(t *testing.T) {
	lab.Require(t)
	cmd := exec.CommandContext(t.Context(), program(t), "-lab", "-json")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Run(), "%s", &stderr)
	t.Logf("%s", &stderr)
	var rep read
	dec := json.NewDecoder(&stdout)
	require.NoError(t, dec.Decode(&rep))
	require.False(t, dec.More(), "one object")
	require.True(t, rep.Verified)
	require.Len(t, rep.Moves, 2)
	for i, m := range rep.Moves {
		require.Equal(t, []string{"lab-host-1", "lab-host-2", "lab-host-1"}[i:i+2], []string{m.From, m.To})
		require.True(t, m.OneCopy)
		require.True(t, m.Intact)
		require.Zero(t, m.Lost)
		require.Positive(t, m.Writes)
		require.Equal(t, "done", m.Result.Phase)
		require.Positive(t, m.Result.Downtime)
		require.Greater(t, m.Gap, time.Millisecond)
		require.Greater(t, m.Result.Sent, int64(still))
		require.Len(t, m.Result.Disks, 1)
	}
	require.Greater(t, rep.Moves[1].Writes, rep.Moves[0].Writes)
}

func TestInterrupted(t *testing.T) {
	lab.Require(t)
	cmd := exec.CommandContext(t.Context(), program(t), "-lab", "-json", "-bandwidth", "32M")
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var text strings.Builder
	buf := make([]byte, 4096)
	for sent := false; ; {
		n, err := stderr.Read(buf)
		text.Write(buf[:n])
		if !sent && strings.Contains(text.String(), "copying") {
			sent = true
			time.Sleep(300 * time.Millisecond)
			require.NoError(t, cmd.Process.Signal(os.Interrupt))
		}
		if err != nil {
			break
		}
	}
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	require.Equal(t, 1, exit.ExitCode(), "%s", &text)
	require.NotEqual(t, syscall.SIGINT, exit.Sys().(syscall.WaitStatus).Signal())
	var rep read
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &rep), "%s", &stdout)
	require.False(t, rep.Verified)
	require.Contains(t, rep.Error, migrate.ErrCancelled.Error())
	require.Len(t, rep.Moves, 1)
	require.Equal(t, "cancelled", rep.Moves[0].Result.Phase)
}

func TestArguments(t *testing.T) {
	for _, args := range [][]string{
		{}, {"-lab", "-guest", "x"}, {"-from", "a", "-to", "b"}, {"-nonsense"}, {"-lab", "extra"}, {"-at", "vda"}, {"-at", "vda=relative"}, {"-bandwidth", "fast"},
	} {
		var stdout, stderr bytes.Buffer
		require.Equal(t, 2, run(args, &stdout, &stderr), "%v", args)
		require.Empty(t, stdout.String())
		require.Contains(t, stderr.String(), "livemigrate")
	}
	var stdout, stderr bytes.Buffer
	require.Equal(t, 0, run([]string{"-h"}, &stdout, &stderr))
	require.Contains(t, stderr.String(), "-lab")

	// Hosts that are not there: the report says so, and verifies nothing.
	stdout.Reset()
	require.Equal(t, 1, run([]string{"-json", "-from", "qemu+unix:///system?socket=/nowhere", "-to", "qemu:///system", "-guest", "x"}, &stdout, &stderr))
	var rep read
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &rep))
	require.False(t, rep.Verified)
	require.NotEmpty(t, rep.Error)
}
