package nbd_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/vmferry/vmferry/migrate/nbd"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// A disk is served on a unix socket, and written and read by a client.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "socket")

	server, err := nbd.NewServer(nil)
	if err != nil {
		log.Fatal(err)
	}
	disk := sharetest.NewDevice(16 << 20)
	if err := server.Add("disk", nbd.Export{Device: disk, Description: "the system disk"}); err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	go server.Serve(ctx, l)
	defer server.Close()

	uri := &nbd.URI{Network: "unix", Address: socket, Export: "disk"}
	client, err := nbd.Dial(ctx, uri.String(), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	if err := client.WriteAt(ctx, []byte("hello"), 1<<20); err != nil {
		log.Fatal(err)
	}
	if err := client.Flush(ctx); err != nil {
		log.Fatal(err)
	}
	extents, err := share.ListExtents(ctx, client, 0, client.Size())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(client.Info().Description, client.Size())
	for _, e := range extents {
		fmt.Println(e)
	}
	// Output:
	// the system disk 16777216
	// 0+1048576 hole,zero
	// 1048576+65536 data
	// 1114112+15663104 hole,zero
}

// changed is a metadata context: the blocks that a tracker calls dirty.
type changed struct{ blocks map[int64]bool }

const block = 64 << 10

func (changed) Name() string { return nbd.DirtyBitmap("backup") }

func (c changed) BlockStatus(_ context.Context, off, n int64) ([]nbd.Extent, error) {
	var all []nbd.Extent
	for end := off + n; off < end; {
		next := min(end, (off/block+1)*block)
		e := nbd.Extent{Off: off, Len: next - off}
		if c.blocks[off/block] {
			e.Flags = 1
		}
		all = append(all, e)
		off = next
	}
	return all, nil
}

// A dirty bitmap is offered as QEMU would offer it, and read. Reading one of
// QEMU or of a libvirt backup is the same.
func ExampleClient_DirtyExtents() {
	ctx := context.Background()
	server, err := nbd.NewServer(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	err = server.Add("", nbd.Export{
		Device:   sharetest.NewDevice(1 << 20),
		Contexts: []nbd.MetaContext{changed{map[int64]bool{1: true, 2: true, 9: true}}},
	})
	if err != nil {
		log.Fatal(err)
	}
	ours, theirs := net.Pipe()
	go server.ServeConn(ctx, theirs)
	client, err := nbd.NewClient(ctx, ours, &nbd.ClientOptions{MetaContexts: []string{nbd.DirtyBitmap("backup")}})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	dirty, err := client.DirtyExtents(ctx, "backup", 0, client.Size())
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range dirty {
		fmt.Println(e.Off, e.Len)
	}
	// Output:
	// 65536 131072
	// 589824 65536
}

func ExampleParseURI() {
	u, err := nbd.ParseURI("nbds://storage.example/disk?tls-hostname=nbd.example")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(u.Network, u.Address, u.Export, u.TLS, u.TLSHostname)
	// Output: tcp storage.example:10809 disk true nbd.example
}
