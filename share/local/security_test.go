package local

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

var rw = []share.Access{{Client: share.LocalHost(), Mode: share.ReadWrite}}

// touches are the calls that use a volume's image.
var touches = map[string]func(ctx context.Context, s share.Share) error{
	"stat":    func(ctx context.Context, s share.Share) error { _, err := s.Stat(ctx, "v"); return err },
	"publish": func(ctx context.Context, s share.Share) error { _, err := s.Publish(ctx, "v", rw); return err },
	"resize": func(ctx context.Context, s share.Share) error {
		_, err := share.Resize(ctx, s, "v", 8*share.MiB, nil)
		return err
	},
	"open": func(ctx context.Context, s share.Share) error {
		d, err := share.OpenDevice(ctx, s, "v", nil)
		if err == nil {
			_ = d.Close()
		}
		return err
	},
	"read": func(ctx context.Context, s share.Share) error {
		d, err := share.OpenDevice(ctx, s, "v", &share.OpenOptions{ReadOnly: true})
		if err == nil {
			_ = d.Close()
		}
		return err
	},
}

// TestReplacedImage: what takes the place of an image is not used for it, and
// is not changed. (CVE-2021-25741, CVE-2024-52522, CVE-2025-64433)
func TestReplacedImage(t *testing.T) {
	ctx := t.Context()
	victim := filepath.Join(t.TempDir(), "victim")
	body := strings.Repeat("v", int(4*share.MiB))
	require.NoError(t, os.WriteFile(victim, []byte(body), 0o640))
	for name, c := range map[string]struct {
		replace func(t *testing.T, path string)
		passes  []string // calls that need not notice
	}{
		"symlink outwards": {func(t *testing.T, p string) { require.NoError(t, os.Symlink(victim, p)) }, nil},
		"symlink inwards":  {func(t *testing.T, p string) { require.NoError(t, os.Symlink("other", p)) }, nil},
		"symlink nowhere":  {func(t *testing.T, p string) { require.NoError(t, os.Symlink("/nowhere/at/all", p)) }, nil},
		"hard link":        {func(t *testing.T, p string) { require.NoError(t, os.Link(victim, p)) }, []string{"stat", "publish"}},
		"pipe":             {func(t *testing.T, p string) { require.NoError(t, syscall.Mkfifo(p, 0o600)) }, nil},
		"directory":        {func(t *testing.T, p string) { require.NoError(t, os.Mkdir(p, 0o700)) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, nil)
			create(t, s, disk("v", share.Raw))
			create(t, s, disk("other", share.Raw))
			write(t, s, "other", "other", 0)
			require.NoError(t, os.Remove(filepath.Join(dir, "v")))
			c.replace(t, filepath.Join(dir, "v"))
			for what, call := range touches {
				start := time.Now()
				err := call(ctx, s)
				require.Less(t, time.Since(start), 5*time.Second, what)
				if len(c.passes) > 0 && (what == c.passes[0] || what == c.passes[1]) {
					continue
				}
				require.ErrorIs(t, err, share.ErrWrongDevice, what)
			}
			_, err := s.Publish(ctx, "v", nil)
			require.NoError(t, err, "what is published can be taken back")
			require.NoError(t, share.Delete(ctx, s, "v"), "and the volume removed")
			require.Equal(t, "other", read(t, s, "other", 0, 5))
			b, err := os.ReadFile(victim)
			require.NoError(t, err)
			require.Equal(t, body, string(b))
			st, err := os.Stat(victim)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o640), st.Mode())
		})
	}
}

func TestMissingOrCutImage(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	create(t, s, disk("v", share.Raw))
	path := filepath.Join(dir, "v")
	for _, size := range []int64{0, int64(4*share.MiB) - 1, int64(5 * share.MiB)} {
		require.NoError(t, os.Truncate(path, size))
		_, err := share.OpenDevice(t.Context(), s, "v", nil)
		require.ErrorIs(t, err, share.ErrCorrupt, "an image of %d bytes", size)
	}
	require.NoError(t, os.Truncate(path, int64(4*share.MiB)))
	d, err := share.OpenDevice(t.Context(), s, "v", nil)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(path, 512))
	require.ErrorIs(t, d.ReadAt(t.Context(), make([]byte, 1024), 0), share.ErrCorrupt, "never a short read")
	require.NoError(t, d.Close())
	require.NoError(t, os.Remove(path))
	for what, call := range touches {
		require.ErrorIs(t, call(t.Context(), s), share.ErrCorrupt, what)
	}
	_, err = share.List(t.Context(), s)
	require.ErrorIs(t, err, share.ErrCorrupt)
}

