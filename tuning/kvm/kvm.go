// Package kvm is libvirt's side of package tuning: a guest's agent
// ([tuning.Agent]), the limits of its disks ([tuning.Disks]), and its
// definition, kept for the next start.
//
// It links libvirt (cgo); package tuning does not.
package kvm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/vmferry/vmferry/internal/virt"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/tuning"
)

// Domain is a guest of libvirt's. Its methods may be called concurrently; each
// ends by its context, also where libvirt does not answer.
type Domain struct {
	conn *libvirt.Connect
	name string // the name or UUID that it was asked for by
}

var (
	_ tuning.Agent = (*Domain)(nil)
	_ tuning.Disks = (*Domain)(nil)
)

// Open finds a guest by its UUID or name. The connection stays the caller's,
// and may be closed while the Domain is in use; the caller closes the Domain.
func Open(ctx context.Context, conn *libvirt.Connect, guest string) (*Domain, error) {
	own, err := virt.Hold(conn)
	if err != nil {
		return nil, err
	}
	d := &Domain{own, guest}
	if _, err := read(ctx, d, "find", func(dom *libvirt.Domain) (string, error) { return dom.GetName() }); err != nil {
		virt.Close(own)
		return nil, err
	}
	return d, nil
}

// Dial connects to uri first; the connection is closed with the Domain.
func Dial(ctx context.Context, uri, guest string) (*Domain, error) {
	conn, err := virt.Open(ctx, uri, 5*time.Second, 3)
	if err != nil {
		return nil, err
	}
	defer virt.Close(conn)
	return Open(ctx, conn, guest)
}

// Close gives the connection back.
func (d *Domain) Close() error {
	virt.Close(d.conn)
	return nil
}

// lookup is the domain, to be freed.
func (d *Domain) lookup() (*libvirt.Domain, error) {
	dom, err := d.conn.LookupDomainByUUIDString(d.name)
	if le := (libvirt.Error{}); errors.As(err, &le) && (le.Code == libvirt.ERR_INVALID_ARG || le.Code == libvirt.ERR_NO_DOMAIN) {
		return d.conn.LookupDomainByName(d.name)
	}
	return dom, err
}

func read[T any](ctx context.Context, d *Domain, what string, f func(dom *libvirt.Domain) (T, error)) (T, error) {
	return virt.Read(ctx, what+" guest "+d.name, with(d, f), nil)
}

func change[T any](ctx context.Context, d *Domain, what string, f func(dom *libvirt.Domain) (T, error)) (T, error) {
	return virt.Change(ctx, what+" guest "+d.name, with(d, f), nil)
}

func with[T any](d *Domain, f func(dom *libvirt.Domain) (T, error)) func() (T, error) {
	return func() (v T, err error) {
		dom, err := d.lookup()
		if err != nil {
			return v, err
		}
		defer dom.Free()
		return f(dom)
	}
}

// System is the guest behind its agent.
func (d *Domain) System() *tuning.Guest { return tuning.NewGuest(d.name, d) }

// agentTime is how long the agent may take for one command.
const agentTime = 20

// Command implements [tuning.Agent]. It corresponds to virDomainQemuAgentCommand.
func (d *Domain) Command(ctx context.Context, command []byte) ([]byte, error) {
	seconds := libvirt.DomainQemuAgentCommandTimeout(agentTime)
	if deadline, ok := ctx.Deadline(); ok {
		seconds = max(1, min(seconds, libvirt.DomainQemuAgentCommandTimeout(time.Until(deadline)/time.Second+1)))
	}
	out, err := change(ctx, d, "ask the agent of", func(dom *libvirt.Domain) (string, error) {
		return dom.QemuAgentCommand(string(command), seconds, 0)
	})
	return []byte(out), err
}

// Limit implements [tuning.Disks]. The disk is named by its target, "vda". It
// corresponds to virDomainGetBlockIoTune.
func (d *Domain) Limit(ctx context.Context, disk string) (tuning.DiskLimit, error) {
	return read(ctx, d, "read the limits of disk "+disk+" of", func(dom *libvirt.Domain) (l tuning.DiskLimit, err error) {
		p, err := dom.GetBlockIoTune(disk, libvirt.DOMAIN_AFFECT_LIVE)
		if err != nil {
			return l, err
		}
		l = tuning.DiskLimit{
			BytesPerSecond: share.Bytes(p.TotalBytesSec), ReadBytesPerSecond: share.Bytes(p.ReadBytesSec), WriteBytesPerSecond: share.Bytes(p.WriteBytesSec),
			IOPS: int64(p.TotalIopsSec), ReadIOPS: int64(p.ReadIopsSec), WriteIOPS: int64(p.WriteIopsSec),
			MaxBytesPerSecond: share.Bytes(p.TotalBytesSecMax), MaxIOPS: int64(p.TotalIopsSecMax), RequestSize: share.Bytes(p.SizeIopsSec),
		}
		if l.MaxBytesPerSecond > 0 {
			l.MaxLength = time.Duration(p.TotalBytesSecMaxLength) * time.Second
		} else if l.MaxIOPS > 0 {
			l.MaxLength = time.Duration(p.TotalIopsSecMaxLength) * time.Second
		}
		return l, nil
	})
}

