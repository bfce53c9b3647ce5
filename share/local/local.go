// Package local is a share made of one directory of this host: disks are image
// files in it, trees are directories in it. It needs no daemon and no
// privileges beyond those of the directory.
//
//	s, err := local.Open(ctx, "/srv/images", nil)
//
// Its URL for a [share.Registry] is local:///srv/images, see [OpenURL].
//
// # What lies where
//
// The volume vm1 is the file or directory vm1 in the share's directory, so
// that libvirt and QEMU's tools find it by that path. What is known about it
// (identity, kind, format, size, access) is recorded in .vmferry beside it.
// A file that this package did not make is not a volume: it is not listed, not
// touched, and in the way of a volume of that name ([share.ErrExist]).
//
// The format of an image is what was recorded when it was made. It is never
// probed: a guest that writes a qcow2 header into its raw disk changes nothing.
//
// # Who is kept out
//
// An image that is open here carries the same locks as one that is open in
// QEMU (open file description locks on the bytes of QEMU's image locking), so
// a running guest, qemu-img, qemu-nbd and other programs with this package
// exclude each other as QEMU's own tools do: one writer; readers of raw images
// beside it. QEMU with locking=off is not kept out.
//
// Local clients ([share.LocalHost]) are the only ones that a directory can be
// published to, and the operating system alone decides who opens a file: the
// mode of an access is recorded and handed on in the [share.Source], and
// squash does not apply. New images have mode 0600 and new trees 0700; where
// QEMU runs as a user of its own, as under libvirt, give the files to its group
// with [Options] Group and FileMode. The owner and mode of what was there
// before are never changed.
//
// # Crashes
//
// Every change is prepared under a temporary name, made durable, and shows up
// with one rename or link (the file system must have hard links). What a
// crashed program left is finished or undone by the next [Open] or the next
// call on the same volume, in any process. Nothing else is repaired: a record that was damaged and an image that is missing or has
// another size are [share.ErrCorrupt], an image that was replaced by a link is
// [share.ErrWrongDevice].
package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/vmferry/vmferry/share"
)

// Backend is the name of this backend in errors and in [share.Info].
const Backend = "local"

// Options change how [Open] works; nil is the zero value.
type Options struct {
	// Create makes the directory, mode 0700, if it is not there. Its parent
	// must be.
	Create bool
	// Format is the format of disks whose Spec leaves it open; None is raw.
	Format share.Format
	// FileMode is the mode of new images, whatever the umask; 0 is 0600.
	FileMode fs.FileMode
	// DirMode is the mode of new trees, whatever the umask; 0 is 0700.
	DirMode fs.FileMode
	// Group is the name or number of the group that new images and trees are
	// given to: "kvm", "libvirt-qemu". The program must be a member. Empty
	// leaves the choice to the operating system.
	Group string
	// Shared says that other hosts mount the same storage at the same path, so
	// that a guest can move between them without its disk; see
	// [share.Source]. The file system must carry locks between hosts, as NFS 4
	// and GlusterFS do.
	Shared bool
	// Logger is told of each change: which volume, before and after. Nil
	// discards.
	Logger *slog.Logger
}

// dir is a directory as a share. Its methods are in the files named after
// their operation.
type dir struct {
	path  string // absolute
	root  *os.Root
	store *store
	opts  Options
	gid   int    // -1: leave it
	tools *tools // nil: not installed
	info  share.Info

	mu     sync.Mutex
	closed bool
	held   map[closer]bool // devices and locks that Close ends

	// hook is told of every step that a crash may follow. Tests crash there.
	hook func(step string)
}

type closer interface{ Close() error }

// Open opens the directory as a share. It makes the folder .vmferry in it if
// there is none. The directory is held open: volumes stay reachable when it is
// renamed, and another one that takes its place is not mistaken for it.
func Open(ctx context.Context, path string, opts *Options) (share.Share, error) {
	s, err := await(ctx, func(ctx context.Context) (*dir, error) {
		d, err := openDir(path, opts)
		if err == nil {
			d.tidy(ctx)
		}
		return d, err
	})
	if err != nil {
		return nil, share.WrapError("open", Backend, "", kindOf(err))
	}
	return s.withTools(), nil
}

