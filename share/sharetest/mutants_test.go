package sharetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// A mutant is a share in memory with one promise broken. Each check of the
// suite must catch one at least, so that none passes whatever it is given.

// shareMutants breaks shares, by the check that must notice.
var shareMutants = []struct {
	name   string
	caught string // the check
	wrap   func(m *Mem) share.Share
}{
	{"Info shares its map", "Info", func(m *Mem) share.Share { return &fixedInfo{Mem: m, info: m.Info()} }},
	{"another identity for each handle", "Info", func(m *Mem) share.Share {
		return editInfo(m, func(i *share.Info) { i.Identity = newID() })
	}},
	{"a password in the URL", "Info", func(m *Mem) share.Share {
		return editInfo(m, func(i *share.Info) { i.URL = "mem://u:p@h/" })
	}},
	{"says no and can", "Capabilities", func(m *Mem) share.Share {
		return editInfo(m, func(i *share.Info) { i.Capabilities[share.CanLock] = share.No("x") })
	}},
	{"no without a reason", "Capabilities", func(m *Mem) share.Share {
		return editInfo(noLock{m}, func(i *share.Info) { i.Capabilities[share.CanLock] = share.Support{} })
	}},
	{"says yes and cannot", "Capabilities", func(m *Mem) share.Share { return noLock{m} }},

	{"create makes another one", "Repeat", func(m *Mem) share.Share { return createAnew{m} }},
	{"create again is an error", "Repeat", func(m *Mem) share.Share { return createOnce{m} }},
	{"delete of nothing is an error", "Repeat", func(m *Mem) share.Share { return deleteStrict{m} }},
	{"one source today, another tomorrow", "Repeat", func(m *Mem) share.Share { return &sourceDrifts{Mem: m} }},
	{"create does not compare", "Specs", func(m *Mem) share.Share { return createBlind{m} }},
	{"create takes any format", "Specs", func(m *Mem) share.Share { return anyFormat{m} }},
	{"deletes what is published", "Lifecycle", func(m *Mem) share.Share { return deleteAll{m} }},
	{"identity by name", "Lifecycle", func(m *Mem) share.Share { return idByName{m} }},
	{"source without identity", "Lifecycle", func(m *Mem) share.Share {
		return editSources(m, func(s *share.Source) { s.VolumeID = "" })
	}},
	{"source without format", "Lifecycle", func(m *Mem) share.Share {
		return editSources(m, func(s *share.Source) { s.Format = "" })
	}},
	{"errors of no kind", "Lifecycle", func(m *Mem) share.Share { return vagueStat{m} }},
	{"an untyped error", "Lifecycle", func(m *Mem) share.Share { return untypedStat{m} }},
	{"list as it comes", "List", func(m *Mem) share.Share { return listReversed{m} }},
	{"list with access", "List", func(m *Mem) share.Share { return listAccess{m} }},
	{"list leaves one out", "List", func(m *Mem) share.Share { return listShort{m} }},
	{"names unchecked", "Names", func(m *Mem) share.Share { return anyName{m} }},
	{"names told as they are", "Names", func(m *Mem) share.Share { return rawNames{m} }},
	{"second Close fails", "Close", func(m *Mem) share.Share { return &closeOnce{Mem: m} }},
	{"works after Close", "Close", func(m *Mem) share.Share { return neverClosed{m} }},
	{"Close takes the volumes along", "Close", func(m *Mem) share.Share { return closeDeletes{m} }},
	{"two of one name at once", "Concurrent", func(m *Mem) share.Share { return &racyCreate{Mem: m} }},
	{"hangs", "Concurrent", func(m *Mem) share.Share { return hangs{m} }},
	{"deaf to its context", "Cancelled", func(m *Mem) share.Share { return deaf{m} }},

	{"access adds up", "AccessIsASet", func(m *Mem) share.Share { return accessAddsUp{m} }},
	{"sources in order of their own", "AccessIsASet", func(m *Mem) share.Share { return sourcesSorted{m} }},
	{"empty set does nothing", "AccessIsASet", func(m *Mem) share.Share { return emptyIgnored{m} }},
	{"sources always writable", "AccessIsASet", func(m *Mem) share.Share {
		return editSources(m, func(s *share.Source) { s.ReadOnly = false })
	}},
	{"access unchecked", "AccessRefused", func(m *Mem) share.Share { return anyAccess{m} }},
	{"a bad set takes the good one away", "AccessRefused", func(m *Mem) share.Share { return clearsFirst{m} }},
	{"credential comes back", "Secrets", func(m *Mem) share.Share { return keepsCredential{m, new(sync.Map)} }},
	{"secret in an error", "Secrets", func(m *Mem) share.Share { return tellsSecret{m} }},
	{"secret in the environment", "Secrets", func(m *Mem) share.Share { return exportsSecret{m} }},

	{"another identity is fine", "Identity", func(m *Mem) share.Share { return noGuard{m} }},
	{"two writers", "OneWriter", func(m *Mem) share.Share { return manyWriters{m} }},
	{"readers that write", "OneWriter", func(m *Mem) share.Share { return writingReaders{m} }},
	{"a reader's own copy", "OneWriter", func(m *Mem) share.Share { return staleReaders{m} }},
	{"flush that does not", "Durability", func(m *Mem) share.Share {
		return editDevices(m, func(d *MemDevice) share.Device { return noFlush{d} })
	}},
	{"blocks of a tree", "Trees", func(m *Mem) share.Share { return treeBlocks{m} }},
	{"device dies with its opening", "OpenCancelled", func(m *Mem) share.Share { return tiedDevices{m} }},

	{"resize of nothing", "Resize", func(m *Mem) share.Share { return resizeNot{m} }},
	{"shrinks unasked", "Resize", func(m *Mem) share.Share { return shrinks{m} }},
	{"resize empties", "Resize", func(m *Mem) share.Share { return resizeEmpties{m} }},
	{"snapshot moves along", "Snapshots", func(m *Mem) share.Share { return liveSnapshots{m} }},
	{"roll back does nothing", "Snapshots", func(m *Mem) share.Share { return rollNot{m} }},
	{"snapshots sorted by name", "Snapshots", func(m *Mem) share.Share { return snapshotsByName{m} }},
	{"roll back under an open disk", "SnapshotWhileOpen", func(m *Mem) share.Share { return rollAnyway{m} }},
	{"clone is empty", "Clone", func(m *Mem) share.Share { return emptyClone{m} }},
	{"changes leave out", "Changes", func(m *Mem) share.Share { return fewChanges{m} }},
	{"lock for all", "Lock", func(m *Mem) share.Share { return openLock{m} }},
	{"never well", "Health", func(m *Mem) share.Share { return unwell{m} }},
	{"create in two steps", "Crash/CreateDisk", func(m *Mem) share.Share { return halfCreate{m} }},
	{"create that cannot go on", "Crash/CreateTree", func(m *Mem) share.Share { return createOnce{m} }},
	{"delete that cannot go on", "Crash/DeleteDisk", func(m *Mem) share.Share { return deleteStrict{m} }},
	{"leaves a goroutine", "Leaks", func(m *Mem) share.Share { return leaksGoroutine{m} }},
	{"leaves a descriptor", "Leaks", func(m *Mem) share.Share { return leaksFile{m} }},
}

