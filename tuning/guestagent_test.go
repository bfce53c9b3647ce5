package tuning

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// agentFunc answers commands by name.
type agentFunc func(name string, args map[string]any) string

func (f agentFunc) Command(_ context.Context, command []byte) ([]byte, error) {
	var c struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments"`
	}
	if err := json.Unmarshal(command, &c); err != nil {
		return nil, err
	}
	return []byte(f(c.Execute, c.Arguments)), nil
}

// A guest that lies, stalls or floods gets an error for it, and no more.
func TestGuestIsNotTrusted(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	big := base64.StdEncoding.EncodeToString(make([]byte, 1<<20))
	for name, f := range map[string]agentFunc{
		"no JSON":     func(string, map[string]any) string { return "x" },
		"other types": func(string, map[string]any) string { return `{"return":{"pid":"x"}}` },
		"an error":    func(string, map[string]any) string { return `{"error":{"desc":"boom"}}` },
		"wrong count": func(n string, _ map[string]any) string {
			if n == "guest-file-read" {
				return `{"return":{"count":5,"buf-b64":"YQ=="}}`
			}
			return `{"return":1}`
		},
		"no end": func(n string, _ map[string]any) string {
			if n == "guest-file-read" {
				return fmt.Sprintf(`{"return":{"count":%d,"buf-b64":"%s"}}`, 1<<20, big)
			}
			return `{"return":1}`
		},
	} {
		_, err := NewGuest("g", f).ReadFile(ctx, "/proc/x")
		require.Error(t, err, name)
	}
	never := NewGuest("g", agentFunc(func(n string, _ map[string]any) string {
		if n == "guest-exec" {
			return `{"return":{"pid":1}}`
		}
		return `{"return":{"exited":false}}`
	}))
	_, err := never.Run(ctx, "true")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, NewGuest("g", nil).SetFile(ctx, "/etc/passwd", nil), share.ErrInvalid)
}

// Where the agent may not execute programs, patterns are unsure and files still
// are read.
func TestGuestWithoutExec(t *testing.T) {
	g := NewGuest("g", agentFunc(func(n string, args map[string]any) string {
		switch n {
		case "guest-exec":
			return `{"error":{"class":"CommandNotFound","desc":"Command guest-exec has been disabled"}}`
		case "guest-file-open":
			if args["path"] == bootIDFile || args["path"] == swappy {
				return `{"return":1}`
			}
			return `{"error":{"desc":"failed to open file: No such file or directory"}}`
		case "guest-file-read":
			return `{"return":{"count":3,"buf-b64":"NjAK","eof":true}}`
		}
		return `{"return":{}}`
	}))
	_, err := g.Glob(context.Background(), "/sys/block/*/queue/scheduler")
	require.ErrorIs(t, err, errors.ErrUnsupported)
	r, err := Check(context.Background(), g, &CheckOptions{Class: InGuest})
	require.NoError(t, err)
	state := map[string]State{}
	for _, f := range r.Findings {
		state[f.ID] = f.State
	}
	require.Equal(t, Unsure, state["block.scheduler"])
	require.Equal(t, Differs, state["vm.swappiness"])
	require.Equal(t, Absent, state["vm.dirty-ratio"])
	k, _ := FindKnob(Knobs(), "block.scheduler")
	require.Equal(t, Inconclusive, Probe(context.Background(), g, k).Answer)
	k, _ = FindKnob(Knobs(), "vm.swappiness")
	require.Equal(t, Yes, Probe(context.Background(), g, k).Answer)
	k, _ = FindKnob(Knobs(), "vm.dirty-ratio")
	require.Equal(t, No, Probe(context.Background(), g, k).Answer)
}
