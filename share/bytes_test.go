package share_test

import (
	"errors"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

func TestBytesString(t *testing.T) {
	for b, want := range map[share.Bytes]string{
		0:                          "0 B",
		1:                          "1 B",
		1023:                       "1023 B",
		share.KiB:                  "1 KiB",
		1536:                       "1.5 KiB",
		share.MiB - 1:              "1.0 MiB",
		share.TiB - 1:              "1.0 TiB",
		10 * share.GiB:             "10 GiB",
		2048 * share.TiB:           "2048 TiB",
		-share.KiB:                 "-1 KiB",
		math.MaxInt64:              "8388608.0 TiB",
		math.MinInt64:              "-8388608 TiB",
		share.GiB + share.GiB/2:    "1.5 GiB",
		share.GiB + 12*share.KiB/7: "1.0 GiB",
	} {
		require.Equal(t, want, b.String(), "%d", int64(b))
	}
}

func TestParseBytes(t *testing.T) {
	for s, want := range map[string]share.Bytes{
		"0":                   0,
		"512":                 512,
		"512B":                512,
		"64K":                 64 * share.KiB,
		"64k":                 64 * share.KiB,
		"64KiB":               64 * share.KiB,
		"64KB":                64 * share.KiB,
		" 1.5 GiB ":           share.GiB + share.GiB/2,
		"0.5K":                512,
		"3T":                  3 * share.TiB,
		"9223372036854775807": math.MaxInt64,
		"8388607T":            8388607 * share.TiB,
	} {
		got, err := share.ParseBytes(s)
		require.NoError(t, err, s)
		require.Equal(t, want, got, s)
	}
	for _, s := range []string{
		"", " ", "K", ".", "1.", ".5K", "-1", "+1", "5I", "5KI", "5iB", "5 i B", "1e3", "0x10", "1.2.3K",
		"1.0001K", "0.1", "8388608T", "9223372036854775808", "99999999999999999999999999999999999999", "1P",
		"1 GiB of data", "1\nG", "5\u212a", "5K\u0131B", "1/2K", "1_000",
	} {
		got, err := share.ParseBytes(s)
		require.ErrorIs(t, err, share.ErrInvalid, "%q gave %d", s, got)
		require.Zero(t, got)
	}
}

func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"512", "1.5 GiB", "64K", "5iB", "8388608T", "0.0000000001K"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := share.ParseBytes(s)
		if err != nil {
			if !errors.Is(err, share.ErrInvalid) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if b < 0 {
			t.Fatalf("%q is %d", s, b)
		}
		if b%share.KiB == 0 && b < share.MiB { // exact texts come back as they were
			if back, err := share.ParseBytes(b.String()); err != nil || back != b {
				t.Fatalf("%q is %d is %s is %d, %v", s, b, b, back, err)
			}
		}
	})
}