// TestSwappedDirectory: another directory at the share's path is not the share.
func TestSwappedDirectory(t *testing.T) {
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "d")
	s := open(t, dir, &Options{Create: true})
	v := create(t, s, disk("v", share.Raw))
	require.NoError(t, os.Rename(dir, dir+".moved"))
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "v"), []byte("bait"), 0o600))
	_, err := s.Publish(ctx, "v", rw)
	require.ErrorIs(t, err, share.ErrWrongDevice)
	write(t, s, "v", "still mine", 0)
	bait, err := os.ReadFile(filepath.Join(dir, "v"))
	require.NoError(t, err)
	require.Equal(t, "bait", string(bait))
	require.Equal(t, "still mine", read(t, open(t, dir+".moved", nil), "v", 0, 10))

	fresh := open(t, dir, nil)
	require.NotEqual(t, s.Info().Identity, fresh.Info().Identity)
	_, err = share.OpenDevice(ctx, fresh, "v", &share.OpenOptions{VolumeID: v.ID})
	require.ErrorIs(t, err, share.ErrNotExist)
}

func TestStoreIsNotOthers(t *testing.T) {
	ctx := t.Context()
	elsewhere := t.TempDir()
	dir := t.TempDir()
	require.NoError(t, os.Symlink(elsewhere, filepath.Join(dir, storeDir)))
	_, err := Open(ctx, dir, nil)
	require.Error(t, err)
	left, err := os.ReadDir(elsewhere)
	require.NoError(t, err)
	require.Empty(t, left)

	dir = t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, storeDir), 0o700))
	require.NoError(t, os.Chmod(filepath.Join(dir, storeDir), 0o777))
	_, err = Open(ctx, dir, nil)
	require.ErrorIs(t, err, share.ErrDenied)

	dir = t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, storeDir), nil, 0o600))
	_, err = Open(ctx, dir, nil)
	require.ErrorIs(t, err, share.ErrWrongDevice)
}

// TestTamperedRecord: each byte that flips and each cut is found, and a record
// of another version or volume is refused.
func TestTamperedRecord(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	s := open(t, dir, nil)
	create(t, s, disk("v", share.Raw))
	create(t, s, disk("w", share.Raw))
	path := filepath.Join(dir, storeDir, recordName("v"))
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	want, err := s.Stat(ctx, "v")
	require.NoError(t, err)
	put := func(b []byte) { require.NoError(t, os.WriteFile(path, b, 0o600)) }
	for i := range good {
		for _, bit := range []byte{1, 0x20, 0x80} {
			bad := append([]byte(nil), good...)
			bad[i] ^= bit
			put(bad)
			got, err := s.Stat(ctx, "v")
			if err == nil { // white space, or the case of a key
				require.Equal(t, want, got, "byte %d", i)
				continue
			}
			require.ErrorIs(t, err, share.ErrCorrupt, "byte %d", i)
		}
	}
	for n := range len(good) - 1 {
		put(good[:n])
		_, err := s.Stat(ctx, "v")
		require.ErrorIs(t, err, share.ErrCorrupt, "cut to %d bytes", n)
	}
	for what, call := range touches {
		require.ErrorIs(t, call(ctx, s), share.ErrCorrupt, what)
	}
	require.ErrorIs(t, share.Delete(ctx, s, "v"), share.ErrCorrupt, "what is damaged is not removed either")
	_, err = share.Create(ctx, s, disk("v", share.Raw))
	require.ErrorIs(t, err, share.ErrCorrupt, "nor made anew")
	all, err := share.List(ctx, s)
	require.ErrorIs(t, err, share.ErrCorrupt)
	require.Len(t, all, 1, "the others are listed")

	other, err := os.ReadFile(filepath.Join(dir, storeDir, recordName("w")))
	require.NoError(t, err)
	put(other)
	_, err = s.Stat(ctx, "v")
	require.ErrorIs(t, err, share.ErrCorrupt, "another volume's record")

	var r record
	require.NoError(t, unseal(good, &r))
	for what, change := range map[string]func(r *record){
		"ID":     func(r *record) { r.ID = "../../x" },
		"kind":   func(r *record) { r.Kind = share.Disk; r.Format = "vmdk" },
		"size":   func(r *record) { r.Size = -512 },
		"state":  func(r *record) { r.State = "sleeping" },
		"format": func(r *record) { r.Format = "raw,file.filename=/etc/shadow" },
	} {
		bad := r
		change(&bad)
		b, err := seal(bad)
		require.NoError(t, err)
		put(b)
		_, err = s.Stat(ctx, "v")
		require.ErrorIs(t, err, share.ErrCorrupt, what)
	}
	newer := r
	newer.Version = 2
	b, err := seal(newer)
	require.NoError(t, err)
	put(b)
	_, err = s.Stat(ctx, "v")
	require.ErrorIs(t, err, errors.ErrUnsupported, "the version after ours")
	put(make([]byte, maxRecord+1))
	_, err = s.Stat(ctx, "v")
	require.ErrorIs(t, err, share.ErrCorrupt)
	put(good)
	_, err = s.Stat(ctx, "v")
	require.NoError(t, err)

	shareFile := filepath.Join(dir, storeDir, "share.json")
	require.NoError(t, os.WriteFile(shareFile, []byte(`{"record":{}}`), 0o600))
	_, err = Open(ctx, dir, nil)
	require.ErrorIs(t, err, share.ErrCorrupt)
}

