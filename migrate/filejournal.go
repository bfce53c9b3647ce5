package migrate

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
)

// FileJournal is a [Journal] in a file of mode 0600: a line of JSON an entry,
// each after its CRC32C. Append ends with fdatasync(2). The file appears by
// rename(2), with its first line, so that there is never an empty one. While it
// is open it is locked (flock(2)): a second program gets [share.ErrInUse].
type FileJournal struct {
	path string
	mu   sync.Mutex
	f    *os.File // nil when closed
	end  int64    // behind the last good line
}

// journalVersion is the version of the file's form, in its first line.
const journalVersion = 1

// fileHeader is the first line.
type fileHeader struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
}

const journalFormat = "vmferry journal"

// maxJournal bounds what is read of a journal, in bytes: a damaged or foreign
// file must not fill the memory.
const maxJournal = 1 << 30

// OpenJournal opens the journal at path, and makes it if it is not there. The
// directory must be. A file that is no journal, or one of a version that is not
// known, is a [*JournalError], and is left as it is.
func OpenJournal(path string) (*FileJournal, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			if err := createJournal(path); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, fmt.Errorf("journal %s %w: another program has it open", path, share.ErrInUse)
		}
		j := &FileJournal{path: path, f: f}
		if _, err := j.read(); err != nil {
			f.Close()
			return nil, err
		}
		return j, nil
	}
}

// createJournal makes the file with its first line, whole or not at all.
func createJournal(path string) error {
	header, err := json.Marshal(fileHeader{journalFormat, journalVersion})
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".journal-*") // mode 0600
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(line(header))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		// A link, so that another program's journal of the same moment stays.
		if err = os.Link(tmp.Name(), path); errors.Is(err, fs.ErrExist) {
			err = nil
		}
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// line is a line of the file: the checksum in hexadecimal digits, a space, the
// text, the line's end.
func line(text []byte) []byte {
	sum := crc32.Checksum(text, crc32.MakeTable(crc32.Castagnoli))
	out := fmt.Appendf(nil, "%08x ", sum)
	return append(append(out, text...), '\n')
}

// text is what stands in a line, without its end.
func text(l []byte) ([]byte, bool) {
	if len(l) < 9 || l[8] != ' ' {
		return nil, false
	}
	sum, err := hex.DecodeString(string(l[:8]))
	t := l[9:]
	return t, err == nil && bytes.Equal(line(t)[:8], []byte(hex.EncodeToString(sum)))
}

// Append writes one entry.
func (j *FileJournal) Append(ctx context.Context, e Entry) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return fmt.Errorf("journal %s %w", j.path, share.ErrClosed)
	}
	l := line(b)
	// What an earlier, failed append left behind the end is written over, and
	// cut off: it was not acknowledged.
	_, err = j.f.WriteAt(l, j.end)
	if err == nil {
		err = j.f.Truncate(j.end + int64(len(l)))
	}
	if err == nil {
		err = unix.Fdatasync(int(j.f.Fd()))
	}
	if err != nil {
		return fmt.Errorf("journal %s: %w", j.path, err)
	}
	j.end += int64(len(l))
	return nil
}

// Entries reads the file.
func (j *FileJournal) Entries(ctx context.Context) ([]Entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return nil, fmt.Errorf("journal %s %w", j.path, share.ErrClosed)
	}
	return j.read()
}

// read parses the file and finds its end. A last line that is not whole was not
// acknowledged, and does not count; everything else that is wrong is an error.
func (j *FileJournal) read() ([]Entry, error) {
	bad := func(n int, kind error, format string, args ...any) error {
		return &JournalError{Path: j.path, Line: n, Kind: kind, Reason: fmt.Sprintf(format, args...)}
	}
	st, err := j.f.Stat()
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	switch {
	case !st.Mode().IsRegular():
		return nil, bad(0, share.ErrInvalid, "it is not a regular file")
	case st.Mode().Perm()&0o077 != 0:
		return nil, bad(0, share.ErrDenied, "its mode is %04o, and others may read or write it; make it 0600", st.Mode().Perm())
	case st.Size() > maxJournal:
		return nil, bad(0, share.ErrInvalid, "it has %d bytes, over %d", st.Size(), maxJournal)
	}
	content := make([]byte, st.Size())
	if _, err := j.f.ReadAt(content, 0); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	var entries []Entry
	j.end = 0
	for n := 1; len(content) > 0; n++ {
		l, rest, whole := bytes.Cut(content, []byte("\n"))
		t, good := text(l)
		if !whole || !good {
			if len(rest) == 0 && n > 1 {
				return entries, nil // torn: the last append was not acknowledged
			}
			if n == 1 {
				return nil, bad(n, share.ErrInvalid, "this is no journal")
			}
			return nil, bad(n, share.ErrCorrupt, "the line is damaged; what follows it cannot be trusted")
		}
		if n == 1 {
			var h fileHeader
			if json.Unmarshal(t, &h) != nil || h.Format != journalFormat {
				return nil, bad(n, share.ErrInvalid, "this is no journal")
			}
			if h.Version != journalVersion {
				return nil, bad(n, errors.ErrUnsupported, "its version is %d, and %d is known; use the program that wrote it", h.Version, journalVersion)
			}
		} else {
			var e Entry
			if err := json.Unmarshal(t, &e); err != nil {
				return nil, bad(n, share.ErrCorrupt, "%v", err)
			}
			entries = append(entries, e)
		}
		j.end += int64(len(l)) + 1
		content = rest
	}
	if j.end == 0 {
		return nil, bad(1, share.ErrInvalid, "it is empty")
	}
	return entries, nil
}

// Close gives the file and its lock back. A second Close returns nil.
func (j *FileJournal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return nil
	}
	f := j.f
	j.f = nil
	return f.Close()
}
