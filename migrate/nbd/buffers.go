package nbd

import (
	"bytes"
	"math/bits"
	"sync"
)

// Buffers for data in the server come in powers of two from 4 KiB, so that
// few of them serve requests of every size. What a buffer holds of the budgets
// is its real size.

const leastBuffer = 12 // bits: 4 KiB

type buffer struct{ b []byte }

var buffers [31 - leastBuffer + 1]sync.Pool

func bufferClass(n int64) int {
	return max(0, bits.Len64(uint64(max(n, 1)-1))-leastBuffer)
}

// bufferSize is the real size of a buffer for n bytes, at most 2 GiB.
func bufferSize(n int64) int64 { return 1 << (bufferClass(n) + leastBuffer) }

func newBuffer(n int64) *buffer {
	if b, ok := buffers[bufferClass(n)].Get().(*buffer); ok {
		return b
	}
	return &buffer{make([]byte, bufferSize(n))}
}

func (b *buffer) free() { buffers[bufferClass(int64(len(b.b)))].Put(b) }

var zeroBlock [4096]byte

// isZero reports whether p is all zeros. On other data it ends early.
func isZero(p []byte) bool {
	for len(p) > len(zeroBlock) {
		if !bytes.Equal(p[:len(zeroBlock)], zeroBlock[:]) {
			return false
		}
		p = p[len(zeroBlock):]
	}
	return bytes.Equal(p, zeroBlock[:len(p)])
}
