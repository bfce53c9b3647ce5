package sharetest

import (
	"fmt"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// optionalChecks are those of one optional interface each.
var optionalChecks = []shareCheck{
	{"Resize", func(e *env) {
		e.need(share.CanResize, share.CanOpenDevice)
		v := e.createDisk("r")
		d := e.openDisk(e.s, "r", nil)
		require.NoError(e, fillPattern(e.ctx, d, 1))
		require.NoError(e, d.Close())

		size := v.Size
		resize := func(to share.Bytes, opts *share.ResizeOptions) {
			e.Helper()
			for i, s := range []share.Share{e.s, e.s, e.open()} {
				got, err := share.Resize(e.ctx, s, "r", to, opts)
				require.NoError(e, err, "call %d", i)
				require.Equal(e, to, got.Size)
				require.Equal(e, v.ID, got.ID, "a volume that is resized stays the same")
			}
			require.Equal(e, to, e.stat(e.s, "r").Size)
			d := e.openDisk(e.s, "r", &share.OpenOptions{ReadOnly: true, VolumeID: v.ID})
			require.Equal(e, int64(to), d.Size())
			require.NoError(e, hasPattern(e.ctx, d, 0, int64(min(size, to)), 1), "the content")
			if to > size {
				require.NoError(e, hasZeros(e.ctx, d, int64(size), int64(to-size)), "what was added")
			}
			require.NoError(e, d.Close())
		}
		resize(2*size, nil)
		_, err := share.Resize(e.ctx, e.s, "r", size, nil)
		e.is(err, share.ErrInvalid, "shrink without leave")
		_, err = share.Resize(e.ctx, e.s, "r", size, &share.ResizeOptions{})
		e.is(err, share.ErrInvalid, "shrink without leave")
		for _, bad := range []share.Bytes{0, -512, 2*size + 1} {
			_, err = share.Resize(e.ctx, e.s, "r", bad, &share.ResizeOptions{Shrink: true})
			e.is(err, share.ErrInvalid, fmt.Sprintf("resize to %d", int64(bad)))
		}
		require.Equal(e, 2*size, e.stat(e.s, "r").Size)
		shrunk, err := share.Resize(e.ctx, e.s, "r", size/2, &share.ResizeOptions{Shrink: true})
		if unsupported(err) {
			e.Logf("the share does not shrink: %v", err)
			return
		}
		require.NoError(e, err)
		require.Equal(e, size/2, shrunk.Size)
		size /= 2
		resize(2*size, nil) // grown again, what was cut off reads as zeros
	}},

	{"Snapshots", func(e *env) {
		e.need(share.CanSnapshot, share.CanOpenDevice)
		e.createDisk("v")
		write := func(seed uint64) {
			e.Helper()
			d := e.openDisk(e.s, "v", nil)
			require.NoError(e, fillPattern(e.ctx, d, seed))
			require.NoError(e, d.Close())
		}
		reads := func(seed uint64, snapshot string) {
			e.Helper()
			d := e.openDisk(e.open(), "v", &share.OpenOptions{ReadOnly: true, Snapshot: snapshot})
			require.NoError(e, hasPattern(e.ctx, d, 0, d.Size(), seed), "snapshot %q", snapshot)
			require.Error(e, d.WriteAt(e.ctx, make([]byte, 512), 0), "written through a reader")
			require.NoError(e, d.Close())
		}
		write(1)
		first, err := share.TakeSnapshot(e.ctx, e.s, "v", "b-first")
		if unsupported(err) {
			e.Skipf("this format has no snapshots: %v", err)
		}
		require.NoError(e, err)
		require.Equal(e, "b-first", first.Name)
		require.Equal(e, "v", first.Volume)
		require.Equal(e, e.h.Size, first.Size)
		write(2)
		again, err := share.TakeSnapshot(e.ctx, e.open(), "v", "b-first")
		require.NoError(e, err)
		require.True(e, first.Created.Equal(again.Created), "a snapshot of that name that is there is returned as it is")
		reads(1, "b-first")
		time.Sleep(1100 * time.Millisecond) // formats record seconds
		_, err = share.TakeSnapshot(e.ctx, e.s, "v", "a-second")
		require.NoError(e, err)
		write(3)
		reads(1, "b-first")
		reads(2, "a-second")
		reads(3, "")
		all, err := share.ListSnapshots(e.ctx, e.open(), "v")
		require.NoError(e, err)
		require.Len(e, all, 2)
		require.Equal(e, "b-first", all[0].Name, "from the oldest to the newest")
		require.Equal(e, "a-second", all[1].Name, "from the oldest to the newest")

		for range 2 {
			require.NoError(e, share.RollBack(e.ctx, e.s, "v", "b-first"))
			reads(1, "")
			reads(2, "a-second")
		}
		e.is(share.RollBack(e.ctx, e.s, "v", "none"), share.ErrNotExist, "roll back to what is not there")
		_, err = share.OpenDevice(e.ctx, e.s, "v", &share.OpenOptions{ReadOnly: true, Snapshot: "none"})
		e.is(err, share.ErrNotExist, "open a snapshot that is not there")
		for _, bad := range []string{"", "..", "a/b", "-x", "a\nb", "a b", "@"} {
			_, err := share.TakeSnapshot(e.ctx, e.s, "v", bad)
			e.is(err, share.ErrInvalid, fmt.Sprintf("snapshot %q", bad))
			e.is(share.RollBack(e.ctx, e.s, "v", bad), share.ErrInvalid, fmt.Sprintf("roll back to %q", bad))
			e.is(share.DeleteSnapshot(e.ctx, e.s, "v", bad), share.ErrInvalid, fmt.Sprintf("delete snapshot %q", bad))
			if bad != "" {
				_, err = share.OpenDevice(e.ctx, e.s, "v", &share.OpenOptions{ReadOnly: true, Snapshot: bad})
				e.is(err, share.ErrInvalid, fmt.Sprintf("open snapshot %q", bad))
			}
		}
		for range 2 {
			require.NoError(e, share.DeleteSnapshot(e.ctx, e.s, "v", "b-first"))
		}
		reads(1, "")
		reads(2, "a-second")
		all, err = share.ListSnapshots(e.ctx, e.s, "v")
		require.NoError(e, err)
		require.Len(e, all, 1)

		if e.info.Capabilities.Can(share.CanDelete).OK {
			require.NoError(e, share.Delete(e.ctx, e.s, "v"))
			e.createDisk("v")
			all, err = share.ListSnapshots(e.ctx, e.s, "v")
			require.NoError(e, err)
			require.Empty(e, all, "a new volume has the snapshots of the one before")
		}
	}},

	{"SnapshotWhileOpen", func(e *env) {
		e.need(share.CanSnapshot, share.CanOpenDevice)
		e.createDisk("v")
		_, err := share.TakeSnapshot(e.ctx, e.s, "v", "before")
		if unsupported(err) {
			e.Skipf("this format has no snapshots: %v", err)
		}
		require.NoError(e, err)
		d := e.openDisk(e.s, "v", nil)
		require.NoError(e, fillPattern(e.ctx, d, 1))
		_, err = share.TakeSnapshot(e.ctx, e.s, "v", "during")
		if err != nil {
			e.is(err, share.ErrInUse, "a snapshot while the disk is open")
		}
		e.is(share.RollBack(e.ctx, e.s, "v", "before"), share.ErrInUse, "roll back while the disk is open")
		require.NoError(e, hasPattern(e.ctx, d, 0, d.Size(), 1))
		require.NoError(e, d.Close())
	}},

	{"Clone", func(e *env) {
		e.need(share.CanClone, share.CanOpenDevice)
		v := e.createDisk("v")
		d := e.openDisk(e.s, "v", nil)
		require.NoError(e, fillPattern(e.ctx, d, 1))
		require.NoError(e, d.Close())
		c, err := share.Clone(e.ctx, e.s, "v", "", "c")
		require.NoError(e, err)
		require.Equal(e, "c", c.Name)
		require.Equal(e, v.Size, c.Size)
		require.NotEqual(e, v.ID, c.ID, "a clone is another volume")
		again, err := share.Clone(e.ctx, e.open(), "v", "", "c")
		require.NoError(e, err)
		require.Equal(e, c.ID, again.ID)

		d = e.openDisk(e.s, "c", nil)
		require.NoError(e, hasPattern(e.ctx, d, 0, d.Size(), 1))
		require.NoError(e, fillPattern(e.ctx, d, 2))
		require.NoError(e, d.Close())
		d = e.openDisk(e.s, "v", nil)
		require.NoError(e, hasPattern(e.ctx, d, 0, d.Size(), 1), "written through the clone")
		require.NoError(e, fillPattern(e.ctx, d, 3))
		require.NoError(e, d.Close())
		d = e.openDisk(e.s, "c", &share.OpenOptions{ReadOnly: true})
		require.NoError(e, hasPattern(e.ctx, d, 0, d.Size(), 2), "written through the origin")
		require.NoError(e, d.Close())

		_, err = share.Clone(e.ctx, e.s, "none", "", "n")
		e.is(err, share.ErrNotExist, "clone of what is not there")
		_, err = share.Clone(e.ctx, e.s, "v", "none", "n")
		e.is(err, share.ErrNotExist, "clone of a snapshot that is not there")
		_, err = share.Clone(e.ctx, e.s, "v", "", "../n")
		e.is(err, share.ErrInvalid, "clone to a bad name")
		e.createDisk("taken")
		_, err = share.Clone(e.ctx, e.s, "v", "", "taken")
		e.is(err, share.ErrExist, "clone to a name that is taken")
		e.gone(e.s, "n")
	}},

	{"Changes", func(e *env) {
		e.need(share.CanListChanges, share.CanSnapshot, share.CanOpenDevice)
		v := e.createDisk("v")
		write := func(off, n int64) {
			e.Helper()
			d := e.openDisk(e.s, "v", nil)
			p := make([]byte, n)
			pattern(p, off, uint64(time.Now().UnixNano()))
			require.NoError(e, d.WriteAt(e.ctx, p, off))
			require.NoError(e, d.Flush(e.ctx))
			require.NoError(e, d.Close())
		}
		snap := func(name string) {
			e.Helper()
			_, err := share.TakeSnapshot(e.ctx, e.s, "v", name)
			require.NoError(e, err)
		}
		// covers fails unless the changes are well formed and hold each range.
		covers := func(from, to string, ranges ...[2]int64) {
			e.Helper()
			got, err := share.Changes(e.ctx, e.s, "v", from, to)
			require.NoError(e, err)
			at := int64(0)
			for _, x := range got {
				require.GreaterOrEqual(e, x.Off, at, "%v: the order", got)
				require.Positive(e, x.Len)
				at = x.End()
			}
			require.LessOrEqual(e, at, int64(v.Size))
			for _, r := range ranges {
				for off := r[0]; off < r[0]+r[1]; off += 512 {
					found := false
					for _, x := range got {
						found = found || x.Off <= off && off < x.End()
					}
					require.True(e, found, "%d changed between %q and %q, and %v leaves it out", off, from, to, got)
				}
			}
		}
		write(0, 4096)
		snap("s1")
		write(1<<20, 64<<10)
		snap("s2")
		write(2<<20, 512)
		covers("", "s1", [2]int64{0, 4096})
		covers("s1", "s2", [2]int64{1 << 20, 64 << 10})
		covers("s2", "", [2]int64{2 << 20, 512})
		covers("s1", "", [2]int64{1 << 20, 64 << 10}, [2]int64{2 << 20, 512})
		covers("", "", [2]int64{0, 4096}, [2]int64{1 << 20, 64 << 10}, [2]int64{2 << 20, 512})
		d := e.openDisk(e.s, "v", nil)
		require.NoError(e, share.ZeroRange(e.ctx, d, 0, 4096, 0))
		require.NoError(e, d.Close())
		covers("s2", "", [2]int64{0, 4096})
		_, err := share.Changes(e.ctx, e.s, "v", "none", "")
		e.is(err, share.ErrNotExist, "changes since a snapshot that is not there")
	}},

	{"Lock", func(e *env) {
		e.need(share.CanLock)
		e.create("l")
		e.create("m")
		other := e.open()
		l, err := share.LockVolume(e.ctx, e.s, "l", "owner-1")
		require.NoError(e, err)
		for _, s := range []share.Share{e.s, other} {
			for _, owner := range []string{"owner-1", "owner-2"} {
				_, err := share.LockVolume(e.ctx, s, "l", owner)
				e.is(err, share.ErrInUse, "a lock that is held")
			}
		}
		m, err := share.LockVolume(e.ctx, other, "m", "owner-2")
		require.NoError(e, err, "a lock of another volume")
		if e.info.Capabilities.Can(share.CanDelete).OK {
			e.is(share.Delete(e.ctx, other, "l"), share.ErrInUse, "delete of what is locked")
		}
		for range 2 {
			require.NoError(e, l.Release())
		}
		l2, err := share.LockVolume(e.ctx, other, "l", "owner-2")
		require.NoError(e, err, "a lock that was released")
		require.NoError(e, l.Release(), "released for the third time")
		_, err = share.LockVolume(e.ctx, e.s, "l", "owner-1")
		e.is(err, share.ErrInUse, "the lock of another was released")
		require.NoError(e, other.Close(), "closing the share releases")
		require.NoError(e, l2.Release())
		require.NoError(e, m.Release())
		l, err = share.LockVolume(e.ctx, e.s, "l", "owner-1")
		require.NoError(e, err)
		require.NoError(e, l.Release())
		for _, bad := range []string{"", "a\nb", "../x"} {
			_, err = share.LockVolume(e.ctx, e.s, "l", bad)
			e.is(err, share.ErrInvalid, fmt.Sprintf("owner %q", bad))
		}
	}},

	{"Health", func(e *env) {
		e.need(share.CanReportHealth)
		h, err := share.CheckHealth(e.ctx, e.s)
		require.NoError(e, err)
		require.True(e, h.OK, "new storage is not well: %v", h.Problems)
		require.GreaterOrEqual(e, h.Size, share.Bytes(-1))
		require.GreaterOrEqual(e, h.Free, share.Bytes(-1))
		if h.Size >= 0 {
			require.LessOrEqual(e, h.Free, h.Size)
		}
	}},
}
