package share_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

func TestClients(t *testing.T) {
	iqn223 := "iqn.2026-01.org.example:" + strings.Repeat("a", 223-24)
	for _, c := range []struct {
		make func(string) (share.Client, error)
		name string
		want string // "" is refused
	}{
		{share.Address, "10.0.0.1", "address:10.0.0.1"},
		{share.Address, "10.1.2.3/8", "address:10.0.0.0/8"},
		{share.Address, "10.0.0.1/32", "address:10.0.0.1"},
		{share.Address, "::ffff:10.0.0.1", "address:10.0.0.1"},
		{share.Address, "::ffff:10.0.0.0/104", "address:10.0.0.0/8"},
		{share.Address, "FE80::1", "address:fe80::1"},
		{share.Address, "2001:db8:0::/48", "address:2001:db8::/48"},
		{share.Address, "fe80::1%eth0", ""},
		{share.Address, "0.0.0.0/0", ""},
		{share.Address, "::/0", ""},
		{share.Address, "::ffff:0:0/96", ""},
		{share.Address, "0.0.0.0", ""},
		{share.Address, "::", ""},
		{share.Address, "224.0.0.1", ""},
		{share.Address, "10.0.0", ""},
		{share.Address, "010.0.0.1", ""},
		{share.Address, "10.0.0.1 (rw)", ""},
		{share.Address, "*", ""},
		{share.Address, "@netgroup", ""},
		{share.Address, "", ""},
		{share.HostName, "Host-1.example.ORG", "host:host-1.example.org"},
		{share.HostName, "h", "host:h"},
		{share.HostName, "10.0.0.1", ""},
		{share.HostName, "1234", ""},
		{share.HostName, "*.example.org", ""},
		{share.HostName, "a b", ""},
		{share.HostName, "-a", ""},
		{share.HostName, "a_b", ""},
		{share.HostName, "a.", ""},
		{share.HostName, "a\n", ""},
		{share.HostName, "\u212aa", ""}, // the Kelvin sign, whose lower case is k
		{share.HostName, strings.Repeat("a.", 126) + "aa", ""},
		{share.Certificate, "node1.example.org", "certificate:node1.example.org"},
		{share.Certificate, "*.example.org", ""},
		{share.Initiator, "iqn.2026-01.org.example:host1", "iqn:iqn.2026-01.org.example:host1"},
		{share.Initiator, "IQN.2026-01.ORG.example:Host1", "iqn:iqn.2026-01.org.example:host1"},
		{share.Initiator, "eui.02004567A425678D", "iqn:eui.02004567a425678d"},
		{share.Initiator, "naa.52004567BA64678D", "iqn:naa.52004567ba64678d"},
		{share.Initiator, iqn223, "iqn:" + iqn223},
		{share.Initiator, iqn223 + "a", ""},
		{share.Initiator, "iqn.2026-13.org.example", ""},
		{share.Initiator, "iqn.2026-01.", ""},
		{share.Initiator, "iqn.2026-01.org.example:a\nnode.startup = automatic", ""},
		{share.Initiator, "iqn.2026-01.org.example:a b", ""},
		{share.Initiator, "eui.1", ""},
		{share.User, "client.vm-1", "user:client.vm-1"},
		{share.User, "-x", ""},
		{share.User, "a=b", ""},
		{share.User, "a:b", ""},
		{share.User, "a/../b", ""},
		{share.User, strings.Repeat("a", 65), ""},
	} {
		got, err := c.make(c.name)
		if c.want == "" {
			require.ErrorIs(t, err, share.ErrInvalid, "%q", c.name)
			require.NotContains(t, err.Error(), "\n")
			continue
		}
		require.NoError(t, err, "%q", c.name)
		require.Equal(t, c.want, got.String())
		require.NoError(t, got.Check())
	}
	for _, c := range []share.Client{
		{}, {Kind: "nfs", Name: "a"}, {Kind: share.ByLocal, Name: "x"}, {Kind: share.ByWorld, Name: "*"},
		{Kind: share.ByAddress, Name: "10.1.0.0/8"}, {Kind: share.ByAddress, Name: "10.0.0.1/32"},
		{Kind: share.ByHostName, Name: "A"}, {Kind: share.ByIQN, Name: "IQN.2026-01.org"},
	} {
		require.ErrorIs(t, c.Check(), share.ErrInvalid, "%#v", c)
		_, err := c.MarshalText()
		require.ErrorIs(t, err, share.ErrInvalid)
	}
}