func TestSuiteCatchesShareMutants(t *testing.T) {
	for _, mutant := range shareMutants {
		t.Run(mutant.name, func(t *testing.T) {
			i := slices.IndexFunc(shareChecks, func(c shareCheck) bool { return c.name == mutant.caught })
			require.GreaterOrEqual(t, i, 0, "there is no check %s", mutant.caught)
			h := memHarness(nil, mutant.wrap)
			h.fill()
			h.Patience = 2 * time.Second
			r := try(t, func(t testing.TB) { shareChecks[i].on(t, &h) })
			require.True(t, r.Failed(), "%s did not notice; it said:\n%s", mutant.caught, r.text())
		})
	}
}

// TestEveryCheckCanFail: no check without a mutant. What the crash checks have
// in common is one function, so two of them will do.
func TestEveryCheckCanFail(t *testing.T) {
	caught := map[string]bool{}
	for _, m := range shareMutants {
		caught[m.caught] = true
	}
	for _, m := range deviceMutants {
		caught["Device/"+m.caught] = true
	}
	for _, c := range shareChecks {
		if !caught[c.name] && c.name != "AccessIsEnforced" && !slices.ContainsFunc(crashChecks, func(o shareCheck) bool { return o.name == c.name }) {
			t.Errorf("nothing shows that %s can fail", c.name)
		}
	}
	for _, c := range deviceChecks {
		if !caught["Device/"+c.name] {
			t.Errorf("nothing shows that Device/%s can fail", c.name)
		}
	}
}

