package main

import (
	"context"
	"math"
	"time"
)

// mostMemory is what either of our processes may have resident, in MiB.
const mostMemory = 96

// sparseRows measures a disk of 1 TiB that holds 1 GiB of data in 64 pieces.
func (b *bench) sparseRows(ctx context.Context) error {
	if err := missing("nbdkit", "qemu-nbd", "nbdcopy"); err != nil {
		return err
	}
	const size, piece, pieces = 1 << 40, 16 << 20, 64
	src, err := b.newDisk(ctx, "source", size)
	if err != nil {
		return err
	}
	for i := range int64(pieces) {
		if err := src.fill(i*(size/pieces), piece, uint64(i)); err != nil {
			return err
		}
	}
	memory := 0.0
	fresh := func(f func(dst disk) (time.Duration, error)) (float64, error) {
		dst, err := b.newDisk(ctx, "destination", size)
		if err != nil {
			return 0, err
		}
		settle()
		took, err := f(dst)
		return took.Seconds(), err
	}
	ours := contender{"vmferry", func(ctx context.Context) (float64, error) {
		return fresh(func(dst disk) (time.Duration, error) {
			_, took, sender, receiver, err := b.move(ctx, receiveConfig{Share: dst.share}, sendConfig{Share: src.share})
			if err == nil {
				memory = max(memory, sender.peakMemory(), receiver.peakMemory())
				err = samePieces(src.path, dst.path, size/pieces, piece, pieces)
			}
			return took, err
		})
	}}
	peer := func(name, server string, settings ...string) contender {
		return contender{name, func(ctx context.Context) (float64, error) {
			return fresh(func(dst disk) (time.Duration, error) {
				return b.between(ctx, server, src.path, dst.path, nbdcopy(settings...))
			})
		}}
	}
	// Without --destination-is-zero it would zero the whole disk first; that
	// setting is its best, and what a fresh file is.
	list := []contender{ours, peer("nbdcopy --destination-is-zero, nbdkit", "nbdkit", "--destination-is-zero"),
		peer("nbdcopy --destination-is-zero, qemu-nbd", "qemu-nbd", "--destination-is-zero")}
	seconds, err := inTurn(ctx, b.runs, list)
	if err != nil {
		return err
	}
	least := 1
	if median(seconds[2]) < median(seconds[1]) {
		least = 2
	}
	b.rows = append(b.rows, newRow("sparse", "1/s", list[least].name, inverse(seconds[0]), inverse(seconds[least]), 1, false),
		newRow("sparse memory", "MiB", "the limit", []float64{memory}, []float64{mostMemory}, 1, true))
	return nil
}

// inverse makes speeds of times.
func inverse(v []float64) []float64 {
	out := make([]float64, len(v))
	for i := range v {
		out[i] = 1 / math.Max(v[i], 1e-9)
	}
	return out
}
