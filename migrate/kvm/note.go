package kvm

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"

	"github.com/vmferry/vmferry/share"
	"libvirt.org/go/libvirt"
)

// Namespace is the XML namespace of the note that a guest under way carries in
// its live metadata. It outlives this program and the hosts' daemons, goes to
// the destination with the guest, and is not part of a stored definition.
const Namespace = "https://github.com/vmferry/vmferry/move/1"

// note is what someone must know to bring a move to its end.
type note struct {
	XMLName     xml.Name `xml:"move"`
	ID          string   `xml:"id,attr"`
	Source      string   `xml:"source,attr"`      // the host's UUID
	Destination string   `xml:"destination,attr"` // likewise
	HandOver    HandOver `xml:"handover,attr"`
	Autostart   bool     `xml:"autostart,attr"`
	// Created are the destination's volumes that were made for the move, or
	// were about to be.
	Created []string `xml:"created"`
}

const noteKey = "vmferry"

func writeNote(ctx context.Context, h *Host, uuid string, n *note) error {
	text, err := xml.Marshal(n)
	if err != nil {
		return err
	}
	return changeGuest(ctx, h, uuid, "note the move in the guest's metadata", func(d *libvirt.Domain) error {
		return d.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, string(text), noteKey, Namespace, libvirt.DOMAIN_AFFECT_LIVE)
	})
}

func removeNote(ctx context.Context, h *Host, uuid string) error {
	return changeGuest(ctx, h, uuid, "remove the note from the guest's metadata", func(d *libvirt.Domain) error {
		if _, err := noteOf(d); errors.Is(err, share.ErrNotExist) {
			return nil
		}
		return d.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, "", noteKey, Namespace, libvirt.DOMAIN_AFFECT_LIVE)
	})
}

// arrived ends a move at the destination: what does not travel with a guest is
// set there, and the note goes last.
func arrived(ctx context.Context, h *Host, uuid string, n *note) error {
	if n.Autostart {
		err := changeGuest(ctx, h, uuid, "set autostart at the destination", func(d *libvirt.Domain) error { return d.SetAutostart(true) })
		if err != nil {
			return err
		}
	}
	return removeNote(ctx, h, uuid)
}

// noteOf is share.ErrNotExist where the guest carries none.
func noteOf(d *libvirt.Domain) (*note, error) {
	text, err := d.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, Namespace, libvirt.DOMAIN_AFFECT_LIVE)
	if errors.Is(err, libvirt.ERR_NO_DOMAIN_METADATA) || errors.Is(err, libvirt.ERR_OPERATION_INVALID) {
		return nil, fmt.Errorf("a note: %w", share.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	n := new(note)
	if err := xml.Unmarshal([]byte(text), n); err != nil {
		return nil, fmt.Errorf("%w: the note in the guest's metadata: %w", share.ErrInvalid, err)
	}
	for _, p := range n.Created {
		if err := share.CheckPath(p); err != nil {
			return nil, fmt.Errorf("the note in the guest's metadata: %w", err)
		}
	}
	return n, nil
}
