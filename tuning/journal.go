package tuning

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
)

// Journal remembers on disk what was changed, and what it was before: without
// it nothing is written, and from it everything is reverted, also after a crash.
// It is one file of lines, each with its checksum, each synced before the write
// that it announces. One process at a time has it open.
//
// Its methods may be called concurrently; [Apply] and [Revert] on one journal
// wait for each other.
type Journal struct {
	work sync.Mutex // held by who changes machines

	mu      sync.Mutex
	f       *os.File
	path    string
	held    []Held
	files   []keptFile
	pending string // an Apply that has not ended
	seq     uint64
	broken  error
	// at, if not nil, is told of each record before and after it is written.
	// Tests end the program there.
	at func(point string)
}

// Held is a value that is ours: written by [Apply], and not given back yet.
type Held struct {
	Machine  string `json:"machine"`
	Boot     string `json:"boot"`
	Knob     string `json:"knob"`
	Scope    Scope  `json:"scope"`
	Object   string `json:"object,omitempty"`
	Path     string `json:"path"`
	Original string `json:"original"` // what Revert restores
	Ours     string `json:"ours"`     // what was written, or may have been
	Syntax   Syntax `json:"syntax"`
	// Unsettled: a crash came between announcing a write and seeing it done.
	Unsettled bool `json:"unsettled,omitempty"`

	prev  string // what Ours was before an unsettled write
	loose bool   // while unsettled the kernel itself may have set the value
	rank  int    // 1 for what others disturb
}

// keptFile is a file of ours that makes values survive a reboot.
type keptFile struct {
	Machine, Path, Sum string
}