func TestAccessThatIsNotEnforcedIsCaught(t *testing.T) {
	i := slices.IndexFunc(shareChecks, func(c shareCheck) bool { return c.name == "AccessIsEnforced" })
	for _, open := range []func(m *Mem, t testing.TB, src share.Source) (share.Device, error){
		func(m *Mem, t testing.TB, src share.Source) (share.Device, error) { // whoever comes
			return m.OpenDevice(t.Context(), "a", &share.OpenOptions{ReadOnly: src.ReadOnly})
		},
		func(m *Mem, t testing.TB, src share.Source) (share.Device, error) { // ro is rw
			if v, err := m.Stat(t.Context(), "a"); err != nil || len(v.Access) == 0 {
				return nil, share.ErrDenied
			}
			return m.OpenDevice(t.Context(), "a", nil)
		},
	} {
		h := memHarness(nil, nil)
		h.fill()
		h.New = func(testing.TB) Storage {
			m := NewMem(nil)
			return Storage{
				Open:       func(testing.TB) share.Share { return m.Reopen() },
				OpenSource: func(t testing.TB, src share.Source) (share.Device, error) { return open(m, t, src) },
			}
		}
		r := try(t, func(t testing.TB) { shareChecks[i].on(t, &h) })
		require.True(t, r.Failed(), "not noticed:\n%s", r.text())
	}
}

// deviceMutants breaks devices.
var deviceMutants = []struct {
	name   string
	caught string
	wrap   func(d *MemDevice) share.Device
}{
	{"starts with rubbish", "StartsAsZeros", func(d *MemDevice) share.Device {
		_ = d.WriteAt(context.Background(), []byte{1}, d.Size()-1)
		return d
	}},
	{"clips reads", "Bounds", func(d *MemDevice) share.Device { return clips{d} }},
	{"clips zeros", "Bounds", func(d *MemDevice) share.Device { return clipsZero{d} }},
	{"keeps the buffer", "ReadWhatWasWritten", func(d *MemDevice) share.Device { return &keepsBuffer{MemDevice: d} }},
	{"short writes", "ReadWhatWasWritten", func(d *MemDevice) share.Device { return shortWrites{d} }},
	{"zeros too little", "Zero", func(d *MemDevice) share.Device { return zerosLess{d} }},
	{"zeros nothing", "Zero", func(d *MemDevice) share.Device { return zerosNot{d} }},
	{"discards too much", "Discard", func(d *MemDevice) share.Device { return discardsMore{d} }},
	{"calls data zero", "Extents", func(d *MemDevice) share.Device { return allHole{d} }},
	{"leaves a gap", "Extents", func(d *MemDevice) share.Device { return gaps{d} }},
	{"deaf to its context", "Cancelled", func(d *MemDevice) share.Device { return deafDevice{d} }},
	{"writes chunks that are shared", "Parallel", func(d *MemDevice) share.Device { return wholeChunks{d} }},
	{"works after Close", "Close", func(d *MemDevice) share.Device { return notClosed{d} }},
	{"second Close fails", "Close", func(d *MemDevice) share.Device { return &deviceCloseOnce{MemDevice: d} }},
}

func TestSuiteCatchesDeviceMutants(t *testing.T) {
	for _, mutant := range deviceMutants {
		t.Run(mutant.name, func(t *testing.T) {
			i := slices.IndexFunc(deviceChecks, func(c deviceCheck) bool { return c.name == mutant.caught })
			require.GreaterOrEqual(t, i, 0, "there is no check %s", mutant.caught)
			r := try(t, func(t testing.TB) {
				deviceChecks[i].on(t, mutant.wrap(NewDevice(int64(2*share.MiB))))
			})
			require.True(t, r.Failed(), "%s did not notice; it said:\n%s", mutant.caught, r.text())
		})
	}
}

// What follows are the mutants.

type fixedInfo struct {
	*Mem
	info share.Info
}

func (m *fixedInfo) Info() share.Info { return m.info }

// infoEditor changes what Info says, and has what the share beneath has.
type infoEditor struct {
	share.Share
	info share.Info
}

func editInfo(s share.Share, edit func(*share.Info)) share.Share {
	info := s.Info()
	edit(&info)
	return infoEditor{s, info}
}

