package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// copyRows measures the full copy of a disk that cannot be compressed, from a
// file over loopback TCP into a file: ours without and with TLS, other tools
// between two NBD servers, and the physical bound.
func (b *bench) copyRows(ctx context.Context) error {
	if err := missing("nbdkit", "qemu-nbd", "nbdcopy", "qemu-img"); err != nil {
		return err
	}
	size := b.copySize
	src, err := b.newDisk(ctx, "source", size)
	if err != nil {
		return err
	}
	if err := src.fill(0, size, 1); err != nil {
		return err
	}
	ids := filepath.Join(b.dir, "identities")
	if err := newIdentities(ids); err != nil {
		return err
	}
	checked := map[string]bool{}
	// gauge makes a contender of what copies src to a fresh disk.
	gauge := func(name string, f func(ctx context.Context, dst disk) (time.Duration, error)) contender {
		return contender{name, func(ctx context.Context) (float64, error) {
			dst, err := b.newDisk(ctx, "destination", size)
			if err != nil {
				return 0, err
			}
			settle()
			took, err := f(ctx, dst)
			if err != nil {
				return 0, err
			}
			if !checked[name] {
				checked[name] = true
				if err := sameFiles(src.path, dst.path, size); err != nil {
					return 0, err
				}
			}
			return float64(size) / (1 << 30) / took.Seconds(), nil
		}}
	}
	ours := func(name, ids string) contender {
		return gauge(name, func(ctx context.Context, dst disk) (time.Duration, error) {
			_, took, _, _, err := b.move(ctx, receiveConfig{Share: dst.share, Identities: ids}, sendConfig{Share: src.share, Identities: ids})
			return took, err
		})
	}
	peer := func(name, server string, tool func(from, to string) []string) contender {
		return gauge(name, func(ctx context.Context, dst disk) (time.Duration, error) {
			return b.between(ctx, server, src.path, dst.path, tool)
		})
	}
	poured := func(name string, streams int64) contender {
		return gauge(name, func(ctx context.Context, dst disk) (time.Duration, error) {
			return b.poured(ctx, src.path, dst.path, size, streams)
		})
	}

	// The best setting of a tool is found by trying once what its manual offers.
	nbdcopies, err := b.bestOf(ctx, []contender{
		peer("nbdcopy, nbdkit", "nbdkit", nbdcopy()),
		peer("nbdcopy -C4 -R64, nbdkit", "nbdkit", nbdcopy("--connections=4", "--requests=64")),
		peer("nbdcopy -T2 1 MiB, nbdkit", "nbdkit", nbdcopy("--threads=2", "--connections=2", "--request-size=1048576")),
		peer("nbdcopy, qemu-nbd", "qemu-nbd", nbdcopy()),
		peer("nbdcopy 1 MiB, qemu-nbd", "qemu-nbd", nbdcopy("--request-size=1048576")),
		peer("nbdcopy 1 MiB, "+directNBD, directNBD, nbdcopy("--request-size=1048576")),
	})
	if err != nil {
		return err
	}
	bound, err := b.bestOf(ctx, []contender{poured("plain Go, 1 stream", 1), poured("plain Go, 4 streams", 4)})
	if err != nil {
		return err
	}
	converts, err := b.bestOf(ctx, []contender{
		peer("qemu-img convert, qemu-nbd", "qemu-nbd", qemuConvert),
		peer("qemu-img convert, "+directNBD, directNBD, qemuConvert),
		peer("qemu-img convert, nbdkit", "nbdkit", qemuConvert),
	})
	if err != nil {
		return err
	}
	list := []contender{ours("vmferry", ""), ours("vmferry, TLS", ids), bound, nbdcopies, converts}
	figures, err := inTurn(ctx, b.runs, list)
	if err != nil {
		return err
	}
	const unit = "GiB/s"
	top := best(figures, 3)
	b.rows = append(b.rows,
		newRow("copy", unit, list[top].name, figures[0], figures[top], 2, false),
		newRow("copy-tls", unit, list[top].name, figures[1], figures[top], 1.2, false),
		newRow("bound", unit, list[2].name, figures[0], figures[2], 0.8, false))
	for i := 3; i < len(list); i++ {
		if i != top {
			b.rows = append(b.rows, newRow(fmt.Sprintf("copy beside %s", list[i].name), unit, list[i].name, figures[0], figures[i], 0, false))
		}
	}
	return nil
}

// bestOf runs each contender once and returns the best.
func (b *bench) bestOf(ctx context.Context, list []contender) (contender, error) {
	figures, err := inTurn(ctx, 1, list)
	if err != nil {
		return contender{}, err
	}
	return list[best(figures, 0)], nil
}
