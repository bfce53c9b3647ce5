package share

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
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
// with at most one decimal where that is not exact: "1.5 GiB", "300 B".
func (b Bytes) String() string {
	sign, u := "", uint64(b)
	if b < 0 {
		sign, u = "-", -u
	}
	for _, unit := range units {
		if size := uint64(unit.size); u >= size {
			if u%size == 0 {
				return fmt.Sprintf("%s%d %s", sign, u/size, unit.name)
			}
			return fmt.Sprintf("%s%.1f %s", sign, float64(u)/float64(size), unit.name)
		}
	}
	return fmt.Sprintf("%s%d B", sign, u)
}

// ParseBytes reads a number with an optional binary unit: "512", "64K", "64KiB",
// "1.5 GiB". As with QEMU's tools K, M, G and T are powers of 1024. A fraction
// of a byte is an error.
func ParseBytes(s string) (Bytes, error) {
	num := strings.TrimSpace(s)
	unit := Bytes(1)
	upper := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(num), "B"), "I")
	if k := len(upper); k > 0 {
		if i := strings.IndexByte("KMGT", upper[k-1]); i >= 0 {
			unit, upper = KiB<<(10*i), upper[:k-1]
		} else if strings.HasSuffix(strings.ToUpper(num), "IB") {
			upper = "" // "5iB"
		}
	}
	upper = strings.TrimSpace(upper)
	bad := fmt.Errorf("%w: size %s; write a number with K, M, G or T", ErrInvalid, quote(s))
	if strings.Trim(upper, "0123456789.") != "" {
		return 0, bad
	}
	if n, err := strconv.ParseInt(upper, 10, 64); err == nil {
		if n > math.MaxInt64/int64(unit) {
			return 0, fmt.Errorf("%w: size %s is over 2^63-1 bytes", ErrInvalid, quote(s))
		}
		return Bytes(n) * unit, nil
	}
	r, ok := new(big.Rat).SetString(upper)
	if !ok || len(upper) > 32 {
		return 0, bad
	}
	r.Mul(r, new(big.Rat).SetInt64(int64(unit)))
	if !r.IsInt() || !r.Num().IsInt64() {
		return 0, bad
	}
	return Bytes(r.Num().Int64()), nil
}
