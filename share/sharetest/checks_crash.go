package sharetest

import (
	"fmt"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// A crashCase is an operation that is interrupted at each of its points, and
// then repeated from another handle.
type crashCase struct {
	name    string
	caps    []share.Capability
	kind    share.Kind
	prepare func(e *env)
	do      func(e *env, s share.Share) error
	// after fails unless the operation has been done.
	after func(e *env, s share.Share)
	// between fails if what a crash left is neither before nor after.
	between func(e *env, s share.Share)
}

// crashMost is more points than any operation has.
const crashMost = 200

// crashChecks make each operation that changes something crash at each point.
var crashChecks = func() []shareCheck {
	var checks []shareCheck
	for _, c := range crashCases {
		checks = append(checks, shareCheck{"Crash/" + c.name, c.run})
	}
	return checks
}()

func (c crashCase) run(e *env) {
	e.need(c.caps...)
	e.needKind(c.kind)
	if e.st.CrashAt == nil {
		e.Skip("the harness cannot crash")
	}
	// How it goes without a crash.
	c.prepare(e)
	if err := c.do(e, e.s); unsupported(err) {
		e.Skipf("not with this format: %v", err)
	} else {
		require.NoError(e, err)
	}
	c.after(e, e.s)
	files := len(e.files())

	for n := range crashMost {
		one := newEnv(e.TB, e.h)
		c.prepare(one)
		crashed := one.st.CrashAt(one, n, func(s share.Share) error { return c.do(one, s) })
		s := one.open()
		c.between(one, s)
		for i := range 2 {
			one.within(fmt.Sprintf("repetition %d after a crash at point %d", i, n), func() error { return c.do(one, s) })
		}
		c.after(one, s)
		c.after(one, one.open())
		require.Len(one, one.files(), files, "files were left after a crash at point %d: %v", n, one.files())
		_ = one.s.Close()
		_ = s.Close()
		if !crashed {
			require.Positive(e, n, "the harness knows no point of %s", c.name)
			return
		}
	}
	e.Fatalf("more than %d points", crashMost)
}

// wholeOrNot fails if the volume is there and is not as it must be.
func wholeOrNot(name string, k share.Kind) func(*env, share.Share) {
	return func(e *env, s share.Share) {
		e.Helper()
		v, err := s.Stat(e.ctx, name)
		names := e.names(s)
		if err != nil {
			e.is(err, share.ErrNotExist, "stat after a crash")
			require.NotContains(e, names, name)
			return
		}
		require.NoError(e, e.spec(name, k).Match(v))
		if names != nil {
			require.Contains(e, names, name)
		}
	}
}

var crashCases = []crashCase{
	{
		name: "CreateDisk", kind: share.Disk,
		prepare: func(*env) {},
		do: func(e *env, s share.Share) error {
			_, err := share.Create(e.ctx, s, e.spec("v", share.Disk))
			return err
		},
		between: wholeOrNot("v", share.Disk),
		after: func(e *env, s share.Share) {
			require.NoError(e, e.spec("v", share.Disk).Match(e.stat(s, "v")))
			if e.info.Capabilities.Can(share.CanOpenDevice).OK {
				d := e.openDisk(s, "v", &share.OpenOptions{ReadOnly: true})
				require.NoError(e, hasZeros(e.ctx, d, 0, d.Size()))
				require.NoError(e, d.Close())
			}
		},
	},
	{
		name: "CreateTree", kind: share.Tree,
		prepare: func(*env) {},
		do: func(e *env, s share.Share) error {
			_, err := share.Create(e.ctx, s, e.spec("v", share.Tree))
			return err
		},
		between: wholeOrNot("v", share.Tree),
		after:   func(e *env, s share.Share) { e.stat(s, "v") },
	},
	{
		name: "DeleteDisk", kind: share.Disk, caps: []share.Capability{share.CanDelete},
		prepare: func(e *env) { e.createDisk("v") },
		do:      func(e *env, s share.Share) error { return share.Delete(e.ctx, s, "v") },
		between: wholeOrNot("v", share.Disk),
		after:   func(e *env, s share.Share) { e.gone(s, "v") },
	},
	{
		name: "DeleteTree", kind: share.Tree, caps: []share.Capability{share.CanDelete},
		prepare: func(e *env) { e.createKind("v", share.Tree) },
		do:      func(e *env, s share.Share) error { return share.Delete(e.ctx, s, "v") },
		between: wholeOrNot("v", share.Tree),
		after:   func(e *env, s share.Share) { e.gone(s, "v") },
	},
	{
		name: "Publish", kind: share.Disk,
		prepare: func(e *env) { e.createDisk("v") },
		do: func(e *env, s share.Share) error {
			_, err := s.Publish(e.ctx, "v", []share.Access{e.access(0, share.ReadWrite)})
			return err
		},
		between: func(e *env, s share.Share) {
			if set := e.stat(s, "v").Access; len(set) > 0 {
				require.Equal(e, share.SortAccess([]share.Access{e.access(0, share.ReadWrite)}), set)
			}
		},
		after: func(e *env, s share.Share) {
			require.Equal(e, share.SortAccess([]share.Access{e.access(0, share.ReadWrite)}), e.stat(s, "v").Access)
		},
	},
	{
		name: "TakeBack", kind: share.Disk,
		prepare: func(e *env) {
			e.createDisk("v")
			_, err := e.s.Publish(e.ctx, "v", []share.Access{e.access(0, share.ReadWrite)})
			require.NoError(e, err)
		},
		do: func(e *env, s share.Share) error { _, err := s.Publish(e.ctx, "v", nil); return err },
		between: func(e *env, s share.Share) {
			if set := e.stat(s, "v").Access; len(set) > 0 {
				require.Equal(e, share.SortAccess([]share.Access{e.access(0, share.ReadWrite)}), set)
			}
		},
		after: func(e *env, s share.Share) { require.Empty(e, e.stat(s, "v").Access) },
	},
	{
		name: "Resize", kind: share.Disk, caps: []share.Capability{share.CanResize, share.CanOpenDevice},
		prepare: func(e *env) { preparePattern(e, 1) },
		do: func(e *env, s share.Share) error {
			_, err := share.Resize(e.ctx, s, "v", 2*e.h.Size, nil)
			return err
		},
		between: func(e *env, s share.Share) {
			require.Contains(e, []share.Bytes{e.h.Size, 2 * e.h.Size}, e.stat(s, "v").Size)
		},
		after: func(e *env, s share.Share) {
			require.Equal(e, 2*e.h.Size, e.stat(s, "v").Size)
			d := e.openDisk(s, "v", &share.OpenOptions{ReadOnly: true})
			require.Equal(e, int64(2*e.h.Size), d.Size())
			require.NoError(e, hasPattern(e.ctx, d, 0, int64(e.h.Size), 1))
			require.NoError(e, hasZeros(e.ctx, d, int64(e.h.Size), int64(e.h.Size)))
			require.NoError(e, d.Close())
		},
	},
	{
		name: "Snapshot", kind: share.Disk, caps: []share.Capability{share.CanSnapshot, share.CanOpenDevice},
		prepare: func(e *env) { preparePattern(e, 1) },
		do: func(e *env, s share.Share) error {
			_, err := share.TakeSnapshot(e.ctx, s, "v", "s")
			return err
		},
		between: func(e *env, s share.Share) {
			all, err := share.ListSnapshots(e.ctx, s, "v")
			require.NoError(e, err)
			require.LessOrEqual(e, len(all), 1)
		},
		after: func(e *env, s share.Share) {
			all, err := share.ListSnapshots(e.ctx, s, "v")
			require.NoError(e, err)
			require.Len(e, all, 1)
			d := e.openDisk(s, "v", &share.OpenOptions{ReadOnly: true, Snapshot: "s"})
			require.NoError(e, hasPattern(e.ctx, d, 0, d.Size(), 1))
			require.NoError(e, d.Close())
		},
	},
	{
		name: "RollBack", kind: share.Disk, caps: []share.Capability{share.CanSnapshot, share.CanOpenDevice},
		prepare: func(e *env) {
			preparePattern(e, 1)
			if _, err := share.TakeSnapshot(e.ctx, e.s, "v", "s"); unsupported(err) {
				e.Skipf("not with this format: %v", err)
			}
			writePattern(e, 2)
		},
		do: func(e *env, s share.Share) error { return share.RollBack(e.ctx, s, "v", "s") },
		between: func(e *env, s share.Share) {
			d := e.openDisk(s, "v", &share.OpenOptions{ReadOnly: true})
			if err := hasPattern(e.ctx, d, 0, d.Size(), 1); err != nil {
				require.NoError(e, hasPattern(e.ctx, d, 0, d.Size(), 2), "neither before nor after (%v)", err)
			}
			require.NoError(e, d.Close())
		},
		after: func(e *env, s share.Share) {
			d := e.openDisk(s, "v", &share.OpenOptions{ReadOnly: true})
			require.NoError(e, hasPattern(e.ctx, d, 0, d.Size(), 1))
			require.NoError(e, d.Close())
		},
	},
	{
		name: "DeleteSnapshot", kind: share.Disk, caps: []share.Capability{share.CanSnapshot, share.CanOpenDevice},
		prepare: func(e *env) {
			preparePattern(e, 1)
			if _, err := share.TakeSnapshot(e.ctx, e.s, "v", "s"); unsupported(err) {
				e.Skipf("not with this format: %v", err)
			}
			writePattern(e, 2)
		},
		do:      func(e *env, s share.Share) error { return share.DeleteSnapshot(e.ctx, s, "v", "s") },
		between: func(*env, share.Share) {},
		after: func(e *env, s share.Share) {
			all, err := share.ListSnapshots(e.ctx, s, "v")
			require.NoError(e, err)
			require.Empty(e, all)
			d := e.openDisk(s, "v", &share.OpenOptions{ReadOnly: true})
			require.NoError(e, hasPattern(e.ctx, d, 0, d.Size(), 2))
			require.NoError(e, d.Close())
		},
	},
	{
		name: "Clone", kind: share.Disk, caps: []share.Capability{share.CanClone, share.CanOpenDevice},
		prepare: func(e *env) { preparePattern(e, 1) },
		do: func(e *env, s share.Share) error {
			_, err := share.Clone(e.ctx, s, "v", "", "c")
			return err
		},
		between: wholeOrNot("c", share.Disk),
		after: func(e *env, s share.Share) {
			d := e.openDisk(s, "c", &share.OpenOptions{ReadOnly: true})
			require.NoError(e, hasPattern(e.ctx, d, 0, d.Size(), 1))
			require.NoError(e, d.Close())
		},
	},
}

// preparePattern makes the disk v with a pattern on it.
func preparePattern(e *env, seed uint64) {
	e.Helper()
	e.createDisk("v")
	writePattern(e, seed)
}

func writePattern(e *env, seed uint64) {
	e.Helper()
	d := e.openDisk(e.s, "v", nil)
	require.NoError(e, fillPattern(e.ctx, d, seed))
	require.NoError(e, d.Close())
}
