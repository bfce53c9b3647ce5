package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/vmferry/vmferry/examples/internal/show"
	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/kvm"
	"github.com/vmferry/vmferry/share"
)

// report is what -json writes.
type report struct {
	// Verified says that everything in Moves was checked and found right: each
	// acknowledged write on the disk, the memory, and that one copy runs.
	Verified bool         `json:"verified"`
	Guest    string       `json:"guest"`
	Moves    []moveReport `json:"moves"`
	Error    string       `json:"error,omitempty"`
}

// moveReport is one move. Durations are nanoseconds.
type moveReport struct {
	From   string         `json:"from"`
	To     string         `json:"to"`
	Result migrate.Result `json:"result"`
	// Gap is how long nobody outside heard of the guest.
	Gap time.Duration `json:"gap_ns,omitempty"`
	// Writes is how many writes the guest had been acknowledged, all of which
	// were found on the disk; Lost is how many were not.
	Writes uint64 `json:"writes,omitempty"`
	Lost   int    `json:"lost"`
	// OneCopy says that the guest runs at the destination and nowhere else.
	OneCopy bool `json:"one_copy"`
	// Intact says that the guest found no wrong page in its memory, and that
	// the part of its disk that it does not write is the same as before.
	Intact bool `json:"intact"`
}

const (
	diskName = "disk.raw"
	diskSize = 384 << 20
	// The guest writes to the first part of its disk; random data after that
	// gives the mirror something to carry.
	written = 64 << 20
	still   = 256 << 20
)

// inLab moves a guest of the laboratory to and fro.
func inLab(ctx context.Context, c *config, s *show.Screen) (*report, error) {
	rep := &report{Guest: "demo"}
	if err := lab.Check(ctx); err != nil {
		return rep, err
	}
	s.Say("Two hosts, each with a libvirtd and a disk of its own …")
	l, err := lab.New(ctx, &lab.Options{Hosts: 2})
	if err != nil {
		return rep, err
	}
	defer l.Close()
	if err := fill(l.Host(0).OutsidePath(diskName)); err != nil {
		return rep, err
	}
	want, err := digest(l.Host(0))
	if err != nil {
		return rep, err
	}
	s.Say("A guest on %s: 192 MiB of memory, of which it rewrites 20 MiB a second; a disk of %v, to which it writes 200 times a second …",
		l.Host(0).Name(), share.Bytes(diskSize))
	g, err := l.StartGuest(ctx, l.Host(0), &lab.GuestOptions{
		Name: "demo", Memory: 192, Dirty: 20 << 20,
		Disks: []lab.Disk{{Path: diskName, Format: "raw", Writes: 200, Slots: 4096, Span: written}},
	})
	if err != nil {
		return rep, err
	}
	time.Sleep(time.Second) // for writes to be there before the first move
	for _, from := range []int{0, 1} {
		d := &demo{lab: l, guest: g, want: want, options: c.MigrateOptions, screen: s}
		m, err := d.move(ctx, l.Host(from), l.Host(1-from), from == 1)
		rep.Moves = append(rep.Moves, m)
		if err != nil {
			return rep, err
		}
	}
	rep.Verified = true
	s.Say("Both moves verified.")
	return rep, nil
}

// demo is one move in the lab and its verdict.
type demo struct {
	lab     *lab.Lab
	guest   *lab.Guest
	want    [sha256.Size]byte
	options kvm.MigrateOptions
	screen  *show.Screen
}

func (d *demo) move(ctx context.Context, from, to *lab.Host, back bool) (moveReport, error) {
	m := moveReport{From: from.Name(), To: to.Name()}
	a, err := kvm.Connect(ctx, from.URI(), nil)
	if err != nil {
		return m, err
	}
	defer a.Close()
	b, err := kvm.Connect(ctx, to.URI(), nil)
	if err != nil {
		return m, err
	}
	defer b.Close()
	guest, err := a.Guest(ctx, d.guest.UUID)
	if err != nil {
		return m, err
	}
	o := d.options
	o.Plaintext = true // between two name spaces of one machine
	// On the way back the old disk is still there, out of date.
	o.Disks = map[string]kvm.DiskMove{"vda": {Overwrite: back}}
	d.screen.Say("\n%s → %s", from.Name(), to.Name())
	began := time.Now()
	if m.Result, err = move(ctx, guest, b, o, d.screen); err != nil {
		return m, err
	}
	return m, d.verify(ctx, to, began, &m)
}

// verify looks for everything that could have gone wrong.
func (d *demo) verify(ctx context.Context, to *lab.Host, began time.Time, m *moveReport) error {
	watch := d.guest.Watch()
	arrived := time.Now()
	// It is heard of again, from its new place.
	soon, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := watch.Until(soon, func(a lab.Arrival) bool { return a.Host == to && a.At.After(arrived) }); err != nil {
		return err
	}
	m.Gap = watch.LongestGap(began).Length()

	hosts, err := d.lab.Running(ctx, d.guest)
	if err != nil {
		return err
	}
	processes, err := d.lab.Processes(d.guest)
	if err != nil {
		return err
	}
	m.OneCopy = len(hosts) == 1 && hosts[0] == to && len(processes) == 1
	for _, k := range watch.Acked() {
		m.Writes += k.Sequence
	}
	verdicts, werr := d.guest.Verify(ctx, to)
	for _, v := range verdicts {
		m.Lost += len(v.Faults)
	}
	have, err := digest(to)
	if err != nil {
		return err
	}
	m.Intact = watch.Healthy() == nil && have == d.want

	r := m.Result
	d.screen.Say("  %s every acknowledged write is on %s's disk: %d looked for, %d missing", tick(werr == nil && m.Lost == 0), to.Name(), m.Writes, m.Lost)
	d.screen.Say("  %s exactly one copy runs, on %s", tick(m.OneCopy), to.Name())
	d.screen.Say("  %s memory and the rest of the disk are intact", tick(m.Intact))
	d.screen.Say("    %v in all, %v moved, downtime %v as the hosts saw it and %v from outside",
		round(r.Total), share.Bytes(r.Sent), round(r.Downtime), round(m.Gap))
	switch {
	case werr != nil:
		return werr
	case !m.OneCopy:
		return fmt.Errorf("the guest runs on %d hosts with %d processes, not on one", len(hosts), len(processes))
	case !m.Intact:
		return errors.Join(errors.New("memory or disk is not what it was"), watch.Healthy())
	}
	return nil
}

func tick(ok bool) string {
	if ok {
		return "✓"
	}
	return "✗"
}

// fill makes the demo's disk.
func fill(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	if _, err := rand.Read(block); err != nil {
		return err
	}
	for at := int64(written); at < written+still; at += int64(len(block)) {
		copy(block, fmt.Sprintf("%020d", at)) // no two alike
		if _, err := f.WriteAt(block, at); err != nil {
			return err
		}
	}
	return f.Truncate(diskSize)
}

// digest is that of the part of the disk which the guest leaves alone.
func digest(h *lab.Host) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(h.OutsidePath(diskName))
	if err != nil {
		return sum, err
	}
	defer f.Close()
	hash := sha256.New()
	n, err := io.Copy(hash, io.NewSectionReader(f, written, diskSize-written))
	if err == nil && n != diskSize-written {
		err = fmt.Errorf("%s on %s is short: %d bytes", diskName, h.Name(), n+written)
	}
	hash.Sum(sum[:0])
	return sum, err
}
