package sharetest

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// A schedule without faults changes nothing: the wrappers conform themselves.
func TestFaultyShareConforms(t *testing.T) {
	Run(t, memHarness(nil, func(m *Mem) share.Share { return FaultyShare(m, Script()) }))
}

func TestFaultyDeviceConforms(t *testing.T) {
	RunDevice(t, func(testing.TB) share.Device { return FaultyDevice(NewDevice(int64(share.MiB)), Script()) })
}

// plainDevice has none of the optional interfaces.
type plainDevice struct{ share.Device }

func TestFaultyPlainDeviceConforms(t *testing.T) {
	RunDevice(t, func(testing.TB) share.Device {
		return FaultyDevice(plainDevice{NewDevice(int64(share.MiB))}, Script())
	})
}

var errInjected = errors.New("injected")

// optional are all optional interfaces of a share, as pointers that As takes.
var optional = map[share.Capability]any{
	share.CanCreate:       new(share.Creator),
	share.CanDelete:       new(share.Deleter),
	share.CanList:         new(share.Lister),
	share.CanResize:       new(share.Resizer),
	share.CanSnapshot:     new(share.Snapshotter),
	share.CanClone:        new(share.Cloner),
	share.CanOpenDevice:   new(share.DeviceOpener),
	share.CanListChanges:  new(share.ChangeLister),
	share.CanLock:         new(share.Locker),
	share.CanReportHealth: new(share.Healther),
}

// TestNothingPassesFaultyShare calls every method of every interface of a
// share, found as users find it, and of what they return.
func TestNothingPassesFaultyShare(t *testing.T) {
	require.Len(t, optional, len(share.AllCapabilities()), "an interface was added: forward it, and list it here")
	everything := Script(Fault{Err: errInjected})
	s := FaultyShare(NewMem(nil), everything)
	_, unwraps := s.(share.Unwrapper)
	require.False(t, unwraps, "Unwrap lets calls go past the faults")

	_, err := s.Stat(t.Context(), "v")
	require.ErrorIs(t, err, errInjected)
	_, err = s.Publish(t.Context(), "v", nil)
	require.ErrorIs(t, err, errInjected)
	require.ErrorIs(t, s.Close(), errInjected)
	for c, target := range optional {
		require.True(t, s.(share.Asser).As(target), "%s is not forwarded", c)
		iface := reflect.ValueOf(target).Elem()
		require.Positive(t, iface.Type().NumMethod())
		callsFail(t, iface, string(c))
	}
	require.False(t, s.(share.Asser).As(new(*Mem)), "the share beneath can be had")
}

// callsFail fails unless each method that returns an error returns the
// injected one.
func callsFail(t *testing.T, v reflect.Value, name string) {
	t.Helper()
	for i := range v.NumMethod() {
		m := v.Method(i)
		args := []reflect.Value{}
		for j := range m.Type().NumIn() {
			if m.Type().In(j) == reflect.TypeFor[context.Context]() {
				args = append(args, reflect.ValueOf(t.Context()))
			} else {
				args = append(args, reflect.Zero(m.Type().In(j)))
			}
		}
		out := m.Call(args)
		last := out[len(out)-1]
		if last.Type() == reflect.TypeFor[error]() {
			err, _ := last.Interface().(error)
			require.ErrorIs(t, err, errInjected, "%s: method %d", name, i)
		}
	}
}

func TestNothingPassesFaultyDevice(t *testing.T) {
	everything := Script(Fault{Err: errInjected})
	d := FaultyDevice(NewDeviceID(1<<20, "id"), everything)
	_, unwraps := d.(interface{ Unwrap() share.Device })
	require.False(t, unwraps, "Unwrap lets calls go past the faults")
	for _, target := range []any{new(share.Device), new(share.Zeroer), new(share.Discarder), new(share.ExtentLister)} {
		iface := reflect.ValueOf(target).Elem()
		require.True(t, reflect.TypeOf(d).Implements(iface.Type()), "%v is not forwarded", iface.Type())
		iface.Set(reflect.ValueOf(d))
		callsFail(t, iface, iface.Type().String())
	}
	require.Equal(t, "id", share.IdentityOf(d))
	require.Equal(t, share.SizesOf(NewDevice(1)), share.SizesOf(d))

	// Also what comes from a faulty share.
	m := NewMem(nil)
	_, err := m.Create(t.Context(), share.Spec{Name: "v", Kind: share.Disk, Size: share.MiB})
	require.NoError(t, err)
	s := FaultyShare(m, Script(Fault{Op: "write", Err: errInjected}, Fault{Op: "release", Err: errInjected}))
	dev, err := share.OpenDevice(t.Context(), s, "v", nil)
	require.NoError(t, err)
	require.ErrorIs(t, dev.WriteAt(t.Context(), []byte{1}, 0), errInjected)
	l, err := share.LockVolume(t.Context(), s, "v", "o")
	require.NoError(t, err)
	require.ErrorIs(t, l.Release(), errInjected)
}