func (m infoEditor) Info() share.Info {
	info := m.info
	info.Kinds, info.Formats, info.Clients = slices.Clone(info.Kinds), slices.Clone(info.Formats), slices.Clone(info.Clients)
	info.Capabilities = maps.Clone(info.Capabilities)
	return info
}

func (m infoEditor) Unwrap() share.Share { return m.Share }

// noLock has all but Locker.
type noLock struct{ m *Mem }

func (n noLock) Info() share.Info { return n.m.Info() }
func (n noLock) Stat(ctx context.Context, name string) (share.Volume, error) {
	return n.m.Stat(ctx, name)
}
func (n noLock) Publish(ctx context.Context, name string, a []share.Access) ([]share.Source, error) {
	return n.m.Publish(ctx, name, a)
}
func (n noLock) Close() error { return n.m.Close() }
func (n noLock) As(target any) bool {
	if _, is := target.(*share.Locker); is {
		return false
	}
	return (&faultyShare{n.m, Script()}).As(target)
}

type createAnew struct{ *Mem }

func (m createAnew) Create(ctx context.Context, spec share.Spec) (share.Volume, error) {
	_ = m.Delete(ctx, spec.Name)
	return m.Mem.Create(ctx, spec)
}

type createOnce struct{ *Mem }

func (m createOnce) Create(ctx context.Context, spec share.Spec) (share.Volume, error) {
	if _, err := m.Stat(ctx, spec.Name); err == nil {
		return share.Volume{}, share.WrapError("create", "mem", spec.Name, share.ErrExist)
	}
	return m.Mem.Create(ctx, spec)
}

type deleteStrict struct{ *Mem }

func (m deleteStrict) Delete(ctx context.Context, name string) error {
	if _, err := m.Stat(ctx, name); err != nil {
		return err
	}
	return m.Mem.Delete(ctx, name)
}

type sourceDrifts struct {
	*Mem
	n atomic.Int64
}

func (m *sourceDrifts) Publish(ctx context.Context, name string, a []share.Access) ([]share.Source, error) {
	src, err := m.Mem.Publish(ctx, name, a)
	for i := range src {
		src[i].File.Path += fmt.Sprint(m.n.Add(1))
	}
	return src, err
}

type createBlind struct{ *Mem }

func (m createBlind) Create(ctx context.Context, spec share.Spec) (share.Volume, error) {
	if v, err := m.Stat(ctx, spec.Name); err == nil {
		return v, nil
	}
	return m.Mem.Create(ctx, spec)
}

type anyFormat struct{ *Mem }

func (m anyFormat) Create(ctx context.Context, spec share.Spec) (share.Volume, error) {
	if spec.Kind == share.Disk {
		spec.Format = share.Raw
	}
	return m.Mem.Create(ctx, spec)
}

type deleteAll struct{ *Mem }

func (m deleteAll) Delete(ctx context.Context, name string) error {
	_, _ = m.Publish(ctx, name, nil)
	return m.Mem.Delete(ctx, name)
}

type idByName struct{ *Mem }

func (m idByName) Create(ctx context.Context, spec share.Spec) (share.Volume, error) {
	v, err := m.Mem.Create(ctx, spec)
	if err == nil {
		v.ID = spec.Name
		m.st.mu.Lock()
		m.st.volumes[spec.Name].vol.ID = spec.Name
		m.st.mu.Unlock()
	}
	return v, err
}

type sourceEditor struct {
	*Mem
	edit func(*share.Source)
}

func editSources(m *Mem, edit func(*share.Source)) share.Share { return sourceEditor{m, edit} }

func (m sourceEditor) Publish(ctx context.Context, name string, a []share.Access) ([]share.Source, error) {
	src, err := m.Mem.Publish(ctx, name, a)
	for i := range src {
		m.edit(&src[i])
	}
	return src, err
}

type vagueStat struct{ *Mem }

func (m vagueStat) Stat(ctx context.Context, name string) (share.Volume, error) {
	v, err := m.Mem.Stat(ctx, name)
	if err != nil {
		err = share.WrapError("stat", "mem", name, errors.New("something went wrong"))
	}
	return v, err
}

type untypedStat struct{ *Mem }

func (m untypedStat) Stat(ctx context.Context, name string) (share.Volume, error) {
	v, err := m.Mem.Stat(ctx, name)
	if err != nil {
		err = share.ErrNotExist
	}
	return v, err
}

type listReversed struct{ *Mem }

func (m listReversed) List(ctx context.Context) ([]share.Volume, error) {
	all, err := m.Mem.List(ctx)
	slices.Reverse(all)
	return all, err
}

