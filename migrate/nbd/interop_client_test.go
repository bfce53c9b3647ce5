package nbd_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
)

// The client, with the servers that others use.

// nbdkit starts an nbdkit on a unix socket.
func nbdkit(t testing.TB, args ...string) string {
	path := filepath.Join(socketDir(t), "s")
	daemon(t, "unix", path, "nbdkit", append([]string{"-f", "-U", path}, args...)...)
	return unixURI(path, "")
}

// qemuNBD starts a qemu-nbd for several clients on a unix socket.
func qemuNBD(t testing.TB, args ...string) string {
	path := filepath.Join(socketDir(t), "s")
	daemon(t, "unix", path, "qemu-nbd", append([]string{"-k", path, "--persistent", "-e", "8"}, args...)...)
	return unixURI(path, "")
}

// exercise writes, zeroes and discards, and compares with a model.
func exercise(t *testing.T, c *nbd.Client) {
	ctx := timed(t)
	size := c.Size()
	model := read(t, c, 0, size)
	write := func(off, n int64, seed byte) {
		pattern(model[off:off+n], off, seed)
		require.NoError(t, c.WriteAt(ctx, model[off:off+n], off))
	}
	write(0, size/2, 1)
	write(size-4096, 4096, 2)
	write(64<<10, 3<<20, 3)
	require.NoError(t, share.ZeroRange(ctx, c, 1<<20, 1<<20, 0))
	clear(model[1<<20 : 2<<20])
	require.NoError(t, share.ZeroRange(ctx, c, 4096, 4096, share.ZeroKeepAllocated))
	clear(model[4096:8192])
	require.NoError(t, c.Flush(ctx))
	same(t, model, read(t, c, 0, size))
	all, err := share.ListExtents(ctx, c, 0, size)
	require.NoError(t, err)
	for _, e := range all {
		if e.State.Zero() {
			same(t, make([]byte, e.Len), model[e.Off:e.End()])
		}
	}
	require.NoError(t, share.DiscardRange(ctx, c, 2<<20, 1<<20))
	same(t, model[3<<20:], read(t, c, 3<<20, size-3<<20))
	write(2<<20, 1<<20, 4)
	same(t, model, read(t, c, 0, size))
}

func TestClientPeers(t *testing.T) {
	const size = 16 << 20
	raw := func(t *testing.T) string {
		path := filepath.Join(t.TempDir(), "raw")
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.Truncate(path, size))
		return path
	}
	qcow2 := func(t *testing.T) string {
		path := filepath.Join(t.TempDir(), "qcow2")
		output(t, "qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprint(size))
		return path
	}
	for _, k := range []struct {
		name, tool string
		start      func(t *testing.T) string
		multi      bool
	}{
		{"nbdkit memory", "nbdkit", func(t *testing.T) string { return nbdkit(t, "memory", "16M") }, true},
		{"nbdkit sparse data", "nbdkit", func(t *testing.T) string { return nbdkit(t, "data", "data=@1048576 1 @8388608 2", "size=16M") }, true},
		{"nbdkit without structured replies", "nbdkit", func(t *testing.T) string { return nbdkit(t, "--no-sr", "memory", "16M") }, true},
		{"nbdkit blocks of 4 KiB to 64 KiB", "nbdkit", func(t *testing.T) string {
			return nbdkit(t, "--filter=blocksize-policy", "memory", "16M", "blocksize-minimum=4K", "blocksize-preferred=4K", "blocksize-maximum=64K", "blocksize-error-policy=error")
		}, true},
		{"nbdkit without zero", "nbdkit", func(t *testing.T) string {
			return nbdkit(t, "--filter=nozero", "--filter=noextents", "memory", "16M", "zeromode=none")
		}, true},
		{"qemu-nbd raw", "qemu-nbd", func(t *testing.T) string { return qemuNBD(t, "-f", "raw", raw(t)) }, true},
		{"qemu-nbd qcow2", "qemu-nbd", func(t *testing.T) string { return qemuNBD(t, "-f", "qcow2", "--discard=unmap", qcow2(t)) }, true},
		{"our own", "go", func(t *testing.T) string {
			_, uri := serve(t, nbd.Export{Device: newMemory(size)}, nil)
			return uri
		}, true},
	} {
		t.Run(k.name, func(t *testing.T) {
			tools(t, k.tool)
			c := dial(t, k.start(t), &nbd.ClientOptions{Connections: 3})
			require.EqualValues(t, size, c.Size())
			require.Equal(t, k.multi, c.Info().MultiConn)
			exercise(t, c)
		})
	}
}

