package lab_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/vmferry/vmferry/internal/lab"
)

// A guest moves between two hosts, and nothing it was promised is lost.
func ExampleNew() {
	lab.Init() // first thing in main
	ctx := context.Background()
	l, err := lab.New(ctx, &lab.Options{Hosts: 2})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	from, to := l.Host(0), l.Host(1)
	disk := lab.Disk{Path: l.SharedPath("root.qcow2"), Format: "qcow2", Size: 1 << 30, Writes: 100}
	g, err := l.StartGuest(ctx, from, &lab.GuestOptions{Dirty: 20 << 20, Disks: []lab.Disk{disk}})
	if err != nil {
		log.Fatal(err)
	}
	began := time.Now()
	if _, err := from.Virsh(ctx, "migrate", "--live", "--p2p", "--unsafe", g.UUID, to.PeerURI()); err != nil {
		log.Fatal(err)
	}
	if _, err := g.Verify(ctx, to); err != nil {
		log.Fatal(err)
	}
	if err := g.Watch().Healthy(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("longest silence:", g.Watch().LongestGap(began).Length())
}
