package sharetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmferry/vmferry/share"
)

// Mem is a share in memory that has every optional interface. It stands in for
// a backend in the tests of those who use one, and shows what [Run] expects.
//
// Sources of its disks lead nowhere outside this program; [Mem.OpenSource]
// follows them as a client would.
type Mem struct {
	st *memStorage

	mu     sync.Mutex
	closed bool
	devs   map[*MemDevice]bool
	locks  map[*memLock]bool
}

// MemOptions change [NewMem]; nil is the zero value.
type MemOptions struct {
	// AllowWorld lets Publish accept share.Everyone.
	AllowWorld bool
	// Capacity bounds the space that volumes take; beyond it preallocation and
	// creation are share.ErrNoSpace. 0 is no limit.
	Capacity share.Bytes
}

// memStorage is what all handles on one share have in common.
type memStorage struct {
	mu      sync.Mutex
	id      string
	opts    MemOptions
	volumes map[string]*memVolume
	locked  map[string]*memLock
}

type memVolume struct {
	vol       share.Volume
	disk      *memDisk // nil for a tree
	access    []share.Access
	snapshots []memSnapshot
	origin    string // what it was cloned from
	writers   int
	open      int
}

type memSnapshot struct {
	share.Snapshot
	image image
}

type memLock struct {
	m      *Mem
	volume string
	owner  string
}

// NewMem returns a handle on a new, empty share.
func NewMem(opts *MemOptions) *Mem {
	st := &memStorage{id: newID(), volumes: map[string]*memVolume{}, locked: map[string]*memLock{}}
	if opts != nil {
		st.opts = *opts
	}
	return st.handle()
}

func (st *memStorage) handle() *Mem {
	return &Mem{st: st, devs: map[*MemDevice]bool{}, locks: map[*memLock]bool{}}
}

// Reopen returns another handle on the same storage, as another process would
// have. It works also after Close.
func (m *Mem) Reopen() *Mem { return m.st.handle() }

// Crash ends this handle as the death of its process would, and cuts the power
// of all disks; see [MemDevice.Crash]. Other handles go on with what is left.
func (m *Mem) Crash(seed uint64) {
	_ = m.Close()
	m.st.mu.Lock()
	defer m.st.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.st.volumes)) {
		if v := m.st.volumes[name]; v.disk != nil {
			v.disk.crash(seed)
			seed++
		}
	}
}

// Info implements [share.Share].
func (m *Mem) Info() share.Info {
	clients := []share.ClientKind{share.ByAddress, share.ByHostName, share.ByIQN, share.ByUser, share.ByCertificate, share.ByLocal}
	if m.st.opts.AllowWorld {
		clients = append(clients, share.ByWorld)
	}
	caps := share.Capabilities{}
	for _, c := range share.AllCapabilities() {
		caps[c] = share.Yes
	}
	return share.Info{
		Backend:      "mem",
		Identity:     m.st.id,
		Kinds:        []share.Kind{share.Disk, share.Tree},
		Formats:      []share.Format{share.Raw},
		Clients:      clients,
		Capabilities: caps,
	}
}

// Close implements [share.Share].
func (m *Mem) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	devs, locks := slices.Collect(maps.Keys(m.devs)), slices.Collect(maps.Keys(m.locks))
	m.mu.Unlock()
	for _, d := range devs {
		_ = d.Close()
	}
	for _, l := range locks {
		_ = l.Release()
	}
	return nil
}

// enter begins an operation: it checks ctx, the handle and the names, and
// returns with the storage locked.
func (m *Mem) enter(ctx context.Context, names ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	closed := m.closed
	m.mu.Unlock()
	if closed {
		return fmt.Errorf("share %w", share.ErrClosed)
	}
	for _, name := range names {
		if err := share.CheckName(name); err != nil {
			return err
		}
	}
	m.st.mu.Lock()
	return nil
}

// nonEmpty leaves out the names that are not given.
func nonEmpty(names ...string) []string {
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}

