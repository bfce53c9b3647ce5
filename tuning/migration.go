package tuning

import (
	"fmt"
	"math"
	"time"

	"github.com/vmferry/vmferry/share"
)

// MigrationFacts are what a migration's parameters are chosen from. Rates are
// measured, per second: the dirty rate as libvirt's domstats or QEMU's
// calc-dirty-rate say, the link's between these two hosts.
type MigrationFacts struct {
	Memory    share.Bytes // of the guest
	DirtyRate share.Bytes
	LinkRate  share.Bytes
	// Compressible is the part of memory that zstd level 1 saves, 0 to 1; 0
	// where nobody has looked.
	Compressible float64
	SpareCPUs    int // processors that both hosts can give
	// MaxDowntime is the pause that the guest's clients bear, 300 ms when zero.
	MaxDowntime time.Duration
	// LinkShare is the part of the link that the move may take, all when 0.
	LinkShare float64
	PostCopy  Answer // whether both hosts can, and the guest may: see Features
	DirtyRing Answer // whether the guest was started with a dirty ring, for dirty-limit
}

// MigrationAdvice are parameters for virDomainMigrate3, and why.
type MigrationAdvice struct {
	MaxDowntime  time.Duration     `json:"max_downtime_ns"`
	Bandwidth    share.Bytes       `json:"bandwidth"` // per second
	Channels     int               `json:"channels"`  // 0: one connection, without multifd
	Compression  string            `json:"compression"`
	ZstdLevel    int               `json:"zstd_level,omitempty"`
	AutoConverge bool              `json:"auto_converge"`
	DirtyLimit   bool              `json:"dirty_limit"`
	PostCopy     bool              `json:"post_copy"`
	Converges    Answer            `json:"converges"` // by itself, without slowing the guest or post-copy
	Time         time.Duration     `json:"time_ns"`   // of pre-copy, where it converges; else of one pass
	Rounds       int               `json:"rounds"`
	Reasons      map[string]string `json:"reasons"` // by the IDs of [Knobs]
}

// What a processor does: sending plainly, and compressing with zstd level 1.
// They only decide how many channels there are.
const (
	sentPerCPU       = 1200 * share.MiB
	compressedPerCPU = 350 * share.MiB
)

// clearly is how much faster than the guest dirties memory a link must be for
// rounds to become shorter by something that can be relied on.
const clearly = 0.8

