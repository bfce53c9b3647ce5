package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// guestImage is what guests boot: an uncompressed kernel and an initramfs with
// the workload, the modules it needs and the guest agent. It is built once and
// kept in the cache under a digest of all that went into it.
type guestImage struct {
	Kernel, Initrd string
}

//go:embed workload/*.go record/*.go
var workloadSources embed.FS

// The workload's sources are built as a module of their own: it has no
// dependencies, so that this needs no network and no module cache.
const workloadModule = "module github.com/vmferry/vmferry\n\ngo 1.26.0\n"

// guestModules are loaded where the kernel has them as modules, each after
// those that it depends on.
var guestModules = []string{
	"virtio_pci", "virtio_blk", "virtio_net", "virtio_console",
}

// cacheDir is where unpacked packages lie and guest images are kept, the same
// place that install.sh fills.
func cacheDir() (string, error) {
	if dir := os.Getenv("VMFERRY_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "vmferry"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("lab: no cache directory: %w; set VMFERRY_CACHE", err)
	}
	return filepath.Join(home, ".cache", "vmferry"), nil
}

// imageInputs are the files that an image is made of.
type imageInputs struct {
	kernel  string
	modules []string // in the order of loading
	agent   string
	libs    []string // what the agent is linked to, loader included
}

// findPackages finds what install.sh has unpacked.
func findPackages(cache string) (kernelRoot, kernel, agent string, err error) {
	kernelRoot = filepath.Join(cache, "packages", "linux-image-cloud-amd64", "root")
	kernels, err := filepath.Glob(filepath.Join(kernelRoot, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return "", "", "", fmt.Errorf("lab: %d kernels below %s, want one; %s", len(kernels), kernelRoot, remedy)
	}
	agent = filepath.Join(cache, "packages", "qemu-guest-agent", "root", "usr", "sbin", "qemu-ga")
	if _, err := os.Stat(agent); err != nil {
		return "", "", "", fmt.Errorf("lab: guest agent: %w; %s", err, remedy)
	}
	return kernelRoot, kernels[0], agent, nil
}

func findImageInputs(ctx context.Context, cache string) (*imageInputs, error) {
	in := new(imageInputs)
	root, kernel, agent, err := findPackages(cache)
	if err != nil {
		return nil, err
	}
	in.kernel, in.agent = kernel, agent
	if in.modules, err = findModules(ctx, root); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "ldd", in.agent).Output()
	if err != nil {
		return nil, fmt.Errorf("lab: libraries of %s: %w; %s", in.agent, err, remedy)
	}
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				in.libs = append(in.libs, word)
			}
		}
	}
	return in, nil
}

// findModules orders guestModules and what they depend on. The packages hold
// no modules.dep, so that the dependencies are read from the modules.
func findModules(ctx context.Context, root string) ([]string, error) {
	paths := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ending, _ := strings.Cut(d.Name(), "."); ending == "ko" || strings.HasPrefix(ending, "ko.") {
			paths[strings.ReplaceAll(name, "-", "_")] = path
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lab: modules of the guests' kernel: %w", err)
	}
	var order []string
	done := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		path, isModule := paths[name]
		if !isModule || done[name] { // built in, or there already
			return nil
		}
		done[name] = true
		needs, err := moduleDepends(ctx, path)
		if err != nil {
			return fmt.Errorf("lab: %s: %w", path, err)
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		order = append(order, path)
		return nil
	}
	for _, name := range guestModules {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// readModule reads a module, compressed as Debian 13 ships them or not.
func readModule(ctx context.Context, path string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err == nil && !strings.HasSuffix(path, ".ko") {
		content, err = decompress(ctx, content)
	}
	return content, err
}

func moduleDepends(ctx context.Context, path string) ([]string, error) {
	content, err := readModule(ctx, path)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	info := f.Section(".modinfo")
	if info == nil {
		return nil, errors.New("no .modinfo section")
	}
	data, err := info.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(data, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok {
			return strings.FieldsFunc(strings.ReplaceAll(list, "-", "_"), func(r rune) bool { return r == ',' }), nil
		}
	}
	return nil, nil
}

// digest covers the content of every input, the workload's sources and the
// toolchain.
func (in *imageInputs) digest() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "lab image 2 %s\n", runtime.Version())
	for _, path := range append(append([]string{in.kernel, in.agent}, in.modules...), in.libs...) {
		if err := hashFile(h, path); err != nil {
			return "", fmt.Errorf("lab: %w", err)
		}
	}
	err := eachSource(func(name string, content []byte) error {
		fmt.Fprintf(h, "%s %d\n", name, len(content))
		_, err := h.Write(content)
		return err
	})
	return hex.EncodeToString(h.Sum(nil))[:24], err
}