// FuzzClient: what is accepted has one text, comes back from it, and has
// nothing in it that a configuration file could take for syntax.
func FuzzClient(f *testing.F) {
	for _, s := range []string{
		"address:10.0.0.0/8", "address:fe80::1", "host:a.example", "iqn:iqn.2026-01.org.example:x", "user:a",
		"local", "local:", "world", "certificate:a", "address:::ffff:1.2.3.4", "host:*", ":", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var c share.Client
		if err := c.UnmarshalText([]byte(s)); err != nil {
			if !errors.Is(err, share.ErrInvalid) || c != (share.Client{}) {
				t.Fatalf("%q: %v, %v", s, err, c)
			}
			return
		}
		b, err := c.MarshalText()
		if err != nil || string(b) != s {
			t.Fatalf("%q became %q, %v", s, b, err)
		}
		if strings.ContainsAny(s, " \t\r\n\"'`$;#*(){}[]<>&|\\=,@") {
			t.Fatalf("%q was accepted", s)
		}
		again, err := map[share.ClientKind]func(string) (share.Client, error){
			share.ByAddress: share.Address, share.ByHostName: share.HostName, share.ByIQN: share.Initiator,
			share.ByUser: share.User, share.ByCertificate: share.Certificate,
			share.ByLocal: func(string) (share.Client, error) { return share.LocalHost(), nil },
			share.ByWorld: func(string) (share.Client, error) { return share.Everyone(), nil },
		}[c.Kind](c.Name)
		if err != nil || again != c {
			t.Fatalf("%v made again is %v, %v", c, again, err)
		}
	})
}

func TestCheckAccess(t *testing.T) {
	a1, err := share.Address("10.0.0.1")
	require.NoError(t, err)
	host, err := share.HostName("h.example")
	require.NoError(t, err)
	info := share.Info{Backend: "b", Clients: []share.ClientKind{share.ByAddress}}
	open := share.Info{Backend: "b", Clients: []share.ClientKind{share.ByAddress, share.ByWorld}}

	require.NoError(t, share.CheckAccess(info, nil))
	require.NoError(t, share.CheckAccess(info, []share.Access{{Client: a1}}))
	require.NoError(t, share.CheckAccess(open, []share.Access{{Client: a1}, {Client: share.Everyone()}}))
	for want, set := range map[string][]share.Access{
		"AllowWorld":   {{Client: share.Everyone()}},
		"knows no":     {{Client: host}},
		"named twice":  {{Client: a1}, {Client: a1, Mode: share.ReadWrite}},
		"mode 7":       {{Client: a1, Mode: 7}},
		"squash 9":     {{Client: a1, Squash: 9}},
		"client kind":  {{}},
		"usual form":   {{Client: share.Client{Kind: share.ByAddress, Name: "10.0.0.1/32"}}},
		"lower case":   {{Client: share.Client{Kind: share.ByHostName, Name: "H"}}},
		"client local": {{Client: share.Client{Kind: share.ByLocal, Name: "x"}}},
	} {
		err := share.CheckAccess(info, set)
		require.ErrorIs(t, err, share.ErrInvalid)
		if want != "client local" {
			require.ErrorContains(t, err, want)
		}
	}
}

func TestSortAccess(t *testing.T) {
	a, _ := share.Address("10.0.0.1")
	b, _ := share.User("u")
	cred := &share.Credential{User: "u"}
	given := []share.Access{{Client: b, Credential: cred}, {Client: a, Mode: share.ReadWrite}}
	require.Equal(t, []share.Access{{Client: a, Mode: share.ReadWrite}, {Client: b}}, share.SortAccess(given))
	require.Same(t, cred, given[0].Credential, "the caller's set stays as it is")
	require.Nil(t, share.SortAccess(nil))
	require.Nil(t, share.SortAccess([]share.Access{}))
}

func TestAccessJSON(t *testing.T) {
	a, _ := share.Address("10.0.0.1")
	set := []share.Access{{Client: a}, {Client: share.LocalHost(), Mode: share.ReadWrite, Squash: share.NoSquash}}
	b, err := json.Marshal(set)
	require.NoError(t, err)
	require.JSONEq(t, `[{"client":"address:10.0.0.1","mode":"ro"},{"client":"local","mode":"rw","squash":"no_root_squash"}]`, string(b))
	var back []share.Access
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, set, back)

	for _, bad := range []share.Access{{Client: a, Mode: 9}, {Client: a, Squash: 9}, {}} {
		_, err := json.Marshal(bad)
		require.ErrorIs(t, err, share.ErrInvalid)
	}
	for _, bad := range []string{`{"client":"nfs:a"}`, `{"mode":"w"}`, `{"squash":"root"}`} {
		require.ErrorIs(t, json.Unmarshal([]byte(bad), new(share.Access)), share.ErrInvalid, bad)
	}
	require.Equal(t, "Mode(9)", share.Mode(9).String())
	require.Equal(t, "Squash(9)", share.Squash(9).String())
}
