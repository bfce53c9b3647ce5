package wire

import (
	"encoding/json"
	"fmt"
)

// HelloBody is the payload of Hello: JSON, so that later versions can add to it.
type HelloBody struct {
	// Versions are those that the sender speaks.
	Versions []int `json:"versions"`
	// Disk is the name under which the receiver expects the disk.
	Disk string `json:"disk"`
	// Session is the same on all connections of one sender: 32 hexadecimal
	// digits.
	Session string `json:"session"`
	// Epoch counts the attempts to send this disk. A greater one ends the
	// sessions of smaller ones.
	Epoch uint64 `json:"epoch"`
	// Size is the disk's size, Block the granularity, in bytes.
	Size  int64 `json:"size"`
	Block int64 `json:"block"`
	// ReadOnly is a session that asks for hashes only. It has no epoch, and
	// ends no other one.
	ReadOnly bool `json:"read_only,omitempty"`
	// Token narrows what the sender may touch, where the receiver wants one.
	Token string `json:"token,omitempty"`
}

// WelcomeBody is the payload of Welcome.
type WelcomeBody struct {
	Version int `json:"version"`
	// Identity is the destination's; see share.Identifier.
	Identity string `json:"identity"`
	// Size is the destination's size in bytes.
	Size int64 `json:"size"`
	// Credit is how many bytes of payload may be on their way, or unanswered,
	// on this connection.
	Credit int64 `json:"credit"`
	// Proof says what the receiver's root stands on: "received", "read back".
	Proof string `json:"proof"`
}

// Code is the kind of a failure.
type Code string

const (
	CodeInvalid     Code = "invalid"
	CodeDenied      Code = "denied"
	CodeNotExist    Code = "not-exist"
	CodeInUse       Code = "in-use"
	CodeNoSpace     Code = "no-space"
	CodeUnavailable Code = "unavailable"
	CodeWrongDevice Code = "wrong-device"
	CodeVersion     Code = "version"
	CodeStale       Code = "stale"
	CodeDiverged    Code = "diverged"
	CodeWedged      Code = "wedged"
	CodeFailed      Code = "failed" // none of the others
)

// Failure is the payload of Failed.
type Failure struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
	// Off and Len are the range that the failure speaks of, where it does.
	Off int64 `json:"off,omitempty"`
	Len int64 `json:"len,omitempty"`
}

// maxText bounds the text of a failure.
const maxText = 1000

// Encode makes a payload of the handshake, or of a failure.
func Encode(v any) ([]byte, error) {
	if f, ok := v.(Failure); ok && len(f.Text) > maxText {
		f.Text = f.Text[:maxText] + "…"
		v = f
	}
	b, err := json.Marshal(v)
	if err == nil && len(b) > MaxHello {
		err = fmt.Errorf("%w: a message of %d bytes", ErrTooLong, len(b))
	}
	return b, err
}

// Decode reads a payload that Encode made.
func Decode(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}