// volume finds a volume. The caller holds the storage's lock.
func (m *Mem) volume(name string) (*memVolume, error) {
	if v := m.st.volumes[name]; v != nil {
		return v, nil
	}
	return nil, fmt.Errorf("volume %w", share.ErrNotExist)
}

// disk finds a volume that is one.
func (m *Mem) disk(name string) (*memVolume, error) {
	v, err := m.volume(name)
	if err == nil && v.disk == nil {
		err = &share.UnsupportedError{What: "the block view of a tree", Reason: "only disks have blocks"}
	}
	return v, err
}

// describe is the volume as it is now.
func (v *memVolume) describe() share.Volume {
	vol := v.vol
	if v.disk != nil {
		v.disk.mu.RLock()
		vol.Size = share.Bytes(v.disk.size)
		v.disk.mu.RUnlock()
		vol.Allocated = v.disk.allocated()
	}
	return vol
}

// Stat implements [share.Share].
func (m *Mem) Stat(ctx context.Context, name string) (_ share.Volume, err error) {
	defer func() { err = share.WrapError("stat", "mem", name, err) }()
	if err := m.enter(ctx, name); err != nil {
		return share.Volume{}, err
	}
	defer m.st.mu.Unlock()
	v, err := m.volume(name)
	if err != nil {
		return share.Volume{}, err
	}
	vol := v.describe()
	vol.Access = slices.Clone(v.access)
	return vol, nil
}

// Publish implements [share.Share].
func (m *Mem) Publish(ctx context.Context, name string, access []share.Access) (_ []share.Source, err error) {
	defer func() { err = share.WrapError("publish", "mem", name, err) }()
	if err := m.enter(ctx, name); err != nil {
		return nil, err
	}
	defer m.st.mu.Unlock()
	if err := share.CheckAccess(m.Info(), access); err != nil {
		return nil, err
	}
	v, err := m.volume(name)
	if err != nil {
		return nil, err
	}
	v.access = share.SortAccess(access)
	var sources []share.Source
	for _, a := range access {
		sources = append(sources, share.Source{
			Kind:     v.vol.Kind,
			Format:   v.vol.Format,
			VolumeID: v.vol.ID,
			ReadOnly: a.Mode == share.ReadOnly,
			File:     &share.FileSource{Path: m.path(name)},
		})
	}
	return sources, nil
}

// path is where sources lead.
func (m *Mem) path(name string) string { return "/sharetest/" + m.st.id + "/" + name }

// OpenSource opens the disk that a source leads to, as a client of the share
// would: only while the volume is published, and only to read if that is all
// that was given.
func (m *Mem) OpenSource(ctx context.Context, src share.Source) (share.Device, error) {
	if err := src.Check(); err != nil {
		return nil, err
	}
	if src.File == nil || !strings.HasPrefix(src.File.Path, m.path("")) {
		return nil, fmt.Errorf("%w: the source is not of this share", share.ErrInvalid)
	}
	name := strings.TrimPrefix(src.File.Path, m.path(""))
	vol, err := m.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	mode := share.ReadOnly
	for _, a := range vol.Access {
		mode = max(mode, a.Mode)
	}
	if len(vol.Access) == 0 || mode == share.ReadOnly && !src.ReadOnly {
		return nil, fmt.Errorf("volume %q: access %w", name, share.ErrDenied)
	}
	return m.OpenDevice(ctx, name, &share.OpenOptions{ReadOnly: src.ReadOnly, VolumeID: src.VolumeID})
}

