package main

import (
	"context"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/local"
)

// trackRows measures 4 KiB random writes through our NBD server to a file, with
// the writes tracked and a cursor that collects them, and without. Both serve
// the same file, in short turns: the machine's moods hit both.
func (b *bench) trackRows(ctx context.Context) error {
	const size, slice = 1 << 30, 250 * time.Millisecond
	d, err := b.newDisk(ctx, "tracked", size)
	if err != nil {
		return err
	}
	if err := d.fill(0, size, 1); err != nil {
		return err
	}
	s, err := local.Open(ctx, d.share, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	dev, err := share.OpenDevice(ctx, s, "disk", nil)
	if err != nil {
		return err
	}
	defer dev.Close()
	tracked, err := migrate.Track(dev, 0)
	if err != nil {
		return err
	}
	cursor, err := tracked.Tracker().NewCursor(ctx, migrate.FromNow)
	if err != nil {
		return err
	}
	defer cursor.Close()
	server, err := nbd.NewServer(nil)
	if err != nil {
		return err
	}
	defer server.Close()
	socket := filepath.Join(b.dir, "track")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go server.Serve(ctx, l)
	list := []contender{{name: "tracked"}, {name: "tracking off"}}
	for i, served := range []share.Device{tracked, dev} {
		name := strconv.Itoa(i)
		if err := server.Add(name, nbd.Export{Device: served}); err != nil {
			return err
		}
		client, err := nbd.Dial(ctx, (&nbd.URI{Network: "unix", Address: socket, Export: name}).String(), nil)
		if err != nil {
			return err
		}
		defer client.Close()
		list[i].run = func(ctx context.Context) (float64, error) { return randomWrites(ctx, client, size, slice) }
	}
	if _, err := inTurn(ctx, 2, list); err != nil { // warm
		return err
	}
	figures, err := inTurn(ctx, max(80, b.runs), list)
	if err != nil {
		return err
	}
	r := newRow("track", "writes/s", list[1].name, figures[0], figures[1], 0.98, false)
	b.rows = append(b.rows, r)
	return nil
}

// randomWrites writes 4 KiB at random places, eight at once, and returns how
// many a second.
func randomWrites(ctx context.Context, d share.Device, size int64, during time.Duration) (float64, error) {
	const block, writers = 4096, 8
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		count int
		first error
	)
	begin := time.Now()
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			p := make([]byte, block)
			n := 0
			var err error
			for ; err == nil && time.Since(begin) < during; n++ {
				p[n%block]++
				err = d.WriteAt(ctx, p, r.Int64N(size/block)*block)
			}
			mu.Lock()
			defer mu.Unlock()
			count += n
			if first == nil {
				first = err
			}
		})
	}
	wg.Wait()
	return float64(count) / time.Since(begin).Seconds(), first
}
