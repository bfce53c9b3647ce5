package sharetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// badNames are names that no backend may take.
var badNames = []string{
	"", ".", "..", "../x", "a/b", "/etc/x", "a/../b", "-x", "--help", "a b", "a\nb", "a\x00b", "ä", "a:b", "a@b",
	"a=b", "a,b", `a"b`, "$(id)", "*", "%s", "json:{}", strings.Repeat("a", 129),
}

var lifecycleChecks = []shareCheck{
	{"Lifecycle", func(e *env) {
		e.need(share.CanCreate)
		for _, kind := range e.info.Kinds {
			name := "life-" + kind.String()
			spec := e.spec(name, kind)
			start := time.Now()
			e.gone(e.s, name)
			v, err := share.Create(e.ctx, e.s, spec)
			require.NoError(e, err)
			require.Equal(e, name, v.Name)
			require.NoError(e, spec.Match(v))
			require.NotEmpty(e, v.ID)
			require.Empty(e, v.Access)
			if !v.Created.IsZero() {
				require.WithinDuration(e, start, v.Created, 5*time.Minute, "created")
			}
			if kind == share.Disk {
				require.Contains(e, e.info.Formats, v.Format)
			} else {
				require.Empty(e, v.Format)
			}
			require.Equal(e, v.ID, e.stat(e.s, name).ID)
			require.NoError(e, spec.Match(e.stat(e.open(), name)), "another handle sees another volume")

			set := []share.Access{e.access(0, share.ReadWrite)}
			sources, err := e.s.Publish(e.ctx, name, set)
			require.NoError(e, err)
			require.Len(e, sources, 1)
			require.NoError(e, sources[0].Check())
			require.Equal(e, kind, sources[0].Kind)
			require.Equal(e, v.Format, sources[0].Format)
			require.Equal(e, v.ID, sources[0].VolumeID, "a source without the identity guards nothing")
			require.False(e, sources[0].ReadOnly)
			require.Equal(e, share.SortAccess(set), e.stat(e.s, name).Access)

			if e.info.Capabilities.Can(share.CanDelete).OK {
				e.is(share.Delete(e.ctx, e.s, name), share.ErrInUse, "delete of what is published")
				e.stat(e.s, name)
			}
			sources, err = e.s.Publish(e.ctx, name, nil)
			require.NoError(e, err)
			require.Empty(e, sources)
			require.Empty(e, e.stat(e.s, name).Access)
			if e.info.Capabilities.Can(share.CanDelete).OK {
				require.NoError(e, share.Delete(e.ctx, e.s, name))
				e.gone(e.s, name)
				e.gone(e.open(), name)
				again, err := share.Create(e.ctx, e.s, spec)
				require.NoError(e, err)
				require.NotEqual(e, v.ID, again.ID, "a volume made anew has the identity of the one before")
			}
		}
	}},

	{"List", func(e *env) {
		e.need(share.CanList, share.CanCreate)
		require.Empty(e, e.names(e.s))
		want := []share.Volume{}
		for _, name := range []string{"b", "a", "c.d", "B", "0", strings.Repeat("x", 128)} {
			want = append(want, e.create(name))
		}
		_, err := e.s.Publish(e.ctx, "a", []share.Access{e.access(0, share.ReadOnly)})
		require.NoError(e, err)
		slices.SortFunc(want, func(a, b share.Volume) int { return cmp.Compare(a.Name, b.Name) })
		got, err := share.List(e.ctx, e.open())
		require.NoError(e, err)
		require.Len(e, got, len(want))
		for i := range got {
			require.Equal(e, want[i].Name, got[i].Name, "the order")
			require.Equal(e, want[i].ID, got[i].ID)
			require.Empty(e, got[i].Access, "List does not fill the access")
		}
	}},

	{"Repeat", func(e *env) {
		v := e.create("r")
		spec := e.spec("r", v.Kind)
		other := e.open()
		set := []share.Access{e.access(0, share.ReadWrite)}
		var first []share.Source
		for i, s := range []share.Share{e.s, e.s, other} {
			again, err := share.Create(e.ctx, s, spec)
			require.NoError(e, err, "create again, call %d", i)
			require.Equal(e, v.ID, again.ID, "create again made another volume")
		}
		spec.Format = share.None
		_, err := share.Create(e.ctx, e.s, spec)
		require.NoError(e, err, "create again with the format left open")
		for i, s := range []share.Share{e.s, e.s, other} {
			sources, err := s.Publish(e.ctx, "r", set)
			require.NoError(e, err, "publish, call %d", i)
			if i == 0 {
				first = sources
			}
			require.Equal(e, first, sources, "the same set has another source in call %d", i)
		}
		for i, s := range []share.Share{other, other, e.s} {
			_, err := s.Publish(e.ctx, "r", nil)
			require.NoError(e, err, "take back, call %d", i)
		}
		e.need(share.CanDelete)
		for i, s := range []share.Share{other, other, e.s} {
			require.NoError(e, share.Delete(e.ctx, s, "r"), "delete, call %d", i)
		}
		require.NoError(e, share.Delete(e.ctx, e.s, "never-was"))
	}},

	{"Names", func(e *env) {
		before := e.names(e.s)
		files := e.files()
		for _, name := range badNames {
			for _, c := range e.calls() {
				if e.can(c) {
					err := c.do(e.ctx, e.s, name)
					e.is(err, share.ErrInvalid, fmt.Sprintf("%s of %q", c.name, name))
					require.NotContains(e, err.Error(), "\n", "%s: an error that forges lines", c.name)
				}
			}
		}
		require.Equal(e, before, e.names(e.s), "something was made")
		require.Equal(e, files, e.files(), "files were left")
		for _, c := range e.calls() {
			if e.can(c) && c.name != "create" && c.name != "delete" {
				e.is(c.do(e.ctx, e.s, "none"), share.ErrNotExist, c.name+" of what is not there")
			}
		}
		if e.info.Capabilities.Can(share.CanCreate).OK {
			for _, name := range []string{"a", "A.b_c-1", strings.Repeat("n", 128)} {
				e.create(name)
				require.Equal(e, name, e.stat(e.s, name).Name)
			}
		}
	}},

	{"Specs", func(e *env) {
		e.needKind(share.Disk)
		v := e.createDisk("s")
		mismatch := func(field string, spec share.Spec) {
			e.Helper()
			got, err := share.Create(e.ctx, e.s, spec)
			e.is(err, share.ErrExist, "create with another "+field)
			var m *share.MismatchError
			require.ErrorAs(e, err, &m)
			require.Equal(e, field, m.Field)
			require.Zero(e, got, "an error comes with a volume")
		}
		spec := e.spec("s", share.Disk)
		spec.Size *= 2
		mismatch("size", spec)
		if slices.Contains(e.info.Kinds, share.Tree) {
			mismatch("kind", e.spec("s", share.Tree))
		}
		for _, f := range e.info.Formats {
			if f != v.Format {
				spec := e.spec("s", share.Disk)
				spec.Format = f
				mismatch("format", spec)
			}
		}
		require.Equal(e, v.ID, e.stat(e.s, "s").ID)
		require.Equal(e, v.Size, e.stat(e.s, "s").Size)

		before, files := e.names(e.s), e.files()
		for what, change := range map[string]func(*share.Spec){
			"no kind":   func(s *share.Spec) { s.Kind = 0 },
			"no size":   func(s *share.Spec) { s.Size = 0 },
			"odd size":  func(s *share.Spec) { s.Size++ },
			"size < 0":  func(s *share.Spec) { s.Size = -512 },
			"tree disk": func(s *share.Spec) { s.Kind, s.Format = share.Tree, share.Raw },
		} {
			bad := e.spec("bad", share.Disk)
			change(&bad)
			_, err := share.Create(e.ctx, e.s, bad)
			e.is(err, share.ErrInvalid, what)
		}
		bad := e.spec("bad", share.Disk)
		bad.Format = "no-such-format"
		_, err := share.Create(e.ctx, e.s, bad)
		e.is(err, errors.ErrUnsupported, "a format that the share has not")
		require.Equal(e, before, e.names(e.s))
		require.Equal(e, files, e.files(), "files were left")

		full := e.spec("full", share.Disk)
		full.Preallocate = true
		v, err = share.Create(e.ctx, e.s, full)
		require.NoError(e, err)
		if v.Allocated >= 0 {
			require.GreaterOrEqual(e, v.Allocated, full.Size, "preallocated")
		}
	}},

	{"Close", func(e *env) {
		v := e.create("c")
		set := []share.Access{e.access(0, share.ReadWrite)}
		_, err := e.s.Publish(e.ctx, "c", set)
		require.NoError(e, err)
		var d share.Device
		if v.Kind == share.Disk && e.info.Capabilities.Can(share.CanOpenDevice).OK {
			d = e.openDisk(e.s, "c", &share.OpenOptions{ReadOnly: true})
		}
		require.NoError(e, e.s.Close())
		require.NoError(e, e.s.Close(), "the second Close")
		for _, c := range append(e.calls(), shareCalls()...) {
			if e.can(c) {
				e.is(c.do(e.ctx, e.s, "c"), share.ErrClosed, c.name+" after Close")
			}
		}
		require.Equal(e, e.info, e.s.Info(), "Info after Close")
		if d != nil {
			require.ErrorIs(e, d.ReadAt(e.ctx, make([]byte, 512), 0), share.ErrClosed, "the share's Close closes its devices")
			require.NoError(e, d.Close())
		}
		e.s = e.open()
		require.Equal(e, v.ID, e.stat(e.s, "c").ID, "the volume went with the handle")
		require.Equal(e, share.SortAccess(set), e.stat(e.s, "c").Access, "what is published went with the handle")
	}},

	{"Concurrent", func(e *env) {
		e.need(share.CanCreate)
		kind := e.info.Kinds[0]
		handles := []share.Share{e.s, e.open()}
		const n = 8
		ids, errs := make([]string, n), make([]error, n)
		e.within("creating one volume from many goroutines", func() error {
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					v, err := share.Create(e.ctx, handles[i%2], e.spec("one", kind))
					ids[i], errs[i] = v.ID, err
				})
			}
			wg.Wait()
			return errors.Join(errs...)
		})
		for i := range n {
			require.Equal(e, ids[0], ids[i], "two volumes of one name")
		}
		if names := e.names(e.s); names != nil {
			require.Equal(e, []string{"one"}, names)
		}

		// A mix of calls: each ends well or with a kind that it may end with.
		e.within("calls from many goroutines", func() error {
			var mu sync.Mutex
			var bad []error
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					s, name := handles[i%2], fmt.Sprintf("mix%d", i%3)
					for range 3 {
						for _, c := range append(e.calls(), shareCalls()...) {
							if !e.can(c) {
								continue
							}
							err := c.do(e.ctx, s, name)
							if err != nil && !errors.Is(err, share.ErrNotExist) && !errors.Is(err, share.ErrInUse) && !errors.Is(err, share.ErrExist) && !unsupported(err) {
								mu.Lock()
								bad = append(bad, fmt.Errorf("%s of %s beside others: %w", c.name, name, err))
								mu.Unlock()
							}
						}
					}
				})
			}
			wg.Wait()
			return errors.Join(bad...)
		})
	}},

	{"Cancelled", func(e *env) {
		v := e.create("c")
		set := []share.Access{e.access(0, share.ReadWrite)}
		_, err := e.s.Publish(e.ctx, "c", set)
		require.NoError(e, err)
		names := e.names(e.s)
		gone, cancel := context.WithCancel(e.ctx)
		cancel()
		for _, c := range append(e.calls(), shareCalls()...) {
			for _, name := range []string{"c", "none"} {
				if !e.can(c) {
					continue
				}
				start := time.Now()
				require.ErrorIs(e, c.do(gone, e.s, name), context.Canceled, "%s with a context that has ended", c.name)
				require.Less(e, time.Since(start), 5*time.Second, "%s took its time", c.name)
			}
		}
		now := e.stat(e.s, "c")
		require.Equal(e, v.ID, now.ID)
		require.Equal(e, v.Size, now.Size)
		require.Equal(e, share.SortAccess(set), now.Access, "a cancelled call had an effect")
		require.Equal(e, names, e.names(e.s), "a cancelled call had an effect")

		// Ended in the middle, a call leaves what a repetition brings to its end.
		for i := range 20 {
			name := fmt.Sprintf("m%d", i)
			ctx, cancel := context.WithTimeout(e.ctx, time.Duration(i)*200*time.Microsecond)
			_, err := share.Create(ctx, e.s, e.spec(name, v.Kind))
			cancel()
			if err != nil {
				require.ErrorIs(e, err, context.DeadlineExceeded)
			}
			_, err = share.Create(e.ctx, e.s, e.spec(name, v.Kind))
			require.NoError(e, err, "create after one that was cancelled")
		}
	}},
}

// files lists all files of the backend's, to find what was left behind.
func (e *env) files() []string {
	e.Helper()
	all := []string{}
	for _, root := range e.st.Paths {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			all = append(all, path)
			return err
		})
		require.NoError(e, err)
	}
	return all
}
