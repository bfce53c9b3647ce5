package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"

	"github.com/vmferry/vmferry/migrate"
)

// incrementalRows measures a round that sends what got dirty: of a disk of
// 16 GiB, a part of its blocks of 64 KiB. The clock runs from the guest's pause,
// before which it wrote, to the proof that both sides are equal.
func (b *bench) incrementalRows(ctx context.Context) error {
	const size, large = 16 << 30, 1 << 40
	const blocks = size / migrate.DefaultGranularity
	run := func(size, dirty int64) (sent, error) {
		src, err := b.newDisk(ctx, "source", size)
		if err != nil {
			return sent{}, err
		}
		dst, err := b.newDisk(ctx, "destination", size)
		if err != nil {
			return sent{}, err
		}
		settle()
		last, _, _, _, err := b.move(ctx, receiveConfig{Share: dst.share}, sendConfig{Share: src.share, Dirty: dirty})
		return last, err
	}
	for _, permille := range []int64{1, 10, 100} {
		dirty := blocks * permille / 1000
		name := fmt.Sprintf("incremental %g %%", float64(permille)/10)
		var moved, small, big []float64
		for range b.runs {
			s, err := run(size, dirty)
			if err != nil {
				return err
			}
			moved, small = append(moved, float64(s.Wire)), append(small, s.Switchover.Seconds())
			if s, err = run(large, dirty); err != nil {
				return err
			}
			big = append(big, s.Switchover.Seconds())
		}
		bytes := make([]float64, len(moved))
		for i := range bytes {
			bytes[i] = float64(dirty * migrate.DefaultGranularity)
		}
		b.rows = append(b.rows, newRow(name, "bytes", "dirty bytes", moved, bytes, 1.05, true),
			newRow(name+", 1 TiB", "s", "the same of 16 GiB", big, small, 1.2, true))
		peers, names, err := b.wholeCopies(ctx, size, dirty)
		if err != nil {
			return err
		}
		for i := range peers {
			b.rows = append(b.rows, newRow(name+" beside "+names[i], "1/s", names[i], inverse(small), inverse(peers[i]), 0, false))
		}
	}
	if _, err := exec.LookPath("rsync"); err != nil {
		b.rows = append(b.rows, row{Name: "incremental beside rsync", PeerName: "rsync --inplace", Why: "rsync is not installed"})
	}
	return nil
}

// wholeCopies measures the tools that have to look at the whole disk to bring
// over what changed.
func (b *bench) wholeCopies(ctx context.Context, size, dirty int64) (seconds [][]float64, names []string, err error) {
	src, err := b.newDisk(ctx, "source", size)
	if err != nil {
		return nil, nil, err
	}
	step := size / migrate.DefaultGranularity / dirty
	for i := range dirty {
		if err := src.fill(i*step*migrate.DefaultGranularity, migrate.DefaultGranularity, uint64(i)); err != nil {
			return nil, nil, err
		}
	}
	var list []contender
	add := func(name string, f func(dst disk) (time.Duration, error)) {
		list = append(list, contender{name, func(ctx context.Context) (float64, error) {
			dst, err := b.newDisk(ctx, "destination", size)
			if err != nil {
				return 0, err
			}
			settle()
			took, err := f(dst)
			return took.Seconds(), err
		}})
		names = append(names, name)
	}
	if missing("nbdkit", "nbdcopy") == nil {
		add("nbdcopy of all", func(dst disk) (time.Duration, error) {
			return b.between(ctx, "nbdkit", src.path, dst.path, nbdcopy())
		})
	}
	if missing("rsync") == nil {
		add("rsync --inplace", func(dst disk) (time.Duration, error) {
			return timed(ctx, "rsync", "--inplace", "--no-whole-file", "--fsync", src.path, dst.path)
		})
	}
	seconds, err = inTurn(ctx, b.runs, list)
	return seconds, names, err
}
