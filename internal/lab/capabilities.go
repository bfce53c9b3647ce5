package lab

import (
	"bytes"
	"os"
	"path/filepath"
)

// libvirt asks QEMU for its capabilities at the first start on each host, which
// takes a second of both processors, and keeps the answer on disk. The lab
// keeps it from one lab to the next. libvirt itself discards what no longer
// fits QEMU, libvirt or the kernel; so does the lab with errors: it only loses
// the second.

const capabilitiesDir = "cache/qemu/capabilities"

// seedCapabilities gives the host what earlier labs learnt.
func (h *Host) seedCapabilities() {
	if cache, err := cacheDir(); err == nil {
		copyFiles(filepath.Join(cache, "capabilities"), filepath.Join(h.dir, capabilitiesDir))
	}
}

// keepCapabilities saves what the host has learnt.
func (h *Host) keepCapabilities() {
	if cache, err := cacheDir(); err == nil {
		copyFiles(filepath.Join(h.dir, capabilitiesDir), filepath.Join(cache, "capabilities"))
	}
}

// copyFiles copies files that differ, each in one step.
func copyFiles(from, to string) {
	paths, err := filepath.Glob(filepath.Join(from, "*.xml"))
	if err != nil || len(paths) == 0 || os.MkdirAll(to, 0o755) != nil {
		return
	}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		target := filepath.Join(to, filepath.Base(path))
		if have, err := os.ReadFile(target); err == nil && bytes.Equal(have, content) {
			continue
		}
		f, err := os.CreateTemp(to, ".new-")
		if err != nil {
			continue
		}
		_, err = f.Write(content)
		f.Close()
		if err != nil || os.Rename(f.Name(), target) != nil {
			os.Remove(f.Name())
		}
	}
}
