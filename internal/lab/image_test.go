package lab

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDecompressLZ4(t *testing.T) {
	block := func(p ...byte) []byte { return append(binary.LittleEndian.AppendUint32(nil, uint32(len(p))), p...) }
	long := append([]byte{0xf0, 5}, []byte("twenty literal bytes")...)
	for _, c := range []struct {
		name, want string
		in         []byte
	}{
		{"literals", "abc", block(0x30, 'a', 'b', 'c')},
		{"an overlapping copy", "abababababz", block(0x24, 'a', 'b', 2, 0, 0x10, 'z')},
		{"a long run", "twenty literal bytes", block(long...)},
		{"two blocks and the appended size", "abcabc", append(append(block(0x30, 'a', 'b', 'c'), block(0x30, 'a', 'b', 'c')...), 6, 0, 0, 0)},
	} {
		got, err := decompressLZ4(c.in)
		require.NoError(t, err, c.name)
		require.Equal(t, c.want, string(got), c.name)
	}
	for name, in := range map[string][]byte{
		"a block beyond the end": {9, 0, 0, 0, 0x30, 'a'},
		"too few literals":       block(0x40, 'a'),
		"a copy from before":     block(0x10, 'a', 2, 0),
		"a copy from nowhere":    block(0x10, 'a', 0, 0),
		"half an offset":         block(0x10, 'a', 1),
	} {
		_, err := decompressLZ4(in)
		require.ErrorIs(t, err, errLZ4, name)
	}
}

func FuzzDecompressLZ4(f *testing.F) {
	f.Add([]byte{8, 0, 0, 0, 0x24, 'a', 'b', 2, 0, 0x10, 'z', 0})
	f.Fuzz(func(t *testing.T, p []byte) { _, _ = decompressLZ4(p) })
}

func TestArchive(t *testing.T) {
	var b bytes.Buffer
	a := &archive{w: &b}
	a.file("a/b/c", []byte("hello"))
	a.link("a/l", "b/c")
	require.NoError(t, a.close())
	require.Zero(t, b.Len()%4)
	// Two directories before the file, each once.
	require.Equal(t, 5, bytes.Count(b.Bytes(), []byte("070701")))
	require.Equal(t, 1, bytes.Count(b.Bytes(), []byte("a/b\x00")))
	at := bytes.Index(b.Bytes(), []byte("hello"))
	require.Zero(t, at%4, "content is aligned")
}

func TestUnsigned(t *testing.T) {
	module := []byte("module")
	require.Equal(t, module, unsigned(module))
	signed := append(bytes.Clone(module), "sig"...)
	signed = append(signed, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3)
	signed = append(signed, "~Module signature appended~\n"...)
	require.Equal(t, module, unsigned(signed))
}

func TestImageIsBuiltOnce(t *testing.T) {
	Require(t)
	real, err := cacheDir()
	require.NoError(t, err)
	cache := t.TempDir()
	require.NoError(t, os.Symlink(filepath.Join(real, "packages"), filepath.Join(cache, "packages")))
	t.Setenv("VMFERRY_CACHE", cache)
	// What a builder left that was killed.
	require.NoError(t, os.MkdirAll(filepath.Join(cache, "images", ".new-dead"), 0o755))

	var builders sync.WaitGroup
	images := make([]*guestImage, 3)
	for i := range images {
		builders.Go(func() {
			var err error
			images[i], err = openImage(t.Context())
			assert.NoError(t, err)
		})
	}
	builders.Wait()
	entries, err := filepath.Glob(filepath.Join(cache, "images", "*"))
	require.NoError(t, err)
	require.Len(t, entries, 2, "an image and the lock")
	for _, image := range images {
		require.Equal(t, images[0], image)
	}
	for _, path := range []string{images[0].Kernel, images[0].Initrd} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Greater(t, info.Size(), int64(1<<20))
	}
}

func TestReadModule(t *testing.T) {
	module := append([]byte("\x7fELF"), make([]byte, 1000)...)
	plain := filepath.Join(t.TempDir(), "a.ko")
	require.NoError(t, os.WriteFile(plain, module, 0o600))
	for tool, ending := range map[string]string{"xz": ".xz", "zstd": ".zst", "gzip": ".gz"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("VMFERRY_LAB") == "required" {
				t.Fatalf("%v; run install.sh", err)
			}
			t.Skipf("%v; run install.sh", err)
		}
		packed, err := exec.Command(tool, "-c", plain).Output()
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(plain+ending, packed, 0o600))
	}
	for _, ending := range []string{"", ".xz", ".zst", ".gz"} {
		got, err := readModule(t.Context(), plain+ending)
		require.NoError(t, err, ending)
		require.Equal(t, module, got, ending)
	}
}
