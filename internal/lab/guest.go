package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/vmferry/vmferry/internal/lab/record"
	"golang.org/x/sys/unix"
)

// GuestOptions describe a guest. The zero value is a guest without disks that
// only sends its heartbeat.
type GuestOptions struct {
	Name   string // "guest-N" when empty
	UUID   string // random when empty
	Memory int    // MiB, 128 when zero
	VCPUs  int    // 1 when zero
	Disks  []Disk
	// Dirty is how many bytes of memory the guest rewrites per second, page
	// by page around Region bytes; every page is verified before.
	// Under emulation a guest that does nothing else gets to 1 GB/s.
	Dirty uint64
	// Region is how much memory is under test: when zero, what Dirty
	// rewrites in a second, 16 MiB at least and a third of the memory at
	// most.
	Region uint64
	// KernelArgs are words for the guest's kernel, beyond the lab's own.
	KernelArgs []string
	// Tools are programs of this machine that the guest has, with their
	// libraries, at the same path: the agent can execute them. Of busybox all
	// applets are in /bin. They take memory: with fio give it 512 MiB.
	Tools []string
}

// Disk is a virtio disk of a guest.
type Disk struct {
	Path   string // as the host sees it, or the name of a file in ImagePath
	Format string // raw or qcow2, always said
	Serial string // "disk-N" when empty, at most 20 letters, digits, "-" and "_"
	// Size is given for a disk that StartGuest creates; 0 takes the file
	// that is there.
	Size uint64
	// Writes is how many blocks the guest writes per second, one after the
	// other, each flushed; a disk of the machine takes some hundreds. 0 is
	// for none, in which case the disk is only read at boot.
	Writes uint
	Block  uint32 // bytes per block, a power of two, 4096 when zero
	Slots  uint32 // blocks in the ring, 1024 when zero
	// Span is how much of the disk the ring spreads over, all when zero.
	// Give it for a disk that is resized.
	Span uint64
}

// Guest is a guest that was started in a lab. It is known by its UUID: after a
// migration it is the same Guest on another host.
type Guest struct {
	Name  string
	UUID  string
	Addr  string // its IPv4 address; it answers to ping
	Disks []Disk

	lab   *Lab
	watch *Watch
	xml   string
}

var serialGrammar = regexp.MustCompile(`^[A-Za-z0-9_-]{1,20}$`)

// StartGuest defines and starts a guest on the host and returns with its first
// heartbeat. It corresponds to virsh define and virsh start.
func (l *Lab) StartGuest(ctx context.Context, h *Host, opts *GuestOptions) (*Guest, error) {
	g, err := l.NewGuest(ctx, h, opts)
	if err != nil {
		return nil, err
	}
	if err := g.Define(ctx, h); err != nil {
		return nil, err
	}
	if err := g.Boot(ctx, h); err != nil {
		return nil, err
	}
	return g, nil
}

// NewGuest makes up a guest and creates its disks on the host, and leaves it to
// the caller to have [Guest.XML] defined and started.
func (l *Lab) NewGuest(ctx context.Context, h *Host, opts *GuestOptions) (*Guest, error) {
	if opts == nil {
		opts = new(GuestOptions)
	}
	o := *opts
	image, err := l.guestImage(ctx)
	if err != nil {
		return nil, err
	}
	if o.UUID == "" {
		o.UUID = newUUID()
	}
	id, err := parseUUID(o.UUID)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	number := len(l.guests) + 1
	g := &Guest{lab: l, UUID: o.UUID, Addr: fmt.Sprintf("10.77.1.%d", number), watch: l.wire.watch(id)}
	l.guests = append(l.guests, g)
	l.mu.Unlock()
	if number > 250 {
		return nil, errors.New("lab: more than 250 guests in one lab")
	}
	if o.Name == "" {
		o.Name = fmt.Sprintf("guest-%d", number)
	}
	g.Name = o.Name
	o.Memory, o.VCPUs = orDefault(o.Memory, 128), orDefault(o.VCPUs, 1)
	if o.Region == 0 {
		o.Region = max(16<<20, min(o.Dirty, uint64(o.Memory)<<20/3))
	}
	o.Disks = append([]Disk(nil), o.Disks...)
	for i := range o.Disks {
		if err := completeDisk(ctx, h, &o.Disks[i], i); err != nil {
			return nil, fmt.Errorf("lab: %s: disk %d: %w", g.Name, i, err)
		}
	}
	g.Disks = o.Disks
	if len(o.Tools) > 0 {
		if image, err = image.withTools(ctx, h, o.Name, o.Tools); err != nil {
			return nil, fmt.Errorf("lab: %s: tools: %w", o.Name, err)
		}
	}
	g.xml, err = domainXML(&domainParams{
		GuestOptions: o, Image: image, Direct: h.directIO(), Addr: g.Addr,
		MAC: fmt.Sprintf("52:54:00:77:01:%02x", number),
	})
	return g, err
}

