package local_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/local"
)

// A disk image in a directory, for a guest of this host.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	s, err := local.Open(ctx, dir, &local.Options{FileMode: 0o660})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	vol, err := share.Create(ctx, s, share.Spec{Name: "vm1", Kind: share.Disk, Format: share.Raw, Size: 10 * share.GiB})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(vol.Size, "of which in use:", vol.Allocated)

	sources, err := s.Publish(ctx, "vm1", []share.Access{{Client: share.LocalHost(), Mode: share.ReadWrite}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(filepath.Base(sources[0].File.Path), sources[0].Format)
	// Output:
	// 10 GiB of which in use: 0 B
	// vm1 raw
}

// The same by URL.
func ExampleOpenURL() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	var r share.Registry
	if err := r.Register("local", local.OpenURL); err != nil {
		log.Fatal(err)
	}
	s, err := r.Open(context.Background(), "local://"+dir+"?file_mode=660")
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	fmt.Println(s.Info().Backend)
	// Output: local
}