// OpenURL is a [share.Opener]: local:///absolute/path, with the parameters
// format, file_mode, dir_mode (octal), group and shared=true as in [Options].
func OpenURL(ctx context.Context, u *url.URL) (share.Share, error) {
	opts, err := parseURL(u)
	if err != nil {
		return nil, share.WrapError("open", Backend, "", err)
	}
	return Open(ctx, u.Path, opts)
}

func parseURL(u *url.URL) (*Options, error) {
	if u.Opaque != "" || u.Host != "" || u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("%w: a local share's URL has a path and parameters only: local:///srv/images", share.ErrInvalid)
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("%w: the parameters of the share's URL cannot be parsed", share.ErrInvalid)
	}
	opts := &Options{}
	for key, values := range q {
		if len(values) > 1 {
			return nil, fmt.Errorf("%w: the parameter %q is given twice", share.ErrInvalid, key)
		}
		value := values[0]
		switch key {
		case "format":
			opts.Format = share.Format(value)
		case "group":
			opts.Group = value
		case "shared":
			if value != "true" {
				return nil, fmt.Errorf("%w: shared=%q; use shared=true, or leave it out", share.ErrInvalid, value)
			}
			opts.Shared = true
		case "file_mode", "dir_mode":
			mode, err := strconv.ParseUint(value, 8, 9)
			if err != nil {
				return nil, fmt.Errorf("%w: %s=%q is not an octal mode", share.ErrInvalid, key, value)
			}
			if key == "file_mode" {
				opts.FileMode = fs.FileMode(mode)
			} else {
				opts.DirMode = fs.FileMode(mode)
			}
		default:
			return nil, fmt.Errorf("%w: a local share's URL has no parameter %q", share.ErrInvalid, key)
		}
	}
	return opts, nil
}

// url is what OpenURL makes the same share of.
func (o Options) url(path string) string {
	q := url.Values{}
	if o.Format != share.None {
		q.Set("format", string(o.Format))
	}
	if o.Group != "" {
		q.Set("group", o.Group)
	}
	if o.FileMode != 0 {
		q.Set("file_mode", strconv.FormatUint(uint64(o.FileMode), 8))
	}
	if o.DirMode != 0 {
		q.Set("dir_mode", strconv.FormatUint(uint64(o.DirMode), 8))
	}
	if o.Shared {
		q.Set("shared", "true")
	}
	return (&url.URL{Scheme: "local", Path: path, RawQuery: q.Encode()}).String()
}

func openDir(path string, opts *Options) (_ *dir, err error) {
	if opts == nil {
		opts = &Options{}
	}
	d := &dir{opts: *opts, gid: -1, held: map[closer]bool{}}
	if d.path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	if err := share.CheckPath(d.path); err != nil {
		return nil, err
	}
	for _, mode := range []fs.FileMode{opts.FileMode, opts.DirMode} {
		if mode != mode.Perm() || mode&0o002 != 0 {
			return nil, fmt.Errorf("%w: mode %o lets everyone write, or is more than permissions", share.ErrInvalid, mode)
		}
	}
	if d.gid, err = lookupGroup(opts.Group); err != nil {
		return nil, err
	}
	if opts.Create {
		if err := os.Mkdir(d.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	if d.root, err = os.OpenRoot(d.path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = d.root.Close()
		}
	}()
	if d.store, err = openStore(d.root); err != nil {
		return nil, err
	}
	d.store.step = d.step
	if err := d.describeShare(); err != nil {
		_ = d.store.close()
		return nil, err
	}
	return d, nil
}

func lookupGroup(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	if gid, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(gid), nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", share.ErrInvalid, err)
	}
	return strconv.Atoi(g.Gid)
}

