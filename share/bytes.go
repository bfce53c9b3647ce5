package share

import (
	"fmt"
	"math/big"
	"regexp"
	"strings"
)

// Bytes is a number of bytes.
type Bytes int64

const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var units = []struct {
	name string
	size Bytes
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}}

// String is the number in the largest binary unit that keeps it at least 1,
// with one decimal where that is not exact: "1.5 GiB", "300 B".
func (b Bytes) String() string {
	sign, u := "", uint64(b)
	if b < 0 {
		sign, u = "-", -u
	}
	for i, unit := range units {
		size := uint64(unit.size)
		if u < size {
			continue
		}
		if u%size == 0 {
			return fmt.Sprintf("%s%d %s", sign, u/size, unit.name)
		}
		s := fmt.Sprintf("%.1f", float64(u)/float64(size))
		if s == "1024.0" && i > 0 { // rounded up to the next unit
			s, unit = "1.0", units[i-1]
		}
		return sign + s + " " + unit.name
	}
	return fmt.Sprintf("%s%d B", sign, u)
}

var sizeGrammar = regexp.MustCompile(`^([0-9]{1,19}(?:\.[0-9]{1,12})?) ?([KMGTkmgt]?)(?:[iI]?[bB])?$`)

// ParseBytes reads a number with an optional binary unit: "512", "64K", "64KiB",
// "1.5 GiB". As with QEMU's tools K, M, G and T are powers of 1024, whether or
// not B or iB follows. A fraction of a byte is an error.
func ParseBytes(s string) (Bytes, error) {
	bad := fmt.Errorf("%w: size %s; write a number with K, M, G or T", ErrInvalid, quote(s))
	m := sizeGrammar.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil || m[2] == "" && strings.HasSuffix(strings.ToLower(s), "ib") {
		return 0, bad
	}
	unit := int64(1)
	if m[2] != "" {
		unit = int64(KiB) << (10 * strings.Index("KMGT", strings.ToUpper(m[2])))
	}
	r, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return 0, bad
	}
	r.Mul(r, new(big.Rat).SetInt64(unit))
	switch {
	case !r.IsInt():
		return 0, fmt.Errorf("%w: size %s is not a whole number of bytes", ErrInvalid, quote(s))
	case !r.Num().IsInt64():
		return 0, fmt.Errorf("%w: size %s is over 2^63-1 bytes", ErrInvalid, quote(s))
	}
	return Bytes(r.Num().Int64()), nil
}
