package nbd_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
)

// ram is memory without anything else, so that benchmarks measure the
// protocol.
type ram []byte

func (r ram) ReadAt(_ context.Context, p []byte, off int64) error  { copy(p, r[off:]); return nil }
func (r ram) WriteAt(_ context.Context, p []byte, off int64) error { copy(r[off:], p); return nil }
func (r ram) Flush(context.Context) error                          { return nil }
func (r ram) Size() int64                                          { return int64(len(r)) }
func (r ram) Close() error                                         { return nil }

const benchSize = 256 << 20

// benchRAM is one for all benchmarks, without a zero in it.
var benchRAM = sync.OnceValue(func() ram {
	r := make(ram, benchSize)
	for i := range r {
		r[i] = byte(i%251) + 1
	}
	return r
})

// benchClient is a client of our server over a kind of network.
func benchClient(b *testing.B, network string) *nbd.Client {
	if network == "unix" {
		_, uri := serve(b, nbd.Export{Device: benchRAM()}, nil)
		return dial(b, uri, nil)
	}
	var server *nbd.ServerOptions
	var client *nbd.ClientOptions
	if network == "tls" {
		ca := newAuthority(b)
		pair, _ := ca.issue("server", "server")
		mine, _ := ca.issue("client", "client")
		server = &nbd.ServerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: ca.pool()}}
		client = &nbd.ClientOptions{TLS: &tls.Config{Certificates: []tls.Certificate{mine}, RootCAs: ca.pool()}}
	}
	s, err := nbd.NewServer(server)
	require.NoError(b, err)
	require.NoError(b, s.Add("", nbd.Export{Device: benchRAM()}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	run(b, s, l)
	return dial(b, "nbd://"+l.Addr().String(), client)
}

// pump moves b.N blocks with depth callers.
func pump(b *testing.B, depth int, size int64, move func(p []byte, block int64) error) {
	b.SetBytes(size)
	b.ReportAllocs()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range depth {
		p := make([]byte, size)
		for i := range p {
			p[i] = byte(i) | 1
		}
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				if err := move(p, i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkSequential(b *testing.B) {
	ctx := context.Background()
	for _, network := range []string{"unix", "tcp", "tls"} {
		for _, size := range []int64{256 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("read/%s/%dKiB", network, size>>10), func(b *testing.B) {
				c := benchClient(b, network)
				pump(b, 8, size, func(p []byte, i int64) error { return c.ReadAt(ctx, p, i*size%benchSize) })
			})
			b.Run(fmt.Sprintf("write/%s/%dKiB", network, size>>10), func(b *testing.B) {
				c := benchClient(b, network)
				pump(b, 8, size, func(p []byte, i int64) error { return c.WriteAt(ctx, p, i*size%benchSize) })
			})
		}
	}
}

func BenchmarkRandom4KiB(b *testing.B) {
	ctx := context.Background()
	for _, network := range []string{"unix", "tcp"} {
		for _, depth := range []int{1, 32} {
			at := func() int64 { return rand.Int64N(benchSize/4096) * 4096 }
			b.Run(fmt.Sprintf("read/%s/depth%d", network, depth), func(b *testing.B) {
				c := benchClient(b, network)
				pump(b, depth, 4096, func(p []byte, _ int64) error { return c.ReadAt(ctx, p, at()) })
			})
			b.Run(fmt.Sprintf("write/%s/depth%d", network, depth), func(b *testing.B) {
				c := benchClient(b, network)
				pump(b, depth, 4096, func(p []byte, _ int64) error { return c.WriteAt(ctx, p, at()) })
			})
		}
	}
}

// BenchmarkBesideNbdcopy reads and writes all of an export: our client and
// nbdcopy with the same servers, and nbdcopy with both servers.
func BenchmarkBesideNbdcopy(b *testing.B) {
	tools(b, "nbdcopy", "nbdkit")
	file := filepath.Join(b.TempDir(), "data")
	require.NoError(b, os.WriteFile(file, benchRAM(), 0o600))
	servers := []struct {
		name  string
		start func(b *testing.B) string
	}{
		{"nbdkit", func(b *testing.B) string {
			uri := nbdkit(b, "memory", fmt.Sprint(benchSize))
			c := dial(b, uri, nil)
			require.NoError(b, c.WriteAt(timed(b), benchRAM(), 0))
			return uri
		}},
		{"ours", func(b *testing.B) string {
			_, uri := serve(b, nbd.Export{Device: benchRAM()}, nil)
			return uri
		}},
	}
	for _, s := range servers {
		b.Run("read/server="+s.name+"/client=nbdcopy", func(b *testing.B) {
			uri := s.start(b)
			b.SetBytes(benchSize)
			var cpu time.Duration
			for b.Loop() {
				cpu += outputCPU(b, "nbdcopy", uri, "null:")
			}
			reportCPU(b, cpu)
		})
		b.Run("read/server="+s.name+"/client=ours", func(b *testing.B) {
			uri := s.start(b)
			b.SetBytes(benchSize)
			cpu := ownCPU()
			for b.Loop() {
				whole(b, uri, share.Device.ReadAt)
			}
			reportCPU(b, ownCPU()-cpu)
		})
		b.Run("write/server="+s.name+"/client=nbdcopy", func(b *testing.B) {
			uri := s.start(b)
			b.SetBytes(benchSize)
			var cpu time.Duration
			for b.Loop() {
				cpu += outputCPU(b, "nbdcopy", file, uri)
			}
			reportCPU(b, cpu)
		})
		b.Run("write/server="+s.name+"/client=ours", func(b *testing.B) {
			uri := s.start(b)
			b.SetBytes(benchSize)
			cpu := ownCPU()
			for b.Loop() {
				whole(b, uri, share.Device.WriteAt)
			}
			reportCPU(b, ownCPU()-cpu)
		})
	}
}

// outputCPU is output; it returns the program's processor time.
func outputCPU(b *testing.B, name string, args ...string) time.Duration {
	c := exec.Command(tool(b, name), args...)
	endWithUs(c)
	out, err := c.CombinedOutput()
	require.NoError(b, err, "%s", out)
	return c.ProcessState.UserTime() + c.ProcessState.SystemTime()
}

// ownCPU is the processor time of this process: the client's, and our
// server's if it serves.
func ownCPU() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// reportCPU adds a figure that other load on the machine disturbs less.
func reportCPU(b *testing.B, d time.Duration) {
	b.ReportMetric(float64(d.Milliseconds())/float64(b.N), "cpu-ms/op")
}

// whole connects and moves the whole export once, as nbdcopy does.
func whole(b *testing.B, uri string, move func(share.Device, context.Context, []byte, int64) error) {
	const size = 256 << 10
	c, err := nbd.Dial(timed(b), uri, nil)
	require.NoError(b, err)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			p := bytes.Clone(benchRAM()[:size])
			for off := next.Add(size) - size; off < benchSize; off = next.Add(size) - size {
				if err := move(c, context.Background(), p, off); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.NoError(b, c.Close())
}