func TestClientFUA(t *testing.T) {
	mem := newMemory(1 << 20)
	_, uri := serve(t, nbd.Export{Device: mem}, nil)
	c := dial(t, uri, &nbd.ClientOptions{FUA: true})
	require.NoError(t, c.WriteAt(timed(t), make([]byte, 512), 0))
	require.Equal(t, 1, mem.count("flush"))
	// A server without FUA is asked to flush instead.
	tools(t, "nbdkit")
	uri = nbdkit(t, "--filter=fua", "memory", "1M")
	c = dial(t, uri, &nbd.ClientOptions{FUA: true})
	require.NoError(t, c.WriteAt(timed(t), make([]byte, 512), 0))
}

func TestClientErrorFilter(t *testing.T) {
	tools(t, "nbdkit")
	for name, want := range map[string]nbd.Errno{"EIO": nbd.EIO, "ENOSPC": nbd.ENOSPC, "EPERM": nbd.EPERM, "ESHUTDOWN": nbd.ESHUTDOWN} {
		c := dial(t, nbdkit(t, "--filter=error", "memory", "1M", "error="+name, "error-rate=100%"), nil)
		var e *nbd.Error
		require.ErrorAs(t, c.ReadAt(timed(t), make([]byte, 4096), 0), &e)
		require.Equal(t, want, e.Code)
		require.Equal(t, nbd.CmdRead, e.Cmd)
		require.ErrorAs(t, c.WriteAt(timed(t), make([]byte, 3<<20/4), 0), &e)
		require.Equal(t, want, e.Code)
	}
}

func TestClientDelayFilter(t *testing.T) {
	tools(t, "nbdkit")
	c := dial(t, nbdkit(t, "--filter=delay", "memory", "1M", "rdelay=2", "wdelay=2"), nil)
	// Cancellation is prompt, and the connection lives on.
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	p := make([]byte, 4096)
	require.ErrorIs(t, c.ReadAt(ctx, p, 0), context.DeadlineExceeded)
	require.ErrorIs(t, c.WriteAt(ctx, p, 0), context.DeadlineExceeded)
	require.Less(t, time.Since(start), time.Second)
	require.NoError(t, c.ReadAt(timed(t), p, 4096))
	// A silent server is given up if that is wanted.
	c = dial(t, nbdkit(t, "--filter=delay", "memory", "1M", "rdelay=60"), &nbd.ClientOptions{ResponseTimeout: 100 * time.Millisecond})
	start = time.Now()
	require.ErrorIs(t, c.ReadAt(timed(t), p, 0), share.ErrUnavailable)
	require.Less(t, time.Since(start), 5*time.Second)
}

func TestClientServerKilled(t *testing.T) {
	tools(t, "nbdkit")
	path := filepath.Join(socketDir(t), "s")
	p := daemon(t, "unix", path, "nbdkit", "-f", "-U", path, "--filter=delay", "memory", "1M", "delay-read=60")
	c := dial(t, unixURI(path, ""), nil)
	got := make(chan error, 3)
	for range 3 {
		go func() { got <- c.ReadAt(context.Background(), make([]byte, 4096), 0) }()
	}
	time.Sleep(100 * time.Millisecond)
	require.NoError(t, p.Kill())
	for range 3 {
		require.ErrorIs(t, <-got, share.ErrUnavailable)
	}
	<-c.Done()
	require.ErrorIs(t, c.WriteAt(timed(t), make([]byte, 512), 0), share.ErrUnavailable)
	require.ErrorIs(t, c.ReadAt(timed(t), nil, 0), share.ErrUnavailable)
}

func TestClientReadOnly(t *testing.T) {
	tools(t, "nbdkit")
	c := dial(t, nbdkit(t, "-r", "pattern", "1M"), nil)
	require.True(t, c.Info().ReadOnly)
	for _, err := range []error{c.WriteAt(timed(t), make([]byte, 512), 0), c.Zero(timed(t), 0, 512, 0), c.Discard(timed(t), 0, 512)} {
		require.ErrorIs(t, err, share.ErrDenied)
	}
	p := read(t, c, 8, 8)
	require.Equal(t, []byte{0, 0, 0, 0, 0, 0, 0, 8}, p)
	require.NoError(t, c.Flush(timed(t)))
}

