package tuning

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Fio is a workload of fio(1), on any [System] that is a [Runner]: the local
// machine, or a guest through its agent.
type Fio struct {
	// Class chooses the kind of requests: 4 KiB one at a time for Latency,
	// 1 MiB in sequence for Throughput, 16 KiB at random and sixteen at a time
	// for the rest.
	Class Class
	// File is a file or block device. It is only read, and must hold Size.
	File string
	Size share.Bytes   // how much of it is used; all of a device when 0
	Time time.Duration // of a run, 5 s when 0
	// Write allows to write: File's content is lost.
	Write bool
	// Job are options of a job file, "name=value" or "name", in place of or
	// beside those of the class.
	Job []string
}

// Run implements [Workload].
func (f *Fio) Run(ctx context.Context, sys System) (Figures, error) {
	runner, ok := sys.(Runner)
	if !ok {
		return Figures{}, &share.UnsupportedError{What: "fio on " + sys.Name(), Reason: "it runs no programs"}
	}
	argv, err := f.argv()
	if err != nil {
		return Figures{}, err
	}
	out, err := runner.Run(ctx, argv...)
	if err != nil {
		return Figures{}, fmt.Errorf("measure %s: %w", f.File, err)
	}
	fig, err := parseFio(out)
	if err != nil {
		return Figures{}, fmt.Errorf("measure %s: %w", f.File, err)
	}
	return fig, nil
}

func (f *Fio) argv() ([]string, error) {
	if err := checkPath(f.File); err != nil {
		return nil, err
	}
	if strings.ContainsAny(f.File, `:\`) { // fio's separators
		return nil, fmt.Errorf("file %s %w: fio takes : and \\ for its own", quote(f.File), share.ErrInvalid)
	}
	for _, o := range f.Job {
		if n, _, _ := strings.Cut(o, "="); n == "" || strings.ContainsAny(o, "\n\x00") || strings.Trim(n, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			return nil, fmt.Errorf("fio option %s %w; write name=value", quote(o), share.ErrInvalid)
		}
	}
	duration := f.Time
	if duration <= 0 {
		duration = 5 * time.Second
	}
	argv := []string{"fio", "--output-format=json", "--name=vmferry", "--thread", "--filename=" + f.File, "--time_based", "--norandommap",
		fmt.Sprintf("--runtime=%dms", duration.Milliseconds())}
	if f.Size > 0 {
		argv = append(argv, fmt.Sprintf("--size=%d", int64(f.Size)))
	}
	if !f.Write {
		argv = append(argv, "--readonly")
	}
	random, sequential := "randread", "read"
	if f.Write {
		random = "randrw"
	}
	switch f.Class {
	case Latency:
		argv = append(argv, "--rw="+random, "--bs=4k", "--ioengine=psync", "--direct=1")
	case Throughput:
		argv = append(argv, "--rw="+sequential, "--bs=1M", "--ioengine=psync")
	default:
		argv = append(argv, "--rw="+random, "--bs=16k", "--ioengine=libaio", "--iodepth=16", "--direct=1")
	}
	for _, o := range f.Job {
		argv = append(argv, "--"+o)
	}
	return argv, nil
}

// fioOutput is what is read of fio's JSON.
type fioOutput struct {
	Jobs []struct {
		Error   int     `json:"error"`
		UserCPU float64 `json:"usr_cpu"`
		SysCPU  float64 `json:"sys_cpu"`
		Runtime float64 `json:"job_runtime"` // ms
		Read    fioSide `json:"read"`
		Write   fioSide `json:"write"`
	} `json:"jobs"`
}

type fioSide struct {
	Bytes   float64 `json:"io_bytes"`
	IOs     float64 `json:"total_ios"`
	IOPS    float64 `json:"iops"`
	Rate    float64 `json:"bw_bytes"`
	Latency struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

// parseFio reads fio's output, in front of which it may have written remarks.
func parseFio(out []byte) (f Figures, err error) {
	bad := func(why string) (Figures, error) {
		return Figures{}, fmt.Errorf("fio's output %w: %s", share.ErrInvalid, why)
	}
	at := bytes.IndexByte(out, '{')
	if at < 0 {
		return bad("no JSON")
	}
	var o fioOutput
	if err := json.NewDecoder(bytes.NewReader(out[at:])).Decode(&o); err != nil {
		return Figures{}, fmt.Errorf("fio's output %w: %w", share.ErrInvalid, err)
	}
	if len(o.Jobs) == 0 {
		return bad("no jobs")
	}
	var cpu, moved float64
	for _, j := range o.Jobs {
		if j.Error != 0 {
			return Figures{}, fmt.Errorf("fio failed with error %d: %w", j.Error, share.ErrUnavailable)
		}
		cpu += (j.UserCPU + j.SysCPU) / 100 * j.Runtime * 1e6
		for _, side := range []fioSide{j.Read, j.Write} {
			if side.IOs == 0 {
				continue
			}
			for _, v := range []float64{side.Bytes, side.IOPS, side.Rate, side.Latency.Percentile["99.000000"]} {
				if v < 0 || math.IsInf(v, 0) || v > 1e18 {
					return bad("figures that cannot be")
				}
			}
			f.IOPS += side.IOPS
			f.BytesPerSecond += side.Rate
			f.P99 = max(f.P99, time.Duration(side.Latency.Percentile["99.000000"]))
			moved += side.Bytes
		}
	}
	if moved > 0 && cpu > 0 {
		f.CPUPerByte = cpu / moved
	}
	return f, nil
}

// HasFio reports whether a system can run fio: yes, no, or that it could not be
// found out.
func HasFio(ctx context.Context, sys System) Probed {
	runner, ok := sys.(Runner)
	if !ok {
		return Probed{No, sys.Name() + " runs no programs"}
	}
	out, err := runner.Run(ctx, "fio", "--version")
	switch {
	case err == nil:
		return Probed{Yes, strings.TrimSpace(string(out))}
	case errors.Is(err, share.ErrNotExist), errors.Is(err, errors.ErrUnsupported):
		return Probed{No, err.Error()}
	}
	return Probed{Inconclusive, err.Error()}
}