type listAccess struct{ *Mem }

func (m listAccess) List(ctx context.Context) ([]share.Volume, error) {
	all, err := m.Mem.List(ctx)
	for i := range all {
		all[i], _ = m.Stat(ctx, all[i].Name)
	}
	return all, err
}

type listShort struct{ *Mem }

func (m listShort) List(ctx context.Context) ([]share.Volume, error) {
	all, err := m.Mem.List(ctx)
	return all[:max(0, len(all)-1)], err
}

type anyName struct{ *Mem }

func (m anyName) Create(ctx context.Context, spec share.Spec) (share.Volume, error) {
	if share.CheckName(spec.Name) != nil {
		spec.Name = "made-up"
	}
	return m.Mem.Create(ctx, spec)
}

type rawNames struct{ *Mem }

func (m rawNames) Stat(ctx context.Context, name string) (share.Volume, error) {
	v, err := m.Mem.Stat(ctx, name)
	if err != nil {
		err = share.WrapError("stat", "mem", "", fmt.Errorf("%s: %w", name, errors.Unwrap(err)))
	}
	return v, err
}

type closeOnce struct {
	*Mem
	closed bool
}

func (m *closeOnce) Close() error {
	if m.closed {
		return share.ErrClosed
	}
	m.closed = true
	return m.Mem.Close()
}

type neverClosed struct{ *Mem }

func (m neverClosed) Stat(ctx context.Context, name string) (share.Volume, error) {
	return m.Reopen().Stat(ctx, name)
}

type closeDeletes struct{ *Mem }

func (m closeDeletes) Close() error {
	ctx := context.Background()
	all, _ := m.List(ctx)
	_ = m.Mem.Close()
	for _, v := range all {
		r := m.Reopen()
		_, _ = r.Publish(ctx, v.Name, nil)
		_ = r.Delete(ctx, v.Name)
	}
	return nil
}

type racyCreate struct{ *Mem }

func (m *racyCreate) Create(ctx context.Context, spec share.Spec) (share.Volume, error) {
	if v, err := m.Stat(ctx, spec.Name); err == nil {
		return v, nil
	}
	time.Sleep(10 * time.Millisecond)
	_ = m.Delete(ctx, spec.Name)
	return m.Mem.Create(ctx, spec)
}

type hangs struct{ *Mem }

func (m hangs) Stat(ctx context.Context, name string) (share.Volume, error) {
	if name == "mix0" {
		<-ctx.Done()
	}
	return m.Mem.Stat(ctx, name)
}

type deaf struct{ *Mem }

func (m deaf) Publish(ctx context.Context, name string, a []share.Access) ([]share.Source, error) {
	return m.Mem.Publish(context.WithoutCancel(ctx), name, a)
}

type accessAddsUp struct{ *Mem }

func (m accessAddsUp) Publish(ctx context.Context, name string, a []share.Access) ([]share.Source, error) {
	if len(a) > 0 {
		v, err := m.Stat(ctx, name)
		if err != nil {
			return nil, err
		}
		all := slices.Clone(a)
		for _, old := range v.Access {
			if !slices.ContainsFunc(a, func(n share.Access) bool { return n.Client == old.Client }) {
				all = append(all, old)
			}
		}
		src, err := m.Mem.Publish(ctx, name, all)
		return src[:min(len(src), len(a))], err
	}
	return m.Mem.Publish(ctx, name, a)
}

type sourcesSorted struct{ *Mem }

func (m sourcesSorted) Publish(ctx context.Context, name string, a []share.Access) ([]share.Source, error) {
	if share.CheckAccess(m.Info(), a) == nil {
		a = share.SortAccess(a)
	}
	return m.Mem.Publish(ctx, name, a)
}

type emptyIgnored struct{ *Mem }

func (m emptyIgnored) Publish(ctx context.Context, name string, a []share.Access) ([]share.Source, error) {
	if len(a) == 0 {
		_, err := m.Stat(ctx, name)
		return nil, err
	}
	return m.Mem.Publish(ctx, name, a)
}

type anyAccess struct{ *Mem }

func (m anyAccess) Publish(ctx context.Context, name string, a []share.Access) ([]share.Source, error) {
	var good []share.Access
	for _, x := range a {
		if share.CheckAccess(m.Info(), []share.Access{x}) == nil {
			good = append(good, x)
		}
	}
	return m.Mem.Publish(ctx, name, good)
}

