// Command quickstart moves a disk that is being written, with nothing but Go:
// no root, no daemon, no cgo. It is both hosts in one program.
//
//	host a                                        host b
//	writer → NBD (unix socket) → tracked disk     disk ← NBD (TLS 1.3) ←┐
//	                                 └── copy, round after round ───────┘
//
// Host a makes a disk in a local share and serves it to a writer. Host b makes
// one of the same size and serves it over mutually authenticated TLS. The disk
// moves while the writer writes; at the switchover the writer is led to host b
// and notices nothing but one slower write. Then every record that was ever
// acknowledged to the writer is looked for in host b's image.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/vmferry/vmferry/examples/internal/show"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/local"
)

// figures are what the program says at the end.
type figures struct {
	Verified     bool    `json:"verified"` // every acknowledged record was found at host b
	DiskBytes    int64   `json:"disk_bytes"`
	SentBytes    int64   `json:"sent_bytes"`
	Rounds       int     `json:"rounds"`
	Seconds      float64 `json:"seconds"`
	DowntimeMS   float64 `json:"downtime_ms"`    // between pause and resume
	SlowestMS    float64 `json:"slowest_ms"`     // the slowest write, as the writer saw it
	Acknowledged uint64  `json:"acknowledged"`   // records written and acknowledged
	AfterSwitch  uint64  `json:"after_switch"`   // of them, after the switchover
	Root         string  `json:"root,omitempty"` // of the hash tree, the same on both sides
}

