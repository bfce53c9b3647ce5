package main

import (
	"context"
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
	ids := filepath.Join(b.dir, "identities")
	if err := newIdentities(ids); err != nil {
		return err
	}
	// The best setting of a tool is found by trying once what its manual
	// offers, on an eighth of the disk.
	sample, err := b.newCopying(ctx, "sample", b.copySize/8)
	if err != nil {
		return err
	}
	var peers []peer
	for _, candidates := range [][]peer{nbdcopies, converts} {
		p, err := fastest(ctx, candidates, func(p peer) contender { return sample.peer(p) })
		if err != nil {
			return err
		}
		peers = append(peers, p)
	}
	streams, err := fastest(ctx, []int64{1, 4}, func(n int64) contender { return sample.poured(n) })
	if err != nil {
		return err
	}

	c, err := b.newCopying(ctx, "source", b.copySize)
	if err != nil {
		return err
	}
	list := []contender{c.ours("vmferry", ""), c.ours("vmferry, TLS", ids), c.poured(streams)}
	for _, p := range peers {
		list = append(list, c.peer(p))
	}
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
			b.rows = append(b.rows, newRow("copy beside "+list[i].name, unit, list[i].name, figures[0], figures[i], 0, false))
		}
	}
	// How far the best of the others stays below the bound, for who reads that
	// the mark is missed.
	b.rows = append(b.rows, newRow("bound beside "+list[top].name, unit, list[top].name, figures[2], figures[top], 0, false))
	return nil
}

// peer is a tool with its settings, between two servers of one kind.
type peer struct {
	name, server string
	tool         func(from, to string) []string
}

var (
	nbdcopies = []peer{
		{"nbdcopy, nbdkit", "nbdkit", nbdcopy()},
		{"nbdcopy -C4 -R64, nbdkit", "nbdkit", nbdcopy("--connections=4", "--requests=64")},
		{"nbdcopy 1 MiB, nbdkit", "nbdkit", nbdcopy("--threads=2", "--connections=2", "--request-size=1048576")},
		{"nbdcopy, qemu-nbd", "qemu-nbd", nbdcopy()},
		{"nbdcopy 1 MiB, qemu-nbd", "qemu-nbd", nbdcopy("--request-size=1048576")},
		{"nbdcopy 1 MiB, " + directNBD, directNBD, nbdcopy("--request-size=1048576")},
	}
	converts = []peer{
		{"qemu-img convert, qemu-nbd", "qemu-nbd", qemuConvert},
		{"qemu-img convert, " + directNBD, directNBD, qemuConvert},
		{"qemu-img convert, nbdkit", "nbdkit", qemuConvert},
	}
)

// fastest runs each candidate once and returns the best.
func fastest[T any](ctx context.Context, list []T, with func(T) contender) (T, error) {
	var all []contender
	for _, t := range list {
		all = append(all, with(t))
	}
	figures, err := inTurn(ctx, 1, all)
	if err != nil {
		return list[0], err
	}
	return list[best(figures, 0)], nil
}

// copying is one disk that is copied again and again, each time to a fresh one.
type copying struct {
	b       *bench
	src     disk
	size    int64
	checked map[string]bool
}

func (b *bench) newCopying(ctx context.Context, name string, size int64) (*copying, error) {
	src, err := b.newDisk(ctx, name, size)
	if err != nil {
		return nil, err
	}
	return &copying{b, src, size, map[string]bool{}}, src.fill(0, size, 1)
}

// gauge makes a contender of what copies the disk. What it makes is compared
// with the source the first time.
func (c *copying) gauge(name string, f func(ctx context.Context, dst disk) (time.Duration, error)) contender {
	return contender{name, func(ctx context.Context) (float64, error) {
		dst, err := c.b.newDisk(ctx, "destination", c.size)
		if err != nil {
			return 0, err
		}
		settle()
		took, err := f(ctx, dst)
		if err != nil {
			return 0, err
		}
		if !c.checked[name] {
			c.checked[name] = true
			if err := sameFiles(c.src.path, dst.path, c.size); err != nil {
				return 0, err
			}
		}
		return float64(c.size) / (1 << 30) / took.Seconds(), nil
	}}
}

// ours moves it with our engine, over TLS where there are identities.
func (c *copying) ours(name, ids string) contender {
	return c.gauge(name, func(ctx context.Context, dst disk) (time.Duration, error) {
		_, took, _, _, err := c.b.move(ctx, receiveConfig{Share: dst.share, Identities: ids}, sendConfig{Share: c.src.share, Identities: ids})
		return took, err
	})
}

func (c *copying) peer(p peer) contender {
	return c.gauge(p.name, func(ctx context.Context, dst disk) (time.Duration, error) {
		return c.b.between(ctx, p.server, c.src.path, dst.path, p.tool)
	})
}

func (c *copying) poured(streams int64) contender {
	name := "plain Go, 1 stream"
	if streams > 1 {
		name = "plain Go, several streams"
	}
	return c.gauge(name, func(ctx context.Context, dst disk) (time.Duration, error) {
		return c.b.poured(ctx, c.src.path, dst.path, c.size, streams)
	})
}