// describeShare fills in what Info returns.
func (d *dir) describeShare() error {
	formats := []share.Format{share.Raw}
	snapshots := share.Support{OK: true, Reason: "qcow2 disks only, while they are not open"}
	tools, err := findTools()
	if err != nil {
		snapshots = share.No(err.Error())
	} else {
		d.tools = tools
		formats = append(formats, share.Qcow2)
	}
	switch i := slices.Index(formats, d.opts.Format); {
	case i > 0:
		formats[0], formats[i] = formats[i], formats[0]
	case i < 0 && d.opts.Format == share.Qcow2:
		return err
	case i < 0 && d.opts.Format != share.None:
		return &share.UnsupportedError{What: fmt.Sprintf("format %q", string(d.opts.Format)), Reason: fmt.Sprintf("the share has %q", formats)}
	}
	d.info = share.Info{
		Backend:  Backend,
		URL:      d.opts.url(d.path),
		Identity: d.store.id,
		Kinds:    []share.Kind{share.Disk, share.Tree},
		Formats:  formats,
		Clients:  []share.ClientKind{share.ByLocal},
		Capabilities: share.Capabilities{
			share.CanCreate:       share.Yes,
			share.CanDelete:       share.Yes,
			share.CanList:         share.Yes,
			share.CanResize:       {OK: true, Reason: "disks only, while they are not open"},
			share.CanSnapshot:     snapshots,
			share.CanClone:        share.No("few file systems can share blocks between files; create a volume and copy"),
			share.CanOpenDevice:   share.Yes,
			share.CanListChanges:  share.No("image files do not record what changed; compare, or track writes"),
			share.CanLock:         share.Yes,
			share.CanReportHealth: share.Yes,
		},
	}
	return nil
}

// withTools returns the share with the interfaces that need QEMU's tools.
func (d *dir) withTools() share.Share {
	if d.tools == nil {
		return d
	}
	return qemuDir{d}
}

// Info implements [share.Share].
func (d *dir) Info() share.Info {
	info := d.info
	info.Kinds = slices.Clone(info.Kinds)
	info.Formats = slices.Clone(info.Formats)
	info.Clients = slices.Clone(info.Clients)
	info.Capabilities = maps.Clone(info.Capabilities)
	return info
}

// Close implements [share.Share].
func (d *dir) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	held := slices.Collect(maps.Keys(d.held))
	d.mu.Unlock()
	var errs []error
	for _, c := range held {
		errs = append(errs, c.Close())
	}
	return errors.Join(append(errs, d.store.close(), d.root.Close())...)
}

// hold makes Close end c too; drop is for when c has ended by itself.
func (d *dir) hold(c closer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("share %w", share.ErrClosed)
	}
	d.held[c] = true
	return nil
}

func (d *dir) drop(c closer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.held, c)
}

// step marks a point at which a crash leaves something to clear up.
func (d *dir) step(name string) {
	if d.hook != nil {
		d.hook(name)
	}
}

// log records a change of a volume. Nothing in it is secret: an access that is
// recorded has no credential.
func (d *dir) log(ctx context.Context, what string, r *record, args ...any) {
	if d.opts.Logger != nil {
		args = append([]any{"backend", Backend, "share", d.path, "volume", r.Name, "id", r.ID}, args...)
		d.opts.Logger.InfoContext(ctx, what, args...)
	}
}

// run does one operation on one volume.
func run[T any](ctx context.Context, d *dir, op, name string, f func(context.Context) (T, error)) (T, error) {
	err := share.CheckName(name)
	return runIf(ctx, d, op, name, err, f)
}

// runAll does one operation on the share as a whole.
func runAll[T any](ctx context.Context, d *dir, op string, f func(context.Context) (T, error)) (T, error) {
	return runIf(ctx, d, op, "", nil, f)
}

// runIf runs f, which the context ends, unless it may not be.
func runIf[T any](ctx context.Context, d *dir, op, name string, err error, f func(context.Context) (T, error)) (T, error) {
	d.mu.Lock()
	if d.closed {
		err = fmt.Errorf("share %w", share.ErrClosed)
	}
	d.mu.Unlock()
	var v T
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err == nil {
		v, err = await(ctx, f)
	}
	return v, share.WrapError(op, Backend, name, kindOf(err))
}