type clearsFirst struct{ *Mem }

func (m clearsFirst) Publish(ctx context.Context, name string, a []share.Access) ([]share.Source, error) {
	_, _ = m.Mem.Publish(ctx, name, nil)
	return m.Mem.Publish(ctx, name, a)
}

type keepsCredential struct {
	*Mem
	kept *sync.Map
}

func (m keepsCredential) Publish(ctx context.Context, name string, a []share.Access) ([]share.Source, error) {
	m.kept.Store(name, a)
	return m.Mem.Publish(ctx, name, a)
}

func (m keepsCredential) Stat(ctx context.Context, name string) (share.Volume, error) {
	v, err := m.Mem.Stat(ctx, name)
	if a, ok := m.kept.Load(name); ok {
		v.Access = a.([]share.Access)
	}
	return v, err
}

type tellsSecret struct{ *Mem }

func (m tellsSecret) Publish(ctx context.Context, name string, a []share.Access) ([]share.Source, error) {
	src, err := m.Mem.Publish(ctx, name, a)
	if err != nil && len(a) > 0 && a[0].Credential != nil {
		err = fmt.Errorf("with %q: %w", a[0].Credential.Secret.Reveal(), err)
	}
	return src, err
}

type exportsSecret struct{ *Mem }

func (m exportsSecret) Publish(ctx context.Context, name string, a []share.Access) ([]share.Source, error) {
	if len(a) > 0 && a[0].Credential != nil {
		runWithEnvironment("SECRET=" + string(a[0].Credential.Secret.Reveal()))
	}
	return m.Mem.Publish(ctx, name, a)
}

func runWithEnvironment(env string) {
	null, _ := os.Open(os.DevNull)
	defer null.Close()
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "0.2"}, &os.ProcAttr{Env: []string{env}, Files: []*os.File{null, null, null}})
	if err == nil {
		_, _ = p.Wait()
	}
}

// opener opens devices of the share beneath in a way of its own.
func (m *Mem) openWith(ctx context.Context, name string, opts *share.OpenOptions, edit func(*share.OpenOptions)) (share.Device, error) {
	o := share.OpenOptions{}
	if opts != nil {
		o = *opts
	}
	edit(&o)
	return m.OpenDevice(ctx, name, &o)
}

type noGuard struct{ *Mem }

func (m noGuard) OpenDevice(ctx context.Context, name string, opts *share.OpenOptions) (share.Device, error) {
	return m.openWith(ctx, name, opts, func(o *share.OpenOptions) { o.VolumeID = "" })
}

type manyWriters struct{ *Mem }

func (m manyWriters) OpenDevice(ctx context.Context, name string, opts *share.OpenOptions) (share.Device, error) {
	m.st.mu.Lock()
	if v := m.st.volumes[name]; v != nil {
		v.writers = 0
	}
	m.st.mu.Unlock()
	return m.Mem.OpenDevice(ctx, name, opts)
}

type writingReaders struct{ *Mem }

func (m writingReaders) OpenDevice(ctx context.Context, name string, opts *share.OpenOptions) (share.Device, error) {
	d, err := m.Mem.OpenDevice(ctx, name, opts)
	if err == nil {
		d.(*MemDevice).readOnly = false
	}
	return d, err
}

type staleReaders struct{ *Mem }

func (m staleReaders) OpenDevice(ctx context.Context, name string, opts *share.OpenOptions) (share.Device, error) {
	d, err := m.Mem.OpenDevice(ctx, name, opts)
	if err == nil && opts != nil && opts.ReadOnly {
		mem := d.(*MemDevice)
		mem.disk, mem.epoch = mem.disk.freeze().thaw(), 0
	}
	return d, err
}

type deviceEditor struct {
	*Mem
	edit func(*MemDevice) share.Device
}

func editDevices(m *Mem, edit func(*MemDevice) share.Device) share.Share {
	return deviceEditor{m, edit}
}

func (m deviceEditor) OpenDevice(ctx context.Context, name string, opts *share.OpenOptions) (share.Device, error) {
	d, err := m.Mem.OpenDevice(ctx, name, opts)
	if err != nil {
		return nil, err
	}
	return m.edit(d.(*MemDevice)), nil
}

type treeBlocks struct{ *Mem }

