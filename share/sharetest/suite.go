package sharetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// Harness says how [Run] gets at a backend.
type Harness struct {
	// New makes empty storage, or an empty part of one: a directory, a pool, a
	// server. It is called for every check, and gives back by t.Cleanup what
	// it made.
	New func(t testing.TB) Storage

	// Clients are who volumes are published to: one at least, several where
	// the backend can tell them apart.
	Clients []share.Client
	// Credential makes the credential of a client from a secret, for a backend
	// that takes one; nil for one that does not.
	Credential func(c share.Client, secret share.Secret) *share.Credential
	// Format of the disks; None takes the preferred one.
	Format share.Format
	// Size of the disks, a multiple of 1 MiB; less than 4 MiB is 4 MiB. The
	// suite writes all of it.
	Size share.Bytes
	// Patience is how long one call may take before the suite calls it hung;
	// 0 is a minute.
	Patience time.Duration
}

// Storage is one empty storage under test, and what else can be done with it.
type Storage struct {
	// Open returns a new handle, as another process would have, and ends the
	// test where it cannot. The suite closes it.
	Open func(t testing.TB) share.Share

	// OpenSource opens a disk from its source, as the client that it was made
	// for would: over the network, with its credential. Nil skips what needs it.
	OpenSource func(t testing.TB, src share.Source) (share.Device, error)

	// CrashAt calls do with a handle of its own, and makes the process that
	// has the handle die at the nth point (from 0) at which something would be
	// left behind: nothing is cleaned up, and what dies with a process (locks,
	// connections) is gone. It reports whether there was an nth point. Nil
	// skips the crash checks.
	CrashAt func(t testing.TB, n int, do func(s share.Share) error) bool

	// PowerCut loses what no Flush has made durable, as the seed decides, and
	// ends all handles. Nil skips the check of durability.
	PowerCut func(t testing.TB, seed uint64)

	// Paths are directories with files of the backend's, which are searched
	// for secrets that others may read.
	Paths []string
	// Logs returns all that the backend has logged. Nil: it does not log.
	Logs func() string
}

// Run checks that a backend keeps what package share promises. Each check is a
// subtest on storage of its own; what the backend says that it cannot do is
// checked to say so, and skipped.
func Run(t *testing.T, h Harness) {
	h.fill()
	for _, c := range shareChecks {
		t.Run(c.name, func(t *testing.T) { c.on(t, &h) })
	}
	t.Run("Device", func(t *testing.T) {
		for _, c := range deviceChecks {
			t.Run(c.name, func(t *testing.T) { onShare(t, &h, c) })
		}
	})
}

func (h *Harness) fill() {
	h.Size = max(h.Size, 4*share.MiB)
	if h.Patience == 0 {
		h.Patience = time.Minute
	}
}

// shareCheck is one promise.
type shareCheck struct {
	name string
	run  func(e *env)
}

func (c shareCheck) on(t testing.TB, h *Harness) { c.run(newEnv(t, h)) }

// shareChecks are all promises of a share; those of devices are deviceChecks.
var shareChecks = slices.Concat(infoChecks, lifecycleChecks, accessChecks, openChecks, optionalChecks, crashChecks, secretChecks, leakChecks)

// env is what a check has to work with.
type env struct {
	testing.TB
	h    *Harness
	st   Storage
	ctx  context.Context
	s    share.Share // the first handle
	info share.Info
}

func newEnv(t testing.TB, h *Harness) *env {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*h.Patience)
	t.Cleanup(cancel)
	e := &env{TB: t, h: h, ctx: ctx, st: h.New(t)}
	e.s = e.open()
	e.info = e.s.Info()
	return e
}

// open returns another handle.
func (e *env) open() share.Share {
	e.Helper()
	s := e.st.Open(e)
	e.Cleanup(func() { _ = s.Close() })
	return s
}

// need skips the check unless the share can.
func (e *env) need(caps ...share.Capability) {
	e.Helper()
	for _, c := range caps {
		if can := e.info.Capabilities.Can(c); !can.OK {
			e.Skipf("the share cannot %s: %s", c, can.Reason)
		}
	}
}

// needKind skips the check unless the share holds volumes of that kind and can
// create them.
func (e *env) needKind(k share.Kind) {
	e.Helper()
	e.need(share.CanCreate)
	if !slices.Contains(e.info.Kinds, k) {
		e.Skipf("the share holds no volumes of kind %s", k)
	}
}

