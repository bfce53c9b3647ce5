package lab

import (
	"fmt"
	"io"
	"path"
	"slices"
)

// archive writes an initramfs: a cpio archive of the "newc" kind, uncompressed
// because a guest under emulation reads it faster than it decompresses.
type archive struct {
	w    io.Writer
	err  error
	at   int64
	inod int
	dirs []string
}

const (
	modeDir    = 0o040755
	modeFile   = 0o100755
	modeLink   = 0o120777
	modeDevice = 0o020600
)

// file adds a file and the directories above it.
func (a *archive) file(name string, content []byte) {
	a.parents(name)
	a.entry(name, modeFile, content, 0, 0)
}

func (a *archive) link(name, target string) {
	a.parents(name)
	a.entry(name, modeLink, []byte(target), 0, 0)
}

func (a *archive) device(name string, major, minor int) {
	a.parents(name)
	a.entry(name, modeDevice, nil, major, minor)
}

func (a *archive) parents(name string) {
	dir := path.Dir(name)
	if dir == "." || slices.Contains(a.dirs, dir) {
		return
	}
	a.parents(dir)
	a.dirs = append(a.dirs, dir)
	a.entry(dir, modeDir, nil, 0, 0)
}

func (a *archive) close() error {
	a.inod = -1
	a.entry("TRAILER!!!", 0, nil, 0, 0)
	return a.err
}

func (a *archive) entry(name string, mode int, content []byte, major, minor int) {
	a.inod++
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inod, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0, name))
	a.write(content)
}

func (a *archive) write(p []byte) {
	if pad := -(a.at + int64(len(p))) & 3; pad > 0 {
		p = append(slices.Clip(p), make([]byte, pad)...)
	}
	if a.err != nil {
		return
	}
	var n int
	n, a.err = a.w.Write(p)
	a.at += int64(n)
}
