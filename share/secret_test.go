package share_test

import (
	"bytes"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

const canary = "c4n4ry-S3cr3t"

// carrier holds a secret in every way a program may.
type carrier struct {
	Exported share.Secret
	hidden   share.Secret
	Pointer  *share.Secret
	pointer  *share.Secret
	List     []share.Secret
	list     []share.Secret
	Map      map[string]share.Secret
	inner    struct{ deep share.Credential }
	Any      any
	any      any
}

func newCarrier() *carrier {
	s := share.NewSecret([]byte(canary))
	c := &carrier{Exported: s, hidden: s, Pointer: &s, pointer: &s, List: []share.Secret{s}, list: []share.Secret{s},
		Map: map[string]share.Secret{"k": s}, Any: s, any: &s}
	c.inner.deep = share.Credential{User: "u", Secret: s, ServerSecret: s}
	return c
}

// leaks fails if text shows the canary, plainly or as the numbers and hex that
// formatters make of bytes.
func leaks(t *testing.T, how, text string) {
	t.Helper()
	decimals := fmt.Sprint([]byte(canary))
	for _, bad := range []string{canary, decimals[1 : len(decimals)-1], hex.EncodeToString([]byte(canary)), "YzRuNHJ5LVMzY3IzdA", "0x63, 0x34"} {
		require.NotContains(t, text, bad, how)
	}
}

func TestSecretIsRedacted(t *testing.T) {
	c := newCarrier()
	values := map[string]any{
		"secret": c.Exported, "pointer": c.Pointer, "struct": *c, "struct pointer": c, "list": c.List,
		"access": share.Access{Client: share.LocalHost(), Credential: &c.inner.deep}, "credential": c.inner.deep,
	}
	for name, v := range values {
		for verb := 'A'; verb <= 'z'; verb++ {
			for _, flags := range []string{"", "+", "#", "-", " ", "0", "20", ".5", "#+v %"} {
				leaks(t, name, fmt.Sprintf("%"+flags+string(verb), v))
			}
		}
		leaks(t, name, fmt.Sprint(v))
		leaks(t, name, fmt.Errorf("failed: %v", v).Error())

		b, err := json.Marshal(v)
		leaks(t, name+" json", string(b)+fmt.Sprint(err))
		b, err = xml.Marshal(v)
		leaks(t, name+" xml", string(b)+fmt.Sprint(err))
		var buf bytes.Buffer
		err = gob.NewEncoder(&buf).Encode(v)
		leaks(t, name+" gob", buf.String()+fmt.Sprint(err))

		for _, h := range []slog.Handler{slog.NewTextHandler(&buf, nil), slog.NewJSONHandler(&buf, nil)} {
			log := slog.New(h).With("with", v)
			log.Info("message", "v", v, slog.Group("g", "v", v), "err", fmt.Errorf("%+v", v))
		}
		leaks(t, name+" slog", buf.String())

		// A failed assertion walks through memory, unexported fields too.
		rec := &recorder{}
		assert.Equal(rec, "x", v)
		assert.Equal(rec, []any{1}, []any{v})
		leaks(t, name+" testify", rec.text)
	}
	require.Equal(t, "[redacted]", c.Exported.String())
	require.Equal(t, "[redacted]", fmt.Sprintf("%s", c.Exported))
	require.Equal(t, "{[redacted]}", fmt.Sprintf("%v", struct{ S share.Secret }{c.Exported}))
}

type recorder struct{ text string }

func (r *recorder) Errorf(format string, args ...any) { r.text += fmt.Sprintf(format, args...) }

func TestSecretDoesNotTravel(t *testing.T) {
	s := share.NewSecret([]byte(canary))
	_, err := json.Marshal(s)
	require.ErrorIs(t, err, share.ErrInvalid)
	require.ErrorIs(t, json.Unmarshal([]byte(`"x"`), &s), share.ErrInvalid)
	require.Error(t, gob.NewEncoder(new(bytes.Buffer)).Encode(s))
	b, err := json.Marshal(share.Access{Client: share.LocalHost(), Credential: &share.Credential{User: "u", Secret: s}})
	require.NoError(t, err)
	require.NotContains(t, string(b), "u\"", "a stored access has no credential")
}

func TestSecretValue(t *testing.T) {
	raw := []byte(canary)
	s := share.NewSecret(raw)
	raw[0] = 'X'
	got := s.Reveal()
	require.Equal(t, canary, string(got))
	got[0] = 'X'
	require.Equal(t, canary, string(s.Reveal()), "Reveal gives a copy")
	require.False(t, s.IsZero())
	require.True(t, s.Equal(share.NewSecret([]byte(canary))))
	require.False(t, s.Equal(share.NewSecret([]byte("other"))))
	require.True(t, share.Secret{}.IsZero())
	require.True(t, share.NewSecret(nil).IsZero())
	require.Nil(t, share.Secret{}.Reveal())
	c := s
	require.True(t, c == s, "a copy is the same secret")
}

func TestSecretFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, []byte(content), mode))
		require.NoError(t, os.Chmod(p, mode))
		return p
	}
	s, err := share.SecretFile(write("a", canary+"\n", 0o600))
	require.NoError(t, err)
	require.Equal(t, canary, string(s.Reveal()))
	s, err = share.SecretFile(write("b", canary+"\n\n", 0o400))
	require.NoError(t, err)
	require.Equal(t, canary+"\n", string(s.Reveal()))

	for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o644} {
		_, err = share.SecretFile(write("c", canary, mode))
		require.ErrorIs(t, err, share.ErrDenied)
		leaks(t, "SecretFile", err.Error())
	}
	_, err = share.SecretFile(write("d", string(make([]byte, 64<<10+1)), 0o600))
	require.ErrorIs(t, err, share.ErrInvalid)
	_, err = share.SecretFile(dir)
	require.ErrorIs(t, err, share.ErrInvalid)
	_, err = share.SecretFile(filepath.Join(dir, "none"))
	require.True(t, errors.Is(err, os.ErrNotExist))
}
