package tuning

import (
	"fmt"
	"slices"

	"github.com/vmferry/vmferry/share"
)

// The texts of small enumerations: a table with an empty name for the zero.

func name[E ~uint8](names []string, e E) string {
	if int(e) < len(names) && names[e] != "" {
		return names[e]
	}
	return fmt.Sprintf("%T(%d)", e, uint8(e))
}

func marshalName[E ~uint8](names []string, e E) ([]byte, error) {
	if int(e) >= len(names) {
		return nil, fmt.Errorf("%T %d %w", e, uint8(e), share.ErrInvalid)
	}
	return []byte(names[e]), nil
}

func unmarshalName[E ~uint8](names []string, b []byte, e *E) error {
	i := slices.Index(names, string(b))
	if i < 0 {
		return fmt.Errorf("%T %s %w", *e, quote(string(b)), share.ErrInvalid)
	}
	*e = E(i)
	return nil
}

// quote makes a text of unknown origin safe to show.
func quote(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return fmt.Sprintf("%q", s)
}
