package tuning

import (
	"context"
	"fmt"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Workload is what a change is measured with: the caller's own program, [Fio],
// or [Embedded].
type Workload interface {
	// Run runs once and returns what was measured. Figures that the workload
	// has not are 0.
	Run(ctx context.Context, sys System) (Figures, error)
}

// Figures are what one run of a workload measured.
type Figures struct {
	P99            time.Duration `json:"p99_ns,omitempty"` // latency that 99 % of requests stay below
	IOPS           float64       `json:"iops,omitempty"`
	BytesPerSecond float64       `json:"bytes_per_second,omitempty"`
	CPUPerByte     float64       `json:"cpu_ns_per_byte,omitempty"` // processor time, ns
}

// Objective is the figure that a change is judged by.
type Objective uint8

const (
	_          Objective = iota
	P99                  // less is better
	IOPS                 // more is better
	Bandwidth            // more is better
	CPUPerByte           // less is better
)

var objectives = []string{"", "p99", "iops", "bandwidth", "cpu-per-byte"}

// String is the objective's name.
func (o Objective) String() string { return name(objectives, o) }

// MarshalText is String.
func (o Objective) MarshalText() ([]byte, error) { return marshalName(objectives, o) }

// UnmarshalText accepts what MarshalText returns.
func (o *Objective) UnmarshalText(b []byte) error { return unmarshalName(objectives, b, o) }

// ObjectiveOf is what counts for a class of work.
func ObjectiveOf(c Class) Objective {
	switch c {
	case Latency:
		return P99
	case Throughput:
		return Bandwidth
	}
	return IOPS
}

func (o Objective) of(f Figures) (float64, error) {
	v := 0.0
	switch o {
	case P99:
		v = float64(f.P99)
	case IOPS:
		v = f.IOPS
	case Bandwidth:
		v = f.BytesPerSecond
	case CPUPerByte:
		v = f.CPUPerByte
	default:
		return 0, fmt.Errorf("%v %w", o, share.ErrInvalid)
	}
	if !(v > 0) {
		return 0, fmt.Errorf("the workload has no figure for %v: %w", o, share.ErrInvalid)
	}
	return v, nil
}

func (o Objective) lowerIsBetter() bool { return o == P99 || o == CPUPerByte }