// Create implements [share.Creator].
func (m *Mem) Create(ctx context.Context, spec share.Spec) (_ share.Volume, err error) {
	defer func() { err = share.WrapError("create", "mem", spec.Name, err) }()
	if spec, err = spec.For(m.Info()); err != nil {
		return share.Volume{}, err
	}
	if err := m.enter(ctx); err != nil {
		return share.Volume{}, err
	}
	defer m.st.mu.Unlock()
	if v := m.st.volumes[spec.Name]; v != nil {
		if err := spec.Match(v.describe()); err != nil {
			return share.Volume{}, err
		}
		return v.describe(), nil
	}
	v := &memVolume{vol: share.Volume{
		Name: spec.Name, ID: newID(), Kind: spec.Kind, Format: spec.Format, Size: spec.Size, Created: time.Now(),
	}}
	if err := m.st.room(spec.Size); err != nil {
		return share.Volume{}, err
	}
	if spec.Kind == share.Disk {
		v.disk = newMemDisk(int64(spec.Size))
		if spec.Preallocate {
			v.disk.apply(memWrite{n: v.disk.size, keep: true})
		}
	}
	m.st.volumes[spec.Name] = v
	return v.describe(), nil
}

// room refuses what the capacity cannot hold. The storage is locked.
func (st *memStorage) room(more share.Bytes) error {
	if st.opts.Capacity == 0 {
		return nil
	}
	sum := more
	for _, v := range st.volumes {
		sum += v.describe().Size
	}
	if sum > st.opts.Capacity {
		return fmt.Errorf("pool of %s %w", st.opts.Capacity, share.ErrNoSpace)
	}
	return nil
}

// Delete implements [share.Deleter].
func (m *Mem) Delete(ctx context.Context, name string) (err error) {
	defer func() { err = share.WrapError("delete", "mem", name, err) }()
	if err := m.enter(ctx, name); err != nil {
		return err
	}
	defer m.st.mu.Unlock()
	v := m.st.volumes[name]
	switch {
	case v == nil:
		return nil
	case len(v.access) > 0:
		return fmt.Errorf("volume %w: it is published; publish it with an empty set first", share.ErrInUse)
	case v.open > 0:
		return fmt.Errorf("volume %w: a device is open on it", share.ErrInUse)
	case m.st.locked[name] != nil:
		return fmt.Errorf("volume %w: it is locked by %q", share.ErrInUse, m.st.locked[name].owner)
	}
	delete(m.st.volumes, name)
	return nil
}

// List implements [share.Lister].
func (m *Mem) List(ctx context.Context) (_ []share.Volume, err error) {
	defer func() { err = share.WrapError("list", "mem", "", err) }()
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	defer m.st.mu.Unlock()
	var all []share.Volume
	for _, name := range slices.Sorted(maps.Keys(m.st.volumes)) {
		all = append(all, m.st.volumes[name].describe())
	}
	return all, nil
}

// Resize implements [share.Resizer].
func (m *Mem) Resize(ctx context.Context, name string, size share.Bytes, opts *share.ResizeOptions) (_ share.Volume, err error) {
	defer func() { err = share.WrapError("resize", "mem", name, err) }()
	if err := m.enter(ctx, name); err != nil {
		return share.Volume{}, err
	}
	defer m.st.mu.Unlock()
	v, err := m.disk(name)
	if err != nil {
		return share.Volume{}, err
	}
	have := v.describe().Size
	if err := share.CheckResize(have, size, opts); err != nil {
		return share.Volume{}, err
	}
	switch {
	case size == have:
		return v.describe(), nil
	case v.open > 0:
		return share.Volume{}, fmt.Errorf("volume %w: a device is open on it", share.ErrInUse)
	}
	if size > have {
		if err := m.st.room(size - have); err != nil {
			return share.Volume{}, err
		}
	}
	v.disk.resize(int64(size))
	return v.describe(), nil
}

// Snapshot implements [share.Snapshotter].
func (m *Mem) Snapshot(ctx context.Context, volume, name string) (_ share.Snapshot, err error) {
	defer func() { err = share.WrapError("snapshot", "mem", volume, err) }()
	if err := m.enter(ctx, volume, name); err != nil {
		return share.Snapshot{}, err
	}
	defer m.st.mu.Unlock()
	v, err := m.disk(volume)
	if err != nil {
		return share.Snapshot{}, err
	}
	if s, err := v.snapshot(name); err == nil {
		return s.Snapshot, nil
	}
	im := v.disk.freeze()
	s := memSnapshot{share.Snapshot{Name: name, Volume: volume, Size: share.Bytes(im.size), Created: time.Now()}, im}
	v.snapshots = append(v.snapshots, s)
	return s.Snapshot, nil
}