func main() {
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "quickstart moves a disk that is being written between two local shares over TLS,\n"+
			"and shows that nothing acknowledged was lost. It needs neither root nor a daemon.\n\n")
		flag.PrintDefaults()
	}
	size := flag.String("size", "256M", "size of the disk; half of it is filled before the move")
	rate := flag.Int("rate", 1000, "records of 4 KiB written per second during the move")
	dir := flag.String("dir", "", "directory to work in; empty: a temporary one, removed at the end")
	flag.Bool("lab", true, "accepted, as by the other examples: this one always brings all it needs with it")
	asJSON := flag.Bool("json", false, "end with one JSON object of the figures on standard output")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	fig, err := run(ctx, *size, *rate, *dir, os.Stderr)
	if *asJSON {
		if err := show.JSON(os.Stdout, fig); err != nil {
			fmt.Fprintln(os.Stderr, "quickstart:", err)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
	if !*asJSON {
		fmt.Printf("verified: all %d acknowledged records are at host b, %d of them written after the switchover\n", fig.Acknowledged, fig.AfterSwitch)
		fmt.Printf("%v disk, %v sent, rounds: %d, %.2f s in all, %.1f ms of downtime, slowest write %.1f ms\n",
			share.Bytes(fig.DiskBytes), share.Bytes(fig.SentBytes), fig.Rounds, fig.Seconds, fig.DowntimeMS, fig.SlowestMS)
	}
}

func run(ctx context.Context, sizeText string, rate int, dir string, out *os.File) (fig figures, err error) {
	size, err := share.ParseBytes(sizeText)
	if err != nil {
		return fig, err
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "vmferry-quickstart-"); err != nil {
			return fig, err
		}
		defer os.RemoveAll(dir)
	}
	a, err := newHost(ctx, filepath.Join(dir, "a"), size)
	if err != nil {
		return fig, err
	}
	defer a.Close()
	b, err := newHost(ctx, filepath.Join(dir, "b"), size)
	if err != nil {
		return fig, err
	}
	defer b.Close()

	// Host a: the disk is tracked, and served to the writer on a unix socket.
	tracked, err := migrate.Track(a.disk, 0)
	if err != nil {
		return fig, err
	}
	socket := filepath.Join(dir, "a.sock")
	plain, err := net.Listen("unix", socket)
	if err != nil {
		return fig, err
	}
	if err := a.serve(ctx, plain, tracked, nil); err != nil {
		return fig, err
	}
	writerDisk, err := nbd.Dial(ctx, (&nbd.URI{Network: "unix", Address: socket, Export: "disk"}).String(), nil)
	if err != nil {
		return fig, err
	}
	defer writerDisk.Close()

	// Host b: its disk is served over TLS to those who show a certificate.
	server, client, err := newIdentities()
	if err != nil {
		return fig, err
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fig, err
	}
	if err := b.serve(ctx, tcp, b.disk, &nbd.ServerOptions{TLS: server}); err != nil {
		return fig, err
	}
	remote, err := nbd.Dial(ctx, (&nbd.URI{Network: "tcp", Address: tcp.Addr().String(), Export: "disk", TLS: true}).String(),
		&nbd.ClientOptions{TLS: client, Identity: b.volume.ID})
	if err != nil {
		return fig, err
	}
	defer remote.Close()

	// The writer fills half of the disk, and goes on at its rate.
	w := newWriter(writerDisk, int64(size)/2)
	if err := w.fill(ctx); err != nil {
		return fig, err
	}
	writing := w.start(ctx, rate)
	defer writing.stop()

	// The move.
	guest, err := migrate.NewGate("writer", []*migrate.TrackedDevice{tracked}, []share.Device{remote})
	if err != nil {
		return fig, err
	}
	job, err := migrate.Start(ctx, migrate.Move{
		ID: "quickstart", Guest: guest, Source: "a", Destination: "b",
		Disks: []migrate.DiskMove{{Name: "disk", Source: a.disk, Tracker: tracked.Tracker(), Destination: remote, DestinationID: b.volume.ID}},
	}, nil)
	if err != nil {
		return fig, err
	}
	defer job.Close()
	screen := show.NewScreen(out)
	for e := range job.Events(context.WithoutCancel(ctx)) {
		screen.Draw(e)
	}
	res, err := job.Wait(context.WithoutCancel(ctx))
	if err != nil {
		return fig, err
	}
	atSwitch := w.acknowledged()

	// The writer goes on at host b for a moment, and stops.
	select {
	case <-time.After(300 * time.Millisecond):
	case <-ctx.Done():
		return fig, context.Cause(ctx)
	}
	if err := writing.stop(); err != nil {
		return fig, err
	}
	if err := writerDisk.Flush(ctx); err != nil {
		return fig, err
	}
	fig = figures{
		DiskBytes: int64(size), SentBytes: res.Sent, Rounds: res.Rounds, Seconds: res.Total.Seconds(),
		DowntimeMS: ms(res.Downtime), SlowestMS: ms(w.slowest()), Acknowledged: w.acknowledged(),
		AfterSwitch: w.acknowledged() - atSwitch, Root: res.Disks[0].Root,
	}
	// Host b's image is read as it lies there, past everything that wrote it.
	if err := w.check(ctx, b.disk); err != nil {
		return fig, err
	}
	if fig.AfterSwitch == 0 {
		return fig, fmt.Errorf("the writer wrote nothing after the switchover")
	}
	fig.Verified = true
	return fig, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// host is one side: a share with one disk, and a server for it.
type host struct {
	share  share.Share
	volume share.Volume
	disk   share.Device
	server *nbd.Server
	served chan error
}

func newHost(ctx context.Context, dir string, size share.Bytes) (*host, error) {
	s, err := local.Open(ctx, dir, &local.Options{Create: true})
	if err != nil {
		return nil, err
	}
	h := &host{share: s}
	if h.volume, err = share.Create(ctx, s, share.Spec{Name: "disk", Kind: share.Disk, Format: share.Raw, Size: size}); err != nil {
		h.Close()
		return nil, err
	}
	if h.disk, err = share.OpenDevice(ctx, s, "disk", &share.OpenOptions{VolumeID: h.volume.ID}); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// serve offers the device as the export "disk" until the host is closed.
func (h *host) serve(ctx context.Context, l net.Listener, d share.Device, opts *nbd.ServerOptions) error {
	var err error
	if h.server, err = nbd.NewServer(opts); err != nil {
		l.Close()
		return err
	}
	if err = h.server.Add("disk", nbd.Export{Device: d}); err != nil {
		l.Close()
		return err
	}
	h.served = make(chan error, 1)
	go func() { h.served <- h.server.Serve(context.WithoutCancel(ctx), l) }()
	return nil
}

// Close gives everything back, in the order in which it is used.
func (h *host) Close() {
	if h.server != nil {
		h.server.Close()
		if h.served != nil {
			<-h.served
		}
	}
	if h.disk != nil {
		h.disk.Close()
	}
	h.share.Close()
}
