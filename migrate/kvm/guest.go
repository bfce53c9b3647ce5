package kvm

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/vmferry/vmferry/share"
	"libvirt.org/go/libvirt"
)

// Guest names a guest of a host. It holds nothing; every call looks the guest
// up by its UUID.
type Guest struct {
	host *Host
	name string
	uuid string
}

var uuidGrammar = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// Guest finds a guest, running or not, by its UUID or else its name. There
// being none is [share.ErrNotExist]. It corresponds to virDomainLookupByUUID
// and virDomainLookupByName.
func (h *Host) Guest(ctx context.Context, nameOrUUID string) (*Guest, error) {
	if nameOrUUID == "" || strings.ContainsRune(nameOrUUID, 0) {
		return nil, share.WrapError("find", backend, nameOrUUID, fmt.Errorf("%w: a guest has a name or a UUID", share.ErrInvalid))
	}
	g, err := read(ctx, h, "look it up on "+h.String(), func(c *libvirt.Connect) (*Guest, error) {
		var d *libvirt.Domain
		err := error(libvirt.Error{Code: libvirt.ERR_NO_DOMAIN})
		if uuidGrammar.MatchString(nameOrUUID) {
			d, err = c.LookupDomainByUUIDString(nameOrUUID)
		}
		if isNoDomain(err) {
			d, err = c.LookupDomainByName(nameOrUUID)
		}
		if err != nil {
			return nil, err
		}
		defer d.Free()
		g := &Guest{host: h}
		if g.name, err = d.GetName(); err != nil {
			return nil, err
		}
		g.uuid, err = d.GetUUIDString()
		return g, err
	}, nil)
	return g, share.WrapError("find", backend, nameOrUUID, err)
}

// Name is the guest's name when it was looked up.
func (g *Guest) Name() string { return g.name }

// UUID is the guest's identity, which a move keeps.
func (g *Guest) UUID() string { return g.uuid }

// Host is where the guest was looked up.
func (g *Guest) Host() *Host { return g.host }

// Native is libvirt's own handle. The caller frees it.
func (g *Guest) Native(ctx context.Context) (*libvirt.Domain, error) {
	d, err := read(ctx, g.host, "look it up", func(c *libvirt.Connect) (*libvirt.Domain, error) {
		return c.LookupDomainByUUIDString(g.uuid)
	}, func(d *libvirt.Domain) { _ = d.Free() })
	return d, share.WrapError("find", backend, g.name, err)
}

func isNoDomain(err error) bool {
	le, ok := err.(libvirt.Error)
	return ok && le.Code == libvirt.ERR_NO_DOMAIN
}