func (v *memVolume) snapshot(name string) (memSnapshot, error) {
	for _, s := range v.snapshots {
		if s.Name == name {
			return s, nil
		}
	}
	return memSnapshot{}, fmt.Errorf("snapshot %q %w", name, share.ErrNotExist)
}

// Snapshots implements [share.Snapshotter].
func (m *Mem) Snapshots(ctx context.Context, volume string) (_ []share.Snapshot, err error) {
	defer func() { err = share.WrapError("list snapshots of", "mem", volume, err) }()
	if err := m.enter(ctx, volume); err != nil {
		return nil, err
	}
	defer m.st.mu.Unlock()
	v, err := m.disk(volume)
	if err != nil {
		return nil, err
	}
	var all []share.Snapshot
	for _, s := range v.snapshots {
		all = append(all, s.Snapshot)
	}
	return all, nil
}

// RollBack implements [share.Snapshotter].
func (m *Mem) RollBack(ctx context.Context, volume, name string) (err error) {
	defer func() { err = share.WrapError("roll back", "mem", volume, err) }()
	if err := m.enter(ctx, volume, name); err != nil {
		return err
	}
	defer m.st.mu.Unlock()
	v, err := m.disk(volume)
	if err != nil {
		return err
	}
	s, err := v.snapshot(name)
	switch {
	case err != nil:
		return err
	case v.open > 0:
		return fmt.Errorf("volume %w: a device is open on it", share.ErrInUse)
	}
	v.disk.restore(s.image)
	return nil
}

// DeleteSnapshot implements [share.Snapshotter].
func (m *Mem) DeleteSnapshot(ctx context.Context, volume, name string) (err error) {
	defer func() { err = share.WrapError("delete a snapshot of", "mem", volume, err) }()
	if err := m.enter(ctx, volume, name); err != nil {
		return err
	}
	defer m.st.mu.Unlock()
	v, err := m.disk(volume)
	if err != nil {
		return err
	}
	v.snapshots = slices.DeleteFunc(v.snapshots, func(s memSnapshot) bool { return s.Name == name })
	return nil
}

// content is the state of a disk at a snapshot, or now for "".
func (v *memVolume) content(snapshot string) (image, error) {
	if snapshot == "" {
		return v.disk.freeze(), nil
	}
	s, err := v.snapshot(snapshot)
	return s.image, err
}

// Clone implements [share.Cloner].
func (m *Mem) Clone(ctx context.Context, volume, snapshot, name string) (_ share.Volume, err error) {
	defer func() { err = share.WrapError("clone", "mem", volume, err) }()
	if err := m.enter(ctx, append([]string{volume, name}, nonEmpty(snapshot)...)...); err != nil {
		return share.Volume{}, err
	}
	defer m.st.mu.Unlock()
	v, err := m.disk(volume)
	if err != nil {
		return share.Volume{}, err
	}
	origin := v.vol.ID + "@" + snapshot
	if c := m.st.volumes[name]; c != nil {
		if c.origin != origin {
			return share.Volume{}, &share.MismatchError{Field: "origin", Have: c.origin, Want: origin}
		}
		return c.describe(), nil
	}
	im, err := v.content(snapshot)
	if err != nil {
		return share.Volume{}, err
	}
	c := &memVolume{vol: v.vol, disk: im.thaw(), origin: origin}
	c.vol.Name, c.vol.ID, c.vol.Created = name, newID(), time.Now()
	m.st.volumes[name] = c
	return c.describe(), nil
}

