package sharetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// canary is the secret that must not show anywhere.
const canary = "canary-5ecr3t-16"

var secretChecks = []shareCheck{
	{"Secrets", func(e *env) {
		e.create("s")
		var seen strings.Builder
		see := func(what string, v any) {
			fmt.Fprintf(&seen, "%s: %v %+v %#v %s\n", what, v, v, v, v)
			if b, err := json.Marshal(v); err == nil {
				fmt.Fprintf(&seen, "%s: %s\n", what, b)
			}
		}
		a := e.access(0, share.ReadWrite)
		secret := share.NewSecret([]byte(canary))
		a.Credential = &share.Credential{User: "user", Secret: secret}
		if e.h.Credential != nil {
			a.Credential = e.h.Credential(a.Client, secret)
		}
		stop := watchChildren(&seen)
		publish := func(ctx context.Context, name string, set ...share.Access) error {
			sources, err := e.s.Publish(ctx, name, set)
			see("sources", sources)
			see("error", err)
			return err
		}
		err := publish(e.ctx, "s", a)
		if e.h.Credential != nil {
			require.NoError(e, err)
		} else if err != nil {
			e.is(err, share.ErrInvalid, "a credential that the backend takes none of")
		}
		see("volume", e.stat(e.s, "s"))
		for _, stored := range e.stat(e.s, "s").Access {
			require.Nil(e, stored.Credential, "a credential came back")
		}
		require.Error(e, publish(e.ctx, "none", a))
		require.Error(e, publish(e.ctx, "..", a))
		require.Error(e, publish(e.ctx, "s", a, a))
		gone, cancel := context.WithCancel(e.ctx)
		cancel()
		require.Error(e, publish(gone, "s", a))
		if e.info.Capabilities.Can(share.CanList).OK {
			all, err := share.List(e.ctx, e.s)
			require.NoError(e, err)
			see("list", all)
		}
		see("info", e.s.Info())
		see("share", e.s)
		require.NoError(e, e.s.Close())
		require.Error(e, publish(e.ctx, "s", a))
		stop()
		if e.st.Logs != nil {
			see("log", e.st.Logs())
		}
		for _, form := range []string{canary, strings.Trim(fmt.Sprint([]byte(canary)), "[]"), fmt.Sprintf("%x", canary)} {
			if at := strings.Index(seen.String(), form); at >= 0 {
				line := seen.String()[strings.LastIndexByte(seen.String()[:at], '\n')+1:]
				line, _, _ = strings.Cut(line, "\n")
				e.Fatalf("the secret shows: %s", line)
			}
		}
		for _, path := range e.publicFilesWith(canary) {
			e.Errorf("the secret is in a file that others may read: %s", path)
		}
	}},
}

// publicFilesWith lists the files of the backend's that others than their owner
// may read and that hold the text.
func (e *env) publicFilesWith(text string) []string {
	e.Helper()
	var found []string
	for _, root := range e.st.Paths {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			st, err := entry.Info()
			if err != nil || st.Mode().Perm()&0o044 == 0 {
				return err
			}
			b, err := os.ReadFile(path)
			if bytes.Contains(b, []byte(text)) {
				found = append(found, path)
			}
			return err
		})
		require.NoError(e, err)
	}
	return found
}

// watchChildren looks at the arguments and environment of this process and of
// those that it has started, all the while until it is stopped.
func watchChildren(out *strings.Builder) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	var seen strings.Builder
	wg.Go(func() {
		for {
			for _, pid := range append(children(os.Getpid()), os.Getpid()) {
				for _, file := range []string{"cmdline", "environ"} {
					if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file)); err == nil && bytes.Contains(b, []byte(canary)) {
						fmt.Fprintf(&seen, "/proc/%d/%s: %q\n", pid, file, b)
					}
				}
			}
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	return func() { close(done); wg.Wait(); out.WriteString(seen.String()) }
}

// children are the processes below pid, as far down as they go.
func children(pid int) []int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var all []int
	for _, task := range tasks {
		b, _ := os.ReadFile(task)
		for field := range strings.FieldsSeq(string(b)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(append(all, child), children(child)...)
			}
		}
	}
	return all
}
