package kvm_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/kvm"
)

// Move a guest with its disks to another host. vdb lies on storage that both
// hosts reach; every other disk is copied while the guest works.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	from, err := kvm.Connect(ctx, "qemu+tls://a.example/system", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer from.Close()
	to, err := kvm.Connect(ctx, "qemu+tls://b.example/system", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer to.Close()

	// Where the guest is, if an earlier run of this program was killed.
	guest, err := kvm.Settle(ctx, "vm1", from, to)
	if err != nil {
		log.Fatal(err)
	}
	job, err := kvm.Migrate(ctx, guest, to, &kvm.MigrateOptions{
		Disks:       map[string]kvm.DiskMove{"vdb": {Policy: kvm.Shared}},
		MaxDowntime: 200 * time.Millisecond,
	})
	if err != nil {
		log.Fatal(err) // nothing has been changed
	}
	for e := range job.Events(ctx) {
		log.Println(e.Phase, e.Text, e.Progress.Remaining(), "bytes to go")
	}
	result, err := job.Wait(context.Background())
	var lost *migrate.IndeterminateError
	switch {
	case err == nil:
		fmt.Println("moved in", result.Total, "with a downtime of", result.Downtime)
	case errors.As(err, &lost):
		fmt.Println("nobody resumes the guest before you have looked at:", lost.Check)
	default:
		fmt.Println("the guest runs on where it was:", err)
	}
}