func TestClientListAndInfo(t *testing.T) {
	s, uri := serve(t, nbd.Export{Device: newMemory(1 << 20), Description: "default"}, nil)
	require.NoError(t, s.Add("other", nbd.Export{Device: newMemory(4096), Contexts: []nbd.MetaContext{stripes{"x-test:stripes", 512}}}))
	all, err := nbd.List(timed(t), uri, nil)
	require.NoError(t, err)
	require.Equal(t, []nbd.ExportInfo{{Description: "default"}, {Name: "other"}}, all)
	u, err := nbd.ParseURI(uri)
	require.NoError(t, err)
	u.Export = "other"
	info, err := nbd.Info(timed(t), u.String(), nil)
	require.NoError(t, err)
	require.EqualValues(t, 4096, info.Size)
	require.Equal(t, []string{"base:allocation", "x-test:stripes"}, info.Contexts)
	u.Export = "none"
	_, err = nbd.Info(timed(t), u.String(), nil)
	require.ErrorIs(t, err, share.ErrNotExist)
	var n *nbd.NegotiationError
	require.ErrorAs(t, err, &n)

	tools(t, "nbdkit")
	info, err = nbd.Info(timed(t), nbdkit(t, "memory", "1M"), nil)
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, info.Size)
	require.Contains(t, info.Contexts, nbd.ContextAllocation)
}

func TestClientTLS(t *testing.T) {
	tools(t, "qemu-nbd", "nbdkit")
	ca := newAuthority(t)
	_, serverDir := ca.issue("server", "server")
	mine, _ := ca.issue("client", "alice")
	stranger, _ := newAuthority(t).issue("client", "alice")
	file := filepath.Join(t.TempDir(), "raw")
	require.NoError(t, os.WriteFile(file, make([]byte, 4<<20), 0o600))
	for name, start := range map[string]func(port string){
		"qemu-nbd": func(port string) {
			daemon(t, "tcp", "127.0.0.1:"+port, "qemu-nbd", "-b", "127.0.0.1", "-p", port, "-f", "raw", "--persistent", "-e", "16",
				"--object", "tls-creds-x509,id=t,endpoint=server,verify-peer=yes,dir="+serverDir, "--tls-creds", "t", file)
		},
		"nbdkit": func(port string) {
			daemon(t, "tcp", "127.0.0.1:"+port, "nbdkit", "-f", "-i", "127.0.0.1", "-p", port,
				"--tls=require", "--tls-verify-peer", "--tls-certificates="+serverDir, "memory", "4M")
		},
	} {
		t.Run(name, func(t *testing.T) {
			port := freePort(t)
			start(port)
			uri := "nbds://127.0.0.1:" + port
			good := &tls.Config{RootCAs: ca.pool(), Certificates: []tls.Certificate{mine}}
			c := dial(t, uri, &nbd.ClientOptions{TLS: good})
			p := pattern(make([]byte, 3<<20), 0, 1)
			require.NoError(t, c.WriteAt(timed(t), p, 4096))
			same(t, p, read(t, c, 4096, 3<<20))
			c = dial(t, "nbd://127.0.0.1:"+port, &nbd.ClientOptions{TLS: good})
			require.EqualValues(t, 4<<20, c.Size(), "TLS in the options is enough")

			for what, opts := range map[string]*nbd.ClientOptions{
				"nobody's authority": {TLS: &tls.Config{Certificates: []tls.Certificate{mine}}},
				"another name":       {TLS: &tls.Config{RootCAs: ca.pool(), Certificates: []tls.Certificate{mine}, ServerName: "other.example"}},
				"a stranger":         {TLS: &tls.Config{RootCAs: ca.pool(), Certificates: []tls.Certificate{stranger}}},
				"no certificate":     {TLS: &tls.Config{RootCAs: ca.pool()}},
			} {
				_, err := nbd.Dial(timed(t), uri, opts)
				require.Error(t, err, what)
				require.True(t, errors.Is(err, share.ErrDenied) || errors.Is(err, share.ErrUnavailable), "%s: %v", what, err)
			}
			_, err := nbd.Dial(timed(t), "nbd://127.0.0.1:"+port, nil)
			require.ErrorIs(t, err, share.ErrDenied)
			_, err = nbd.Dial(timed(t), uri, &nbd.ClientOptions{TLS: &tls.Config{InsecureSkipVerify: true}})
			require.ErrorIs(t, err, share.ErrInvalid)
		})
	}
	// No fallback: a server without TLS is refused.
	port := freePort(t)
	daemon(t, "tcp", "127.0.0.1:"+port, "nbdkit", "-f", "-i", "127.0.0.1", "-p", port, "memory", "1M")
	_, err := nbd.Dial(timed(t), "nbds://127.0.0.1:"+port, &nbd.ClientOptions{TLS: &tls.Config{RootCAs: ca.pool()}})
	require.ErrorIs(t, err, share.ErrDenied)
}