// AdviseMigration chooses parameters from measured rates. Facts that cannot be
// are [share.ErrInvalid]. A rate of 0 is one that was not measured, and the
// advice is then inconclusive on convergence.
func AdviseMigration(f MigrationFacts) (MigrationAdvice, error) {
	if f.Memory <= 0 || f.DirtyRate < 0 || f.LinkRate < 0 || !(f.Compressible >= 0 && f.Compressible < 1) || f.SpareCPUs < 0 || f.MaxDowntime < 0 || !(f.LinkShare >= 0 && f.LinkShare <= 1) {
		return MigrationAdvice{}, fmt.Errorf("facts of a migration %w: %+v", share.ErrInvalid, f)
	}
	a := MigrationAdvice{MaxDowntime: f.MaxDowntime, Compression: "none", Reasons: map[string]string{}}
	say := func(id, format string, args ...any) { a.Reasons["migration."+id] = fmt.Sprintf(format, args...) }
	if a.MaxDowntime == 0 {
		a.MaxDowntime = 300 * time.Millisecond
	}
	say("downtime-ms", "what the guest's clients bear")
	if f.LinkRate == 0 {
		say("bandwidth-mib", "the link was not measured: no limit")
		say("multifd-channels", "without a measured link one connection, which is enough for 10 Gbit/s")
		a.PostCopy = f.PostCopy == Yes
		say("post-copy", "%s", postCopyReason(f.PostCopy))
		return a, nil
	}
	a.Bandwidth = f.LinkRate
	say("bandwidth-mib", "the whole link, measured at %v/s", f.LinkRate)
	if f.LinkShare > 0 {
		a.Bandwidth = max(1, share.Bytes(float64(f.LinkRate)*f.LinkShare))
		say("bandwidth-mib", "%.0f %% of the link, measured at %v/s", 100*f.LinkShare, f.LinkRate)
	}
	rate := float64(a.Bandwidth)
	ratio := float64(f.DirtyRate) / rate

	// Compression pays where the link is the bottleneck and processors are not.
	cpus := max(1, f.SpareCPUs)
	squeezed := math.Min(rate/(1-f.Compressible), float64(compressedPerCPU)*float64(f.SpareCPUs))
	if f.Compressible >= 0.2 && f.SpareCPUs > 0 && squeezed > 1.15*rate {
		a.Compression, a.ZstdLevel = "zstd", 1
		say("compression", "%.0f %% can be saved, and %d processors compress %v/s of memory for a link of %v/s", 100*f.Compressible, f.SpareCPUs, share.Bytes(squeezed), a.Bandwidth)
		say("zstd-level", "level 1 keeps up with a link")
		a.Channels = min(16, max(2, int(math.Ceil(squeezed/float64(compressedPerCPU)))))
		say("multifd-channels", "a processor compresses about %v/s", compressedPerCPU)
		rate = squeezed
		ratio = float64(f.DirtyRate) / rate
	} else {
		say("compression", "it would not be faster than the link, or nobody knows that memory compresses")
		if n := int(math.Ceil(rate / float64(sentPerCPU))); n > 1 {
			a.Channels = min(n, cpus, 16)
		}
		if a.Channels < 2 {
			a.Channels = 0
			say("multifd-channels", "one connection fills a link of %v/s", a.Bandwidth)
		} else {
			say("multifd-channels", "one connection carries about %v/s", sentPerCPU)
		}
	}

	a.predict(f, rate)
	switch {
	case a.Converges == Yes:
		say("auto-converge", "not needed: memory is dirtied at %.0f %% of the rate it is sent at", 100*ratio)
		say("post-copy", "prepared, in case the guest becomes busier; %s", postCopyReason(f.PostCopy))
		a.PostCopy = f.PostCopy == Yes
	case f.PostCopy == Yes:
		a.PostCopy = true
		say("post-copy", "memory is dirtied at %.0f %% of the rate it is sent at: pre-copy would not end; switch after the first pass", 100*ratio)
		say("auto-converge", "not needed: post-copy ends the move without slowing the guest for long")
	case f.DirtyRing == Yes:
		a.DirtyLimit = true
		say("dirty-limit", "memory is dirtied at %.0f %% of the rate it is sent at; processors that write are slowed, and only those", 100*ratio)
		say("post-copy", "%s", postCopyReason(f.PostCopy))
	default:
		a.AutoConverge = true
		say("auto-converge", "memory is dirtied at %.0f %% of the rate it is sent at; without slowing the guest pre-copy would not end", 100*ratio)
		say("post-copy", "%s", postCopyReason(f.PostCopy))
	}
	return a, nil
}

func postCopyReason(p Answer) string {
	switch p {
	case Yes:
		return "both hosts can"
	case No:
		return "the hosts cannot, or the guest may not"
	}
	return "nobody knows whether both hosts can"
}

// predict walks through the rounds of pre-copy: each sends what the one before
// it let become dirty.
func (a *MigrationAdvice) predict(f MigrationFacts, rate float64) {
	left := float64(f.Memory)
	fits := rate * a.MaxDowntime.Seconds()
	var seconds float64
	for a.Rounds = 1; ; a.Rounds++ {
		took := left / rate
		if a.Rounds == 1 {
			a.Time = duration(took)
		}
		seconds += took
		next := math.Min(float64(f.DirtyRate)*took, float64(f.Memory))
		if next <= fits {
			a.Converges, a.Time = Yes, duration(seconds+next/rate)
			if float64(f.DirtyRate) > clearly*rate { // only just, and rates are never that steady
				a.Converges = Inconclusive
			}
			return
		}
		if next >= clearly*left && a.Rounds > 1 || a.Rounds == 100 {
			a.Converges = No
			return
		}
		left = next
	}
}

func duration(seconds float64) time.Duration {
	return time.Duration(math.Min(seconds, 1e9) * float64(time.Second))
}
