package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLab(t *testing.T) {
	var out, said bytes.Buffer
	require.NoError(t, run(context.Background(), []string{"-lab", "-json", "-size", "20G"}, &out, &said))
	var fig figures
	require.NoError(t, json.Unmarshal(out.Bytes(), &fig))
	require.True(t, fig.Verified)
	require.Equal(t, 30_000, fig.Writes)
	require.Len(t, fig.Links, 4)
	require.False(t, fig.Links[0].Converges)
	require.True(t, fig.Links[3].Converges)

	out.Reset()
	require.NoError(t, run(context.Background(), []string{"-lab", "-size", "20G"}, &out, &said))
	require.Contains(t, out.String(), "downtime")
}

func TestTrace(t *testing.T) {
	name := filepath.Join(t.TempDir(), "trace")
	require.NoError(t, os.WriteFile(name, []byte(`{"at_ns":0,"off":0,"len":4096}`+"\n"+`{"at_ns":1000000,"off":65536,"len":4096}`+"\n"), 0o600))
	var out, said bytes.Buffer
	require.NoError(t, run(context.Background(), []string{"-trace", name, "-size", "1G"}, &out, &said))
	require.NoError(t, os.WriteFile(name, []byte("junk\n"), 0o600))
	require.ErrorContains(t, run(context.Background(), []string{"-trace", name}, &out, &said), "line 1")
}

func TestArguments(t *testing.T) {
	for _, args := range [][]string{{}, {"-lab", "-trace", "x"}, {"-nonsense"}, {"-lab", "-size", "x"}, {"-lab", "-links", "x"}, {"-trace", "/nowhere"}} {
		require.Error(t, run(context.Background(), args, new(bytes.Buffer), new(bytes.Buffer)), "%v", args)
	}
	var said bytes.Buffer
	require.Error(t, run(context.Background(), []string{"-h"}, new(bytes.Buffer), &said))
	require.Contains(t, said.String(), "at_ns")
}
