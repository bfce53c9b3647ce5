package share

import (
	"bytes"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
	"os"
)

const redacted = "[redacted]"

// Secret is a password or key that every formatter redacts: fmt with any verb,
// encoding/json, log/slog, also from deep inside a structure. The only way to
// the bytes is [Secret.Reveal], at the place where they are used.
//
// The zero value is no secret. A Secret may be copied; copies share the bytes.
type Secret struct {
	// Behind a function no formatter that walks through memory finds them, be
	// it in an unexported field where fmt cannot call the methods below. The
	// pointer keeps secrets, and what holds them, comparable.
	reveal *func() []byte
}

// NewSecret makes a secret of a copy of b.
func NewSecret(b []byte) Secret {
	c := bytes.Clone(b)
	reveal := func() []byte { return bytes.Clone(c) }
	return Secret{reveal: &reveal}
}

// Reveal returns a copy of the bytes, nil for no secret. Give it to a file
// descriptor, standard input or a file of mode 0600; never to an argument, the
// environment, a log or a URI.
func (s Secret) Reveal() []byte {
	if s.reveal == nil {
		return nil
	}
	return (*s.reveal)()
}

// IsZero reports whether there is no secret, or an empty one.
func (s Secret) IsZero() bool { return len(s.Reveal()) == 0 }

// Equal compares two secrets in a time that depends on their lengths only.
func (s Secret) Equal(t Secret) bool {
	return subtle.ConstantTimeCompare(s.Reveal(), t.Reveal()) == 1
}

// String is "[redacted]".
func (s Secret) String() string { return redacted }

// GoString is "[redacted]".
func (s Secret) GoString() string { return redacted }

// Format writes "[redacted]" for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue is "[redacted]".
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText refuses: a secret is not part of stored data. Leave the field
// out (`json:"-"`) and store the secret's name.
func (s Secret) MarshalText() ([]byte, error) {
	return nil, fmt.Errorf("%w: a secret cannot be marshalled", ErrInvalid)
}

// UnmarshalText refuses, as MarshalText does: secrets do not come in documents.
func (s *Secret) UnmarshalText([]byte) error {
	return fmt.Errorf("%w: a secret cannot be unmarshalled; read it with SecretFile", ErrInvalid)
}

// maxSecretFile bounds what SecretFile reads: keys and passphrases are short.
const maxSecretFile = 64 << 10

// SecretFile reads a secret from a file, one trailing newline left out. A file
// that others may read is [ErrDenied].
func SecretFile(name string) (Secret, error) {
	f, err := os.Open(name)
	if err != nil {
		return Secret{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Secret{}, err
	}
	switch {
	case !st.Mode().IsRegular():
		return Secret{}, fmt.Errorf("%w: secret file %s is not a regular file", ErrInvalid, name)
	case st.Mode().Perm()&0o077 != 0:
		return Secret{}, fmt.Errorf("secret file %s of mode %04o: access %w; make it 0600", name, st.Mode().Perm(), ErrDenied)
	case st.Size() > maxSecretFile:
		return Secret{}, fmt.Errorf("%w: secret file %s has %d bytes, over %d", ErrInvalid, name, st.Size(), maxSecretFile)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile))
	if err != nil {
		return Secret{}, err
	}
	return NewSecret(bytes.TrimSuffix(b, []byte("\n"))), nil
}
