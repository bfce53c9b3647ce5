package tuning

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vmferry/vmferry/share"
)

// DiskLimit is how much a guest's disk may do, by QEMU's throttling. Zero is no
// limit. A limit for both directions together excludes those for one.
//
// The buckets leak: a burst up to Max lasts MaxLength, after which the average
// is the limit.
type DiskLimit struct {
	BytesPerSecond, ReadBytesPerSecond, WriteBytesPerSecond share.Bytes
	IOPS, ReadIOPS, WriteIOPS                               int64
	// Bursts, for MaxLength, whole seconds, 1 s when 0.
	MaxBytesPerSecond share.Bytes
	MaxIOPS           int64
	MaxLength         time.Duration
	// RequestSize makes a request count as one per so many bytes for IOPS: a
	// limit of requests cannot be got around with large ones.
	RequestSize share.Bytes
}

// Check returns an error wrapping [share.ErrInvalid] for limits that QEMU would
// refuse.
func (l DiskLimit) Check() error {
	bad := func(why string) error { return fmt.Errorf("disk limit %w: %s", share.ErrInvalid, why) }
	for _, v := range []int64{int64(l.BytesPerSecond), int64(l.ReadBytesPerSecond), int64(l.WriteBytesPerSecond), l.IOPS, l.ReadIOPS, l.WriteIOPS, int64(l.MaxBytesPerSecond), l.MaxIOPS, int64(l.RequestSize)} {
		if v < 0 || v > 1e15 {
			return bad("values from 0 to 1e15")
		}
	}
	switch {
	case l.BytesPerSecond > 0 && (l.ReadBytesPerSecond > 0 || l.WriteBytesPerSecond > 0), l.IOPS > 0 && (l.ReadIOPS > 0 || l.WriteIOPS > 0):
		return bad("one for both directions excludes those for one")
	case l.MaxBytesPerSecond > 0 && l.MaxBytesPerSecond < l.BytesPerSecond, l.MaxBytesPerSecond > 0 && l.BytesPerSecond == 0:
		return bad("a burst of bytes needs a limit that it is above")
	case l.MaxIOPS > 0 && l.MaxIOPS < l.IOPS, l.MaxIOPS > 0 && l.IOPS == 0:
		return bad("a burst of requests needs a limit that it is above")
	case l.MaxLength < 0 || l.MaxLength%time.Second != 0 || l.MaxLength > time.Hour:
		return bad("bursts last whole seconds, an hour at most")
	case l.MaxLength > 0 && l.MaxBytesPerSecond == 0 && l.MaxIOPS == 0:
		return bad("a length without a burst")
	}
	return nil
}

// Disks are the disks of a running guest whose limits can be set and whose work
// is counted. tuning/kvm has them through libvirt.
type Disks interface {
	// Limit is what is in force now, as the hypervisor says.
	Limit(ctx context.Context, disk string) (DiskLimit, error)
	// SetLimit puts a limit in force at once; the zero value takes it off.
	SetLimit(ctx context.Context, disk string, l DiskLimit) error
	// Count is what the disk has done since the guest's start.
	Count(ctx context.Context, disk string) (DiskCount, error)
}

// DiskCount is what a disk has done.
type DiskCount struct {
	Reads, Writes         int64
	ReadBytes, WriteBytes int64
	// ReadTime and WriteTime are the sums of all requests' latencies, where
	// they are known.
	ReadTime, WriteTime time.Duration
}

// LimitDisk sets a limit on a guest's disk, live, reads it back, and returns
// what was there before, to go back to with the same call. Where what is read
// back differs, the limit before is restored.
func LimitDisk(ctx context.Context, d Disks, disk string, l DiskLimit) (before DiskLimit, err error) {
	if err := l.Check(); err != nil {
		return before, err
	}
	if before, err = d.Limit(ctx, disk); err != nil {
		return before, err
	}
	if err := d.SetLimit(ctx, disk, l); err != nil {
		return before, err
	}
	have, err := d.Limit(ctx, disk)
	if err == nil && have.plain() != l.plain() {
		err = fmt.Errorf("limit of %s: set %+v and read back %+v: %w", disk, l, have, share.ErrInvalid)
	}
	if err != nil {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return before, errors.Join(err, d.SetLimit(back, disk, before))
	}
	return before, nil
}

// plain is the limit with defaults filled in, to compare.
func (l DiskLimit) plain() DiskLimit {
	if l.MaxLength == 0 || l.MaxBytesPerSecond == 0 && l.MaxIOPS == 0 {
		l.MaxLength = time.Second
	}
	return l
}

// Plateau is what a limited disk did once its bursts were used up.
type Plateau struct {
	Took           time.Duration
	BytesPerSecond float64
	IOPS           float64
	Mean           time.Duration // mean latency of a request; 0 where it is not known
}

// Within reports whether the plateau is not above the limit by more than slack,
// a part: 0.1 is 10 %. RequestSize makes requests of unknown sizes count for
// more than one, so that IOPS are then only bounded from above.
func (p Plateau) Within(l DiskLimit, slack float64) bool {
	over := func(have float64, limit float64) bool { return limit > 0 && have > limit*(1+slack) }
	bytes := float64(l.BytesPerSecond)
	if bytes == 0 && l.ReadBytesPerSecond > 0 && l.WriteBytesPerSecond > 0 {
		bytes = float64(l.ReadBytesPerSecond + l.WriteBytesPerSecond)
	}
	iops := float64(l.IOPS)
	if iops == 0 && l.ReadIOPS > 0 && l.WriteIOPS > 0 {
		iops = float64(l.ReadIOPS + l.WriteIOPS)
	}
	return !over(p.BytesPerSecond, bytes) && !over(p.IOPS, iops)
}

// MeasurePlateau counts what a disk does for a while, after waiting for the
// limit's bursts to be used up. The caller keeps the disk busy.
func MeasurePlateau(ctx context.Context, d Disks, disk string, l DiskLimit, during time.Duration) (Plateau, error) {
	if during <= 0 {
		return Plateau{}, fmt.Errorf("plateau of %v %w", during, share.ErrInvalid)
	}
	wait := l.plain().MaxLength
	if err := sleep(ctx, wait); err != nil {
		return Plateau{}, err
	}
	a, err := d.Count(ctx, disk)
	if err != nil {
		return Plateau{}, err
	}
	began := time.Now()
	if err := sleep(ctx, during); err != nil {
		return Plateau{}, err
	}
	b, err := d.Count(ctx, disk)
	if err != nil {
		return Plateau{}, err
	}
	return a.until(b, time.Since(began)), nil
}

// until is what was done between two counts.
func (a DiskCount) until(b DiskCount, took time.Duration) Plateau {
	p := Plateau{Took: took}
	requests := b.Reads - a.Reads + b.Writes - a.Writes
	s := math.Max(took.Seconds(), 1e-9)
	p.IOPS = float64(requests) / s
	p.BytesPerSecond = float64(b.ReadBytes-a.ReadBytes+b.WriteBytes-a.WriteBytes) / s
	if requests > 0 {
		p.Mean = (b.ReadTime - a.ReadTime + b.WriteTime - a.WriteTime) / time.Duration(requests)
	}
	return p
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
