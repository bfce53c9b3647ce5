package wire

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// The codecs are shared by all connections: they are safe for that, and large.
var (
	encoder = sync.OnceValues(func() (*zstd.Encoder, error) {
		return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithEncoderConcurrency(4))
	})
	decoder = sync.OnceValues(func() (*zstd.Decoder, error) {
		// The window bounds what a hostile frame can make us allocate.
		return zstd.NewReader(nil, zstd.WithDecoderMaxMemory(MaxPayload), zstd.WithDecoderMaxWindow(MaxPayload), zstd.WithDecoderConcurrency(4))
	})
)

// Compress appends the compressed form of p to dst.
func Compress(dst, p []byte) ([]byte, error) {
	e, err := encoder()
	if err != nil {
		return nil, err
	}
	return e.EncodeAll(p, dst), nil
}

// Decompress fills p from its compressed form. A frame of another length is
// an error that wraps ErrProtocol.
func Decompress(p, compressed []byte) error {
	d, err := decoder()
	if err != nil {
		return err
	}
	got, err := d.DecodeAll(compressed, p[:0:len(p)])
	if err != nil {
		return fmt.Errorf("%w: zstd: %w", ErrProtocol, err)
	}
	if len(got) != len(p) || len(p) > 0 && &got[0] != &p[0] {
		return fmt.Errorf("%w: %d bytes decompressed, %d announced", ErrProtocol, len(got), len(p))
	}
	return nil
}
