package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vmferry/vmferry/internal/secure"
	"github.com/vmferry/vmferry/share"
)

// dialer makes connections to one server and brings each through the start of
// the handshake.
type dialer struct {
	uri  *URI
	opts ClientOptions
}

func newDialer(uri string, opts *ClientOptions) (*dialer, error) {
	u, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	d := &dialer{u, opts.withDefaults()}
	if d.opts.Export != "" && d.opts.Export != u.Export {
		return nil, fmt.Errorf("nbd: the options name export %s, the URI %s: %w", quote(d.opts.Export), quote(u.Export), share.ErrInvalid)
	}
	d.opts.Export = u.Export
	return d, nil
}

// dial connects and greets, with TLS if there is any.
func (d *dialer) dial(ctx context.Context) (*handshake, error) {
	within, cancel := context.WithTimeout(ctx, d.opts.HandshakeTimeout)
	defer cancel()
	conn, err := d.opts.DialContext(within, d.uri.Network, d.uri.Address)
	if err != nil {
		switch {
		case ctx.Err() != nil: // which not every dialer's error wraps
			err = errors.Join(ctx.Err(), err)
		case within.Err() != nil: // our own limit is not the caller's deadline
			err = fmt.Errorf("no connection within %v", d.opts.HandshakeTimeout)
		}
		return nil, fmt.Errorf("nbd: connect to %s: %w: %w", quote(d.uri.Address), share.ErrUnavailable, err)
	}
	name := d.uri.TLSHostname
	if name == "" && d.uri.Network == "tcp" {
		name, _, _ = net.SplitHostPort(d.uri.Address)
	}
	return greet(ctx, conn, d.opts, d.uri.TLS, name)
}

// greet takes conn, greets, and upgrades to TLS. conn is closed on failure.
func greet(ctx context.Context, conn net.Conn, o ClientOptions, wantTLS bool, name string) (h *handshake, err error) {
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	h = &handshake{conn: conn, raw: conn}
	_, under := conn.(*tls.Conn)
	var config *tls.Config
	switch {
	case under && (wantTLS || o.TLS != nil):
		return nil, fmt.Errorf("nbd: the connection is under TLS already; leave TLS out of the options: %w", share.ErrInvalid)
	case wantTLS || o.TLS != nil:
		if config, err = clientTLS(o.TLS, name); err != nil {
			return nil, err
		}
	case !under && !secure.OnThisMachine(conn.RemoteAddr()) && !o.InsecurePlaintext:
		return nil, fmt.Errorf("nbd: plaintext to %v is refused; use nbds:// or TLS in the options: %w", conn.RemoteAddr(), share.ErrDenied)
	}
	secure.WatchPeer(conn, o.PeerTimeout)
	err = guard(ctx, conn, o.HandshakeTimeout, func() error {
		if err := h.greet(); err != nil || config == nil {
			return err
		}
		return h.startTLS(ctx, config)
	})
	return h, err
}

// Dial connects to the export that an NBD URI names; see [URI] for its forms.
// It corresponds to nbdinfo URI, nbd-client(8) and QEMU's -blockdev nbd.
//
// TLS is used if the URI's scheme or opts.TLS demands it, and then nothing is
// sent before it is up. Without TLS only servers on unix sockets and loopback
// are spoken to, unless opts.InsecurePlaintext is set.
//
// Errors wrap [share.ErrUnavailable] if the server does not answer,
// [share.ErrNotExist] if the export or a wanted metadata context does not
// exist, [share.ErrDenied] if TLS or the server's policy forbids it,
// [share.ErrCorrupt] if the peer is not a sane NBD server.
func Dial(ctx context.Context, uri string, opts *ClientOptions) (*Client, error) {
	d, err := newDialer(uri, opts)
	if err != nil {
		return nil, err
	}
	h, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	all := []*handshake{h}
	if h.info.MultiConn {
		for len(all) < d.opts.Connections {
			next, err := d.enter(ctx)
			if err == nil && (next.info.Size != h.info.Size || next.flags != h.flags || next.structured != h.structured || next.info.BlockSizes != h.info.BlockSizes) {
				next.raw.Close()
				err = violation("a second connection shows another export than the first")
			}
			if err != nil {
				for _, h := range all {
					h.raw.Close()
				}
				return nil, err
			}
			all = append(all, next)
		}
	}
	return newClient(all, d.opts), nil
}