func FuzzUnseal(f *testing.F) {
	r := record{Version: 1, State: ready, Name: "v", ID: newID(), Kind: share.Disk, Format: share.Raw, Size: 512}
	good, _ := seal(r)
	f.Add(good)
	f.Add([]byte(`{"sha256":"","record":{}}`))
	f.Add([]byte(`{"sha256":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","record":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r record
		if err := unseal(b, &r); err != nil {
			if !errors.Is(err, share.ErrCorrupt) && !errors.Is(err, errors.ErrUnsupported) {
				t.Fatal(err)
			}
			return
		}
		if r.check("v") != nil {
			return
		}
		if strings.ContainsAny(r.temp(), "/\x00") || !json.Valid(b) {
			t.Fatalf("%+v", r)
		}
	})
}

// TestForeignFiles: what was there before is no volume, and stays as it is.
// (CVE-2025-64324)
func TestForeignFiles(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "mine")
	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o644))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder"), 0o755))
	require.NoError(t, os.Symlink("nowhere", filepath.Join(dir, "link")))
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	require.NoError(t, os.Chtimes(path, old, old))

	s := open(t, dir, nil)
	for _, name := range []string{"mine", "folder", "link"} {
		for _, spec := range []share.Spec{disk(name, share.Raw), {Name: name, Kind: share.Tree}} {
			_, err := share.Create(ctx, s, spec)
			require.ErrorIs(t, err, share.ErrExist, name)
		}
		_, err := s.Stat(ctx, name)
		require.ErrorIs(t, err, share.ErrNotExist)
		_, err = s.Publish(ctx, name, rw)
		require.ErrorIs(t, err, share.ErrNotExist)
		require.NoError(t, share.Delete(ctx, s, name), "there is no such volume")
	}
	all, err := share.List(ctx, s)
	require.NoError(t, err)
	require.Empty(t, all)
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), st.Mode())
	require.True(t, old.Equal(st.ModTime()))
	st, err = os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), st.Mode().Perm(), "the directory's mode")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "precious", string(b))
}

func TestModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	mode := func(path string) os.FileMode {
		st, err := os.Stat(path)
		require.NoError(t, err)
		return st.Mode().Perm()
	}
	dir := t.TempDir()
	s := open(t, dir, nil)
	create(t, s, disk("v", share.Raw))
	create(t, s, share.Spec{Name: "t", Kind: share.Tree})
	require.Equal(t, os.FileMode(0o600), mode(filepath.Join(dir, "v")))
	require.Equal(t, os.FileMode(0o700), mode(filepath.Join(dir, "t")))
	require.Equal(t, os.FileMode(0o700), mode(filepath.Join(dir, storeDir)))
	require.Equal(t, os.FileMode(0o600), mode(filepath.Join(dir, storeDir, recordName("v"))))

	gid := os.Getgid()
	s = open(t, dir, &Options{FileMode: 0o660, DirMode: 0o750, Group: "0"})
	if gid != 0 {
		t.Skip("only root may give files to group 0")
	}
	create(t, s, disk("v2", share.Raw))
	create(t, s, share.Spec{Name: "t2", Kind: share.Tree})
	require.Equal(t, os.FileMode(0o660), mode(filepath.Join(dir, "v2")))
	require.Equal(t, os.FileMode(0o750), mode(filepath.Join(dir, "t2")))
	require.Equal(t, os.FileMode(0o600), mode(filepath.Join(dir, "v")), "what was there keeps its mode")

	for _, bad := range []Options{{FileMode: 0o666}, {DirMode: 0o777}, {FileMode: os.ModeSetuid | 0o600}, {Group: "no-such-group-here"}} {
		_, err := Open(t.Context(), dir, &bad)
		require.ErrorIs(t, err, share.ErrInvalid, "%+v", bad)
	}
}

// TestDeleteStaysInside: links in a tree are removed, not followed.
func TestDeleteStaysInside(t *testing.T) {
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "f"), []byte("x"), 0o600))
	dir := t.TempDir()
	s := open(t, dir, nil)
	create(t, s, share.Spec{Name: "t", Kind: share.Tree})
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "t", "out")))
	require.NoError(t, os.Symlink("../..", filepath.Join(dir, "t", "up")))
	require.NoError(t, share.Delete(t.Context(), s, "t"))
	require.FileExists(t, filepath.Join(outside, "f"))
	require.DirExists(t, dir)
}

// TestFormatIsNotProbed: a guest that writes a qcow2 header into its raw disk
// has a raw disk. (CVE-2015-1851, CVE-2024-32498)
func TestFormatIsNotProbed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	create(t, s, disk("v", share.Raw))
	header := string(editedQcow2(t, func([]byte) {})[:512])
	write(t, s, "v", header, 0)
	s = open(t, dir, nil)
	v, err := s.Stat(t.Context(), "v")
	require.NoError(t, err)
	require.Equal(t, share.Raw, v.Format)
	sources, err := s.Publish(t.Context(), "v", rw)
	require.NoError(t, err)
	require.Equal(t, share.Raw, sources[0].Format)
	require.Equal(t, header, read(t, s, "v", 0, 512))
}

// editedQcow2 is the image of an empty disk of 4 MiB, edited.
func editedQcow2(t testing.TB, edit func(b []byte)) []byte {
	t.Helper()
	needTools(t, "qemu-img")
	path := filepath.Join(t.TempDir(), "image")
	out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", path, "4M").CombinedOutput()
	require.NoError(t, err, "%s", out)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	edit(b)
	return b
}

// TestHostileQcow2: an image that leads elsewhere, or that is not what was
// made, is refused before any of QEMU's programs sees it.
// (CVE-2024-32498, CVE-2022-47951)
func TestHostileQcow2(t *testing.T) {
	needTools(t, "qemu-img", "qemu-nbd")
	ctx := t.Context()
	dir := t.TempDir()
	s := open(t, dir, nil)
	create(t, s, disk("v", share.Qcow2))
	path := filepath.Join(dir, "v")
	put32 := func(at int, v uint32) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint32(b[at:], v) }
	}
	put64 := func(at int, v uint64) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint64(b[at:], v) }
	}
	for what, edit := range map[string]func([]byte){
		"backing file": func(b []byte) {
			name := `json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}`
			put64(8, 0x200)(b)
			put32(16, uint32(len(name)))(b)
			copy(b[0x200:], name)
		},
		"backing offset alone": put64(8, 1),
		"data file":            put64(72, qcow2DataFile),
		"marked corrupt":       put64(72, qcow2Corrupt),
		"unknown feature":      put64(72, 1<<20),
		"encrypted":            put32(32, 1),
		"LUKS":                 put32(32, 2),
		"no magic":             put32(0, 0x4b444d56),
		"version 1":            put32(4, 1),
		"version 4":            put32(4, 4),
		"clusters too large":   put32(20, 30),
		"clusters too small":   put32(20, 1),
		"another size":         put64(24, 8<<20),
		"no size":              put64(24, 0),
		"size beyond all":      put64(24, 1<<63),
		"many snapshots":       put32(60, 1<<31),
		"snapshots beyond":     put64(64, 1<<63),
	} {
		require.NoError(t, os.WriteFile(path, editedQcow2(t, edit), 0o600))
		for name, call := range touches {
			if name == "stat" || name == "publish" {
				continue // these hand on a path, and do not look inside
			}
			require.ErrorIs(t, call(ctx, s), share.ErrCorrupt, "%s: %s", what, name)
		}
		_, err := share.TakeSnapshot(ctx, s, "v", "s")
		require.ErrorIs(t, err, share.ErrCorrupt, what)
	}
	for what, b := range map[string][]byte{"empty": {}, "short": []byte("QFI\xfb"), "raw": make([]byte, 4<<20), "text": []byte(strings.Repeat("json:{}", 100))} {
		require.NoError(t, os.WriteFile(path, b, 0o600))
		_, err := share.OpenDevice(ctx, s, "v", nil)
		require.ErrorIs(t, err, share.ErrCorrupt, what)
	}
	// One snapshot, whose entry leads nowhere.
	require.NoError(t, os.WriteFile(path, editedQcow2(t, func(b []byte) { put32(60, 1)(b); put64(64, uint64(len(b))-8)(b) }), 0o600))
	_, err := share.ListSnapshots(ctx, s, "v")
	require.ErrorIs(t, err, share.ErrCorrupt)
	require.NoError(t, share.Delete(ctx, s, "v"), "what is refused can be removed")
}

func FuzzQcow2Header(f *testing.F) {
	b := make([]byte, 512)
	binary.BigEndian.PutUint32(b, qcow2Magic)
	binary.BigEndian.PutUint32(b[4:], 3)
	binary.BigEndian.PutUint32(b[20:], 16)
	binary.BigEndian.PutUint64(b[24:], 4<<20)
	f.Add(append([]byte(nil), b...))
	binary.BigEndian.PutUint32(b[60:], 1)
	binary.BigEndian.PutUint64(b[64:], 200)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := strings.NewReader(string(b))
		h, err := readQcow2(r)
		if err != nil {
			require.ErrorIs(t, err, share.ErrCorrupt)
			return
		}
		require.Positive(t, h.Size)
		if _, err := h.readSnapshots(r); err != nil {
			require.ErrorIs(t, err, share.ErrCorrupt)
		}
	})
}

// TestOddPaths: what a path holds never becomes syntax for QEMU's programs.
func TestOddPaths(t *testing.T) {
	needTools(t, "qemu-img", "qemu-nbd")
	dir := filepath.Join(t.TempDir(), `-o a,b=c:d "e" $(f) %s 'g' {h}`)
	s := open(t, dir, &Options{Create: true, Format: share.Qcow2})
	create(t, s, disk("v", share.None))
	write(t, s, "v", "content", 0)
	_, err := share.TakeSnapshot(t.Context(), s, "v", "s")
	require.NoError(t, err)
	_, err = share.Resize(t.Context(), s, "v", 8*share.MiB, nil)
	require.NoError(t, err)
	require.Equal(t, "content", read(t, s, "v", 0, 7))

	u, err := url.Parse(s.Info().URL)
	require.NoError(t, err)
	again, err := OpenURL(t.Context(), u)
	require.NoError(t, err)
	require.Equal(t, s.Info(), again.Info(), "the URL opens the same share again")
	require.NoError(t, again.Close())
}

func TestOpenURL(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	var r share.Registry
	require.NoError(t, r.Register("local", OpenURL))
	s, err := r.Open(ctx, "local://"+dir+"?file_mode=640&group=0&format=raw&shared=true")
	require.NoError(t, err)
	require.Equal(t, "local://"+dir+"?file_mode=640&format=raw&group=0&shared=true", s.Info().URL)
	require.NoError(t, s.Close())
	for _, bad := range []string{
		"local://host" + dir, "local:relative", "local://u@" + dir, "local://" + dir + "#f",
		"local://" + dir + "?no=1", "local://" + dir + "?file_mode=9", "local://" + dir + "?file_mode=777", "local://" + dir + "?a;b",
		"local://" + dir + "?shared=1", "local://" + dir + "?group=0&group=1",
	} {
		_, err := r.Open(ctx, bad)
		require.ErrorIs(t, err, share.ErrInvalid, bad)
	}
	_, err = r.Open(ctx, "local://"+dir+"?format=vmdk")
	require.ErrorIs(t, err, errors.ErrUnsupported)
	_, err = r.Open(ctx, "local://"+dir+"/none")
	require.ErrorIs(t, err, share.ErrNotExist)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	_, err = r.Open(ctx, "local://"+dir+"/file")
	require.Error(t, err)
}

// TestWithoutTools: raw images need none of QEMU's programs, and what does is
// refused with what would help.
func TestWithoutTools(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	ctx := t.Context()
	s := open(t, t.TempDir(), nil)
	require.NoError(t, share.CheckCapabilities(s))
	require.Equal(t, []share.Format{share.Raw}, s.Info().Formats)
	create(t, s, disk("v", share.Raw))
	_, err := share.TakeSnapshot(ctx, s, "v", "s")
	require.ErrorIs(t, err, errors.ErrUnsupported)
	require.ErrorContains(t, err, "is not installed")
	_, err = Open(ctx, t.TempDir(), &Options{Format: share.Qcow2})
	require.ErrorIs(t, err, errors.ErrUnsupported)
	require.ErrorContains(t, err, "qemu-utils")
}
