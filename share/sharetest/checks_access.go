package sharetest

import (
	"slices"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

var accessChecks = []shareCheck{
	{"AccessIsASet", func(e *env) {
		v := e.create("a")
		has := func(set ...share.Access) {
			e.Helper()
			require.Equal(e, share.SortAccess(set), e.stat(e.s, "a").Access)
			require.Equal(e, share.SortAccess(set), e.stat(e.open(), "a").Access, "another handle")
		}
		publish := func(set ...share.Access) []share.Source {
			e.Helper()
			sources, err := e.s.Publish(e.ctx, "a", set)
			require.NoError(e, err)
			require.Len(e, sources, len(set), "one source for each access")
			for i, src := range sources {
				require.NoError(e, src.Check())
				require.Equal(e, v.ID, src.VolumeID)
				require.Equal(e, set[i].Mode == share.ReadOnly, src.ReadOnly, "the mode of source %d, in the order given", i)
			}
			has(set...)
			return sources
		}
		has()
		publish()
		ro, rw := e.access(0, share.ReadOnly), e.access(0, share.ReadWrite)
		publish(ro)
		publish(rw) // the same client in another mode
		publish(ro)
		publish()
		if len(e.h.Clients) > 1 {
			other := e.access(1, share.ReadWrite)
			publish(ro, other)
			publish(other, ro) // the same set, in another order
			publish(other)     // takes the first one's away
			publish(ro)        // replaces
			publish(rw, e.access(1, share.ReadOnly))
		}
		publish()
	}},

	{"AccessRefused", func(e *env) {
		e.create("a")
		set := []share.Access{e.access(0, share.ReadWrite)}
		_, err := e.s.Publish(e.ctx, "a", set)
		require.NoError(e, err)
		unknown := share.Client{Kind: "carrier-pigeon", Name: "x"}
		foreign := []share.Client{
			{Kind: share.ByAddress, Name: "192.0.2.1"}, {Kind: share.ByHostName, Name: "h.example"},
			{Kind: share.ByIQN, Name: "iqn.2026-01.example:x"}, {Kind: share.ByUser, Name: "u"},
			{Kind: share.ByCertificate, Name: "c.example"}, share.LocalHost(),
		}
		bad := map[string][]share.Access{
			"an unknown kind":   {{Client: unknown}},
			"no client":         {{}},
			"a client twice":    {e.access(0, share.ReadOnly), e.access(0, share.ReadWrite)},
			"the same twice":    {e.access(0, share.ReadOnly), e.access(0, share.ReadOnly)},
			"a mode":            {{Client: e.h.Clients[0], Mode: 9}},
			"a squash":          {{Client: e.h.Clients[0], Squash: 9}},
			"good and bad":      {e.access(0, share.ReadOnly), {Client: unknown}},
			"a malformed name":  {{Client: share.Client{Kind: share.ByAddress, Name: "* (rw)"}}},
			"a wildcard prefix": {{Client: share.Client{Kind: share.ByAddress, Name: "0.0.0.0/0"}}},
		}
		if !slices.Contains(e.info.Clients, share.ByWorld) {
			bad["everyone"] = []share.Access{{Client: share.Everyone()}}
		}
		for _, c := range foreign {
			if !slices.Contains(e.info.Clients, c.Kind) {
				bad["a client of kind "+string(c.Kind)] = []share.Access{{Client: c}}
			}
		}
		for what, set := range bad {
			sources, err := e.s.Publish(e.ctx, "a", set)
			e.is(err, share.ErrInvalid, what)
			require.Empty(e, sources, what)
		}
		require.Equal(e, share.SortAccess(set), e.stat(e.s, "a").Access, "what was refused had an effect")
	}},

	{"AccessIsEnforced", func(e *env) {
		e.needKind(share.Disk)
		if e.st.OpenSource == nil {
			e.Skip("the harness cannot open sources")
		}
		e.createDisk("a")
		publish := func(set ...share.Access) []share.Source {
			e.Helper()
			sources, err := e.s.Publish(e.ctx, "a", set)
			require.NoError(e, err)
			return sources
		}
		page := make([]byte, 4096)
		pattern(page, 0, 7)

		rw := publish(e.access(0, share.ReadWrite))[0]
		d, err := e.st.OpenSource(e, rw)
		require.NoError(e, err)
		require.Equal(e, int64(e.h.Size), d.Size())
		require.NoError(e, d.WriteAt(e.ctx, page, 0))
		require.NoError(e, d.Flush(e.ctx))
		require.NoError(e, d.Close())

		ro := publish(e.access(0, share.ReadOnly))[0]
		d, err = e.st.OpenSource(e, ro)
		require.NoError(e, err)
		require.NoError(e, hasPattern(e.ctx, d, 0, 4096, 7))
		require.Error(e, d.WriteAt(e.ctx, make([]byte, 4096), 0), "written through a source that is read-only")
		require.NoError(e, hasPattern(e.ctx, d, 0, 4096, 7))
		require.NoError(e, d.Close())

		if d, err = e.st.OpenSource(e, rw); err == nil { // an old source, of a right that was taken away
			require.Error(e, d.WriteAt(e.ctx, make([]byte, 4096), 0), "written by a right that was taken away")
			require.NoError(e, d.Close())
		}
		publish()
		if d, err = e.st.OpenSource(e, ro); err == nil {
			_ = d.Close()
			e.Fatal("a volume that was taken back can be opened")
		}
	}},
}
