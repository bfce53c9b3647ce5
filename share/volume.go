package share

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Volume describes a volume at the moment of the call that returned it.
type Volume struct {
	// Name is the name within its share; see [CheckName].
	Name string
	// ID is the volume's identity: not used by another volume of any share,
	// and the same for its life, also when it is resized or moved by rename.
	ID string
	// Kind is a disk or a tree.
	Kind Kind
	// Format is how a disk's bytes are laid out in its container; None for a
	// tree. It is recorded when the volume is made and never probed.
	Format Format
	// Size is the virtual size of a disk, or the limit of a tree (0: none).
	Size Bytes
	// Allocated is the space in use; -1 where the backend cannot tell.
	Allocated Bytes
	// Created is the time at which it was made, where known.
	Created time.Time
	// Access is the set that the volume is published with, in the order of
	// the clients' text, secrets left out. Only Stat fills it.
	Access []Access
}

// Serial is the serial number under which a guest sees the disk: 20 characters
// of 0-9a-f, the most that virtio-blk carries, made from ID. Before the first
// write the guest's side is compared with it.
func (v Volume) Serial() string { return SerialOf(v.ID) }

// SerialOf makes the serial number of the volume with that ID.
func SerialOf(id string) string {
	sum := sha256.Sum256([]byte("vmferry serial " + id))
	return hex.EncodeToString(sum[:10])
}

// Kind tells disks and trees apart.
type Kind uint8

const (
	UnknownKind Kind = iota
	Disk             // blocks: a guest's disk
	Tree             // files: a directory
)

// String is "disk", "tree" or "unknown".
func (k Kind) String() string {
	switch k {
	case Disk:
		return "disk"
	case Tree:
		return "tree"
	}
	return "unknown"
}

// MarshalText is String; an unknown kind is an error.
func (k Kind) MarshalText() ([]byte, error) {
	if k != Disk && k != Tree {
		return nil, fmt.Errorf("%w: kind %d", ErrInvalid, k)
	}
	return []byte(k.String()), nil
}

// UnmarshalText accepts what MarshalText returns.
func (k *Kind) UnmarshalText(b []byte) error {
	switch string(b) {
	case "disk":
		*k = Disk
	case "tree":
		*k = Tree
	default:
		return fmt.Errorf("%w: kind %s; use disk or tree", ErrInvalid, quote(string(b)))
	}
	return nil
}

// Format is the layout of a disk in its container, as QEMU names it.
type Format string

const (
	None  Format = ""
	Raw   Format = "raw"
	Qcow2 Format = "qcow2"
)

// Spec says which volume to create.
type Spec struct {
	// Name is required; see [CheckName].
	Name string
	// Kind is required.
	Kind Kind
	// Format of a disk; None takes the share's preferred one.
	Format Format
	// Size of a disk, required: a positive multiple of 512. Of a tree: the
	// most it may hold, 0 for no limit.
	Size Bytes
	// Preallocate takes all the space at once, so that no later write fails
	// for want of it. The default is thin.
	Preallocate bool
}

// Check returns an error wrapping [ErrInvalid] that names the field which is
// wrong whatever the backend.
func (s Spec) Check() error {
	if err := CheckName(s.Name); err != nil {
		return err
	}
	switch s.Kind {
	case Disk:
		if s.Size <= 0 || s.Size%512 != 0 {
			return fmt.Errorf("%w: a disk's size is a positive multiple of 512 bytes, not %d", ErrInvalid, int64(s.Size))
		}
	case Tree:
		if s.Size < 0 {
			return fmt.Errorf("%w: size %d", ErrInvalid, int64(s.Size))
		}
		if s.Format != None {
			return fmt.Errorf("%w: a tree has no format, and %s was asked for", ErrInvalid, quote(string(s.Format)))
		}
	default:
		return fmt.Errorf("%w: kind is required: disk or tree", ErrInvalid)
	}
	return nil
}

// For returns the spec as a share of that description takes it: checked, and
// with the format that is left open filled in. A kind or format that the share
// does not hold is an errors.ErrUnsupported. Backends call it first.
func (s Spec) For(info Info) (Spec, error) {
	if err := s.Check(); err != nil {
		return s, err
	}
	if !slices.Contains(info.Kinds, s.Kind) {
		return s, &UnsupportedError{What: "a " + s.Kind.String(), Reason: fmt.Sprintf("the share holds %v", info.Kinds)}
	}
	if s.Kind != Disk {
		return s, nil
	}
	if s.Format == None && len(info.Formats) > 0 {
		s.Format = info.Formats[0]
	}
	if !slices.Contains(info.Formats, s.Format) {
		return s, &UnsupportedError{What: "format " + quote(string(s.Format)), Reason: fmt.Sprintf("the share has %q", info.Formats)}
	}
	return s, nil
}

// Match compares a volume that is there with the spec it should have been made
// from, and returns nil or a [*MismatchError] for the first field that differs.
// Backends use it to make Create repeatable.
func (s Spec) Match(v Volume) error {
	switch {
	case s.Kind != v.Kind:
		return &MismatchError{"kind", v.Kind.String(), s.Kind.String()}
	case s.Format != None && s.Format != v.Format:
		return &MismatchError{"format", string(v.Format), string(s.Format)}
	case s.Size != v.Size:
		return &MismatchError{"size", exact(v.Size), exact(s.Size)}
	}
	return nil
}

// exact tells apart what String may round to the same.
func exact(b Bytes) string { return fmt.Sprintf("%d bytes", int64(b)) }

// maxName leaves room for suffixes of ours within a file name's 255 bytes.
const maxName = 128

// CheckName returns an error wrapping [ErrInvalid] unless name can name a
// volume or a snapshot on every backend: 1 to 128 characters of a-z A-Z 0-9 and
// "._-", the first one a letter or a digit. Nothing in it can be mistaken for a
// path, an option, or syntax of any configuration file, command line or URI.
func CheckName(name string) error {
	if name == "" {
		return fmt.Errorf("%w: the name is empty", ErrInvalid)
	}
	if len(name) > maxName {
		return fmt.Errorf("%w: the name %s is longer than %d characters", ErrInvalid, quote(name), maxName)
	}
	for i, r := range []byte(name) {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		case i > 0 && strings.IndexByte("._-", r) >= 0:
		default:
			return fmt.Errorf("%w: the name %s has %q at %d; allowed are a-z A-Z 0-9 and, not at first, . _ -", ErrInvalid, quote(name), string(r), i)
		}
	}
	return nil
}
