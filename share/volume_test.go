package share_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// badNames are names that no backend may take; each has been a hole somewhere.
var badNames = []string{
	"", ".", "..", "../x", "a/b", "/etc/passwd", "a/../b", "-x", "--help", "_x", "a b", "a\nb", "a\x00", "a\t",
	"ä", "a:b", "a@b", "a=b", "a,b", "a;b", "a'b", `a"b`, `a\b`, "$(id)", "${x}", "*", "%s", "#", "~", "a\u202e",
	"json:{}", "nbd:localhost:1", strings.Repeat("a", 129), "\xff",
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "vm1", "VM-1.qcow2", "0", "a..b", "a.", "a-", "a_", strings.Repeat("a", 128)} {
		require.NoError(t, share.CheckName(name), name)
	}
	for _, name := range badNames {
		err := share.CheckName(name)
		require.ErrorIs(t, err, share.ErrInvalid, "%q", name)
		require.NotContains(t, err.Error(), "\n")
		require.Less(t, len(err.Error()), 500)
	}
}

func FuzzCheckName(f *testing.F) {
	for _, s := range append(badNames, "vm1", "a.b_c-d") {
		f.Add(s)
	}
	grammar := regexp.MustCompile(`\A[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}\z`)
	f.Fuzz(func(t *testing.T, s string) {
		err := share.CheckName(s)
		if (err == nil) != grammar.MatchString(s) {
			t.Fatalf("%q: %v", s, err)
		}
		if err != nil && !errors.Is(err, share.ErrInvalid) {
			t.Fatalf("%q: %v", s, err)
		}
	})
}

func TestSpecCheck(t *testing.T) {
	ok := share.Spec{Name: "a", Kind: share.Disk, Size: 512}
	require.NoError(t, ok.Check())
	require.NoError(t, share.Spec{Name: "a", Kind: share.Tree}.Check())
	require.NoError(t, share.Spec{Name: "a", Kind: share.Tree, Size: 1000}.Check())
	for what, change := range map[string]func(*share.Spec){
		"name":     func(s *share.Spec) { s.Name = "../a" },
		"kind":     func(s *share.Spec) { s.Kind = 0 },
		"kind 9":   func(s *share.Spec) { s.Kind = 9 },
		"size 0":   func(s *share.Spec) { s.Size = 0 },
		"size 513": func(s *share.Spec) { s.Size = 513 },
		"size < 0": func(s *share.Spec) { s.Size = -512 },
		"tree < 0": func(s *share.Spec) { s.Kind, s.Size = share.Tree, -1 },
		"tree raw": func(s *share.Spec) { s.Kind, s.Format = share.Tree, share.Raw },
	} {
		bad := ok
		change(&bad)
		require.ErrorIs(t, bad.Check(), share.ErrInvalid, what)
	}
}

func TestSpecFor(t *testing.T) {
	info := share.Info{Kinds: []share.Kind{share.Disk}, Formats: []share.Format{share.Qcow2, share.Raw}}
	spec, err := share.Spec{Name: "a", Kind: share.Disk, Size: 512}.For(info)
	require.NoError(t, err)
	require.Equal(t, share.Qcow2, spec.Format)
	spec, err = share.Spec{Name: "a", Kind: share.Disk, Size: 512, Format: share.Raw}.For(info)
	require.NoError(t, err)
	require.Equal(t, share.Raw, spec.Format)
	_, err = share.Spec{Name: "a", Kind: share.Disk, Size: 512, Format: "vmdk"}.For(info)
	require.ErrorIs(t, err, errors.ErrUnsupported)
	_, err = share.Spec{Name: "a", Kind: share.Tree}.For(info)
	require.ErrorIs(t, err, errors.ErrUnsupported)
	_, err = share.Spec{Name: "-", Kind: share.Tree}.For(info)
	require.ErrorIs(t, err, share.ErrInvalid)
	_, err = share.Spec{Name: "a", Kind: share.Disk, Size: 512}.For(share.Info{Kinds: info.Kinds})
	require.ErrorIs(t, err, errors.ErrUnsupported)
}

func TestSpecMatch(t *testing.T) {
	v := share.Volume{Kind: share.Disk, Format: share.Raw, Size: share.GiB}
	require.NoError(t, share.Spec{Kind: share.Disk, Size: share.GiB}.Match(v))
	for field, s := range map[string]share.Spec{
		"kind":   {Kind: share.Tree, Size: share.GiB},
		"format": {Kind: share.Disk, Size: share.GiB, Format: share.Qcow2},
		"size":   {Kind: share.Disk, Size: share.GiB + 512},
	} {
		err := s.Match(v)
		var m *share.MismatchError
		require.ErrorAs(t, err, &m)
		require.Equal(t, field, m.Field)
		require.NotEqual(t, m.Have, m.Want)
		require.ErrorIs(t, err, share.ErrExist)
	}
}

func TestCheckResize(t *testing.T) {
	shrink := &share.ResizeOptions{Shrink: true}
	require.NoError(t, share.CheckResize(1024, 2048, nil))
	require.NoError(t, share.CheckResize(1024, 1024, nil))
	require.NoError(t, share.CheckResize(1024, 512, shrink))
	for _, size := range []share.Bytes{512, 0, -512, 1025} {
		require.ErrorIs(t, share.CheckResize(1024, size, nil), share.ErrInvalid)
	}
	require.ErrorIs(t, share.CheckResize(1024, 0, shrink), share.ErrInvalid)
}

func TestSerial(t *testing.T) {
	v := share.Volume{ID: "0123456789abcdef"}
	require.Regexp(t, `^[0-9a-f]{20}$`, v.Serial())
	require.Equal(t, v.Serial(), share.SerialOf(v.ID))
	require.NotEqual(t, share.SerialOf("a"), share.SerialOf("b"))
	// The serial is written into guests: it must never change for an ID.
	require.Equal(t, "2d8064e798cfba48865a", share.SerialOf("a"))
}

func TestKindText(t *testing.T) {
	for _, k := range []share.Kind{share.Disk, share.Tree} {
		b, err := k.MarshalText()
		require.NoError(t, err)
		var back share.Kind
		require.NoError(t, back.UnmarshalText(b))
		require.Equal(t, k, back)
	}
	_, err := share.UnknownKind.MarshalText()
	require.ErrorIs(t, err, share.ErrInvalid)
	require.ErrorIs(t, new(share.Kind).UnmarshalText([]byte("unknown")), share.ErrInvalid)
	require.Equal(t, "unknown", share.Kind(7).String())
}
