package nbd_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate/nbd"
)

// The server, seen by the clients that others use.

func TestServerNbdinfo(t *testing.T) {
	tools(t, "nbdinfo")
	s, uri := serve(t, nbd.Export{Device: newMemory(1 << 20), Description: "the first"}, nil)
	require.NoError(t, s.Add("ro", nbd.Export{Device: newMemory(2 << 20), ReadOnly: true,
		Contexts: []nbd.MetaContext{stripes{"x-test:stripes", 8192}}}))
	var out struct {
		Exports []struct {
			Name        string `json:"export-name"`
			Description string
			Size        int64    `json:"export-size"`
			ReadOnly    bool     `json:"is_read_only"`
			MultiConn   bool     `json:"can_multi_conn"`
			DF          bool     `json:"can_df"`
			FUA         bool     `json:"can_fua"`
			Flush       bool     `json:"can_flush"`
			Trim        bool     `json:"can_trim"`
			Zero        bool     `json:"can_zero"`
			FastZero    bool     `json:"can_fast_zero"`
			Contexts    []string `json:"contexts"`
			Min         int64    `json:"block_size_minimum"`
			Max         int64    `json:"block_size_maximum"`
		}
		Structured bool `json:"structured"`
	}
	require.NoError(t, json.Unmarshal([]byte(output(t, "nbdinfo", "--json", "--list", uri)), &out))
	require.True(t, out.Structured)
	require.Len(t, out.Exports, 2)
	e := out.Exports[0]
	require.Equal(t, "the first", e.Description)
	require.EqualValues(t, 1<<20, e.Size)
	require.True(t, e.MultiConn && e.DF && e.FUA && e.Flush && e.Trim && e.Zero && e.FastZero && !e.ReadOnly)
	require.EqualValues(t, 1, e.Min)
	require.EqualValues(t, 32<<20, e.Max)
	e = out.Exports[1]
	require.Equal(t, "ro", e.Name)
	require.True(t, e.ReadOnly && !e.Trim && !e.Zero)
	require.Equal(t, []string{"base:allocation", "x-test:stripes"}, e.Contexts)

	_, err := attempt(t, "nbdinfo", strings.Replace(uri, "/?", "/nothing?", 1))
	require.Error(t, err)
}

// stripes is a metadata context that alternates.
type stripes struct {
	name  string
	width int64
}

func (s stripes) Name() string { return s.name }

func (s stripes) BlockStatus(_ context.Context, off, n int64) ([]nbd.Extent, error) {
	var all []nbd.Extent
	for end := off + n; off < end; {
		next := min(end, (off/s.width+1)*s.width)
		all = append(all, nbd.Extent{Off: off, Len: next - off, Flags: uint32(off / s.width & 1)})
		off = next
	}
	return all, nil
}

func TestServerMap(t *testing.T) {
	tools(t, "nbdinfo", "qemu-img")
	mem := newMemory(1 << 20)
	copy(mem.data[64<<10:], pattern(make([]byte, 128<<10), 0, 1))
	mem.mark(64<<10, 128<<10, false)
	_, uri := serve(t, nbd.Export{Device: mem, Contexts: []nbd.MetaContext{stripes{"x-test:stripes", 256 << 10}}}, nil)
	var m []struct {
		Offset, Length int64
		Type           int
	}
	require.NoError(t, json.Unmarshal([]byte(output(t, "nbdinfo", "--json", "--map", uri)), &m))
	require.Len(t, m, 3)
	require.EqualValues(t, 3, m[0].Type)
	require.EqualValues(t, 64<<10, m[1].Offset)
	require.EqualValues(t, 128<<10, m[1].Length)
	require.Zero(t, m[1].Type)
	require.NoError(t, json.Unmarshal([]byte(output(t, "nbdinfo", "--json", "--map=x-test:stripes", uri)), &m))
	require.Len(t, m, 4)

	var q []struct {
		Start, Length int64
		Zero, Data    bool
	}
	require.NoError(t, json.Unmarshal([]byte(output(t, "qemu-img", "map", "--output=json", "-f", "raw", uri)), &q))
	require.Len(t, q, 3)
	require.True(t, q[0].Zero && !q[0].Data && !q[1].Zero && q[1].Data && q[2].Zero)
}

func TestServerCopyAndCompare(t *testing.T) {
	tools(t, "nbdcopy", "qemu-img")
	const size = 24<<20 + 4096
	file := filepath.Join(t.TempDir(), "image")
	data := make([]byte, size)
	pattern(data[1<<20:9<<20], 0, 3)
	pattern(data[size-4096:], 0, 5)
	require.NoError(t, os.WriteFile(file, data, 0o600))

	for _, k := range []struct{ name, tool string }{{"nbdcopy", "nbdcopy"}, {"qemu-img", "qemu-img"}} {
		t.Run(k.name, func(t *testing.T) {
			mem := newMemory(size)
			_, uri := serve(t, nbd.Export{Device: mem}, nil)
			back := filepath.Join(t.TempDir(), "back")
			if k.tool == "nbdcopy" {
				output(t, "nbdcopy", "--flush", file, uri)
				output(t, "nbdcopy", uri, back)
			} else {
				output(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, uri)
				output(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, back)
				require.Contains(t, output(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, uri), "identical")
			}
			same(t, data, mem.content())
			got, err := os.ReadFile(back)
			require.NoError(t, err)
			same(t, data, got)
			require.Positive(t, mem.count("flush"))
		})
	}
}

