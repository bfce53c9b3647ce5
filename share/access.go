package share

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Access gives one client a volume in one mode. Its zero mode and squash are
// the closed ones: read-only, root squashed.
type Access struct {
	Client Client `json:"client"`
	Mode   Mode   `json:"mode"`
	// Squash says who the client's root is on a tree; disks ignore it.
	Squash Squash `json:"squash,omitempty"`
	// Credential is what the client proves itself with, where the backend
	// takes one from the caller: CHAP, SMB. It is never stored in a Volume.
	Credential *Credential `json:"-"`
}

// Credential is a user name and a secret, and for mutual authentication the
// name and secret with which the server proves itself.
type Credential struct {
	User, ServerUser     string
	Secret, ServerSecret Secret
}

// Mode says what a client may do. The zero value is read-only.
type Mode uint8

const (
	ReadOnly Mode = iota
	ReadWrite
)

// String is "ro" or "rw".
func (m Mode) String() string {
	switch m {
	case ReadOnly:
		return "ro"
	case ReadWrite:
		return "rw"
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// MarshalText is String of a mode that there is.
func (m Mode) MarshalText() ([]byte, error) {
	if m > ReadWrite {
		return nil, fmt.Errorf("%w: mode %d", ErrInvalid, uint8(m))
	}
	return []byte(m.String()), nil
}

// UnmarshalText accepts ro and rw.
func (m *Mode) UnmarshalText(b []byte) error {
	switch string(b) {
	case "ro":
		*m = ReadOnly
	case "rw":
		*m = ReadWrite
	default:
		return fmt.Errorf("%w: mode %s; use ro or rw", ErrInvalid, quote(string(b)))
	}
	return nil
}

// Squash maps a client's users to the server's. The zero value maps root to
// nobody.
type Squash uint8

const (
	RootSquash Squash = iota
	NoSquash          // root is root: for a guest's own root file system
	AllSquash         // everyone is nobody
)

var squashes = []string{"root_squash", "no_root_squash", "all_squash"}

// String is the name in exports(5): root_squash, no_root_squash or all_squash.
func (s Squash) String() string {
	if int(s) < len(squashes) {
		return squashes[s]
	}
	return fmt.Sprintf("Squash(%d)", uint8(s))
}

// MarshalText is String of a squash that there is.
func (s Squash) MarshalText() ([]byte, error) {
	if s > AllSquash {
		return nil, fmt.Errorf("%w: squash %d", ErrInvalid, uint8(s))
	}
	return []byte(s.String()), nil
}

// UnmarshalText accepts what MarshalText returns.
func (s *Squash) UnmarshalText(b []byte) error {
	i := slices.Index(squashes, string(b))
	if i < 0 {
		return fmt.Errorf("%w: squash %s; use one of %v", ErrInvalid, quote(string(b)), squashes)
	}
	*s = Squash(i)
	return nil
}

// ClientKind says by what a client is known.
type ClientKind string

const (
	ByAddress     ClientKind = "address"     // an IP address or prefix
	ByHostName    ClientKind = "host"        // a DNS name, resolved by the server
	ByIQN         ClientKind = "iqn"         // an iSCSI initiator
	ByUser        ClientKind = "user"        // a user of the backend: cephx, SMB
	ByCertificate ClientKind = "certificate" // a DNS name in a verified TLS client certificate
	ByLocal       ClientKind = "local"       // programs on this host
	ByWorld       ClientKind = "world"       // everyone who can reach the server
)

// Client is someone who may be given access. One client has one name, so that
// clients can be compared: addresses and prefixes as net/netip writes them,
// DNS names in lower case. Its text is "kind:name", for example
// "address:10.0.0.0/8".
type Client struct {
	Kind ClientKind
	Name string // empty for local and world
}

// Address is the client with that IP address or those of a prefix in CIDR
// notation.
func Address(a string) (Client, error) { return newClient(ByAddress, a) }

// HostName is the client with that DNS name.
func HostName(name string) (Client, error) { return newClient(ByHostName, name) }

// User is the client that authenticates as that user of the backend.
func User(name string) (Client, error) { return newClient(ByUser, name) }

// Initiator is the client with that iSCSI name (RFC 3720: iqn., eui., naa.).
func Initiator(iqn string) (Client, error) { return newClient(ByIQN, iqn) }

// Certificate is the client whose verified TLS certificate has that DNS name.
func Certificate(name string) (Client, error) { return newClient(ByCertificate, name) }

// LocalHost is any program on this host that the operating system lets in.
func LocalHost() Client { return Client{Kind: ByLocal} }

// Everyone is everyone who can reach the server. Shares refuse it unless they
// were opened with their AllowWorld option.
func Everyone() Client { return Client{Kind: ByWorld} }

func newClient(kind ClientKind, name string) (Client, error) {
	switch kind {
	case ByAddress:
		if p, err := netip.ParsePrefix(name); err == nil {
			name = prefixName(p)
		} else if a, err := netip.ParseAddr(name); err == nil {
			name = a.Unmap().String()
		}
	case ByHostName, ByCertificate, ByIQN:
		name = lower(name)
	}
	c := Client{Kind: kind, Name: name}
	return c, c.Check()
}

// lower is strings.ToLower for ASCII; the rest is left for Check to refuse.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// prefixName is the one name of a prefix: masked, IPv4 as such, and a prefix of
// one address as that address.
func prefixName(p netip.Prefix) string {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	p = p.Masked()
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

var (
	hostGrammar = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	userGrammar = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)
	iqnGrammar  = regexp.MustCompile(`^(iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[a-z0-9.:-]+)?|eui\.[0-9a-f]{16}|naa\.([0-9a-f]{16}|[0-9a-f]{32}))$`)
)

// isHostName reports whether s is a DNS name in lower case that nobody takes
// for an address: the last label has a letter.
func isHostName(s string) bool {
	last := s[strings.LastIndexByte(s, '.')+1:]
	return len(s) <= 253 && hostGrammar.MatchString(s) && strings.Trim(last, "0123456789") != ""
}

// checkAddress says what is wrong with the name of an address client, or "".
func checkAddress(name string) string {
	if p, err := netip.ParsePrefix(name); err == nil {
		switch {
		case p.Bits() == 0, p.Addr().Is4In6() && p.Bits() <= 96:
			return "a prefix that is not the whole world; use Everyone to mean that"
		case p.Masked() != p:
			return "a network without host bits: " + p.Masked().String()
		case prefixName(p) != name:
			return "its usual form: " + prefixName(p)
		}
		return ""
	}
	a, err := netip.ParseAddr(name)
	switch {
	case err != nil, a.Zone() != "":
		return "an IP address or prefix"
	case a.IsUnspecified(), a.IsMulticast():
		return "the address of one host"
	case a.Unmap().String() != name:
		return "its usual form: " + a.Unmap().String()
	}
	return ""
}

// Check returns an error wrapping [ErrInvalid] if the name does not fit the
// grammar of its kind.
func (c Client) Check() error {
	ok, want := false, ""
	switch c.Kind {
	case ByAddress:
		want = checkAddress(c.Name)
		ok = want == ""
	case ByHostName, ByCertificate:
		ok, want = isHostName(c.Name), "a DNS name in lower case, without wildcards"
	case ByIQN:
		ok, want = len(c.Name) <= 223 && iqnGrammar.MatchString(c.Name), "an iSCSI name in lower case: iqn.yyyy-mm.domain[:name], eui. or naa."
	case ByUser:
		ok, want = userGrammar.MatchString(c.Name), "letters, digits and _.-"
	case ByLocal, ByWorld:
		ok, want = c.Name == "", "no name"
	default:
		return fmt.Errorf("%w: client kind %s", ErrInvalid, quote(string(c.Kind)))
	}
	if !ok {
		return fmt.Errorf("%w: %s client %s: need %s", ErrInvalid, c.Kind, quote(c.Name), want)
	}
	return nil
}

// String is "kind:name", or the kind alone.
func (c Client) String() string {
	if c.Name == "" {
		return string(c.Kind)
	}
	return string(c.Kind) + ":" + c.Name
}

// MarshalText is String of a client that passes Check.
func (c Client) MarshalText() ([]byte, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	return []byte(c.String()), nil
}

// UnmarshalText accepts what MarshalText returns.
func (c *Client) UnmarshalText(b []byte) error {
	kind, name, colon := strings.Cut(string(b), ":")
	got := Client{Kind: ClientKind(kind), Name: name}
	if err := got.Check(); err != nil {
		return err
	}
	if colon && name == "" {
		return fmt.Errorf("%w: client %s: need %s", ErrInvalid, quote(string(b)), kind)
	}
	*c = got
	return nil
}

// CheckAccess returns an error wrapping [ErrInvalid] if the set is not one that
// may be published: each client well formed, of a kind in info.Clients, and
// named once. Backends call it first.
func CheckAccess(info Info, access []Access) error {
	seen := make(map[Client]bool, len(access))
	for _, a := range access {
		if err := a.Client.Check(); err != nil {
			return err
		}
		switch {
		case a.Client.Kind == ByWorld && !slices.Contains(info.Clients, ByWorld):
			return fmt.Errorf("%w: access for everyone needs a share opened with AllowWorld", ErrInvalid)
		case !slices.Contains(info.Clients, a.Client.Kind):
			return fmt.Errorf("%w: %s knows no %s clients; it knows %v", ErrInvalid, info.Backend, a.Client.Kind, info.Clients)
		case seen[a.Client]:
			return fmt.Errorf("%w: client %s is named twice", ErrInvalid, a.Client)
		case a.Mode > ReadWrite:
			return fmt.Errorf("%w: mode %d for client %s", ErrInvalid, a.Mode, a.Client)
		case a.Squash > AllSquash:
			return fmt.Errorf("%w: squash %d for client %s", ErrInvalid, a.Squash, a.Client)
		}
		seen[a.Client] = true
	}
	return nil
}

// SortAccess returns the set as Volume.Access holds it: ordered by client,
// without credentials.
func SortAccess(access []Access) []Access {
	if len(access) == 0 {
		return nil
	}
	out := slices.Clone(access)
	for i := range out {
		out[i].Credential = nil
	}
	slices.SortFunc(out, func(a, b Access) int { return cmp.Compare(a.Client.String(), b.Client.String()) })
	return out
}
