package share

import (
	"fmt"
	"net"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Source is all that a host or guest needs to reach a volume: plain data that
// survives JSON unchanged and holds no secret, only the name of one. Exactly
// one of the pointers is set, and says the protocol. Packages share/guest and
// migrate/kvm turn a Source into libvirt's XML.
type Source struct {
	// Kind is a disk or a tree.
	Kind Kind `json:"kind"`
	// Format of a disk; always given, never probed.
	Format Format `json:"format,omitempty"`
	// VolumeID is the identity that whoever attaches must find; see
	// [Volume.ID] and [SerialOf]. Every share gives it; it is empty only in a
	// source that names what no share made.
	VolumeID string `json:"volume_id"`
	// ReadOnly says that the access behind the source is read-only.
	ReadOnly bool `json:"read_only,omitempty"`
	// Shared says that several hosts reach the same bytes by this source, so
	// that a guest can move between them without its disk.
	Shared bool `json:"shared,omitempty"`

	File *FileSource `json:"file,omitempty"`
	NBD  *NBDSource  `json:"nbd,omitempty"`
}

// FileSource is a file, block device or directory in the host's own name
// space: libvirt's <disk type='file'> or 'block'.
type FileSource struct {
	// Path is absolute and clean.
	Path string `json:"path"`
	// Block says that Path is a block device.
	Block bool `json:"block,omitempty"`
}

// NBDSource is an export of an NBD server: libvirt's
// <source protocol='nbd'>.
type NBDSource struct {
	// Address of the server: "host:port", or the absolute path of a unix socket.
	Address string `json:"address"`
	// Export is the name of the export; it may be empty.
	Export string `json:"export"`
	// TLS says that the server refuses plaintext.
	TLS bool `json:"tls,omitempty"`
}

// formatGrammar is that of QEMU's names for formats.
var formatGrammar = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// printable reports whether s survives JSON and XML unchanged: valid UTF-8
// without control characters and what XML has no place for.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) || r == 0xfffe || r == 0xffff
	})
}

// Protocol is the name of the protocol that is set: "file", "nbd"; "" if none.
func (s Source) Protocol() string {
	switch {
	case s.File != nil:
		return "file"
	case s.NBD != nil:
		return "nbd"
	}
	return ""
}

// Check returns an error wrapping [ErrInvalid] if the source is not complete
// or not safe to hand to a hypervisor.
func (s Source) Check() error {
	set := 0
	for _, is := range []bool{s.File != nil, s.NBD != nil} {
		if is {
			set++
		}
	}
	switch {
	case set != 1:
		return fmt.Errorf("%w: a source has one protocol, and this one has %d", ErrInvalid, set)
	case s.Kind != Disk && s.Kind != Tree:
		return fmt.Errorf("%w: a source is of a disk or a tree", ErrInvalid)
	case s.Kind == Disk && s.Format == None:
		return fmt.Errorf("%w: the source of a disk needs its format", ErrInvalid)
	case s.Kind == Disk && !formatGrammar.MatchString(string(s.Format)):
		return fmt.Errorf("%w: the format %s of a source", ErrInvalid, quote(string(s.Format)))
	case s.Kind == Tree && s.Format != None:
		return fmt.Errorf("%w: a tree has no format, and the source gives %s", ErrInvalid, quote(string(s.Format)))
	case s.Kind == Tree && s.NBD != nil:
		return fmt.Errorf("%w: NBD has no trees", ErrInvalid)
	case len(s.VolumeID) > 256 || !printable(s.VolumeID):
		return fmt.Errorf("%w: the volume ID %s of a source", ErrInvalid, quote(s.VolumeID))
	}
	if f := s.File; f != nil {
		return CheckPath(f.Path)
	}
	return s.NBD.check()
}

func (n *NBDSource) check() error {
	if len(n.Export) > 4096 || !printable(n.Export) {
		return fmt.Errorf("%w: the NBD export name %s", ErrInvalid, quote(n.Export))
	}
	if strings.HasPrefix(n.Address, "/") {
		return CheckPath(n.Address)
	}
	host, port, err := net.SplitHostPort(n.Address)
	if err != nil {
		return fmt.Errorf("%w: the NBD address %s: need host:port or the path of a unix socket", ErrInvalid, quote(n.Address))
	}
	if net.ParseIP(host) == nil && !isHostName(lower(host)) {
		return fmt.Errorf("%w: the NBD host %s", ErrInvalid, quote(host))
	}
	if p, err := strconv.ParseUint(port, 10, 16); err != nil || p == 0 || port[0] == '0' {
		return fmt.Errorf("%w: the NBD port %s", ErrInvalid, quote(port))
	}
	return nil
}

// CheckPath returns an error wrapping [ErrInvalid] unless p is an absolute,
// clean path in UTF-8 without control characters.
func CheckPath(p string) error {
	switch {
	case !path.IsAbs(p):
		return fmt.Errorf("%w: the path %s is not absolute", ErrInvalid, quote(p))
	case path.Clean(p) != p:
		return fmt.Errorf("%w: the path %s is not clean; %s is", ErrInvalid, quote(p), quote(path.Clean(p)))
	case !printable(p):
		return fmt.Errorf("%w: the path %s has control characters, or is not UTF-8", ErrInvalid, quote(p))
	case len(p) > 4095:
		return fmt.Errorf("%w: the path %s is longer than 4095 bytes", ErrInvalid, quote(p))
	}
	return nil
}
