package lab

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
)

// extractKernel returns the uncompressed ELF kernel inside a bzImage. QEMU
// starts that through its PVH entry, without the real-mode code and without
// decompressing under emulation, which would take a second of every boot.
func extractKernel(ctx context.Context, image []byte) ([]byte, error) {
	// The offsets are those of the x86 boot protocol, version 2.08.
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	sectors := int(image[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	start := uint64(sectors+1)*512 + uint64(binary.LittleEndian.Uint32(image[0x248:]))
	end := start + uint64(binary.LittleEndian.Uint32(image[0x24c:]))
	if start >= end || end > uint64(len(image)) {
		return nil, errors.New("bzImage names a payload beyond its end")
	}
	kernel, err := decompress(ctx, image[start:end])
	if err != nil {
		return nil, fmt.Errorf("decompress the payload: %w", err)
	}
	if !bytes.HasPrefix(kernel, []byte("\x7fELF")) {
		return nil, errors.New("payload is not an ELF kernel")
	}
	return kernel, nil
}

// decompress expands what its first bytes say it is, or nothing at all.
func decompress(ctx context.Context, p []byte) ([]byte, error) {
	// The build appends the uncompressed size where the format has none: the
	// tools take it for garbage, so that only their output is judged.
	switch {
	case bytes.HasPrefix(p, []byte{0x02, 0x21, 0x4c, 0x18}):
		return decompressLZ4(p[4:])
	case bytes.HasPrefix(p, []byte{0x1f, 0x8b}):
		r, err := gzip.NewReader(bytes.NewReader(p))
		if err != nil {
			return nil, err
		}
		r.Multistream(false)
		return io.ReadAll(r)
	case bytes.HasPrefix(p, []byte("BZh")):
		return io.ReadAll(bzip2.NewReader(bytes.NewReader(p)))
	case bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return decompressBy(ctx, p, "zstd", "-dc")
	case bytes.HasPrefix(p, []byte("\xfd7zXZ\x00")):
		return decompressBy(ctx, p, "xz", "-dc", "--single-stream")
	case bytes.HasPrefix(p, []byte("\x7fELF")):
		return p, nil
	}
	return nil, fmt.Errorf("unknown compression (% x)", p[:min(6, len(p))])
}

func decompressBy(ctx context.Context, p []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = bytes.NewReader(p)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

var errLZ4 = errors.New("lz4 data is damaged")

// decompressLZ4 decodes the legacy frame format behind its magic: blocks with
// their length before them.
func decompressLZ4(p []byte) ([]byte, error) {
	out := make([]byte, 0, 64<<20)
	for len(p) > 4 { // four bytes left over are the appended size
		n := binary.LittleEndian.Uint32(p)
		if uint64(n) > uint64(len(p)-4) {
			return nil, errLZ4
		}
		var err error
		if out, err = appendLZ4(out, p[4:4+n]); err != nil {
			return nil, err
		}
		p = p[4+n:]
	}
	return out, nil
}

// appendLZ4 decodes one block: runs of literals, each followed by a copy from
// what this block has already produced.
func appendLZ4(out, p []byte) ([]byte, error) {
	begin := len(out)
	length := func(n int) (int, error) {
		if n < 15 {
			return n, nil
		}
		for {
			if len(p) == 0 {
				return 0, errLZ4
			}
			c := p[0]
			p = p[1:]
			if n += int(c); c != 255 {
				return n, nil
			}
		}
	}
	for len(p) > 0 {
		token := p[0]
		p = p[1:]
		literals, err := length(int(token >> 4))
		if err != nil || literals > len(p) {
			return nil, errLZ4
		}
		out = append(out, p[:literals]...)
		if p = p[literals:]; len(p) == 0 {
			return out, nil // the last sequence has no copy
		}
		if len(p) < 2 {
			return nil, errLZ4
		}
		back := int(binary.LittleEndian.Uint16(p))
		p = p[2:]
		n, err := length(int(token & 15))
		if err != nil || back == 0 || back > len(out)-begin {
			return nil, errLZ4
		}
		for n += 4; n > 0; { // source and target may overlap
			chunk := min(n, back)
			out = append(out, out[len(out)-back:len(out)-back+chunk]...)
			n -= chunk
		}
	}
	return out, nil
}
