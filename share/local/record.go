package local

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/vmferry/vmferry/share"
)

// record is what is known about a volume. On disk it is a JSON document with a
// checksum: one bit that flipped is ErrCorrupt, never another volume.
type record struct {
	Version int            `json:"version"`
	State   state          `json:"state"`
	Name    string         `json:"name"`
	ID      string         `json:"id"`
	Kind    share.Kind     `json:"kind"`
	Format  share.Format   `json:"format,omitempty"`
	Size    share.Bytes    `json:"size"`
	Target  share.Bytes    `json:"target,omitempty"` // the size that a resize leads to
	Created time.Time      `json:"created"`
	Access  []share.Access `json:"access,omitempty"`
}

// state says how far a change has come. Only a ready volume shows.
type state string

const (
	creating state = "creating" // the volume may be in place already
	ready    state = "ready"
	resizing state = "resizing" // the image has the size Size, and is to have Target
	rolling  state = "rolling"  // back to a snapshot; the image has the size Size or Target
	deleting state = "deleting" // the volume may be out of its place already
)

// exists reports whether the volume is there for those who ask.
func (r *record) exists() bool {
	return r != nil && (r.State == ready || r.State == resizing || r.State == rolling)
}

// temp is the name, in the folder for such, of the volume while it is made or
// removed.
func (r *record) temp() string { return r.Name + "." + r.ID }

const recordVersion = 1

// sealed is a document on disk: Record as bytes, and their checksum.
type sealed struct {
	SHA256 string          `json:"sha256"`
	Record json.RawMessage `json:"record"`
}

// maxRecord bounds what is read: a record with its access takes far less.
const maxRecord = 1 << 20

// seal encodes v with its checksum.
func seal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	b, err = json.Marshal(sealed{SHA256: hex.EncodeToString(sum[:]), Record: b})
	return append(b, '\n'), err
}

// unseal decodes what seal made into v.
func unseal(b []byte, v any) error {
	var s sealed
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("metadata %w: %w", share.ErrCorrupt, err)
	}
	sum := sha256.Sum256(s.Record)
	if hex.EncodeToString(sum[:]) != s.SHA256 {
		return fmt.Errorf("metadata %w: its checksum differs", share.ErrCorrupt)
	}
	var version struct{ Version int }
	if err := json.Unmarshal(s.Record, &version); err != nil {
		return fmt.Errorf("metadata %w: %w", share.ErrCorrupt, err)
	}
	if version.Version != recordVersion {
		return &share.UnsupportedError{
			What:   fmt.Sprintf("metadata of version %d", version.Version),
			Reason: fmt.Sprintf("this program knows version %d", recordVersion),
		}
	}
	if err := json.Unmarshal(s.Record, v); err != nil {
		return fmt.Errorf("metadata %w: %w", share.ErrCorrupt, err)
	}
	return nil
}

// check refuses a record that cannot be the one of that volume.
func (r *record) check(name string) error {
	bad := func(what string) error {
		return fmt.Errorf("metadata %w: %s", share.ErrCorrupt, what)
	}
	switch {
	case r.Name != name:
		return bad(fmt.Sprintf("it is of the volume %q", r.Name))
	case len(r.ID) != 2*idBytes:
		return bad("the ID is malformed")
	case r.Kind != share.Disk && r.Kind != share.Tree:
		return bad("the kind is missing")
	case r.Kind == share.Disk && (r.Size <= 0 || r.Size%512 != 0):
		return bad(fmt.Sprintf("a size of %d bytes", int64(r.Size)))
	case r.Kind == share.Disk && r.Format != share.Raw && r.Format != share.Qcow2:
		return bad(fmt.Sprintf("format %q", string(r.Format)))
	}
	if _, err := hex.DecodeString(r.ID); err != nil {
		return bad("the ID is malformed")
	}
	switch r.State {
	case creating, ready, resizing, rolling, deleting:
		return nil
	}
	return bad(fmt.Sprintf("state %q", string(r.State)))
}
