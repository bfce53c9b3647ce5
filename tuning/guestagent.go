package tuning

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Agent carries commands to a guest's agent. tuning/kvm has one through libvirt.
type Agent interface {
	// Command sends one command of the agent's protocol and returns its reply,
	// both JSON objects. It corresponds to virsh qemu-agent-command. An error
	// of the agent's is an error with the agent's words in it.
	Command(ctx context.Context, command []byte) ([]byte, error)
}

// Guest is a running guest, seen through its agent. It is a [System] and a
// [Runner]. Files are read and written by guest-file-*, programs run by
// guest-exec; where the agent is forbidden to execute programs, as on Red Hat's
// guests, patterns cannot be looked for, and the knobs that need it are unsure.
//
// The guest is not trusted: what it answers is bounded, in size and by ctx.
type Guest struct {
	name  string
	agent Agent
}

// NewGuest is the guest behind an agent; the name is for people.
func NewGuest(name string, agent Agent) *Guest { return &Guest{name, agent} }

// Name implements [System].
func (g *Guest) Name() string { return g.name }

// chunk is how much is asked for at once.
const chunk = 256 << 10

// call sends a command and decodes what it returns.
func (g *Guest) call(ctx context.Context, name string, arguments, result any) error {
	command := map[string]any{"execute": name}
	if arguments != nil {
		command["arguments"] = arguments
	}
	b, err := json.Marshal(command)
	if err != nil {
		return err
	}
	out, err := g.agent.Command(ctx, b)
	if err != nil {
		return agentError(err)
	}
	if len(out) > 2*maxOutput {
		return fmt.Errorf("%s: reply of %v %w", name, share.Bytes(len(out)), share.ErrInvalid)
	}
	reply := struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}{}
	if err := json.Unmarshal(out, &reply); err != nil {
		return fmt.Errorf("%s: reply %w: %w", name, share.ErrInvalid, err)
	}
	if reply.Error != nil {
		return agentError(errors.New(quoteIfOdd(reply.Error.Desc)))
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Return, result); err != nil {
		return fmt.Errorf("%s: reply %w: %w", name, share.ErrInvalid, err)
	}
	return nil
}

// agentKinds tell errors of the agent apart, which has nothing but the
// operating system's words for them.
var agentKinds = []struct {
	text string
	kind error
}{
	{"No such file or directory", share.ErrNotExist},
	{"Failed to find executable", share.ErrNotExist},
	{"No such device", share.ErrNotExist},
	{"Not a directory", share.ErrNotExist},
	{"Permission denied", share.ErrDenied},
	{"Operation not permitted", share.ErrDenied},
	{"Read-only file system", share.ErrDenied},
	{"Invalid argument", share.ErrInvalid},
	{"Device or resource busy", share.ErrInUse},
	{"has been disabled", errors.ErrUnsupported},
	{"has not been found", errors.ErrUnsupported},
}

func agentError(err error) error {
	for _, k := range agentKinds {
		if strings.Contains(err.Error(), k.text) && !errors.Is(err, k.kind) {
			return &agentFailed{k.kind, err}
		}
	}
	return err
}

type agentFailed struct{ kind, err error }

func (e *agentFailed) Error() string   { return "guest agent: " + e.err.Error() }
func (e *agentFailed) Unwrap() []error { return []error{e.kind, e.err} }

// ofKernel: nothing but regular files and directories, whose reading ends.
func ofKernel(path string) bool {
	return strings.HasPrefix(path, "/proc/") || strings.HasPrefix(path, "/sys/")
}

