// Package domain advises on a guest's definition: it takes libvirt's domain XML
// and gives back a better one, with a diff and a reason for each line of it.
//
// It only reads and writes text. What comes out is for the guest's next start;
// tuning/kvm keeps it with libvirt, and a live disk's cache mode is never
// changed.
package domain

import (
	"fmt"
	"slices"

	"libvirt.org/go/libvirtxml"

	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/tuning"
)

// Options say what the guest is for, and what may be changed. The zero value is
// one of many guests, with what its operating system cannot notice.
type Options struct {
	Class tuning.Class // Mixed when zero
	// Devices allows to give the guest other devices: virtio in place of
	// emulated ones. The guest needs their drivers, and finds a disk under
	// another name; without this it is only a note.
	Devices bool
	// HugePages says that the host has enough of them free for the guest.
	HugePages bool
	// Node is the NUMA node, counted from 0, that the guest's memory shall be
	// on; nil leaves it to the host.
	Node *int
}

// Advice is a better definition, and why it is better.
type Advice struct {
	XML     string   // the definition with all changes; libvirt's form of it
	Changes []Change // what was changed, in order
	Notes   []Change // what would be better, and was not allowed
	Diff    []Line   // from the definition as it was, in libvirt's form, to XML
}

// Change is one change.
type Change struct {
	Knob     string          `json:"knob"` // an ID of [tuning.Knobs]
	Where    string          `json:"where"`
	From     string          `json:"from"`
	To       string          `json:"to"`
	Reason   string          `json:"reason"`
	Source   string          `json:"source"`
	Risk     string          `json:"risk"`
	Severity tuning.Severity `json:"severity"`
}

const maxDefinition = 1 << 20

// Advise makes a definition better for a class of work. A text that is not a
// domain is [share.ErrInvalid]; one with something in it that would be lost on
// the way is errors.ErrUnsupported and names it.
func Advise(definition string, opts *Options) (*Advice, error) {
	o := Options{}
	if opts != nil {
		o = *opts
	}
	if o.Class == 0 {
		o.Class = tuning.Mixed
	}
	if _, err := o.Class.MarshalText(); err != nil {
		return nil, err
	}
	if o.Node != nil && (*o.Node < 0 || *o.Node > 1023) {
		return nil, fmt.Errorf("NUMA node %d %w", *o.Node, share.ErrInvalid)
	}
	if len(definition) > maxDefinition {
		return nil, fmt.Errorf("definition of %v %w", share.Bytes(len(definition)), share.ErrInvalid)
	}
	a := &adviser{o: o, knobs: tuning.Knobs()}
	if err := a.dom.Unmarshal(definition); err != nil {
		return nil, fmt.Errorf("domain XML %w: %w", share.ErrInvalid, err)
	}
	text, err := a.dom.Marshal()
	if err != nil {
		return nil, fmt.Errorf("domain XML %w: %w", share.ErrInvalid, err)
	}
	if err := nothingLost(definition, text); err != nil {
		return nil, err
	}
	a.text = newText(text)
	a.advise()
	if a.err != nil {
		return nil, a.err
	}
	return &Advice{XML: a.text.String(), Changes: a.changes, Notes: a.notes, Diff: a.text.diff()}, nil
}

// adviser goes through a definition, change by change.
type adviser struct {
	o       Options
	knobs   []tuning.Knob
	dom     libvirtxml.Domain
	text    *text
	changes []Change
	notes   []Change
	err     error
}

// change makes a change and puts its reason to the lines that it touches. Where
// it is not allowed, it is noted instead.
func (a *adviser) change(knob, where, from, to, reason string, allowed bool, do func()) {
	if a.err != nil || from == to {
		return
	}
	k, _ := tuning.FindKnob(a.knobs, "guest."+knob)
	if reason == "" {
		reason = k.Why
	}
	c := Change{Knob: k.ID, Where: where, From: from, To: to, Reason: reason, Source: k.Source, Risk: k.Risk, Severity: k.Severity}
	if from == "unsafe" {
		c.Severity = tuning.Harm
		c.Reason = "unsafe throws flushes away: a crash of the host destroys the guest's file systems"
	}
	if !allowed {
		a.notes = append(a.notes, c)
		return
	}
	do()
	now, err := a.dom.Marshal()
	if err != nil {
		a.err = fmt.Errorf("%s: %w", knob, err)
		return
	}
	a.text.become(now, c.Reason)
	a.changes = append(a.changes, c)
}

func (a *adviser) is(classes ...tuning.Class) bool { return slices.Contains(classes, a.o.Class) }

func (a *adviser) advise() {
	if a.dom.Devices != nil {
		a.disks()
		for i := range a.dom.Devices.Interfaces {
			a.network(&a.dom.Devices.Interfaces[i], i)
		}
	}
	a.memory()
}

func (a *adviser) vcpus() uint {
	if a.dom.VCPU == nil {
		return 1
	}
	return max(1, a.dom.VCPU.Value)
}