// Changes implements [share.ChangeLister].
func (m *Mem) Changes(ctx context.Context, volume, from, to string) (_ []share.Extent, err error) {
	defer func() { err = share.WrapError("list changes of", "mem", volume, err) }()
	if err := m.enter(ctx, append([]string{volume}, nonEmpty(from, to)...)...); err != nil {
		return nil, err
	}
	defer m.st.mu.Unlock()
	v, err := m.disk(volume)
	if err != nil {
		return nil, err
	}
	var a image
	if from != "" {
		if a, err = v.content(from); err != nil {
			return nil, err
		}
	}
	b, err := v.content(to)
	if err != nil {
		return nil, err
	}
	return changed(a, b), nil
}

// OpenDevice implements [share.DeviceOpener].
func (m *Mem) OpenDevice(ctx context.Context, name string, opts *share.OpenOptions) (_ share.Device, err error) {
	defer func() { err = share.WrapError("open", "mem", name, err) }()
	if opts == nil {
		opts = &share.OpenOptions{}
	}
	if err := m.enter(ctx, append([]string{name}, nonEmpty(opts.Snapshot)...)...); err != nil {
		return nil, err
	}
	defer m.st.mu.Unlock()
	v, err := m.disk(name)
	if err != nil {
		return nil, err
	}
	if opts.VolumeID != "" && opts.VolumeID != v.vol.ID {
		return nil, fmt.Errorf("volume %w: its ID is %q, not %q", share.ErrWrongDevice, v.vol.ID, opts.VolumeID)
	}
	d := (&MemDevice{disk: v.disk, id: v.vol.ID, readOnly: opts.ReadOnly}).Reopen()
	if opts.Snapshot != "" {
		s, err := v.snapshot(opts.Snapshot)
		if err != nil {
			return nil, err
		}
		d = &MemDevice{disk: s.image.thaw(), id: v.vol.ID, readOnly: true}
	}
	writer := !d.readOnly
	if writer && v.writers > 0 {
		return nil, fmt.Errorf("volume %w: it is open for writing", share.ErrInUse)
	}
	v.open++
	if writer {
		v.writers++
	}
	d.onClose = func() {
		m.st.mu.Lock()
		defer m.st.mu.Unlock()
		v.open--
		if writer {
			v.writers--
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.devs, d)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.devs[d] = true
	return d, nil
}

// Lock implements [share.Locker].
func (m *Mem) Lock(ctx context.Context, volume, owner string) (_ share.Lock, err error) {
	defer func() { err = share.WrapError("lock", "mem", volume, err) }()
	if err := m.enter(ctx, volume, owner); err != nil {
		return nil, err
	}
	defer m.st.mu.Unlock()
	if _, err := m.volume(volume); err != nil {
		return nil, err
	}
	if l := m.st.locked[volume]; l != nil {
		return nil, fmt.Errorf("volume %w: it is locked by %q", share.ErrInUse, l.owner)
	}
	l := &memLock{m: m, volume: volume, owner: owner}
	m.st.locked[volume] = l
	m.mu.Lock()
	defer m.mu.Unlock()
	m.locks[l] = true
	return l, nil
}

// Release implements [share.Lock].
func (l *memLock) Release() error {
	l.m.st.mu.Lock()
	defer l.m.st.mu.Unlock()
	if l.m.st.locked[l.volume] == l {
		delete(l.m.st.locked, l.volume)
	}
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	delete(l.m.locks, l)
	return nil
}

// Health implements [share.Healther].
func (m *Mem) Health(ctx context.Context) (_ share.Health, err error) {
	defer func() { err = share.WrapError("report the health of", "mem", "", err) }()
	if err := m.enter(ctx); err != nil {
		return share.Health{}, err
	}
	defer m.st.mu.Unlock()
	h := share.Health{OK: true, Size: -1, Free: -1}
	if cap := m.st.opts.Capacity; cap > 0 {
		h.Size, h.Free = cap, cap
		for _, v := range m.st.volumes {
			h.Free -= v.describe().Size
		}
	}
	return h, nil
}