// SetLimit implements [tuning.Disks]. It corresponds to virDomainSetBlockIoTune
// on the running guest; its definition stays as it is.
func (d *Domain) SetLimit(ctx context.Context, disk string, l tuning.DiskLimit) error {
	if err := l.Check(); err != nil {
		return err
	}
	p := &libvirt.DomainBlockIoTuneParameters{
		TotalBytesSecSet: true, TotalBytesSec: uint64(l.BytesPerSecond), ReadBytesSecSet: true, ReadBytesSec: uint64(l.ReadBytesPerSecond),
		WriteBytesSecSet: true, WriteBytesSec: uint64(l.WriteBytesPerSecond), TotalIopsSecSet: true, TotalIopsSec: uint64(l.IOPS),
		ReadIopsSecSet: true, ReadIopsSec: uint64(l.ReadIOPS), WriteIopsSecSet: true, WriteIopsSec: uint64(l.WriteIOPS),
		TotalBytesSecMaxSet: true, TotalBytesSecMax: uint64(l.MaxBytesPerSecond), TotalIopsSecMaxSet: true, TotalIopsSecMax: uint64(l.MaxIOPS),
		SizeIopsSecSet: true, SizeIopsSec: uint64(l.RequestSize),
	}
	seconds := uint64(max(1, l.MaxLength/time.Second))
	p.TotalBytesSecMaxLengthSet, p.TotalIopsSecMaxLengthSet = l.MaxBytesPerSecond > 0, l.MaxIOPS > 0
	p.TotalBytesSecMaxLength, p.TotalIopsSecMaxLength = seconds, seconds
	_, err := change(ctx, d, "limit disk "+disk+" of", func(dom *libvirt.Domain) (struct{}, error) {
		return struct{}{}, dom.SetBlockIoTune(disk, p, libvirt.DOMAIN_AFFECT_LIVE)
	})
	return err
}

// Count implements [tuning.Disks]. It corresponds to virDomainBlockStatsFlags.
func (d *Domain) Count(ctx context.Context, disk string) (tuning.DiskCount, error) {
	return read(ctx, d, "count the work of disk "+disk+" of", func(dom *libvirt.Domain) (c tuning.DiskCount, err error) {
		s, err := dom.BlockStatsFlags(disk, 0)
		if err != nil {
			return c, err
		}
		return tuning.DiskCount{Reads: s.RdReq, Writes: s.WrReq, ReadBytes: s.RdBytes, WriteBytes: s.WrBytes,
			ReadTime: time.Duration(s.RdTotalTimes), WriteTime: time.Duration(s.WrTotalTimes)}, nil
	})
}

// Definition is the guest's definition for its next start. It corresponds to
// virDomainGetXMLDesc with INACTIVE and SECURE: keep it as a secret is kept.
func (d *Domain) Definition(ctx context.Context) (string, error) {
	return read(ctx, d, "read the definition of", func(dom *libvirt.Domain) (string, error) {
		return dom.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE | libvirt.DOMAIN_XML_SECURE)
	})
}

// Define keeps a definition for the guest's next start, if the one that is there
// is still before, as Definition returned it; otherwise it is a
// [*share.MismatchError]. What libvirt made of it is returned: giving that as
// before, and the old one as after, goes back. A running guest is not touched.
// It corresponds to virDomainDefineXMLFlags with VALIDATE.
func (d *Domain) Define(ctx context.Context, before, after string) (string, error) {
	have, err := d.Definition(ctx)
	if err != nil {
		return "", err
	}
	if have != before {
		return "", fmt.Errorf("guest %s: %w", d.name, &share.MismatchError{Field: "definition", Have: "changed since", Want: "the one that was read"})
	}
	uuid := func(xml string) string {
		_, rest, _ := strings.Cut(xml, "<uuid>")
		id, _, _ := strings.Cut(rest, "</uuid>")
		return strings.TrimSpace(id)
	}
	if uuid(after) != uuid(before) {
		return "", fmt.Errorf("guest %s: definition of another guest: %w", d.name, share.ErrInvalid)
	}
	_, err = virt.Change(ctx, "define guest "+d.name, func() (struct{}, error) {
		dom, err := d.conn.DomainDefineXMLFlags(after, libvirt.DOMAIN_DEFINE_VALIDATE)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, dom.Free()
	}, nil)
	if err != nil {
		return "", err
	}
	return d.Definition(ctx)
}