// NewClient makes a Client of one established connection, which it owns from
// then on, also when it fails. The export is opts.Export. The rules for
// plaintext and TLS are those of [Dial], applied to conn.RemoteAddr; a
// *tls.Conn is used as it is.
func NewClient(ctx context.Context, conn net.Conn, opts *ClientOptions) (*Client, error) {
	o := opts.withDefaults()
	h, err := greet(ctx, conn, o, false, "")
	if err == nil {
		err = h.transmit(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	return newClient([]*handshake{h}, o), nil
}

func (d *dialer) enter(ctx context.Context) (*handshake, error) {
	h, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	return h, h.transmit(ctx, d.opts)
}

// transmit goes on after greet, and closes the connection if it fails.
func (h *handshake) transmit(ctx context.Context, o ClientOptions) error {
	if err := checkString(o.Export); err != nil {
		h.raw.Close()
		return err
	}
	err := guard(ctx, h.raw, o.HandshakeTimeout, func() error { return h.enter(o.Export, o.MetaContexts) })
	if err != nil {
		h.raw.Close()
	}
	return err
}

// ExportInfo is what a server tells about an export.
type ExportInfo struct {
	Name        string // as asked for
	Canonical   string // the server's own name for it, if it told one
	Description string // text for people, if any
	Size        int64  // bytes
	ReadOnly    bool
	Rotational  bool
	MultiConn   bool // several connections see each other's flushed writes
	BlockSizes  share.BlockSizes
	Contexts    []string // metadata contexts, sorted; see Info and Client.Info
}

// List names the exports of the server at uri, in the server's order, with
// their descriptions; other fields are empty. The URI's export is ignored.
// It corresponds to NBD_OPT_LIST and nbdinfo --list. A server may forbid it:
// [share.ErrDenied].
func List(ctx context.Context, uri string, opts *ClientOptions) ([]ExportInfo, error) {
	d, err := newDialer(uri, opts)
	if err != nil {
		return nil, err
	}
	h, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer h.raw.Close()
	var all []ExportInfo
	err = guard(ctx, h.raw, d.opts.HandshakeTimeout, func() error {
		defer h.abort()
		return h.exchange(optList, "", nil, func(kind uint32, b []byte) error {
			f := newFields(b)
			name := f.str()
			if kind != repServer || !f.ok {
				return violation("the list of exports is malformed")
			}
			all = append(all, ExportInfo{Name: name, Description: printable(f.b)})
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Info asks about an export without opening it, and lists all its metadata
// contexts. It corresponds to NBD_OPT_INFO, NBD_OPT_LIST_META_CONTEXT and
// nbdinfo URI. A server that cannot tell without opening is asked by [Dial]
// and [Client.Info] instead; the error then wraps errors.ErrUnsupported.
func Info(ctx context.Context, uri string, opts *ClientOptions) (*ExportInfo, error) {
	d, err := newDialer(uri, opts)
	if err != nil {
		return nil, err
	}
	h, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer h.raw.Close()
	err = guard(ctx, h.raw, d.opts.HandshakeTimeout, func() error {
		defer h.abort()
		if err := h.structuredReplies(); err != nil {
			return err
		}
		if h.structured {
			found, err := h.metaContexts(optListMetaContext, d.uri.Export, nil)
			if err != nil && !errors.Is(err, errors.ErrUnsupported) {
				return err
			}
			h.contexts = found
		}
		return h.query(optInfo, d.uri.Export)
	})
	if err != nil {
		return nil, err
	}
	return h.export(), nil
}

// export is the information with the contexts negotiated.
func (h *handshake) export() *ExportInfo {
	info := h.info
	for name := range h.contexts {
		info.Contexts = append(info.Contexts, strings.Clone(name))
	}
	slices.Sort(info.Contexts)
	return &info
}
