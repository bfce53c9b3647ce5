package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// netSwitch is the switch between the hosts: a namespace with a bridge, one
// port per host that is powered on, and the address that heartbeats go to.
//
// A cut is made on the bridge, by dropping frames that are forwarded between
// two ports, or from one port to everywhere. Taking the port down instead
// would show at the hosts as a lost carrier, and a firewall on the hosts as
// errors of their own calls; here they see what a partition is, silence. ARP
// passes, because on a routed network a partition would not show as
// "no route to host" either, and because silence is what software copes with
// worst.
type netSwitch struct {
	*netns
	mu   sync.Mutex
	cuts map[cut]bool
}

// cut is a pair of ports in order, or a port and nothing for all of them.
type cut struct{ a, b string }

const (
	bridgeMAC  = "02:77:00:00:00:fe"
	bridgeAddr = "10.77.0.254"
)

func newSwitch(ctx context.Context) (*netSwitch, error) {
	ns, err := newNetns()
	if err != nil {
		return nil, err
	}
	s := &netSwitch{netns: ns, cuts: map[cut]bool{}}
	// No snooping, no spanning tree: a port forwards from the first moment.
	err = s.run(ctx, "link set lo up\n"+
		"link add br0 address "+bridgeMAC+" type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n"+
		"link set br0 addrgenmode none\n"+
		"addr add "+bridgeAddr+"/16 dev br0\n"+
		"link set br0 up\n", "ip", "-batch", "-")
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// plug lays a cable from a port to the namespace of pid, where it is eth0.
func (s *netSwitch) plug(ctx context.Context, port, mac string, pid int) error {
	return s.run(ctx, fmt.Sprintf("link add %[1]s type veth peer name eth0 address %[2]s netns %[3]d\n"+
		"link set %[1]s addrgenmode none\n"+
		"link set %[1]s master br0\nlink set %[1]s up\n", port, mac, pid), "ip", "-batch", "-")
}

// unplug pulls the cable: whatever the other side sends after that is lost.
func (s *netSwitch) unplug(ctx context.Context, port string) error {
	return s.run(ctx, "", "ip", "link", "del", port)
}

func (s *netSwitch) set(ctx context.Context, c cut, on bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cuts[c] == on {
		return nil
	}
	if on {
		s.cuts[c] = true
	} else {
		delete(s.cuts, c)
	}
	// The whole table at once: both directions change in one moment.
	var b strings.Builder
	b.WriteString("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n")
	drop := func(chain, match string) { fmt.Fprintf(&b, "-A %s -p ! ARP %s -j DROP\n", chain, match) }
	for c := range s.cuts {
		if c.b == "" {
			drop("INPUT", "-i "+c.a)
			drop("OUTPUT", "-o "+c.a)
			drop("FORWARD", "-i "+c.a)
			drop("FORWARD", "-o "+c.a)
			continue
		}
		drop("FORWARD", "-i "+c.a+" -o "+c.b)
		drop("FORWARD", "-i "+c.b+" -o "+c.a)
	}
	if err := s.run(ctx, b.String(), "ebtables-nft-restore"); err != nil {
		if on {
			delete(s.cuts, c)
		} else {
			s.cuts[c] = true
		}
		return err
	}
	return nil
}

func cutOf(a, b *Host) cut {
	switch {
	case b == nil:
		return cut{a: a.port}
	case b.port < a.port:
		a, b = b, a
	}
	return cut{a.port, b.port}
}

// Cut loses every packet between hosts a and b and their guests from now on,
// ARP excepted; with b nil, every packet between a and anything else. Nothing
// tells the hosts: see the package comment. Watches go on seeing a cut host's
// heartbeats.
func (l *Lab) Cut(ctx context.Context, a, b *Host) error {
	if a == nil || a == b {
		return errors.New("lab: a cut needs two hosts, or one and nil")
	}
	return l.swtch.set(ctx, cutOf(a, b), true)
}

// Heal undoes the Cut with the same arguments.
func (l *Lab) Heal(ctx context.Context, a, b *Host) error {
	if a == nil {
		return errors.New("lab: Heal needs a host")
	}
	return l.swtch.set(ctx, cutOf(a, b), false)
}

// Shape limits what the host sends and what it receives to bitsPerSecond each,
// packets queueing for at most 200 ms; 0 takes the limit off. It corresponds to
// tc's tbf at both ends of the host's cable, and ends with PowerOff.
func (h *Host) Shape(ctx context.Context, bitsPerSecond uint64) error {
	m, err := h.powered()
	if err != nil {
		return err
	}
	args := func(dev string) []string {
		if bitsPerSecond == 0 {
			return []string{"qdisc", "del", "dev", dev, "root"}
		}
		// A burst of 10 ms, at least a whole segment of TCP offload.
		burst := max(bitsPerSecond/8/100, 65536+2048)
		return []string{"qdisc", "replace", "dev", dev, "root", "tbf",
			"rate", fmt.Sprintf("%dbit", bitsPerSecond), "burst", fmt.Sprintf("%db", burst), "latency", "200ms"}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if bitsPerSecond == 0 && !h.shaped {
		return nil
	}
	if err := h.lab.swtch.run(ctx, "", "tc", args(h.port)...); err != nil {
		return err
	}
	if err := m.net.run(ctx, "", "tc", args("eth0")...); err != nil {
		return err
	}
	h.shaped = bitsPerSecond != 0
	return nil
}
