package tuning

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmferry/vmferry/share"
)

// Embedded is a workload for the local machine where there is no fio. It is
// small and says less than fio: one request at a time, 4 KiB at random past the
// page cache for Latency and the mixed classes, 1 MiB in sequence through it for
// Throughput.
type Embedded struct {
	Class Class
	// Dir is where a file of Size is made, on the disk that is measured, and
	// removed at the end of each run. It must not be on a tmpfs for the
	// classes that go past the page cache.
	Dir  string
	Size share.Bytes   // 64 MiB when 0
	Time time.Duration // of a run, 2 s when 0
}

// Run implements [Workload]; sys is the local machine.
func (e *Embedded) Run(ctx context.Context, sys System) (f Figures, err error) {
	if l, ok := sys.(*Local); !ok || l.dir != "/" {
		return f, &share.UnsupportedError{What: "the embedded measurement on " + sys.Name(), Reason: "it runs in this program; install fio there"}
	}
	size, during := int64(e.Size), e.Time
	if size == 0 {
		size = 64 << 20
	}
	if during == 0 {
		during = 2 * time.Second
	}
	block, flags := int64(4<<10), os.O_RDONLY|syscall.O_DIRECT
	if e.Class == Throughput {
		block, flags = 1<<20, os.O_RDONLY
	}
	if size < block || size > 1<<40 || during < 0 {
		return f, fmt.Errorf("measurement of %v for %v %w", share.Bytes(size), during, share.ErrInvalid)
	}
	name, err := e.fill(ctx, size)
	if name != "" {
		defer os.Remove(name)
	}
	if err != nil {
		return f, fileError("measure in", e.Dir, err)
	}
	file, err := os.OpenFile(name, flags, 0)
	if err != nil {
		return f, fileError("measure in", e.Dir, err)
	}
	defer file.Close()
	// What the page cache has of it is dropped, so that the disk is measured.
	if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return f, fileError("measure in", e.Dir, err)
	}
	memory, err := unix.Mmap(-1, 0, int(block), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return f, fileError("measure in", e.Dir, err)
	}
	defer func() { _ = unix.Munmap(memory) }()
	return e.read(ctx, file, memory, size, during)
}

// fill makes a file that is not a hole, and has it on the disk.
func (e *Embedded) fill(ctx context.Context, size int64) (name string, err error) {
	f, err := os.CreateTemp(e.Dir, ".vmferry-measure-")
	if err != nil {
		return "", err
	}
	defer f.Close()
	noise := make([]byte, 1<<20)
	rand.Read(noise)
	for at := int64(0); at < size; at += int64(len(noise)) {
		if err := ctx.Err(); err != nil {
			return f.Name(), context.Cause(ctx)
		}
		if _, err := f.Write(noise[:min(size-at, int64(len(noise)))]); err != nil {
			return f.Name(), err
		}
	}
	return f.Name(), f.Sync()
}

func (e *Embedded) read(ctx context.Context, file *os.File, p []byte, size int64, during time.Duration) (f Figures, err error) {
	var times []time.Duration
	block := int64(len(p))
	blocks, next := size/block, int64(0)
	cpu := cpuTime()
	began := time.Now()
	var done int64
	for time.Since(began) < during {
		if ctx.Err() != nil {
			return f, context.Cause(ctx)
		}
		at := mrand.Int64N(blocks)
		if e.Class == Throughput {
			if at = next % blocks; at == 0 && next > 0 { // from the disk again
				if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
					return f, fileError("measure in", e.Dir, err)
				}
			}
			next++
		}
		asked := time.Now()
		n, err := file.ReadAt(p, at*block)
		if err != nil && !(errors.Is(err, io.EOF) && n == len(p)) {
			return f, fileError("measure in", e.Dir, err)
		}
		if len(times) < 1<<20 {
			times = append(times, time.Since(asked))
		}
		done += int64(n)
	}
	took := time.Since(began).Seconds()
	slices.Sort(times)
	if len(times) > 0 {
		f.P99 = times[len(times)*99/100]
	}
	f.IOPS, f.BytesPerSecond = float64(done/block)/took, float64(done)/took
	if used := cpuTime() - cpu; used > 0 && done > 0 {
		f.CPUPerByte = float64(used) / float64(done)
	}
	return f, nil
}

// cpuTime is the processor time of this program.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
