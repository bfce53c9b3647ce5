//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vmferry/vmferry/internal/lab/record"
)

// disk writes numbered blocks, one at a time: the next begins when the last is
// on the medium, so that the highest sequence acknowledged stands for all
// before it.
type disk struct {
	*diskConfig
	ring     record.Ring
	fd       int
	buf      []byte
	instance uint64
	newest   uint64
}

// diskState is what the heartbeat says of a disk.
type diskState struct {
	ring   record.Ring
	serial string
	acked  atomic.Uint64
	errors atomic.Uint64
}

func (s *diskState) start(d *disk) {
	s.serial, s.ring = d.serial, d.ring
	s.acked.Store(d.newest)
}

// openDisk waits for the disk with the configured serial, opens it for direct
// and synchronous writes and looks for the newest block that an earlier boot
// left, so that sequences go on from there.
func openDisk(c *diskConfig, instance uint64) (*disk, error) {
	name, err := findDisk(c.serial, 10*time.Second)
	if err != nil {
		return nil, err
	}
	if c.span == 0 {
		text, err := os.ReadFile("/sys/block/" + name + "/size")
		if err != nil {
			return nil, err
		}
		if _, err := fmt.Sscan(string(text), &c.span); err != nil {
			return nil, fmt.Errorf("disk %s: size: %w", c.serial, err)
		}
		c.span *= 512
	}
	d := &disk{diskConfig: c, instance: instance}
	if d.ring, err = record.NewRing(c.span, c.block, c.slots); err != nil {
		return nil, fmt.Errorf("disk %s: %w", c.serial, err)
	}
	if d.fd, err = syscall.Open("/dev/"+name, syscall.O_RDWR|syscall.O_DIRECT|syscall.O_DSYNC, 0); err != nil {
		return nil, fmt.Errorf("disk %s: open /dev/%s: %w", c.serial, name, err)
	}
	if d.buf, err = syscall.Mmap(-1, 0, int(c.block), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE); err != nil {
		return nil, err
	}
	return d, d.recover()
}

func findDisk(serial string, patience time.Duration) (string, error) {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		paths, _ := filepath.Glob("/sys/block/*/serial")
		for _, p := range paths {
			if text, err := os.ReadFile(p); err == nil && strings.TrimSpace(string(text)) == serial {
				return filepath.Base(filepath.Dir(p)), nil
			}
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("no disk with serial %s after %v", serial, patience)
		}
	}
}

// recover reads the ring. A disk whose first slots are blank is new: a lone
// block deep in the ring cannot be there without its predecessors.
func (d *disk) recover() error {
	blanks := 0
	for slot := uint32(1); slot <= d.ring.Slots && blanks < 4; slot++ {
		if _, err := syscall.Pread(d.fd, d.buf, d.ring.Offset(slot%d.ring.Slots)); err != nil {
			return fmt.Errorf("disk %s: read slot %d: %w", d.serial, slot, err)
		}
		b, state := record.Decode(d.buf)
		switch {
		case state == record.Whole && b.Disk == record.DiskID(d.serial):
			d.newest = max(d.newest, b.Sequence)
		case state == record.Blank:
			blanks++
		}
	}
	return nil
}

func (d *disk) run(s *diskState) {
	if d.rate == 0 {
		return
	}
	interval := time.Second / time.Duration(d.rate)
	next := time.Now()
	for sequence := d.newest + 1; ; {
		b := record.Block{Disk: record.DiskID(d.serial), Sequence: sequence, Time: uint64(time.Now().UnixNano()), Instance: d.instance}
		b.Encode(d.buf)
		n, err := syscall.Pwrite(d.fd, d.buf, d.ring.Offset(d.ring.Slot(sequence)))
		if err != nil || n != len(d.buf) {
			// The outcome is unknown: the same sequence again.
			if s.errors.Add(1) == 1 {
				say("disk %s: write %d: %d bytes, %v", d.serial, sequence, n, err)
			}
			time.Sleep(100 * time.Millisecond)
			continue
		}
		s.acked.Store(sequence)
		sequence++
		if next = next.Add(interval); time.Since(next) > time.Second {
			next = time.Now() // too slow for the rate: no burst later
		}
		time.Sleep(time.Until(next))
	}
}
