package share_test

import (
	"encoding/json"
	"errors"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

func fileSource() share.Source {
	return share.Source{Kind: share.Disk, Format: share.Raw, VolumeID: "id", File: &share.FileSource{Path: "/srv/a"}}
}

func nbdSource(address, export string) share.Source {
	return share.Source{Kind: share.Disk, Format: share.Raw, VolumeID: "id", NBD: &share.NBDSource{Address: address, Export: export}}
}

func TestSourceCheck(t *testing.T) {
	tree := share.Source{Kind: share.Tree, File: &share.FileSource{Path: "/srv/t"}}
	for _, s := range []share.Source{
		fileSource(), tree, nbdSource("h.example:10809", ""), nbdSource("10.0.0.1:1", "a b"), nbdSource("[::1]:65535", "e"),
		nbdSource("/run/nbd.sock", "e"),
	} {
		require.NoError(t, s.Check(), "%+v", s)
		b, err := json.Marshal(s)
		require.NoError(t, err)
		var back share.Source
		require.NoError(t, json.Unmarshal(b, &back))
		require.Equal(t, s, back)
	}
	require.Equal(t, "file", fileSource().Protocol())
	require.Equal(t, "nbd", nbdSource("/a", "").Protocol())
	require.Empty(t, share.Source{}.Protocol())

	with := func(change func(*share.Source)) share.Source { s := fileSource(); change(&s); return s }
	for what, s := range map[string]share.Source{
		"none":          {Kind: share.Disk, Format: share.Raw},
		"two":           with(func(s *share.Source) { s.NBD = &share.NBDSource{Address: "/a"} }),
		"no kind":       with(func(s *share.Source) { s.Kind = 0 }),
		"no format":     with(func(s *share.Source) { s.Format = "" }),
		"format option": with(func(s *share.Source) { s.Format = "raw,file.filename=/etc/shadow" }),
		"tree format":   with(func(s *share.Source) { s.Kind = share.Tree }),
		"tree nbd":      {Kind: share.Tree, NBD: &share.NBDSource{Address: "/a"}},
		"relative":      with(func(s *share.Source) { s.File.Path = "srv/a" }),
		"not clean":     with(func(s *share.Source) { s.File.Path = "/srv/../etc/shadow" }),
		"newline":       with(func(s *share.Source) { s.File.Path = "/srv/a\nb" }),
		"not UTF-8":     with(func(s *share.Source) { s.File.Path = "/srv/\xff" }),
		"C1 control":    with(func(s *share.Source) { s.File.Path = "/srv/\u0085" }),
		"not XML":       with(func(s *share.Source) { s.File.Path = "/srv/\uffff" }),
		"json: name":    with(func(s *share.Source) { s.File.Path = "json:{}" }),
		"ID control":    with(func(s *share.Source) { s.VolumeID = "a\nb" }),
		"ID long":       with(func(s *share.Source) { s.VolumeID = strings.Repeat("a", 257) }),
		"no port":       nbdSource("host", ""),
		"port 0":        nbdSource("host:0", ""),
		"port octal":    nbdSource("host:010", ""),
		"port 65536":    nbdSource("host:65536", ""),
		"port name":     nbdSource("host:nbd", ""),
		"no host":       nbdSource(":10809", ""),
		"host option":   nbdSource("-o:1", ""),
		"host URI":      nbdSource("nbd://h:1", ""),
		"user in host":  nbdSource("u:p@h:1", ""),
		"zone":          nbdSource("[fe80::1%eth0]:1", ""),
		"socket":        nbdSource("/run/../x", ""),
		"export NUL":    nbdSource("/a", "e\x00"),
		"export bytes":  nbdSource("/a", "\xff"),
		"export long":   nbdSource("/a", strings.Repeat("e", 4097)),
	} {
		require.ErrorIs(t, s.Check(), share.ErrInvalid, what)
	}
}

// FuzzSource: what passes Check survives JSON unchanged.
func FuzzSource(f *testing.F) {
	for _, s := range []share.Source{fileSource(), nbdSource("h:1", "e"), nbdSource("/a", ""), {}} {
		b, _ := json.Marshal(s)
		f.Add(b)
	}
	f.Add([]byte(`{"kind":"tree","volume_id":"\ud800","file":{"path":"/a\u0000"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s share.Source
		if json.Unmarshal(b, &s) != nil {
			return
		}
		if err := s.Check(); err != nil {
			if !errors.Is(err, share.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back share.Source
		if err := json.Unmarshal(out, &back); err != nil {
			t.Fatal(err)
		}
		require.Equal(t, s, back)
	})
}

func FuzzCheckPath(f *testing.F) {
	for _, s := range []string{"/", "/a", "a", "", "/a/..", "//a", "/a/", "/\x00", "/\u009f", "/\xff", "/" + strings.Repeat("a", 4095)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		err := share.CheckPath(p)
		if err != nil {
			if !errors.Is(err, share.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if p[0] != '/' || path.Clean(p) != p || len(p) > 4095 || !utf8.ValidString(p) || strings.ContainsAny(p, "\x00\n\r\x7f") {
			t.Fatalf("%q was accepted", p)
		}
	})
}
