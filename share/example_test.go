package share_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/url"

	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// The life of a volume: created, published to a client, taken back, deleted.
func Example() {
	ctx := context.Background()
	var s share.Share = sharetest.NewMem(nil) // or local.Open, nfs.Open, …
	defer s.Close()

	vol, err := share.Create(ctx, s, share.Spec{Name: "vm1", Kind: share.Disk, Size: 10 * share.GiB})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(vol.Name, vol.Kind, vol.Format, vol.Size)

	host, err := share.Address("192.0.2.7")
	if err != nil {
		log.Fatal(err)
	}
	sources, err := s.Publish(ctx, "vm1", []share.Access{{Client: host, Mode: share.ReadWrite}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sources[0].Protocol(), sources[0].VolumeID == vol.ID)

	err = share.Delete(ctx, s, "vm1")
	fmt.Println("published:", errors.Is(err, share.ErrInUse))

	if _, err = s.Publish(ctx, "vm1", nil); err != nil {
		log.Fatal(err)
	}
	fmt.Println("taken back:", share.Delete(ctx, s, "vm1"))
	// Output:
	// vm1 disk raw 10 GiB
	// file true
	// published: true
	// taken back: <nil>
}

// A program that is told by URL where its storage is.
func ExampleRegistry() {
	var r share.Registry
	err := r.Register("mem", func(context.Context, *url.URL) (share.Share, error) {
		return sharetest.NewMem(nil), nil
	})
	if err != nil {
		log.Fatal(err)
	}

	s, err := r.Open(context.Background(), "mem://pool")
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	fmt.Println(s.Info().Backend)

	_, err = r.Open(context.Background(), "nfs://server/export")
	fmt.Println(err)
	// Output:
	// mem
	// URL scheme "nfs" is not supported: registered are [mem]
}

// What a share can do besides its four methods is asked before it is tried.
func ExampleAs() {
	var s share.Share = sharetest.NewMem(nil)
	defer s.Close()

	if _, ok := share.As[share.Snapshotter](s); ok {
		fmt.Println("has snapshots")
	}
	if can := s.Info().Capabilities.Can(share.CanClone); !can.OK {
		fmt.Println("no clones:", can.Reason)
	}
	// Output:
	// has snapshots
}

// A device's blocks, with the guard against writing to the wrong one.
func ExampleOpenDevice() {
	ctx := context.Background()
	s := sharetest.NewMem(nil)
	defer s.Close()
	vol, err := share.Create(ctx, s, share.Spec{Name: "vm1", Kind: share.Disk, Size: share.MiB})
	if err != nil {
		log.Fatal(err)
	}

	d, err := share.OpenDevice(ctx, s, "vm1", &share.OpenOptions{VolumeID: vol.ID})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	if err := d.WriteAt(ctx, []byte("boot sector"), 0); err != nil {
		log.Fatal(err)
	}
	if err := d.Flush(ctx); err != nil {
		log.Fatal(err)
	}
	extents, err := share.ListExtents(ctx, d, 0, d.Size())
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range extents {
		fmt.Println(e)
	}
	// Output:
	// 0+65536 data
	// 65536+983040 hole,zero
}

func ExampleParseBytes() {
	size, err := share.ParseBytes("1.5GiB")
	fmt.Println(int64(size), size, err)
	// Output: 1610612736 1.5 GiB <nil>
}
