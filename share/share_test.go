package share_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// bare is a share with no optional interface.
type bare struct{ caps share.Capabilities }

func (b bare) Info() share.Info { return share.Info{Backend: "bare", Capabilities: b.caps} }
func (b bare) Stat(context.Context, string) (share.Volume, error) {
	return share.Volume{}, share.ErrNotExist
}
func (b bare) Publish(context.Context, string, []share.Access) ([]share.Source, error) {
	return nil, nil
}
func (b bare) Close() error { return nil }

// deleter has one.
type deleter struct{ bare }

func (deleter) Delete(context.Context, string) error { return nil }

// outer wraps, and lets everything pass by.
type outer struct{ share.Share }

func (o outer) Unwrap() share.Share { return o.Share }

// standIn wraps, and has of the optional interfaces only Deleter, if the share
// beneath has it.
type standIn struct{ share.Share }

func (s standIn) As(target any) bool {
	d, has := share.As[share.Deleter](s.Share)
	if t, ok := target.(*share.Deleter); ok && has {
		*t = seen{d}
		return true
	}
	return false
}

type seen struct{ share.Deleter }

func noes() share.Capabilities {
	caps := share.Capabilities{}
	for _, c := range share.AllCapabilities() {
		caps[c] = share.No("not here")
	}
	return caps
}

func TestAs(t *testing.T) {
	del := deleter{bare{noes()}}
	_, ok := share.As[share.Deleter](outer{outer{del}})
	require.True(t, ok)
	_, ok = share.As[share.Creator](outer{del})
	require.False(t, ok)
	_, ok = share.As[share.Deleter](struct{ share.Share }{del})
	require.False(t, ok, "a wrapper without Unwrap hides what it wraps")
	_, ok = share.As[share.Deleter](nil)
	require.False(t, ok)

	d, ok := share.As[share.Deleter](outer{standIn{del}})
	require.True(t, ok)
	require.IsType(t, seen{}, d, "the stand-in, not what is beneath")
	_, ok = share.As[share.Deleter](standIn{bare{}})
	require.False(t, ok)
	_, ok = share.As[share.Lister](standIn{sharetest.NewMem(nil)})
	require.False(t, ok)
}

func TestCheckCapabilities(t *testing.T) {
	with := func(c share.Capability, s share.Support) share.Capabilities {
		caps := noes()
		caps[c] = s
		return caps
	}
	missing := noes()
	delete(missing, share.CanLock)

	require.NoError(t, share.CheckCapabilities(bare{noes()}))
	require.NoError(t, share.CheckCapabilities(deleter{bare{with(share.CanDelete, share.Yes)}}))
	require.NoError(t, share.CheckCapabilities(outer{deleter{bare{with(share.CanDelete, share.Yes)}}}))
	require.NoError(t, share.CheckCapabilities(sharetest.NewMem(nil)))
	for want, s := range map[string]share.Share{
		"interface is missing": bare{with(share.CanDelete, share.Yes)},
		"interface is there":   deleter{bare{noes()}},
		"without a reason":     bare{with(share.CanLock, share.Support{})},
		"not stated":           bare{missing},
		"is unknown":           bare{with("fly", share.Yes)},
	} {
		require.ErrorContains(t, share.CheckCapabilities(s), want)
	}
	require.Equal(t, share.No("the backend does not say"), share.Capabilities(nil).Can(share.CanLock))
	require.Len(t, share.AllCapabilities(), 10)
}

func TestHelpersNameTheReason(t *testing.T) {
	ctx, s := t.Context(), bare{noes()}
	for name, call := range map[string]func() error{
		"create":         func() error { _, err := share.Create(ctx, s, share.Spec{Name: "v"}); return err },
		"delete":         func() error { return share.Delete(ctx, s, "v") },
		"list":           func() error { _, err := share.List(ctx, s); return err },
		"resize":         func() error { _, err := share.Resize(ctx, s, "v", 512, nil); return err },
		"snapshot":       func() error { _, err := share.TakeSnapshot(ctx, s, "v", "s"); return err },
		"list snapshots": func() error { _, err := share.ListSnapshots(ctx, s, "v"); return err },
		"roll back":      func() error { return share.RollBack(ctx, s, "v", "s") },
		"delete a snap":  func() error { return share.DeleteSnapshot(ctx, s, "v", "s") },
		"clone":          func() error { _, err := share.Clone(ctx, s, "v", "", "w"); return err },
		"open":           func() error { _, err := share.OpenDevice(ctx, s, "v", nil); return err },
		"list changes":   func() error { _, err := share.Changes(ctx, s, "v", "", ""); return err },
		"lock":           func() error { _, err := share.LockVolume(ctx, s, "v", "o"); return err },
		"report":         func() error { _, err := share.CheckHealth(ctx, s); return err },
	} {
		err := call()
		require.ErrorIs(t, err, errors.ErrUnsupported, name)
		require.ErrorContains(t, err, "bare: "+name)
		require.ErrorContains(t, err, "not here", "the reason that Info gives")
		var e *share.Error
		require.ErrorAs(t, err, &e)
	}
}

func TestRegistry(t *testing.T) {
	ctx := t.Context()
	var r share.Registry
	_, err := r.Open(ctx, "mem://x")
	require.ErrorIs(t, err, errors.ErrUnsupported)
	require.Empty(t, r.Schemes())

	var got *url.URL
	open := func(_ context.Context, u *url.URL) (share.Share, error) { got = u; return sharetest.NewMem(nil), nil }
	require.NoError(t, r.Register("mem", open))
	require.NoError(t, r.Register("a+b", open))
	require.ErrorIs(t, r.Register("mem", open), share.ErrExist)
	for _, scheme := range []string{"", "Mem", "me m", "m:", "a/b"} {
		require.ErrorIs(t, r.Register(scheme, open), share.ErrInvalid, "%q", scheme)
	}
	require.ErrorIs(t, r.Register("x", nil), share.ErrInvalid)
	require.Equal(t, []string{"a+b", "mem"}, r.Schemes())

	s, err := r.Open(ctx, "MEM://host/pool?x=1")
	require.NoError(t, err)
	require.Equal(t, "mem", s.Info().Backend)
	require.Equal(t, "/pool", got.Path)

	_, err = r.Open(ctx, "mem://user:"+canary+"@host/pool")
	require.ErrorIs(t, err, share.ErrInvalid)
	leaks(t, "a password", err.Error())
	_, err = r.Open(ctx, "mem://user:"+canary+"@ho st/%zz")
	require.ErrorIs(t, err, share.ErrInvalid)
	leaks(t, "a URL that cannot be parsed", err.Error())
	_, err = r.Open(ctx, "/srv/images")
	require.ErrorIs(t, err, errors.ErrUnsupported)
	_, err = r.Open(ctx, canary+"secret://x")
	require.Error(t, err)

	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_ = r.Register(fmt.Sprintf("s%d", i), open)
			_, _ = r.Open(ctx, "mem://x")
			_ = r.Schemes()
		})
	}
	wg.Wait()
	require.Len(t, r.Schemes(), 10)
}