func (m treeBlocks) OpenDevice(ctx context.Context, name string, opts *share.OpenOptions) (share.Device, error) {
	d, err := m.Mem.OpenDevice(ctx, name, opts)
	if unsupported(err) {
		return NewDevice(512), nil
	}
	return d, err
}

type tiedDevices struct{ *Mem }

func (m tiedDevices) OpenDevice(ctx context.Context, name string, opts *share.OpenOptions) (share.Device, error) {
	d, err := m.Mem.OpenDevice(ctx, name, opts)
	if err != nil {
		return nil, err
	}
	return tiedDevice{d.(*MemDevice), ctx}, nil
}

type tiedDevice struct {
	*MemDevice
	opened context.Context
}

func (d tiedDevice) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := d.opened.Err(); err != nil {
		return err
	}
	return d.MemDevice.WriteAt(ctx, p, off)
}

type resizeNot struct{ *Mem }

func (m resizeNot) Resize(ctx context.Context, name string, size share.Bytes, _ *share.ResizeOptions) (share.Volume, error) {
	v, err := m.Stat(ctx, name)
	v.Size = size
	return v, err
}

type shrinks struct{ *Mem }

func (m shrinks) Resize(ctx context.Context, name string, size share.Bytes, _ *share.ResizeOptions) (share.Volume, error) {
	return m.Mem.Resize(ctx, name, size, &share.ResizeOptions{Shrink: true})
}

type resizeEmpties struct{ *Mem }

func (m resizeEmpties) Resize(ctx context.Context, name string, size share.Bytes, opts *share.ResizeOptions) (share.Volume, error) {
	v, err := m.Mem.Resize(ctx, name, size, opts)
	if err == nil {
		m.st.volumes[name].disk.resize(0)
		m.st.volumes[name].disk.resize(int64(size))
	}
	return v, err
}

type liveSnapshots struct{ *Mem }

func (m liveSnapshots) OpenDevice(ctx context.Context, name string, opts *share.OpenOptions) (share.Device, error) {
	return m.openWith(ctx, name, opts, func(o *share.OpenOptions) {
		o.ReadOnly = o.ReadOnly || o.Snapshot != ""
		o.Snapshot = ""
	})
}

type rollNot struct{ *Mem }

func (m rollNot) RollBack(ctx context.Context, volume, _ string) error {
	_, err := m.Stat(ctx, volume)
	return err
}

type snapshotsByName struct{ *Mem }

func (m snapshotsByName) Snapshots(ctx context.Context, volume string) ([]share.Snapshot, error) {
	all, err := m.Mem.Snapshots(ctx, volume)
	slices.Reverse(all)
	return all, err
}

type rollAnyway struct{ *Mem }

func (m rollAnyway) RollBack(ctx context.Context, volume, name string) error {
	err := m.Mem.RollBack(ctx, volume, name)
	if errors.Is(err, share.ErrInUse) {
		return nil
	}
	return err
}

type emptyClone struct{ *Mem }

func (m emptyClone) Clone(ctx context.Context, volume, snapshot, name string) (share.Volume, error) {
	v, err := m.Mem.Clone(ctx, volume, snapshot, name)
	if err == nil {
		c := m.st.volumes[name]
		c.disk = newMemDisk(c.disk.size)
	}
	return v, err
}

type fewChanges struct{ *Mem }

func (m fewChanges) Changes(ctx context.Context, volume, from, to string) ([]share.Extent, error) {
	all, err := m.Mem.Changes(ctx, volume, from, to)
	return all[:max(0, len(all)-1)], err
}

type openLock struct{ *Mem }

func (m openLock) Lock(ctx context.Context, volume, owner string) (share.Lock, error) {
	l, err := m.Mem.Lock(ctx, volume, owner)
	if errors.Is(err, share.ErrInUse) {
		return faultyLock{&faultyShare{m, Script()}, noLockHeld{}}, nil
	}
	return l, err
}

type noLockHeld struct{}

func (noLockHeld) Release() error { return nil }

type unwell struct{ *Mem }

func (m unwell) Health(context.Context) (share.Health, error) {
	return share.Health{Problems: []string{"always"}}, nil
}

// halfCreate makes a small volume and then makes it larger: a crash between
// the two shows.
type halfCreate struct{ *Mem }

func (m halfCreate) Create(ctx context.Context, spec share.Spec) (share.Volume, error) {
	if _, err := m.Stat(ctx, spec.Name); err == nil || spec.Kind != share.Disk {
		return m.Mem.Create(ctx, spec)
	}
	half := spec
	half.Size /= 2
	return m.Mem.Create(ctx, half)
}

