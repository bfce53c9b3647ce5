package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"unicode"

	"github.com/vmferry/vmferry/share"
)

// tools are QEMU's programs for qcow2 images. Each is started without a shell,
// with the image as descriptor 3: the path of an image never reaches a command
// line, and what was checked is what is opened.
type tools struct{ img, nbd string }

// findTools looks the programs up in PATH.
func findTools() (*tools, error) {
	t := &tools{}
	for name, path := range map[string]*string{"qemu-img": &t.img, "qemu-nbd": &t.nbd} {
		p, err := exec.LookPath(name)
		if err != nil {
			return nil, &share.UnsupportedError{What: "format qcow2", Reason: name + " is not installed; it comes with QEMU (Debian: qemu-utils)"}
		}
		*path = p
	}
	return t, nil
}

const (
	// imageFD is the name of the image in a program that was started here.
	imageFD = "/proc/self/fd/3"
	// imageNode describes the image in full: its format is given, it is a
	// plain file, and it has no backing file whatever its header says.
	imageNode = `json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"` + imageFD + `"}}`
)

// command prepares a program that works on an image.
func command(ctx context.Context, program string, image *os.File, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.ExtraFiles = []*os.File{image}
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	cmd.Dir = "/"
	cmd.WaitDelay = grace
	return cmd
}

// runImg runs qemu-img on an image to its end.
func (t *tools) runImg(ctx context.Context, image *os.File, args ...string) error {
	if t == nil {
		return errNoTools
	}
	cmd := command(ctx, t.img, image, args...)
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("qemu-img %s: %w", args[0], ctx.Err())
		}
		return out.explain("qemu-img "+args[0], err)
	}
	return nil
}

var errNoTools = &share.UnsupportedError{What: "format qcow2", Reason: "qemu-img or qemu-nbd was not installed when the share was opened"}

// tail keeps the last of what a program says.
type tail struct{ b []byte }

const tailMost = 2048

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > tailMost {
		t.b = append(t.b[:0], t.b[len(t.b)-tailMost:]...)
	}
	return len(p), nil
}

// explain makes an error of a program's end and of what it said.
func (t *tail) explain(what string, err error) error {
	said := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, string(bytes.TrimSpace(t.b)))
	switch {
	case strings.Contains(said, "lock"):
		err = errors.Join(share.ErrInUse, err)
	case strings.Contains(said, "No space left"):
		err = errors.Join(share.ErrNoSpace, err)
	case strings.Contains(said, "Permission denied"):
		err = errors.Join(share.ErrDenied, err)
	}
	if said == "" {
		return fmt.Errorf("%s: %w", what, err)
	}
	return &toolError{what: what, said: said, err: err}
}

// toolError is a program that failed, and said why.
type toolError struct {
	what, said string
	err        error
}

func (e *toolError) Error() string { return e.what + ": " + e.said }
func (e *toolError) Unwrap() error { return e.err }

// makeQcow2 gives a new file the content of an empty qcow2 image.
func (d *dir) makeQcow2(ctx context.Context, f *os.File, spec share.Spec) error {
	prealloc := "preallocation=off"
	if spec.Preallocate {
		prealloc = "preallocation=falloc"
	}
	return d.tools.runImg(ctx, f, "create", "-q", "-f", "qcow2", "-o", prealloc, "--", imageFD, fmt.Sprint(int64(spec.Size)))
}

// resizeQcow2 brings an image to the size, unless it has it.
func (d *dir) resizeQcow2(ctx context.Context, f *os.File, size share.Bytes) error {
	h, err := readQcow2(f)
	if err != nil || h.Size == size {
		return err
	}
	args := []string{"resize", "-q"}
	if size < h.Size {
		args = append(args, "--shrink")
	}
	if err := d.tools.runImg(ctx, f, append(args, "--", imageNode, fmt.Sprint(int64(size)))...); err != nil {
		return err
	}
	return f.Sync()
}
