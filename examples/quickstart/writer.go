package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"
	"time"

	"github.com/vmferry/vmferry/share"
)

// slot is the size of a record in bytes.
const slot = 4096

// writer writes numbered records round and round over a disk, one at a time,
// and knows which were acknowledged: the oracle of "nothing is lost".
type writer struct {
	disk  share.Device
	slots uint64

	mu   sync.Mutex
	last uint64 // the number of the last acknowledged record
	slow time.Duration
}

func newWriter(d share.Device, size int64) *writer {
	return &writer{disk: d, slots: max(1, uint64(size)/slot)}
}

// put writes the next record and waits for the acknowledgement.
func (w *writer) put(ctx context.Context) error {
	seq := w.acknowledged() + 1
	begin := time.Now()
	if err := w.disk.WriteAt(ctx, record(seq), int64((seq-1)%w.slots)*slot); err != nil {
		return fmt.Errorf("record %d: %w", seq, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last, w.slow = seq, max(w.slow, time.Since(begin))
	return nil
}

// fill writes each slot once, in large writes.
func (w *writer) fill(ctx context.Context) error {
	const batch = 256
	for first := uint64(1); first <= w.slots; first += batch {
		var p []byte
		for seq := first; seq < first+batch && seq <= w.slots; seq++ {
			p = append(p, record(seq)...)
		}
		if err := w.disk.WriteAt(ctx, p, int64(first-1)*slot); err != nil {
			return err
		}
	}
	w.last = w.slots
	return nil
}

// running is a writer at work.
type running struct{ stop func() error }

// start writes at a rate until it is stopped.
func (w *writer) start(ctx context.Context, rate int) running {
	ctx, cancel := context.WithCancel(ctx)
	quit, end := make(chan struct{}), make(chan error, 1)
	go func() {
		tick := time.NewTicker(time.Second / time.Duration(max(1, rate)))
		defer tick.Stop()
		for {
			select {
			case <-quit:
				end <- nil
				return
			case <-tick.C:
			}
			if err := w.put(ctx); err != nil {
				end <- err
				return
			}
		}
	}()
	return running{sync.OnceValue(func() error {
		close(quit)
		defer cancel()
		select {
		case err := <-end:
			return err
		case <-time.After(10 * time.Second): // a write that does not end
			cancel()
			return <-end
		}
	})}
}

func (w *writer) acknowledged() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

func (w *writer) slowest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.slow
}

// check reads every slot of a disk and compares it with the last record that
// was acknowledged for it. The writer has stopped, so nothing newer can be
// there.
func (w *writer) check(ctx context.Context, d share.Device) error {
	last := w.acknowledged()
	got := make([]byte, slot)
	for i := range min(w.slots, last) {
		seq := last - (last-1-i)%w.slots // the greatest up to last that fell on slot i
		if err := d.ReadAt(ctx, got, int64(i)*slot); err != nil {
			return err
		}
		if string(got) != string(record(seq)) {
			return fmt.Errorf("slot %d holds record %d, and record %d was acknowledged", i, binary.LittleEndian.Uint64(got), seq)
		}
	}
	return nil
}

// record makes a record: its number, a pattern from it, a checksum.
func record(seq uint64) []byte {
	p := make([]byte, slot)
	x := seq*0x9e3779b97f4a7c15 + 1
	for i := 8; i < slot-8; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x)
	}
	binary.LittleEndian.PutUint64(p, seq)
	binary.LittleEndian.PutUint32(p[slot-8:], crc32.ChecksumIEEE(p[:slot-8]))
	return p
}