type leaksGoroutine struct{ *Mem }

func (m leaksGoroutine) Close() error {
	go func() { select {} }()
	return m.Mem.Close()
}

type leaksFile struct{ *Mem }

var leaked []*os.File // kept, or the collector would close them

func (m leaksFile) Close() error {
	f, _ := os.Open(os.DevNull)
	leaked = append(leaked, f)
	return m.Mem.Close()
}

type noFlush struct{ *MemDevice }

func (d noFlush) Flush(context.Context) error { return nil }

type clips struct{ *MemDevice }

func (d clips) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off >= 0 && off <= d.Size() {
		p = p[:min(int64(len(p)), d.Size()-off)]
	}
	return d.MemDevice.ReadAt(ctx, p, off)
}

type clipsZero struct{ *MemDevice }

func (d clipsZero) Zero(ctx context.Context, off, n int64, flags share.ZeroFlags) error {
	if off >= 0 && off <= d.Size() {
		n = min(n, d.Size()-off)
	}
	return d.MemDevice.Zero(ctx, off, n, flags)
}

// keepsBuffer writes what the buffer of the call before holds now.
type keepsBuffer struct {
	*MemDevice
	last []byte
	at   int64
}

func (d *keepsBuffer) WriteAt(ctx context.Context, p []byte, off int64) error {
	if d.last != nil {
		_ = d.MemDevice.WriteAt(ctx, d.last, d.at)
	}
	d.last, d.at = p, off
	return d.MemDevice.WriteAt(ctx, p, off)
}

type shortWrites struct{ *MemDevice }

func (d shortWrites) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.MemDevice.WriteAt(ctx, p[:min(len(p), 64<<10)], off)
}

type zerosLess struct{ *MemDevice }

func (d zerosLess) Zero(ctx context.Context, off, n int64, flags share.ZeroFlags) error {
	end := (off + n) / 512 * 512
	return d.MemDevice.Zero(ctx, off, max(0, end-off), flags)
}

type zerosNot struct{ *MemDevice }

func (d zerosNot) Zero(ctx context.Context, off, n int64, _ share.ZeroFlags) error {
	return d.MemDevice.ReadAt(ctx, make([]byte, n), off)
}

type discardsMore struct{ *MemDevice }

func (d discardsMore) Discard(ctx context.Context, off, n int64) error {
	end := min(d.Size(), (off+n)/chunkSize*chunkSize+chunkSize)
	return d.MemDevice.Discard(ctx, off, end-off)
}

type allHole struct{ *MemDevice }

func (d allHole) Extents(ctx context.Context, off, n int64) ([]share.Extent, error) {
	exts, err := d.MemDevice.Extents(ctx, off, n)
	for i := range exts {
		exts[i].State = share.ExtentZero
	}
	return exts, err
}

type gaps struct{ *MemDevice }

func (d gaps) Extents(ctx context.Context, off, n int64) ([]share.Extent, error) {
	exts, err := d.MemDevice.Extents(ctx, off, n)
	if len(exts) > 1 {
		exts = exts[1:]
	}
	return exts, err
}

type deafDevice struct{ *MemDevice }

func (d deafDevice) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.MemDevice.WriteAt(context.WithoutCancel(ctx), p, off)
}

// wholeChunks reads, changes and writes whole chunks, without a lock.
type wholeChunks struct{ *MemDevice }

func (d wholeChunks) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := share.CheckRange(d.Size(), off, int64(len(p))); err != nil {
		return err
	}
	from := off / chunkSize * chunkSize
	to := min(d.Size(), (off+int64(len(p))+chunkSize-1)/chunkSize*chunkSize)
	all := make([]byte, to-from)
	if err := d.ReadAt(ctx, all, from); err != nil {
		return err
	}
	copy(all[off-from:], p)
	time.Sleep(100 * time.Microsecond)
	return d.MemDevice.WriteAt(ctx, all, from)
}

type notClosed struct{ *MemDevice }

func (d notClosed) Flush(ctx context.Context) error { return d.Reopen().Flush(ctx) }

type deviceCloseOnce struct {
	*MemDevice
	closed bool
}

func (d *deviceCloseOnce) Close() error {
	if d.closed {
		return share.ErrClosed
	}
	d.closed = true
	return d.MemDevice.Close()
}