func TestServerQemuIO(t *testing.T) {
	tools(t, "qemu-io")
	mem := newMemory(4 << 20)
	_, uri := serve(t, nbd.Export{Device: mem}, nil)
	out := output(t, "qemu-io", "-f", "raw", "-d", "unmap",
		"-c", "write -P 0x11 0 1M", "-c", "write -f -P 0x22 1M 64k", "-c", "write -z 64k 64k", "-c", "write -z -u 128k 64k",
		"-c", "discard 192k 64k", "-c", "flush",
		"-c", "read -P 0x11 0 64k", "-c", "read -P 0 64k 192k", "-c", "read -P 0x11 256k 768k", "-c", "read -P 0x22 1M 64k",
		"-c", "read -P 0 1088k 64k", uri)
	require.NotContains(t, out, "failed")
	require.NotContains(t, out, "error")
	require.Positive(t, mem.count("zero1"), "NO_HOLE")
	require.Positive(t, mem.count("zero0"))
	require.Positive(t, mem.count("discard"))

	mem.fail(0, errBroken)
	out, err := attempt(t, "qemu-io", "-f", "raw", "-c", "read 0 4k", uri)
	require.Error(t, err)
	require.Contains(t, out, "Input/output error")
	_, err = attempt(t, "qemu-io", "-f", "raw", "-r", "-c", "write 0 4k", uri)
	require.Error(t, err)
}

// TestServerWithoutInterfaces serves a device that can only read and write.
func TestServerWithoutInterfaces(t *testing.T) {
	tools(t, "qemu-io")
	mem := newMemory(4 << 20)
	_, uri := serve(t, nbd.Export{Device: plain{mem}}, nil)
	output(t, "qemu-io", "-f", "raw", "-c", "write -P 0x11 0 1M", "-c", "write -z 64k 512k", "-c", "read -P 0 64k 512k",
		"-c", "read -P 0x11 576k 448k", uri)
	require.Zero(t, mem.count("zero0")+mem.count("zero1"))
}

func TestServerFio(t *testing.T) {
	tools(t, "fio")
	_, uri := serve(t, nbd.Export{Device: newMemory(16 << 20)}, nil)
	output(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+uri, "--rw=randrw", "--bsrange=4k-128k", "--size=16M",
		"--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0")
}

func TestServerTLS(t *testing.T) {
	tools(t, "nbdinfo", "nbdcopy", "qemu-img")
	ca := newAuthority(t)
	server, _ := ca.issue("server", "server")
	_, mine := ca.issue("client", "alice")
	_, other := ca.issue("client", "mallory")
	_, stranger := newAuthority(t).issue("client", "alice")
	s, err := nbd.NewServer(&nbd.ServerOptions{
		TLS: &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: ca.pool()},
		Authorize: func(_ context.Context, peer nbd.ConnInfo, export string) error {
			if peer.PeerCertificates[0].Subject.CommonName != "alice" {
				return errors.New("alice only")
			}
			return nil
		},
	})
	require.NoError(t, err)
	mem := newMemory(8 << 20)
	pattern(mem.data, 0, 9)
	mem.mark(0, 8<<20, false)
	require.NoError(t, s.Add("disk", nbd.Export{Device: mem}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	run(t, s, l)
	uri := func(scheme, certs string) string {
		return fmt.Sprintf("%s://%s/disk?tls-certificates=%s", scheme, l.Addr(), certs)
	}

	require.Contains(t, output(t, "nbdinfo", uri("nbds", mine)), "8388608")
	back := filepath.Join(t.TempDir(), "back")
	output(t, "nbdcopy", uri("nbds", mine), back)
	got, err := os.ReadFile(back)
	require.NoError(t, err)
	same(t, mem.content(), got)

	_, port, _ := net.SplitHostPort(l.Addr().String())
	qemu := func(dir string) []string {
		return []string{"map", "--output=json", "--object", "tls-creds-x509,id=t,endpoint=client,dir=" + dir,
			"--image-opts", "driver=nbd,host=127.0.0.1,port=" + port + ",export=disk,tls-creds=t"}
	}
	output(t, "qemu-img", qemu(mine)...)

	for name, args := range map[string][]string{
		"plaintext":         {"nbdinfo", fmt.Sprintf("nbd://%s/disk", l.Addr())},
		"plaintext list":    {"nbdinfo", "--list", fmt.Sprintf("nbd://%s", l.Addr())},
		"another client":    {"nbdinfo", uri("nbds", other)},
		"another authority": {"nbdinfo", uri("nbds", stranger)},
		"qemu, another":     append([]string{"qemu-img"}, qemu(other)...),
		"qemu, stranger":    append([]string{"qemu-img"}, qemu(stranger)...),
	} {
		out, err := attempt(t, args[0], args[1:]...)
		require.Error(t, err, name)
		require.NotContains(t, out, "8388608", name)
	}
	require.NotContains(t, output(t, "nbdinfo", "--list", uri("nbds", other)), "disk\"", "an export that is forbidden is not listed")
}
