package lab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// withTools is the image with programs of this machine in its initramfs, below
// the host's directory for images: an initramfs may be several archives, one
// behind the other.
func (g *guestImage) withTools(ctx context.Context, h *Host, name string, tools []string) (*guestImage, error) {
	path := h.ImagePath("." + name + "-initrd")
	out, err := os.OpenFile(h.OutsidePath(path), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	base, err := os.Open(g.Initrd)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	w := bufio.NewWriterSize(out, 1<<20)
	n, err := io.Copy(w, base)
	if err != nil {
		return nil, err
	}
	if pad := -n & 3; pad > 0 {
		w.Write(make([]byte, pad))
	}
	a := &archive{w: w}
	seen := map[string]bool{}
	for _, tool := range tools {
		if err := a.tool(ctx, tool, seen); err != nil {
			return nil, err
		}
	}
	if err := a.close(); err != nil {
		return nil, err
	}
	return &guestImage{Kernel: g.Kernel, Initrd: path}, w.Flush()
}

// tool adds a program and what it is linked to, each once.
func (a *archive) tool(ctx context.Context, tool string, seen map[string]bool) error {
	path, err := exec.LookPath(tool)
	if err != nil {
		return fmt.Errorf("%w; %s", err, remedy)
	}
	files := []string{path}
	// A program without libraries is none that ldd knows; it says so and fails.
	if out, err := exec.CommandContext(ctx, "ldd", path).Output(); err == nil {
		for word := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(word, "/") {
				files = append(files, word)
			}
		}
	}
	for _, f := range files {
		if seen[f] {
			continue
		}
		seen[f] = true
		content, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		a.file(strings.TrimPrefix(f, "/"), content)
	}
	if filepath.Base(path) != "busybox" {
		return nil
	}
	applets, err := exec.CommandContext(ctx, path, "--list").Output()
	if err != nil {
		return fmt.Errorf("%s --list: %w", path, err)
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if !seen[applet] && applet != "busybox" {
			seen[applet] = true
			a.link("bin/"+applet, path)
		}
	}
	return nil
}
