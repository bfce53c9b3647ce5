package sharetest

import (
	"errors"
	"net/url"
	"slices"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

var infoChecks = []shareCheck{
	{"Info", func(e *env) {
		info := e.info
		require.NotEmpty(e, info.Backend)
		require.NotEmpty(e, info.Kinds)
		require.NotEmpty(e, info.Clients)
		require.Equal(e, slices.Contains(info.Kinds, share.Disk), len(info.Formats) > 0, "formats are of disks: %q", info.Formats)
		for _, k := range info.Kinds {
			require.Contains(e, []share.Kind{share.Disk, share.Tree}, k)
		}
		if info.URL != "" {
			u, err := url.Parse(info.URL)
			require.NoError(e, err)
			_, has := u.User.Password()
			require.False(e, has, "the URL holds a password")
		}
		require.NotEmpty(e, e.h.Clients, "the harness names no client")
		for _, c := range e.h.Clients {
			require.NoError(e, share.CheckAccess(info, []share.Access{{Client: c}}), "a client of the harness")
		}

		// What a caller does to it is the caller's.
		clear(info.Capabilities)
		for i := range info.Kinds {
			info.Kinds[i] = 0
		}
		for i := range info.Formats {
			info.Formats[i] = "spoilt"
		}
		for i := range info.Clients {
			info.Clients[i] = "spoilt"
		}
		e.info = e.s.Info()
		require.NotEqual(e, info.Kinds, e.info.Kinds, "Info hands out its own memory")
		require.NotEqual(e, info.Clients, e.info.Clients, "Info hands out its own memory")
		require.NotContains(e, e.info.Formats, share.Format("spoilt"), "Info hands out its own memory")
		require.NotEmpty(e, e.info.Capabilities, "Info hands out its own memory")

		other := e.open().Info()
		require.Equal(e, e.info.Identity, other.Identity, "two handles on one storage have two identities")
		require.Equal(e, e.info, other, "two handles of one kind differ")
	}},

	{"Capabilities", func(e *env) {
		require.NoError(e, share.CheckCapabilities(e.s))
		for _, c := range append(e.calls(), shareCalls()...) {
			if e.can(c) {
				continue
			}
			err := c.do(e.ctx, e.s, "v")
			e.is(err, errors.ErrUnsupported, c.name)
			require.ErrorContains(e, err, e.info.Capabilities.Can(c.cap).Reason, "%s: the reason is missing", c.name)
		}
	}},
}
