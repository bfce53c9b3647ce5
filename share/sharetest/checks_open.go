package sharetest

import (
	"context"
	"errors"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

// openChecks are about disks that are open: who is let in, and that it is the
// right disk.
var openChecks = []shareCheck{
	{"Identity", func(e *env) {
		e.need(share.CanOpenDevice)
		v := e.createDisk("i")
		d := e.openDisk(e.s, "i", &share.OpenOptions{VolumeID: v.ID})
		require.Equal(e, v.ID, share.IdentityOf(d), "the device's identity is the volume's")
		require.Equal(e, int64(v.Size), d.Size())
		require.NoError(e, fillPattern(e.ctx, d, 1))
		require.NoError(e, d.Close())
		for _, s := range []share.Share{e.s, e.open()} {
			_, err := share.OpenDevice(e.ctx, s, "i", &share.OpenOptions{VolumeID: "another"})
			e.is(err, share.ErrWrongDevice, "open with another identity")
		}
		e.need(share.CanDelete)
		require.NoError(e, share.Delete(e.ctx, e.s, "i"))
		again := e.createDisk("i")
		require.NotEqual(e, v.ID, again.ID)
		require.NotEqual(e, v.Serial(), again.Serial())
		_, err := share.OpenDevice(e.ctx, e.s, "i", &share.OpenOptions{VolumeID: v.ID})
		e.is(err, share.ErrWrongDevice, "open by the identity of the one before")
		d = e.openDisk(e.s, "i", &share.OpenOptions{ReadOnly: true, VolumeID: again.ID})
		require.NoError(e, hasZeros(e.ctx, d, 0, d.Size()), "a new disk shows what another one held")
	}},

	{"OneWriter", func(e *env) {
		e.need(share.CanOpenDevice)
		v := e.createDisk("w")
		other := e.open()
		w := e.openDisk(e.s, "w", nil)
		for _, s := range []share.Share{e.s, other} {
			_, err := share.OpenDevice(e.ctx, s, "w", nil)
			e.is(err, share.ErrInUse, "a second writer")
		}
		if e.info.Capabilities.Can(share.CanDelete).OK {
			e.is(share.Delete(e.ctx, other, "w"), share.ErrInUse, "delete of what is open")
		}
		if e.info.Capabilities.Can(share.CanSnapshot).OK {
			err := share.RollBack(e.ctx, other, "w", "none")
			require.Error(e, err)
		}

		// A reader is let in beside the writer where the format allows it.
		page := make([]byte, 4096)
		pattern(page, 8192, 3)
		r, err := share.OpenDevice(e.ctx, other, "w", &share.OpenOptions{ReadOnly: true})
		if err == nil {
			require.NoError(e, w.WriteAt(e.ctx, page, 8192))
			require.NoError(e, hasPattern(e.ctx, r, 8192, 4096, 3), "a reader does not see what was written")
			require.NoError(e, r.Close())
		} else {
			e.is(err, share.ErrInUse, "a reader beside a writer")
			require.NoError(e, w.WriteAt(e.ctx, page, 8192))
		}
		require.NoError(e, w.Flush(e.ctx))
		require.NoError(e, w.Close())

		// Readers beside each other, then a writer once more.
		a := e.openDisk(e.s, "w", &share.OpenOptions{ReadOnly: true})
		b := e.openDisk(other, "w", &share.OpenOptions{ReadOnly: true})
		for _, d := range []share.Device{a, b} {
			require.NoError(e, hasPattern(e.ctx, d, 8192, 4096, 3))
			require.ErrorIs(e, d.WriteAt(e.ctx, page, 0), share.ErrDenied, "written through a reader")
			require.NoError(e, hasZeros(e.ctx, d, 0, 4096))
			if z, ok := share.DeviceAs[share.Zeroer](d); ok {
				require.Error(e, z.Zero(e.ctx, 8192, 4096, 0), "zeroed through a reader")
			}
			if t, ok := share.DeviceAs[share.Discarder](d); ok {
				require.Error(e, t.Discard(e.ctx, 8192, 4096), "discarded through a reader")
			}
			require.NoError(e, hasPattern(e.ctx, d, 8192, 4096, 3))
			require.NoError(e, d.Close())
		}
		w = e.openDisk(other, "w", &share.OpenOptions{VolumeID: v.ID})
		require.NoError(e, w.Close())
	}},

	{"Durability", func(e *env) {
		e.need(share.CanOpenDevice)
		if e.st.PowerCut == nil {
			e.Skip("the harness cannot cut the power")
		}
		e.createDisk("d")
		for seed := range uint64(8) {
			s := e.open()
			d := e.openDisk(s, "d", nil)
			require.NoError(e, fillPattern(e.ctx, d, seed))
			page := make([]byte, 64<<10)
			pattern(page, 0, seed+100)
			require.NoError(e, d.WriteAt(e.ctx, page, 0))
			e.st.PowerCut(e, seed)
			_ = d.Close()
			_ = s.Close()

			s = e.open()
			d = e.openDisk(s, "d", &share.OpenOptions{ReadOnly: true})
			require.NoError(e, hasPattern(e.ctx, d, int64(len(page)), d.Size()-int64(len(page)), seed), "what was flushed is lost")
			for off := int64(0); off < int64(len(page)); off += 512 {
				if old := hasPattern(e.ctx, d, off, 512, seed); old != nil {
					require.NoError(e, hasPattern(e.ctx, d, off, 512, seed+100), "neither old (%v) nor new", old)
				}
			}
			require.NoError(e, d.Close())
			require.NoError(e, s.Close())
		}
	}},

	{"Trees", func(e *env) {
		e.needKind(share.Tree)
		e.need(share.CanOpenDevice)
		e.createKind("t", share.Tree)
		_, err := share.OpenDevice(e.ctx, e.s, "t", nil)
		e.is(err, errors.ErrUnsupported, "the blocks of a tree")
	}},

	{"OpenCancelled", func(e *env) {
		e.need(share.CanOpenDevice)
		e.createDisk("o")
		for i := range 10 {
			ctx, cancel := context.WithTimeout(e.ctx, time.Duration(i)*300*time.Microsecond)
			d, err := share.OpenDevice(ctx, e.s, "o", nil)
			cancel()
			if err == nil {
				require.NoError(e, d.WriteAt(e.ctx, make([]byte, 512), 0), "the device lives longer than the context it was opened with")
				require.NoError(e, d.Close())
				continue
			}
			require.ErrorIs(e, err, context.DeadlineExceeded)
		}
		e.eventually("the disk is free", func() error {
			d, err := share.OpenDevice(e.ctx, e.s, "o", nil)
			if err == nil {
				err = d.Close()
			}
			return err
		})
	}},
}

// eventually repeats f until it returns nil, as long as the harness's patience
// lasts.
func (e *env) eventually(what string, f func() error) {
	e.Helper()
	var err error
	for end := time.Now().Add(e.h.Patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	require.NoError(e, err, what)
}