// spec is the spec of a volume of that kind.
func (e *env) spec(name string, k share.Kind) share.Spec {
	if k == share.Tree {
		return share.Spec{Name: name, Kind: k}
	}
	return share.Spec{Name: name, Kind: k, Format: e.h.Format, Size: e.h.Size}
}

// create makes a volume of the first kind that the share holds.
func (e *env) create(name string) share.Volume {
	e.Helper()
	e.need(share.CanCreate)
	return e.createKind(name, e.info.Kinds[0])
}

// createDisk makes a disk.
func (e *env) createDisk(name string) share.Volume {
	e.Helper()
	e.needKind(share.Disk)
	return e.createKind(name, share.Disk)
}

func (e *env) createKind(name string, k share.Kind) share.Volume {
	e.Helper()
	v, err := share.Create(e.ctx, e.s, e.spec(name, k))
	require.NoError(e, err, "create %s", name)
	return v
}

// openDisk opens a disk that can be opened.
func (e *env) openDisk(s share.Share, name string, opts *share.OpenOptions) share.Device {
	e.Helper()
	e.need(share.CanOpenDevice)
	d, err := share.OpenDevice(e.ctx, s, name, opts)
	require.NoError(e, err, "open %s", name)
	e.Cleanup(func() { _ = d.Close() })
	return d
}

// access is client i (modulo those there are) in that mode, with a credential
// where the backend takes one.
func (e *env) access(i int, mode share.Mode) share.Access {
	c := e.h.Clients[i%len(e.h.Clients)]
	a := share.Access{Client: c, Mode: mode}
	if e.h.Credential != nil {
		a.Credential = e.h.Credential(c, share.NewSecret([]byte("a-secret-of-16-b")))
	}
	return a
}

// stat returns the volume, which must be there.
func (e *env) stat(s share.Share, name string) share.Volume {
	e.Helper()
	v, err := s.Stat(e.ctx, name)
	require.NoError(e, err, "stat %s", name)
	return v
}

// names lists the names of all volumes; nil where the share cannot list.
func (e *env) names(s share.Share) []string {
	e.Helper()
	if !e.info.Capabilities.Can(share.CanList).OK {
		return nil
	}
	all, err := share.List(e.ctx, s)
	require.NoError(e, err, "list")
	names := []string{}
	for _, v := range all {
		names = append(names, v.Name)
	}
	return names
}

// gone fails unless there is no such volume.
func (e *env) gone(s share.Share, name string) {
	e.Helper()
	_, err := s.Stat(e.ctx, name)
	e.is(err, share.ErrNotExist, "stat of what is not there")
}

// is fails unless err is of that kind and says, as *share.Error, where it
// comes from.
func (e *env) is(err, kind error, what string) {
	e.Helper()
	require.ErrorIs(e, err, kind, what)
	var typed *share.Error
	require.ErrorAs(e, err, &typed, "%s: the error is no *share.Error", what)
	require.NotEmpty(e, typed.Op, "%s: the error names no operation", what)
	require.Equal(e, e.info.Backend, typed.Backend, "%s: the error names another backend", what)
}

// within fails if f fails or takes longer than the harness's patience.
func (e *env) within(what string, f func() error) {
	e.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		require.NoError(e, err, what)
	case <-time.After(e.h.Patience):
		e.Fatalf("%s did not return within %v", what, e.h.Patience)
	}
}

// call is one operation of a share on one volume, for checks that try them all.
type call struct {
	name string
	cap  share.Capability // "" for those that every share has
	do   func(ctx context.Context, s share.Share, volume string) error
}

