package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// resumeRows ends the sender's program with SIGKILL when half of the disk is
// over, has another one resume from the journal, and counts what went over the
// wire in both lives. Beside it stands starting again.
func (b *bench) resumeRows(ctx context.Context) error {
	size := b.copySize
	src, err := b.newDisk(ctx, "source", size)
	if err != nil {
		return err
	}
	if err := src.fill(0, size, 1); err != nil {
		return err
	}
	var again, full []float64
	for range b.runs {
		dst, err := b.newDisk(ctx, "destination", size)
		if err != nil {
			return err
		}
		settle()
		atKill, total, err := b.resumed(ctx, src, dst)
		if err != nil {
			return err
		}
		again = append(again, 100*float64(total-size)/float64(size))
		full = append(full, 100*float64(atKill)/float64(size))
	}
	r := newRow("resume", "% of disk", "starting again", again, full, 0, false)
	r.Mark, r.AtMost, r.Met = 2, true, r.Ours <= 2
	r.Why = "the mark is on what is sent twice, frames included; the ratio is to starting again"
	b.rows = append(b.rows, r)
	return nil
}

// resumed moves a disk in two lives of the sender, and returns what the
// receiver had got when the first one ended, and at the end.
func (b *bench) resumed(ctx context.Context, src, dst disk) (atKill, total int64, err error) {
	receiver, err := startChild(ctx, "receive", receiveConfig{Share: dst.share, Count: true})
	if err != nil {
		return 0, 0, err
	}
	var l listening
	if err := receiver.answer(&l); err != nil {
		return 0, 0, err
	}
	c := sendConfig{Share: src.share, Address: l.Address, Journal: filepath.Join(b.dir, "journal"), Report: true}
	if err := os.RemoveAll(c.Journal); err != nil {
		return 0, 0, err
	}
	sender, err := startChild(ctx, "send", c)
	if err != nil {
		return 0, 0, err
	}
	for {
		var s sent
		if err := sender.answer(&s); err != nil {
			return 0, 0, err
		}
		if s.Done {
			return 0, 0, fmt.Errorf("the sender was done before it was killed")
		}
		if s.Sent >= b.copySize/2 {
			break
		}
	}
	sender.kill()
	_ = sender.wait()
	c.Resume, c.Report = true, false
	if sender, err = startChild(ctx, "send", c); err != nil {
		return 0, 0, err
	}
	var last sent
	if err := sender.answer(&last); err != nil {
		return 0, 0, err
	}
	if err := sender.wait(); err != nil {
		return 0, 0, err
	}
	receiver.stdin.Close()
	var got received
	if err := receiver.answer(&got); err != nil {
		return 0, 0, err
	}
	if err := receiver.wait(); err != nil {
		return 0, 0, err
	}
	// What the second life sent of the disk is known; the rest is the first's.
	return got.Wire - last.Sent, got.Wire, sameFiles(src.path, dst.path, b.copySize)
}
