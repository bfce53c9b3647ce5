package tuning

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Snapshot is a machine that was recorded: all that [Check] reads of it. It is
// plain data, to be stored as JSON and asked elsewhere; as a [System] it cannot
// be written. Passwords and keys in configuration files are not recorded.
type Snapshot struct {
	Machine  string              `json:"machine"`
	Taken    time.Time           `json:"taken"`
	Files    map[string]Recorded `json:"files"`
	Patterns map[string]Matches  `json:"patterns"`
	Commands map[string]Recorded `json:"commands"` // by the words, with blanks between
}

// Recorded is what reading a file, or running a command, came to.
type Recorded struct {
	Content string `json:"content,omitempty"`
	Err     string `json:"error,omitempty"` // "absent", "denied", or a text
}

// Matches is what looking for a pattern came to.
type Matches struct {
	Paths []string `json:"paths,omitempty"`
	Err   string   `json:"error,omitempty"`
}

var (
	_ System = (*Snapshot)(nil)
	_ Runner = (*Snapshot)(nil)
)

// Record records a machine: what a check for any class, with the knobs of the
// table (Knobs() when nil), reads.
func Record(ctx context.Context, sys System, knobs []Knob) (*Snapshot, error) {
	r := &recorder{sys: newCache(sys), snap: &Snapshot{Machine: sys.Name(), Taken: time.Now().UTC().Truncate(time.Second),
		Files: map[string]Recorded{}, Patterns: map[string]Matches{}, Commands: map[string]Recorded{}}}
	for _, c := range Classes() {
		if _, err := Check(ctx, r, &CheckOptions{Class: c, Knobs: knobs}); err != nil {
			return nil, err
		}
	}
	return r.snap, nil
}

// Name implements [System].
func (s *Snapshot) Name() string { return s.Machine }

// ReadFile implements [System]. What was not recorded is not there.
func (s *Snapshot) ReadFile(_ context.Context, path string) ([]byte, error) {
	r, ok := s.Files[path]
	if !ok {
		r.Err = recordedAbsent
	}
	return []byte(r.Content), recordedError("read "+path, r.Err)
}

// Glob implements [System].
func (s *Snapshot) Glob(_ context.Context, pattern string) ([]string, error) {
	m := s.Patterns[pattern]
	return m.Paths, recordedError("look for "+pattern, m.Err)
}

// Run implements [Runner].
func (s *Snapshot) Run(_ context.Context, argv ...string) ([]byte, error) {
	r, ok := s.Commands[strings.Join(argv, " ")]
	if !ok {
		r.Err = recordedAbsent
	}
	return []byte(r.Content), recordedError("run "+argv[0], r.Err)
}

// SetFile implements [System]: it is errors.ErrUnsupported.
func (s *Snapshot) SetFile(context.Context, string, []byte) error {
	return &share.UnsupportedError{What: "changing " + s.Machine, Reason: "it is a record of a machine"}
}

const (
	recordedAbsent = "absent"
	recordedDenied = "denied"
)

func recordedError(what, text string) error {
	switch text {
	case "":
		return nil
	case recordedAbsent:
		return fmt.Errorf("%s: it %w", what, share.ErrNotExist)
	case recordedDenied:
		return fmt.Errorf("%s: access %w", what, share.ErrDenied)
	}
	return fmt.Errorf("%s: %s", what, text)
}

func recordError(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, share.ErrNotExist):
		return recordedAbsent
	case errors.Is(err, share.ErrDenied):
		return recordedDenied
	}
	return err.Error()
}

// recorder passes on and notes.
type recorder struct {
	sys  *cache
	mu   sync.Mutex
	snap *Snapshot
}

func (r *recorder) Name() string { return r.sys.Name() }

func (r *recorder) ReadFile(ctx context.Context, path string) ([]byte, error) {
	b, err := r.sys.ReadFile(ctx, path)
	if !ofKernel(path) || strings.HasSuffix(path, "cmdline") {
		b = redact(b)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.snap.Files[path] = Recorded{string(b), recordError(err)}
	return b, err
}

func (r *recorder) Glob(ctx context.Context, pattern string) ([]string, error) {
	paths, err := r.sys.Glob(ctx, pattern)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.snap.Patterns[pattern] = Matches{paths, recordError(err)}
	return paths, err
}

func (r *recorder) SetFile(ctx context.Context, path string, data []byte) error {
	return r.snap.SetFile(ctx, path, data)
}

func (r *recorder) Run(ctx context.Context, argv ...string) ([]byte, error) {
	b, err := r.sys.Run(ctx, argv...)
	if errors.Is(err, errors.ErrUnsupported) {
		return b, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.snap.Commands[strings.Join(argv, " ")] = Recorded{string(b), recordError(err)}
	return b, err
}

// secretLine is a line, or an attribute, that sets something which is called
// like a secret.
var secretLine = regexp.MustCompile(`(?im)([\w.\[\]-]*(?:passw|passphrase|secret|psk|token|credential|(?:^|[\s_.-])key\b)[\w.\[\]-]*\s*[=:]\s*)('[^']*'|"[^"]*"|[^\s,;]+[^\n]*)`)

func redact(b []byte) []byte {
	if !bytes.ContainsAny(b, "=:") {
		return b
	}
	return secretLine.ReplaceAll(b, []byte("${1}'[redacted]'"))
}