// XML is the guest's libvirt domain XML.
func (g *Guest) XML() string { return g.xml }

// Define defines the guest on the host without starting it.
func (g *Guest) Define(ctx context.Context, h *Host) error {
	_, err := h.virshInput(ctx, g.xml, "define", "/dev/stdin")
	return err
}

// Boot starts the guest where it is defined, and returns with its first
// heartbeat.
func (g *Guest) Boot(ctx context.Context, h *Host) error {
	before, _ := g.watch.Last()
	if _, err := h.Virsh(ctx, "start", g.UUID); err != nil {
		return fmt.Errorf("%w\n%s", err, h.logTail(10))
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := g.watch.Until(ctx, func(a Arrival) bool { return a.Instance != before.Instance })
	if err != nil {
		return fmt.Errorf("lab: %s boots on %s: %w\n%s", g.Name, h.Name(), err, h.logTail(15))
	}
	return nil
}

// Watch is the guest's observer, which sees from the guest's start on.
func (g *Guest) Watch() *Watch { return g.watch }

func completeDisk(ctx context.Context, h *Host, d *Disk, i int) error {
	if d.Path == "" || d.Format != "raw" && d.Format != "qcow2" {
		return fmt.Errorf("path %q, format %q: want a path, and raw or qcow2", d.Path, d.Format)
	}
	if !filepath.IsAbs(d.Path) {
		d.Path = h.ImagePath(d.Path)
	}
	if d.Serial == "" {
		d.Serial = fmt.Sprintf("disk-%d", i)
	}
	if !serialGrammar.MatchString(d.Serial) {
		return fmt.Errorf("serial %q: want 1 to 20 letters, digits, - and _", d.Serial)
	}
	d.Block, d.Slots = orDefault(d.Block, record.MinBlock), orDefault(d.Slots, 1024)
	if d.Size == 0 {
		return nil
	}
	return h.CreateImage(ctx, d.Path, d.Format, d.Size)
}

// CreateImage creates a sparse image on the host, which need not be powered on.
// It corresponds to qemu-img create, and refuses to overwrite.
func (h *Host) CreateImage(ctx context.Context, path, format string, size uint64) error {
	outside := h.OutsidePath(path)
	f, err := os.OpenFile(outside, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("lab: create image: %w", err)
	}
	defer f.Close()
	if format == "raw" {
		if err := f.Truncate(int64(size)); err != nil {
			return fmt.Errorf("lab: create image: %w", err)
		}
		return nil
	}
	return runTool(ctx, "", "qemu-img", "create", "-q", "-f", format, outside, fmt.Sprint(size))
}

// directIO says whether the host's disks can do without the page cache. A
// migration without shared storage trusts only such disks.
func (h *Host) directIO() bool {
	name := filepath.Join(h.Dir(), ".direct")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_DIRECT, 0o600)
	if err != nil {
		return false
	}
	f.Close()
	return os.Remove(name) == nil
}

func (l *Lab) guestImage(ctx context.Context) (*guestImage, error) {
	l.mu.Lock()
	image := l.image
	l.mu.Unlock()
	if image != nil {
		return image, nil
	}
	image, err := openImage(ctx)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.image = image
	l.mu.Unlock()
	return image, nil
}

func orDefault[T int | uint32](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

func newUUID() string {
	var id [16]byte
	rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

func parseUUID(s string) (id [16]byte, err error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || copy(id[:], raw) != 16 || len(raw) != 16 {
		return id, fmt.Errorf("lab: %q is not a UUID", s)
	}
	return id, nil
}
