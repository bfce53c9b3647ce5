package kvm_test

import (
	"context"
	"io"
	"log"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/kvm"
)

// A backup of a running guest's first disk: all of it, and then, whenever that
// is wanted, what has changed.
func ExampleGuest_Export() {
	ctx := context.Background()
	host, err := kvm.Connect(ctx, "qemu:///system", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer host.Close()
	guest, err := host.Guest(ctx, "vm1")
	if err != nil {
		log.Fatal(err)
	}
	export, err := guest.Export(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer export.Close(ctx)

	disk := export.Disks()[0]
	cursor, err := disk.NewCursor(ctx, migrate.FromAll)
	if err != nil {
		log.Fatal(err)
	}
	source, buf := disk.Source(), make([]byte, 64<<20)
	for {
		lease, err := cursor.Lease(ctx, int64(len(buf)))
		if err == io.EOF {
			return // the next Lease begins the next pass, at the next moment
		}
		if err != nil {
			log.Fatal(err)
		}
		for _, r := range lease.Ranges {
			if err := source.ReadAt(ctx, buf[:r.Len], r.Off); err != nil {
				log.Fatal(err)
			}
			// Write it somewhere, and make it durable.
		}
		if err := cursor.Ack(lease); err != nil {
			log.Fatal(err)
		}
	}
}
