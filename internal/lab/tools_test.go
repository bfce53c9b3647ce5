package lab_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/internal/lab"
)

// A guest has the programs that it was given, and the agent executes them.
func TestTools(t *testing.T) {
	l := lab.Start(t, &lab.Options{Hosts: 1})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	g, err := l.StartGuest(ctx, l.Host(0), &lab.GuestOptions{Memory: 512, Tools: []string{"busybox", "fio"}})
	require.NoError(t, err)
	var reply struct {
		Return struct {
			PID      int
			Exited   bool
			ExitCode int
		}
	}
	agent := func(command string) {
		out, err := l.Host(0).Virsh(ctx, "qemu-agent-command", g.UUID, command)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal([]byte(out), &reply))
	}
	require.Eventually(t, func() bool {
		_, err := l.Host(0).Virsh(ctx, "qemu-agent-command", g.UUID, `{"execute":"guest-ping"}`)
		return err == nil
	}, 20*time.Second, 100*time.Millisecond)
	for _, command := range []string{`"path":"/usr/bin/fio","arg":["--version"]`, `"path":"/bin/sh","arg":["-c","test -d /proc/1"]`} {
		agent(`{"execute":"guest-exec","arguments":{` + command + `}}`)
		pid, err := json.Marshal(reply.Return.PID)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			agent(`{"execute":"guest-exec-status","arguments":{"pid":` + string(pid) + `}}`)
			return reply.Return.Exited
		}, 20*time.Second, 100*time.Millisecond)
		require.Zero(t, reply.Return.ExitCode, command)
	}
}
