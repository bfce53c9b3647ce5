package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/pprof"
	"sync/atomic"
	"time"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/local"
)

// This file is our side: the programs that run as children.

// child is what the program does when it is its own child.
func child(part string, config []byte) error {
	parts := map[string]func(context.Context, []byte) error{"send": send, "receive": receive, "pour": pour, "catch": catch, "shaped": shaped}
	f := parts[part]
	if f == nil {
		return errors.New("there is no such part")
	}
	if path := os.Getenv("VMFERRY_BENCH_PROFILE"); path != "" {
		out, err := os.Create(path + "." + part)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	return f(context.Background(), config)
}

func say(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

// sendConfig tells a sender what to do.
type sendConfig struct {
	// Share is the local share with the disk, or URI that of an NBD export.
	Share, URI string
	Address    string
	// Identities is the directory with the certificates; empty: no TLS.
	Identities string
	Compress   migrate.Compression
	// Journal is a file; Resume goes on with it.
	Journal string
	Resume  bool
	// Report has the bytes that were sent said again and again.
	Report bool
	// Dirty is how many blocks the guest makes dirty just before its pause.
	Dirty int64
}

// sent is what a sender says. Its last one has Done set.
type sent struct {
	Done                   bool
	Sent, Same, Wire, Size int64
	Proof                  string
	// Switchover is the time from the pause to the proof.
	Switchover time.Duration
}

// send moves one disk to a receiver.
func send(ctx context.Context, text []byte) error {
	var c sendConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	dev, err := openSource(ctx, c)
	if err != nil {
		return err
	}
	defer dev.Close()
	tracked, err := migrate.Track(dev, 0)
	if err != nil {
		return err
	}
	var wire atomic.Int64
	remote := &migrate.Remote{Address: c.Address, Disk: "disk", Compress: c.Compress,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil || c.Dirty == 0 {
				return conn, err
			}
			return &counted{conn, &wire}, nil
		}}
	if c.Identities != "" {
		if remote.TLS, err = clientTLS(c.Identities); err != nil {
			return err
		}
	}
	g := &guest{dirty: func() error { return makeDirty(ctx, tracked, c.Dirty) }, before: wire.Load}
	m := migrate.Move{ID: "bench", Guest: g, Source: "a", Destination: "b",
		Disks: []migrate.DiskMove{{Name: "disk", Source: dev, Tracker: tracked.Tracker(), Remote: remote}}}
	if c.Journal != "" {
		j, err := migrate.OpenJournal(c.Journal)
		if err != nil {
			return err
		}
		defer j.Close()
		m.Journal = j
	}
	begin := migrate.Start
	if c.Resume {
		begin = migrate.Resume
	}
	job, err := begin(ctx, m, nil)
	if err != nil {
		return err
	}
	defer job.Close()
	if c.Report {
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		for ended := false; !ended; {
			select {
			case <-ticker.C:
				p := job.Progress()
				if err := say(sent{Sent: p.Sent()}); err != nil {
					return err
				}
			case <-job.Done():
				ended = true
			}
		}
	}
	res, err := job.Wait(ctx)
	if err != nil {
		return err
	}
	d := res.Disks[0]
	return say(sent{Done: true, Sent: d.Sent, Same: d.Same, Wire: wire.Load() - g.wire, Size: d.Size, Proof: d.Proof, Switchover: g.proved.Sub(g.paused)})
}

func openSource(ctx context.Context, c sendConfig) (share.Device, error) {
	if c.URI != "" {
		return nbd.Dial(ctx, c.URI, nil)
	}
	s, err := local.Open(ctx, c.Share, nil)
	if err != nil {
		return nil, err
	}
	return share.OpenDevice(ctx, s, "disk", nil)
}

// makeDirty writes n blocks, spread evenly over the disk.
func makeDirty(ctx context.Context, d *migrate.TrackedDevice, n int64) error {
	if n == 0 {
		return nil
	}
	const block = migrate.DefaultGranularity
	p := make([]byte, block)
	step := d.Size() / block / n
	for i := range n {
		fillBlock(p, uint64(i))
		if err := d.WriteAt(context.WithoutCancel(ctx), p, i*step*block); err != nil {
			return err
		}
	}
	return nil
}

// guest is one that writes nothing but what it makes dirty before its pause.
type guest struct {
	dirty          func() error
	before         func() int64
	wire           int64
	paused, proved time.Time
}

func (*guest) Name() string                         { return "bench" }
func (*guest) Resume(context.Context, uint64) error { return nil }

func (g *guest) Pause(context.Context) error {
	err := g.dirty()
	g.wire, g.paused = g.before(), time.Now()
	return err
}

func (g *guest) Relinquish(context.Context, uint64) error {
	g.proved = time.Now()
	return nil
}

func (*guest) Activate(context.Context, uint64) error { return nil }

// counted counts what is written to a connection.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// receiveConfig tells a receiver what to do.
type receiveConfig struct {
	Share      string
	Identities string
	// Count has the bytes counted that come over the wire.
	Count bool
}

// listening is what a server of ours says first.
type listening struct{ Address string }

// received is what a receiver says at its end.
type received struct{ Wire int64 }

// receive takes one disk in, until its standard input ends.
func receive(ctx context.Context, text []byte) error {
	var c receiveConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	s, err := local.Open(ctx, c.Share, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	dev, err := share.OpenDevice(ctx, s, "disk", nil)
	if err != nil {
		return err
	}
	defer dev.Close()
	var conf *tls.Config
	if c.Identities != "" {
		if conf, err = serverTLS(c.Identities); err != nil {
			return err
		}
	}
	r, err := migrate.NewReceiver(&migrate.ReceiverOptions{TLS: conf})
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.Expect("disk", dev); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	var wire atomic.Int64
	if c.Count {
		l = &countedListener{l, &wire}
	}
	go func() { served <- r.Serve(ctx, l) }()
	if err := say(listening{l.Addr().String()}); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	err = errors.Join(r.Close(), <-served)
	return errors.Join(err, say(received{wire.Load()}))
}

// countedListener counts what is read from its connections.
type countedListener struct {
	net.Listener
	n *atomic.Int64
}

func (l *countedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countedReads{conn, l.n}, nil
}

type countedReads struct {
	net.Conn
	n *atomic.Int64
}

func (c *countedReads) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// move runs a sender beside a receiver that is up, and returns what it said at
// its end, how long it ran, and the processes, ended.
func (b *bench) move(ctx context.Context, to receiveConfig, from sendConfig) (last sent, took time.Duration, sender, receiver *process, err error) {
	receiver, err = startChild(ctx, "receive", to)
	if err != nil {
		return
	}
	defer func() { err = errors.Join(err, receiver.wait()) }()
	var l listening
	if err = receiver.answer(&l); err != nil {
		return
	}
	from.Address = l.Address
	begin := time.Now()
	if sender, err = startChild(ctx, "send", from); err != nil {
		return
	}
	for !last.Done && err == nil {
		err = sender.answer(&last)
	}
	if err == nil {
		err = sender.wait()
	}
	took = time.Since(begin)
	if err == nil && last.Proof == "none" {
		err = fmt.Errorf("the result holds no proof")
	}
	return
}
