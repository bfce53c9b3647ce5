package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/local"
)

// disk is a raw volume of a local share; others see it as the file path.
type disk struct {
	share string // its directory
	path  string
}

// newDisk makes an empty disk, in place of the one of that name.
func (b *bench) newDisk(ctx context.Context, name string, size int64) (disk, error) {
	d := disk{share: filepath.Join(b.dir, name), path: filepath.Join(b.dir, name, "disk")}
	if err := os.RemoveAll(d.share); err != nil {
		return d, err
	}
	s, err := local.Open(ctx, d.share, &local.Options{Create: true})
	if err != nil {
		return d, err
	}
	defer s.Close()
	_, err = share.Create(ctx, s, share.Spec{Name: "disk", Kind: share.Disk, Format: share.Raw, Size: share.Bytes(size)})
	return d, err
}

// fill writes n bytes that cannot be compressed from off on.
func (d disk) fill(off, n int64, seed uint64) error {
	f, err := os.OpenFile(d.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var key [32]byte
	key[0] = byte(seed)
	_, err = io.CopyBuffer(io.NewOffsetWriter(f, off), onlyReader{io.LimitReader(rand.NewChaCha8(key), n)}, make([]byte, 1<<20))
	if err != nil {
		return err
	}
	return f.Sync()
}

type onlyReader struct{ io.Reader }

// sameFiles compares two files of size bytes.
func sameFiles(a, b string, size int64) error { return sameStretch(a, b, 0, size) }

// sameStretch compares n bytes of two files from off on.
func sameStretch(a, b string, off, n int64) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	pa, pb := make([]byte, 1<<20), make([]byte, 1<<20)
	for end := off + n; off < end; off += int64(len(pa)) {
		n := min(int64(len(pa)), end-off)
		if _, err := fa.ReadAt(pa[:n], off); err != nil {
			return err
		}
		if _, err := fb.ReadAt(pb[:n], off); err != nil {
			return err
		}
		if !bytes.Equal(pa[:n], pb[:n]) {
			return fmt.Errorf("%s and %s differ at about %d", a, b, off)
		}
	}
	return nil
}

// samePieces compares n bytes of two files at each of count multiples of step.
func samePieces(a, b string, step, n, count int64) error {
	for i := range count {
		if err := sameStretch(a, b, i*step, n); err != nil {
			return err
		}
	}
	return nil
}

// settle writes out what an earlier run left in the page cache, so that the
// next one does not pay for it.
func settle() { unix.Sync() }

// fillBlock fills a block with numbers that tell it from others.
func fillBlock(p []byte, seed uint64) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed+1)
	_, _ = rand.NewChaCha8(key).Read(p) // it never fails
}
