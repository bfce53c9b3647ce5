package nbd

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/vmferry/vmferry/share"
)

// DefaultPort is the TCP port that IANA gave to NBD.
const DefaultPort = 10809

// URI is the address of an export, as in the NBD project's doc/uri.md:
//
//	nbd://host:port/export              TCP
//	nbds://host:port/export             TCP with TLS
//	nbd+unix:///export?socket=/path     unix socket
//	nbds+unix:///export?socket=/path    unix socket with TLS
//
// Of the query parameters socket, tls-hostname, tls-type=x509 and
// tls-verify-peer=1 are accepted. A URI holds no secret: user names,
// passwords and tls-verify-peer=0 are refused.
type URI struct {
	Network     string // "tcp" or "unix"
	Address     string // host:port, or the socket's path
	Export      string // "" is the server's default export
	TLS         bool   // the scheme was nbds or nbds+unix
	TLSHostname string // the name to verify, where it is not the host's
}

// ParseURI parses an NBD URI. Errors wrap [share.ErrInvalid] and do not
// repeat the URI.
func ParseURI(s string) (*URI, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, uriError("it does not parse")
	}
	out := &URI{}
	switch u.Scheme {
	case "nbd":
		out.Network = "tcp"
	case "nbds":
		out.Network, out.TLS = "tcp", true
	case "nbd+unix":
		out.Network = "unix"
	case "nbds+unix":
		out.Network, out.TLS = "unix", true
	default:
		return nil, uriError("its scheme is not nbd, nbds, nbd+unix or nbds+unix")
	}
	if u.Opaque != "" || u.Fragment != "" {
		return nil, uriError("it is not of the form scheme://host/export")
	}
	if u.User != nil {
		return nil, uriError("it has user information; certificates go into the TLS options")
	}
	out.Export = strings.TrimPrefix(u.Path, "/")
	if err := checkString(out.Export); err != nil {
		return nil, err
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, uriError("its query does not parse")
	}
	for key, values := range query {
		if len(values) != 1 {
			return nil, uriError("parameter %s is given more than once", quote(key))
		}
		v := values[0]
		switch key {
		case "socket":
			if out.Network != "unix" {
				return nil, uriError("socket is for nbd+unix and nbds+unix only")
			}
			out.Address = v
		case "tls-hostname":
			out.TLSHostname = v
		case "tls-type":
			if v != "x509" {
				return nil, uriError("of the TLS types only x509 is supported")
			}
		case "tls-verify-peer":
			if v != "1" {
				return nil, uriError("the peer is always verified; leave tls-verify-peer out")
			}
		default:
			return nil, uriError("parameter %s is unknown", quote(key))
		}
	}
	if out.Network == "unix" {
		return out, out.unix(u)
	}
	return out, out.tcp(u)
}

func (u *URI) unix(from *url.URL) error {
	if from.Host != "" {
		return uriError("a unix socket has no host; write nbd+unix:///export?socket=/path")
	}
	if u.Address == "" {
		return uriError("the parameter socket is missing")
	}
	if strings.IndexByte(u.Address[1:], 0) >= 0 {
		return uriError("the socket's path has a NUL in it")
	}
	return nil
}

func (u *URI) tcp(from *url.URL) error {
	host, port := from.Hostname(), from.Port()
	if host == "" {
		return uriError("the host is missing")
	}
	if _, err := netip.ParseAddr(host); err != nil && !isName(host) {
		return uriError("the host is neither a name nor an address")
	}
	if port == "" {
		port = strconv.Itoa(DefaultPort)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return uriError("the port is not a number from 1 to 65535")
	}
	u.Address = net.JoinHostPort(host, port)
	return nil
}

// isName accepts what is in host names: letters, digits, dots and dashes, and
// the underscore that some have.
func isName(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// String writes the URI so that [ParseURI] reads the same back.
func (u *URI) String() string {
	out := url.URL{Scheme: "nbd", Path: "/" + u.Export}
	if u.TLS {
		out.Scheme = "nbds"
	}
	query := url.Values{}
	if u.Network == "unix" {
		out.Scheme += "+unix"
		query.Set("socket", u.Address)
	} else {
		out.Host = u.Address
	}
	if u.TLSHostname != "" {
		query.Set("tls-hostname", u.TLSHostname)
	}
	out.RawQuery = query.Encode()
	s := out.String()
	if u.Network == "unix" {
		// net/url writes an empty host as nothing at all.
		s = out.Scheme + "://" + strings.TrimPrefix(strings.TrimPrefix(s, out.Scheme+":"), "//")
	}
	return s
}

func uriError(format string, args ...any) error {
	return fmt.Errorf("nbd: URI refused: %s: %w", fmt.Sprintf(format, args...), share.ErrInvalid)
}