// calls are all operations that take the name of a volume.
func (e *env) calls() []call {
	return []call{
		{"stat", "", func(ctx context.Context, s share.Share, v string) error { _, err := s.Stat(ctx, v); return err }},
		{"publish", "", func(ctx context.Context, s share.Share, v string) error {
			_, err := s.Publish(ctx, v, []share.Access{e.access(0, share.ReadOnly)})
			return err
		}},
		{"take back", "", func(ctx context.Context, s share.Share, v string) error { _, err := s.Publish(ctx, v, nil); return err }},
		{"create", share.CanCreate, func(ctx context.Context, s share.Share, v string) error {
			_, err := share.Create(ctx, s, e.spec(v, e.info.Kinds[0]))
			return err
		}},
		{"delete", share.CanDelete, func(ctx context.Context, s share.Share, v string) error { return share.Delete(ctx, s, v) }},
		{"resize", share.CanResize, func(ctx context.Context, s share.Share, v string) error {
			_, err := share.Resize(ctx, s, v, 2*e.h.Size, nil)
			return err
		}},
		{"snapshot", share.CanSnapshot, func(ctx context.Context, s share.Share, v string) error {
			_, err := share.TakeSnapshot(ctx, s, v, "s")
			return err
		}},
		{"list snapshots", share.CanSnapshot, func(ctx context.Context, s share.Share, v string) error {
			_, err := share.ListSnapshots(ctx, s, v)
			return err
		}},
		{"roll back", share.CanSnapshot, func(ctx context.Context, s share.Share, v string) error { return share.RollBack(ctx, s, v, "s") }},
		{"delete snapshot", share.CanSnapshot, func(ctx context.Context, s share.Share, v string) error {
			return share.DeleteSnapshot(ctx, s, v, "s")
		}},
		{"clone", share.CanClone, func(ctx context.Context, s share.Share, v string) error {
			_, err := share.Clone(ctx, s, v, "", "clone")
			return err
		}},
		{"open", share.CanOpenDevice, func(ctx context.Context, s share.Share, v string) error {
			d, err := share.OpenDevice(ctx, s, v, &share.OpenOptions{ReadOnly: true})
			if err == nil {
				err = d.Close()
			}
			return err
		}},
		{"changes", share.CanListChanges, func(ctx context.Context, s share.Share, v string) error {
			_, err := share.Changes(ctx, s, v, "", "")
			return err
		}},
		{"lock", share.CanLock, func(ctx context.Context, s share.Share, v string) error {
			l, err := share.LockVolume(ctx, s, v, "owner")
			if err == nil {
				err = l.Release()
			}
			return err
		}},
	}
}

// shareCalls are the operations that take no name.
func shareCalls() []call {
	return []call{
		{"list", share.CanList, func(ctx context.Context, s share.Share, _ string) error { _, err := share.List(ctx, s); return err }},
		{"health", share.CanReportHealth, func(ctx context.Context, s share.Share, _ string) error {
			_, err := share.CheckHealth(ctx, s)
			return err
		}},
	}
}

// can reports whether the share under test has the call.
func (e *env) can(c call) bool {
	return c.cap == "" || e.info.Capabilities.Can(c.cap).OK
}

// unsupported reports whether err says that a thing cannot be done at all, as a
// snapshot of a format that has none.
func unsupported(err error) bool { return errors.Is(err, errors.ErrUnsupported) }

// pattern fills p with bytes that tell where they belong and by which seed.
// None is zero.
func pattern(p []byte, off int64, seed uint64) {
	var word [8]byte
	for at := off; len(p) > 0; {
		x := uint64(at/8) + seed*0x9e3779b97f4a7c15
		x = (x ^ x>>29) * 0xbf58476d1ce4e5b9
		x ^= x >> 32
		binary.LittleEndian.PutUint64(word[:], x|0x0101010101010101)
		k := copy(p, word[at%8:])
		p, at = p[k:], at+int64(k)
	}
}

// fillPattern writes the pattern to all of d.
func fillPattern(ctx context.Context, d share.Device, seed uint64) error {
	p := make([]byte, 256<<10)
	for off := int64(0); off < d.Size(); off += int64(len(p)) {
		p = p[:min(int64(len(p)), d.Size()-off)]
		pattern(p, off, seed)
		if err := d.WriteAt(ctx, p, off); err != nil {
			return err
		}
	}
	return d.Flush(ctx)
}

// hasPattern returns an error unless n bytes from off are the pattern.
func hasPattern(ctx context.Context, d share.Device, off, n int64, seed uint64) error {
	got, want := make([]byte, n), make([]byte, n)
	if err := d.ReadAt(ctx, got, off); err != nil {
		return err
	}
	pattern(want, off, seed)
	if bytes.Equal(got, want) {
		return nil
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("byte %d is %#x, not %#x", off+int64(i), got[i], want[i])
		}
	}
	return nil
}

// hasZeros returns an error unless n bytes from off are zero.
func hasZeros(ctx context.Context, d share.Device, off, n int64) error {
	p := make([]byte, n)
	if err := d.ReadAt(ctx, p, off); err != nil {
		return err
	}
	if bytes.Count(p, []byte{0}) == len(p) {
		return nil
	}
	for i, b := range p {
		if b != 0 {
			return fmt.Errorf("byte %d is %#x, not zero", off+int64(i), b)
		}
	}
	return nil
}