func TestFaultyShareHasWhatItWraps(t *testing.T) {
	for _, s := range []share.Share{NewMem(nil), noLock{NewMem(nil)}} {
		f := FaultyShare(s, Script())
		_, has := share.As[share.Locker](s)
		_, got := share.As[share.Locker](f)
		require.Equal(t, has, got)
	}
}

func TestFaults(t *testing.T) {
	ctx := t.Context()
	const n = 4096
	one := bytes.Repeat([]byte{1}, n)
	content := func(d share.Device) []byte {
		p := make([]byte, n)
		require.NoError(t, d.ReadAt(ctx, p, 0))
		return p
	}
	for _, c := range []struct {
		name  string
		fault Fault
		wrote func(p []byte) bool
	}{
		{"before", Fault{Op: "write", Err: share.ErrNoSpace}, func(p []byte) bool { return p[0] == 0 && p[n-1] == 0 }},
		{"after", Fault{Op: "write", Err: share.ErrNoSpace, After: true}, func(p []byte) bool { return bytes.Equal(p, one) }},
		{"part", Fault{Op: "write", Err: share.ErrNoSpace, Part: 100}, func(p []byte) bool { return p[99] == 1 && p[100] == 0 }},
		{"torn", Fault{Op: "write", Err: share.ErrNoSpace, Torn: true}, func(p []byte) bool {
			sum := 0
			for i := 0; i < n; i += sectorSize {
				sum += int(p[i])
			}
			return sum > 0 && sum < n/sectorSize
		}},
	} {
		d := NewDevice(n)
		s := Script(c.fault)
		require.ErrorIs(t, FaultyDevice(d, s).WriteAt(ctx, one, 0), share.ErrNoSpace, c.name)
		require.True(t, c.wrote(content(d)), c.name)
		require.Equal(t, []string{"write #1"}, s.Injected())
	}

	// Zero has parts, too.
	d := NewDevice(n)
	require.NoError(t, d.WriteAt(ctx, one, 0))
	require.Error(t, FaultyDevice(d, Script(Fault{Op: "zero", Err: errInjected, Part: 10})).(share.Zeroer).Zero(ctx, 0, n, 0))
	require.Equal(t, byte(0), content(d)[9])
	require.Equal(t, byte(1), content(d)[10])

	// The third write, and only that.
	d = NewDevice(n)
	f := FaultyDevice(d, Script(Fault{Op: "write", N: 3, Err: errInjected}))
	for i := range 5 {
		err := f.WriteAt(ctx, one, 0)
		require.Equal(t, i == 2, errors.Is(err, errInjected), "write %d: %v", i, err)
		require.NoError(t, f.Flush(ctx))
	}

	// A call that hangs ends with its context; one that is late comes.
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, FaultyDevice(d, Script(Fault{Hang: true})).Flush(short), context.DeadlineExceeded)
	start := time.Now()
	require.NoError(t, FaultyDevice(d, Script(Fault{Delay: 20 * time.Millisecond})).Flush(ctx))
	require.GreaterOrEqual(t, time.Since(start), 20*time.Millisecond)
	require.ErrorIs(t, FaultyDevice(d, Script(Fault{Delay: time.Hour})).Flush(short), context.DeadlineExceeded)

	// By seed: the same faults each time, and none once it is stopped.
	run := func(seed uint64) (*Schedule, []string) {
		s := Seeded(seed, 0.3, Fault{Err: errInjected}, Fault{Op: "write", Err: errInjected, After: true})
		f := FaultyDevice(NewDevice(n), s)
		for range 50 {
			_ = f.WriteAt(ctx, one, 0)
			_ = f.Flush(ctx)
		}
		return s, s.Injected()
	}
	s, a := run(1)
	_, b := run(1)
	_, c := run(2)
	require.Equal(t, a, b)
	require.NotEqual(t, a, c)
	require.InDelta(t, 30, len(a), 15)
	s.Stop()
	f = FaultyDevice(NewDevice(n), s)
	for range 50 {
		require.NoError(t, f.Flush(ctx))
	}
}