func hashFile(h hash.Hash, path string) error {
	content, err := os.ReadFile(path)
	fmt.Fprintf(h, "%s %d\n", path, len(content))
	h.Write(content)
	return err
}

// eachSource yields the workload's sources by their path below this package.
func eachSource(f func(name string, content []byte) error) error {
	return fs.WalkDir(workloadSources, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(name, "_test.go") {
			return err
		}
		content, err := workloadSources.ReadFile(name)
		if err != nil {
			return err
		}
		return f(name, content)
	})
}

// openImage returns the image from the cache, building it where it is not
// there. Builders of other processes are waited for.
func openImage(ctx context.Context) (*guestImage, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	in, err := findImageInputs(ctx, cache)
	if err != nil {
		return nil, err
	}
	digest, err := in.digest()
	if err != nil {
		return nil, err
	}
	images := filepath.Join(cache, "images")
	dir := filepath.Join(images, digest)
	image := &guestImage{Kernel: filepath.Join(dir, "vmlinux"), Initrd: filepath.Join(dir, "initrd")}
	if _, err := os.Stat(dir); err == nil {
		now := time.Now()
		_ = os.Chtimes(dir, now, now) // in use, see pruneImages
		return image, nil
	}
	if err := os.MkdirAll(images, 0o755); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	lock, err := awaitLock(ctx, filepath.Join(images, ".lock"))
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if _, err := os.Stat(dir); err == nil {
		return image, nil
	}
	if err := pruneImages(images); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(images, ".new-")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := in.build(ctx, tmp); err != nil {
		return nil, fmt.Errorf("lab: build the guests' image: %w", err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return image, nil
}

// pruneImages removes what killed builders left, and images that have not been
// used for a week. The caller holds the lock.
func pruneImages(images string) error {
	entries, err := os.ReadDir(images)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() {
			continue
		}
		if strings.HasPrefix(e.Name(), ".new-") || time.Since(info.ModTime()) > 7*24*time.Hour {
			if err := os.RemoveAll(filepath.Join(images, e.Name())); err != nil {
				return fmt.Errorf("lab: %w", err)
			}
		}
	}
	return nil
}

func (in *imageInputs) build(ctx context.Context, dir string) error {
	packed, err := os.ReadFile(in.kernel)
	if err != nil {
		return err
	}
	kernel, err := extractKernel(ctx, packed)
	if err != nil {
		return fmt.Errorf("%s: %w", in.kernel, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinux"), kernel, 0o644); err != nil {
		return err
	}
	workload, err := buildWorkload(ctx, dir)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	a := &archive{w: &buf}
	a.device("dev/console", 5, 1)
	a.file("init", workload)
	a.link("sbin/shutdown", "/init")
	for _, d := range []string{"proc/.", "sys/.", "run/.", "tmp/."} {
		a.parents(d)
	}
	for i, m := range in.modules {
		module, err := readModule(ctx, m)
		if err != nil {
			return fmt.Errorf("%s: %w", m, err)
		}
		name, _, _ := strings.Cut(filepath.Base(m), ".")
		a.file(fmt.Sprintf("modules/%02d-%s.ko", i, name), unsigned(module))
	}
	for _, path := range append([]string{in.agent}, in.libs...) {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if path == in.agent {
			path = "usr/sbin/qemu-ga"
		}
		a.file(strings.TrimPrefix(path, "/"), content)
	}
	if err := a.close(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "initrd"), buf.Bytes(), 0o644)
}

// buildWorkload compiles the embedded sources below dir and removes them.
func buildWorkload(ctx context.Context, dir string) ([]byte, error) {
	src := filepath.Join(dir, "src")
	defer os.RemoveAll(src)
	err := eachSource(func(name string, content []byte) error {
		path := filepath.Join(src, "internal", "lab", filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, content, 0o644)
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(src, "go.mod"), []byte(workloadModule), 0o644); err != nil {
		return nil, err
	}
	out := filepath.Join(src, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./internal/lab/workload")
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=", "GOWORK=off", "GOPROXY=off", "GO111MODULE=on")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build of the workload: %w: %s", err, bytes.TrimSpace(text))
	}
	return os.ReadFile(out)
}

// unsigned takes a module's signature off, which costs a guest under emulation
// more to verify than all the rest of loading it.
func unsigned(module []byte) []byte {
	// The module, its signature, twelve bytes that end in the signature's
	// length, and this.
	body, signed := bytes.CutSuffix(module, []byte("~Module signature appended~\n"))
	if !signed || len(body) < 12 {
		return module
	}
	length := uint64(binary.BigEndian.Uint32(body[len(body)-4:]))
	if body = body[:len(body)-12]; length > uint64(len(body)) {
		return module
	}
	return body[:uint64(len(body))-length]
}