// record is a line of the journal.
type record struct {
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"time"`
	Op      string    `json:"op"`
	Plan    string    `json:"plan,omitempty"`
	Machine string    `json:"machine,omitempty"`
	Boot    string    `json:"boot,omitempty"`
	Knob    string    `json:"knob,omitempty"`
	Scope   Scope     `json:"scope,omitempty"`
	Object  string    `json:"object,omitempty"`
	Path    string    `json:"path,omitempty"`
	Old     string    `json:"old,omitempty"`
	New     string    `json:"new,omitempty"`
	Syntax  Syntax    `json:"syntax,omitempty"`
	Loose   bool      `json:"loose,omitempty"`
	Rank    int       `json:"rank,omitempty"`
	Why     string    `json:"why,omitempty"`
	Sum     string    `json:"sum,omitempty"`
}

// The operations. What is announced may have happened; what is confirmed has.
const (
	opBegin  = "begin"  // an Apply begins
	opIntent = "intent" // New is about to be written where Old is
	opDone   = "done"   // New was read back
	opUndo   = "undo"   // what disturbs this value is about to be written back
	opUndone = "undone" // it is there
	opLeft   = "left"   // the value is somebody else's now, or gone
	opEnd    = "end"    // the Apply ended, one way or the other
	opKeep   = "keep"   // a file of ours is about to be written
	opDrop   = "drop"   // it is gone
)

const (
	maxRecord  = 64 << 10
	maxJournal = 64 << 20
	compactAt  = 1 << 20
)

// OpenJournal opens the journal at path, or creates it, in a directory that is
// there. A journal that another process has open is [share.ErrInUse]; one that
// is damaged anywhere but at its very end is [share.ErrCorrupt].
func OpenJournal(path string) (*Journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fileError("open the journal", path, err)
	}
	j := &Journal{f: f, path: path}
	if err := j.load(); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

func (j *Journal) load() error {
	st, err := j.f.Stat()
	if err != nil {
		return fileError("open the journal", j.path, err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("journal %s: not a regular file: %w", j.path, share.ErrInvalid)
	}
	if err := unix.Flock(int(j.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("journal %s %w by another process", j.path, share.ErrInUse)
	} else if err != nil {
		return fileError("lock the journal", j.path, err)
	}
	if st.Size() > maxJournal {
		return fmt.Errorf("journal %s has %v: %w", j.path, share.Bytes(st.Size()), share.ErrCorrupt)
	}
	b, err := io.ReadAll(io.LimitReader(j.f, maxJournal))
	if err != nil {
		return fileError("read the journal", j.path, err)
	}
	records, good, err := parseJournal(b)
	if err != nil {
		return fmt.Errorf("journal %s: %w", j.path, err)
	}
	for _, r := range records {
		j.fold(r)
	}
	if good < len(b) { // a line that a crash cut short: nothing was done for it
		if err := j.f.Truncate(int64(good)); err != nil {
			return fileError("mend the journal", j.path, err)
		}
	}
	if _, err := j.f.Seek(int64(good), io.SeekStart); err != nil {
		return fileError("open the journal", j.path, err)
	}
	if good > compactAt {
		return j.compact()
	}
	return syncDir(j.path)
}

func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fileError("sync the directory of", path, err)
	}
	defer d.Close()
	return fileError("sync the directory of", path, d.Sync())
}

// parseJournal reads lines until one that was cut short, and returns how many
// bytes are whole.
func parseJournal(b []byte) (out []record, good int, err error) {
	for len(b[good:]) > 0 {
		line, _, whole := bytes.Cut(b[good:], []byte("\n"))
		r, ok := parseRecord(line)
		if ok && whole {
			out = append(out, r)
			good += len(line) + 1
			continue
		}
		// Only the end may be torn: a line that follows was written, and
		// synced, after this one.
		if whole && good+len(line)+1 < len(b) {
			return nil, 0, fmt.Errorf("byte %d: %w", good, share.ErrCorrupt)
		}
		return out, good, nil
	}
	return out, good, nil
}

func parseRecord(line []byte) (r record, ok bool) {
	sum, body, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(line) > maxRecord || string(sum) != checksum(body) {
		return r, false
	}
	return r, json.Unmarshal(body, &r) == nil
}

func checksum(body []byte) string {
	return fmt.Sprintf("%08x", crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
}

func encodeRecord(r record) ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	line := fmt.Appendf(nil, "%s %s\n", checksum(body), body)
	if len(line) > maxRecord {
		return nil, fmt.Errorf("record of %d bytes %w", len(line), share.ErrInvalid)
	}
	return line, nil
}

// add appends a record, durably. A journal that could not be written to takes
// nothing any more: what it holds is unknown until it is opened again.
func (j *Journal) add(r record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return j.broken
	}
	j.seq++
	r.Seq, r.Time = j.seq, time.Now().UTC().Truncate(time.Millisecond)
	line, err := encodeRecord(r)
	if err != nil {
		return fmt.Errorf("journal %s: %w", j.path, err)
	}
	j.pass("before " + r.Op)
	_, err = j.f.Write(line)
	if err == nil {
		err = j.f.Sync()
	}
	j.pass("after " + r.Op)
	if err != nil {
		j.broken = fmt.Errorf("journal %s must be opened again: %w", j.path, fileError("write", j.path, err))
		return j.broken
	}
	j.fold(r)
	return nil
}

func (j *Journal) pass(point string) {
	if j.at != nil {
		j.at(point)
	}
}

// fold applies a record to what is known.
func (j *Journal) fold(r record) {
	j.seq = max(j.seq, r.Seq)
	at := slices.IndexFunc(j.held, func(h Held) bool { return h.Machine == r.Machine && h.Boot == r.Boot && h.Path == r.Path })
	drop := func() { j.held = slices.Delete(j.held, at, at+1) }
	switch r.Op {
	case opBegin:
		j.pending = r.Plan
	case opEnd:
		j.pending = ""
	case opIntent:
		if at < 0 {
			j.held = append(j.held, Held{Machine: r.Machine, Boot: r.Boot, Knob: r.Knob, Scope: r.Scope, Object: r.Object, Path: r.Path, Original: r.Old, Ours: r.Old, Syntax: r.Syntax})
			at = len(j.held) - 1
		}
		h := &j.held[at]
		h.prev, h.Ours, h.Unsettled, h.loose, h.rank = h.Ours, r.New, true, r.Loose, r.Rank
	case opUndo:
		if at >= 0 {
			h := &j.held[at]
			h.prev, h.Unsettled, h.loose = r.New, true, true
		}
	case opDone:
		if at >= 0 {
			h := &j.held[at]
			h.Unsettled, h.loose, h.prev = false, false, ""
		}
	case opUndone:
		if at >= 0 {
			h := &j.held[at]
			h.Ours, h.Unsettled, h.loose, h.prev = r.New, false, false, ""
			if h.Ours == h.Original {
				drop()
			}
		}
	case opLeft:
		if at >= 0 {
			drop()
		}
	case opKeep, opDrop:
		j.files = slices.DeleteFunc(j.files, func(f keptFile) bool { return f.Machine == r.Machine && f.Path == r.Path })
		if r.Op == opKeep {
			j.files = append(j.files, keptFile{r.Machine, r.Path, r.Sum})
		}
	}
}

// compact rewrites the journal as what is still held.
func (j *Journal) compact() error {
	var buf bytes.Buffer
	put := func(r record) error {
		r.Seq, r.Time = j.seq, time.Now().UTC().Truncate(time.Millisecond)
		line, err := encodeRecord(r)
		buf.Write(line)
		return err
	}
	if j.pending != "" {
		return nil // not now: an interrupted Apply is taken back first
	}
	for _, h := range j.held {
		if h.Unsettled {
			return nil
		}
		r := record{Op: opIntent, Machine: h.Machine, Boot: h.Boot, Knob: h.Knob, Scope: h.Scope, Object: h.Object, Path: h.Path, Old: h.Original, New: h.Ours, Syntax: h.Syntax, Rank: h.rank}
		if err := put(r); err != nil {
			return err
		}
		r.Op = opDone
		if err := put(r); err != nil {
			return err
		}
	}
	for _, f := range j.files {
		if err := put(record{Op: opKeep, Machine: f.Machine, Path: f.Path, Sum: f.Sum}); err != nil {
			return err
		}
	}
	tmp := j.path + ".new"
	_ = os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fileError("compact the journal", j.path, err)
	}
	_, err = f.Write(buf.Bytes())
	if err == nil {
		err = f.Sync()
	}
	if err == nil { // before it has the name: who opens it then finds it locked
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.Rename(tmp, j.path)
	}
	if err != nil {
		f.Close()
		_ = os.Remove(tmp)
		return fileError("compact the journal", j.path, err)
	}
	j.f.Close()
	j.f = f
	return syncDir(j.path)
}

// Held are the values that are ours, on all machines that the journal has seen,
// in the order in which they were first written.
func (j *Journal) Held() []Held {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.held)
}

// Interrupted is the hash of the plan whose [Apply] has not ended, or "": a
// crash came in between, and [Revert] is due.
func (j *Journal) Interrupted() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.pending
}

func (j *Journal) kept(machine string) []keptFile {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(j.files), func(f keptFile) bool { return f.Machine != machine })
}

// Close closes the journal. What is held stays held. Closing again returns nil.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return nil
	}
	err := j.f.Close()
	j.f = nil
	j.broken = fmt.Errorf("journal %s %w", j.path, share.ErrClosed)
	return err
}