func TestClientDirtyBitmap(t *testing.T) {
	tools(t, "qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon")
	const size, grain = 64 << 20, 64 << 10
	file := filepath.Join(t.TempDir(), "qcow2")
	output(t, "qemu-img", "create", "-q", "-f", "qcow2", file, fmt.Sprint(size))
	output(t, "qemu-img", "bitmap", "--add", "-g", fmt.Sprint(grain), file, "b0")
	writes := []share.Extent{{Off: 0, Len: 4096}, {Off: 1 << 20, Len: 3 << 20}, {Off: 10<<20 + 1000, Len: 200}, {Off: size - 512, Len: 512}}
	args := []string{"-f", "qcow2"}
	for i, w := range writes {
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", i+1, w.Off, w.Len))
	}
	output(t, "qemu-io", append(args, file)...)
	var want []share.Extent
	for _, w := range writes {
		from, to := w.Off/grain*grain, (w.End()+grain-1)/grain*grain
		want = append(want, share.Extent{Off: from, Len: to - from})
	}
	check := func(t *testing.T, uri string) {
		_, err := nbd.Dial(timed(t), uri, &nbd.ClientOptions{MetaContexts: []string{nbd.DirtyBitmap("none")}})
		require.ErrorIs(t, err, share.ErrNotExist)
		c := dial(t, uri, &nbd.ClientOptions{MetaContexts: []string{nbd.DirtyBitmap("b0")}})
		require.Equal(t, []string{"base:allocation", "qemu:dirty-bitmap:b0"}, c.Info().Contexts)
		got, err := c.DirtyExtents(timed(t), "b0", 0, size)
		require.NoError(t, err)
		require.Equal(t, want, got)
		_, err = c.DirtyExtents(timed(t), "other", 0, size)
		require.ErrorIs(t, err, share.ErrNotExist)
		info, err := nbd.Info(timed(t), uri, nil)
		require.NoError(t, err)
		require.Contains(t, info.Contexts, "qemu:dirty-bitmap:b0")
	}
	t.Run("qemu-nbd", func(t *testing.T) { check(t, qemuNBD(t, "-r", "-f", "qcow2", "-B", "b0", file)) })
	t.Run("qemu-storage-daemon", func(t *testing.T) {
		path := filepath.Join(socketDir(t), "s")
		daemon(t, "unix", path, "qemu-storage-daemon",
			"--blockdev", "driver=qcow2,node-name=disk,read-only=on,file.driver=file,file.read-only=on,file.filename="+file,
			"--nbd-server", "addr.type=unix,addr.path="+path,
			"--export", "type=nbd,id=e,node-name=disk,name=disk,bitmaps.0=b0")
		check(t, unixURI(path, "disk"))
	})
	t.Run("our own", func(t *testing.T) {
		_, uri := serve(t, nbd.Export{Device: newMemory(size), Contexts: []nbd.MetaContext{bitmap(want)}}, nil)
		check(t, uri)
		// QEMU reads it as one of its own.
		out := output(t, "qemu-img", "map", "--output=json", "--image-opts",
			"driver=nbd,server.type=unix,server.path="+socketOf(t, uri)+",x-dirty-bitmap=qemu:dirty-bitmap:b0")
		require.Contains(t, out, `"start": 1048576, "length": 3145728`)
	})
}

func socketOf(t testing.TB, uri string) string {
	u, err := nbd.ParseURI(uri)
	require.NoError(t, err)
	return u.Address
}

// bitmap is a dirty bitmap named b0.
type bitmap []share.Extent

func (bitmap) Name() string { return nbd.DirtyBitmap("b0") }

func (b bitmap) BlockStatus(_ context.Context, off, n int64) ([]nbd.Extent, error) {
	var all []nbd.Extent
	end := off + n
	add := func(to int64, flags uint32) {
		if to = min(to, end); to > off {
			all = append(all, nbd.Extent{Off: off, Len: to - off, Flags: flags})
			off = to
		}
	}
	for _, e := range b {
		add(e.Off, 0)
		add(e.End(), 1)
	}
	add(end, 0)
	return all, nil
}