// ReadFile implements [System].
func (g *Guest) ReadFile(ctx context.Context, path string) ([]byte, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	if !ofKernel(path) { // a FIFO would hold the agent for ever
		code, _, _, err := g.exec(ctx, "test", "-f", path)
		if err == nil && code != 0 {
			if code, _, _, err := g.exec(ctx, "test", "-e", path); err == nil && code == 0 {
				return nil, fmt.Errorf("read %s: not a regular file: %w", path, share.ErrInvalid)
			}
			return nil, fmt.Errorf("read %s: it %w", path, share.ErrNotExist)
		} else if err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, share.ErrNotExist) {
			return nil, err
		}
	}
	var out []byte
	err := g.withFile(ctx, path, "r", func(handle int64) error {
		for {
			var got struct {
				Count int    `json:"count"`
				Data  string `json:"buf-b64"`
				EOF   bool   `json:"eof"`
			}
			if err := g.call(ctx, "guest-file-read", map[string]any{"handle": handle, "count": chunk}, &got); err != nil {
				return err
			}
			b, err := base64.StdEncoding.DecodeString(got.Data)
			if err != nil || len(b) != got.Count {
				return fmt.Errorf("guest-file-read: reply %w", share.ErrInvalid)
			}
			if out = append(out, b...); len(out) > maxFile {
				return fmt.Errorf("over %v: %w", share.Bytes(maxFile), share.ErrInvalid)
			}
			if got.EOF || got.Count == 0 {
				return nil
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read %s in %s: %w", path, g.name, err)
	}
	return out, nil
}

// withFile opens a file, and closes it whatever happens.
func (g *Guest) withFile(ctx context.Context, path, mode string, f func(handle int64) error) error {
	var handle int64
	if err := g.call(ctx, "guest-file-open", map[string]any{"path": path, "mode": mode}, &handle); err != nil {
		return err
	}
	err := f(handle)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if e := g.call(closing, "guest-file-close", map[string]any{"handle": handle}, nil); err == nil {
		err = e
	}
	return err
}

// SetFile implements [System], for files below /proc and /sys, where nobody can
// put a link.
func (g *Guest) SetFile(ctx context.Context, path string, data []byte) error {
	if err := checkPath(path); err != nil {
		return err
	}
	if !ofKernel(path) {
		return fmt.Errorf("write %s in %s: %w: it is not the kernel's", path, g.name, share.ErrInvalid)
	}
	err := g.withFile(ctx, path, "r+", func(handle int64) error {
		var got struct {
			Count int `json:"count"`
		}
		if err := g.call(ctx, "guest-file-write", map[string]any{"handle": handle, "buf-b64": base64.StdEncoding.EncodeToString(data)}, &got); err != nil {
			return err
		}
		if got.Count != len(data) {
			return fmt.Errorf("%d of %d bytes: %w", got.Count, len(data), share.ErrInvalid)
		}
		// The agent buffers: only now does the kernel see it.
		return g.call(ctx, "guest-file-flush", map[string]any{"handle": handle}, nil)
	})
	if err != nil {
		return fmt.Errorf("write %s in %s: %w", path, g.name, err)
	}
	return nil
}

// Glob implements [System], by ls in the guest.
func (g *Guest) Glob(ctx context.Context, pattern string) ([]string, error) {
	if err := checkPath(pattern); err != nil {
		return nil, err
	}
	found := []string{""}
	listed := true
	for element := range strings.SplitSeq(pattern[1:], "/") {
		var next []string
		for _, dir := range found {
			if !strings.ContainsAny(element, "*?[") {
				next, listed = append(next, dir+"/"+element), false
				continue
			}
			listed = true
			code, out, said, err := g.exec(ctx, "ls", "-1A", "--", dir+"/")
			switch {
			case err != nil:
				return nil, fmt.Errorf("list %s in %s: %w", dir, g.name, err)
			case code != 0 && !strings.Contains(string(said), "No such file"):
				return nil, fmt.Errorf("list %s in %s: %w", dir, g.name, agentError(errors.New(quoteIfOdd(strings.TrimSpace(string(said))))))
			}
			for n := range strings.Lines(string(out)) {
				n = strings.TrimSuffix(n, "\n")
				if ok, err := path.Match(element, n); err != nil {
					return nil, fmt.Errorf("pattern %s %w", quote(pattern), share.ErrInvalid)
				} else if ok && n != "" && len(next) < 10000 {
					next = append(next, dir+"/"+n)
				}
			}
		}
		found = next
	}
	if len(found) > 0 && !listed { // of those that may be, those that are
		_, out, _, err := g.exec(ctx, append([]string{"ls", "-1d", "--"}, found...)...)
		if err != nil {
			return nil, fmt.Errorf("look for %s in %s: %w", pattern, g.name, err)
		}
		there := strings.Split(string(out), "\n")
		found = slices.DeleteFunc(found, func(p string) bool { return !slices.Contains(there, p) })
	}
	slices.Sort(found)
	return found, nil
}

// Run implements [Runner]. The agent looks for programs in its own PATH.
func (g *Guest) Run(ctx context.Context, argv ...string) ([]byte, error) {
	code, out, said, err := g.exec(ctx, argv...)
	switch {
	case err != nil:
		return nil, fmt.Errorf("run %s in %s: %w", argv[0], g.name, err)
	case code != 0:
		return nil, fmt.Errorf("run %s in %s: exit status %d: %s", argv[0], g.name, code, quoteIfOdd(strings.TrimSpace(string(said))))
	}
	return out, nil
}

// exec runs a program and waits for its end.
func (g *Guest) exec(ctx context.Context, argv ...string) (code int, out, said []byte, err error) {
	var started struct {
		PID int64 `json:"pid"`
	}
	arguments := map[string]any{"path": argv[0], "arg": argv[1:], "capture-output": true}
	if err := g.call(ctx, "guest-exec", arguments, &started); err != nil {
		return 0, nil, nil, err
	}
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		var s struct {
			Exited bool   `json:"exited"`
			Code   int    `json:"exitcode"`
			Signal int    `json:"signal"`
			Out    string `json:"out-data"`
			Err    string `json:"err-data"`
			Cut    bool   `json:"out-truncated"`
		}
		if err := g.call(ctx, "guest-exec-status", map[string]any{"pid": started.PID}, &s); err != nil {
			return 0, nil, nil, err
		}
		if s.Exited {
			out, err1 := base64.StdEncoding.DecodeString(s.Out)
			said, err2 := base64.StdEncoding.DecodeString(s.Err)
			if err1 != nil || err2 != nil || s.Cut || len(out) > maxOutput {
				return 0, nil, nil, fmt.Errorf("output of %s %w", argv[0], share.ErrInvalid)
			}
			if s.Signal != 0 {
				return 0, nil, nil, fmt.Errorf("%s ended by signal %d", argv[0], s.Signal)
			}
			return s.Code, out, said, nil
		}
		select {
		case <-ctx.Done():
			return 0, nil, nil, fmt.Errorf("%s has not ended: %w", argv[0], context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}
