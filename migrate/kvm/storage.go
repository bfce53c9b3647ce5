package kvm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/vmferry/vmferry/internal/virt"
	"github.com/vmferry/vmferry/share"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// Volumes are reached through libvirt's storage pools, so that no other access
// to the host is needed. A directory that is in no active pool gets a transient
// one for the moment of the call: it has a name of ours, defines nothing, and
// leaves the files alone when it goes.

// volume is what a host's storage says of a path.
type volume struct {
	format    share.Format
	size      share.Bytes
	allocated share.Bytes
}

// statVolume looks at a path. Nothing there is share.ErrNotExist.
func statVolume(ctx context.Context, h *Host, p string, block bool) (volume, error) {
	return read(ctx, h, "look at "+p+" on "+h.String(), func(c *libvirt.Connect) (v volume, err error) {
		look := func(vol *libvirt.StorageVol) error {
			text, err := vol.GetXMLDesc(0)
			if err != nil {
				return err
			}
			v, err = parseVolume(text)
			return err
		}
		if block {
			// A device is in the pool that it was made in, or in none.
			vol, err := c.LookupStorageVolByPath(p)
			if err != nil {
				return v, err
			}
			defer vol.Free()
			return v, look(vol)
		}
		err = inPool(c, path.Dir(p), func(pool *libvirt.StoragePool) error {
			vol, err := pool.LookupStorageVolByName(path.Base(p))
			if err != nil {
				return err
			}
			defer vol.Free()
			return look(vol)
		})
		return v, err
	}, nil)
}

func parseVolume(text string) (volume, error) {
	var x libvirtxml.StorageVolume
	if err := x.Unmarshal(text); err != nil {
		return volume{}, fmt.Errorf("%w: a volume's description: %w", share.ErrInvalid, err)
	}
	var v volume
	for _, s := range []struct {
		from *libvirtxml.StorageVolumeSize
		to   *share.Bytes
	}{{x.Capacity, &v.size}, {x.Allocation, &v.allocated}} {
		if s.from == nil {
			continue
		}
		*s.to = share.Bytes(s.from.Value)
		if u := s.from.Unit; u != "" && u != "bytes" {
			unit, err := share.ParseBytes("1" + u)
			if err != nil {
				return v, err
			}
			*s.to *= unit
		}
	}
	if x.Target != nil && x.Target.Format != nil {
		v.format = share.Format(x.Target.Format.Type)
	}
	return v, nil
}

// createVolume makes a sparse volume, and refuses to overwrite.
func createVolume(ctx context.Context, h *Host, p string, format share.Format, size share.Bytes) error {
	x := libvirtxml.StorageVolume{
		Name:       path.Base(p),
		Capacity:   &libvirtxml.StorageVolumeSize{Unit: "bytes", Value: uint64(size)},
		Allocation: &libvirtxml.StorageVolumeSize{Unit: "bytes", Value: 0},
		Target:     &libvirtxml.StorageVolumeTarget{Format: &libvirtxml.StorageVolumeTargetFormat{Type: string(format)}},
	}
	if format == share.Qcow2 {
		x.Target.Compat = "1.1"
	}
	text, err := x.Marshal()
	if err != nil {
		return err
	}
	return change(ctx, h, "create "+p+" on "+h.String(), func(c *libvirt.Connect) error {
		return inPool(c, path.Dir(p), func(pool *libvirt.StoragePool) error {
			vol, err := pool.StorageVolCreateXML(text, 0)
			if err != nil {
				return err
			}
			return vol.Free()
		})
	})
}

// deleteVolume removes a volume; there being none is nil.
func deleteVolume(ctx context.Context, h *Host, p string) error {
	err := change(ctx, h, "delete "+p+" on "+h.String(), func(c *libvirt.Connect) error {
		return inPool(c, path.Dir(p), func(pool *libvirt.StoragePool) error {
			vol, err := pool.LookupStorageVolByName(path.Base(p))
			if err != nil {
				return err
			}
			defer vol.Free()
			return vol.Delete(0)
		})
	})
	if errors.Is(err, share.ErrNotExist) {
		return nil
	}
	return err
}

// inPool runs f on an active pool of that directory, as it is now.
func inPool(c *libvirt.Connect, dir string, f func(*libvirt.StoragePool) error) error {
	var err error
	// Another user of the same directory may make or drop its own pool
	// between our look and our try.
	for try := range 5 {
		if try > 0 {
			time.Sleep(50 * time.Millisecond)
		}
		var pool *libvirt.StoragePool
		if pool, err = c.LookupStoragePoolByTargetPath(dir); err == nil {
			if active, _ := pool.IsActive(); active {
				if err = pool.Refresh(0); err == nil {
					err = f(pool)
					_ = pool.Free()
					return err
				}
			}
			_ = pool.Free()
		}
		x := libvirtxml.StoragePool{
			Type:   "dir",
			Name:   "vmferry-" + rand.Text()[:12],
			Target: &libvirtxml.StoragePoolTarget{Path: dir},
		}
		text, merr := x.Marshal()
		if merr != nil {
			return merr
		}
		if pool, err = c.StoragePoolCreateXML(text, 0); err == nil {
			err = f(pool)
			return errors.Join(err, endPool(pool))
		}
		if k := virt.Error("", err); errors.Is(k, share.ErrNotExist) || errors.Is(k, share.ErrDenied) || errors.Is(k, share.ErrUnavailable) {
			return err
		}
	}
	return err
}

func endPool(pool *libvirt.StoragePool) error {
	defer pool.Free()
	return pool.Destroy()
}

// proveShared shows that two directories are one: a file that is made in one is
// seen in the other.
func proveShared(ctx context.Context, from *Host, fromDir string, to *Host, toDir string) error {
	name := ".vmferry-" + rand.Text()
	here, there := path.Join(fromDir, name), path.Join(toDir, name)
	if err := createVolume(ctx, from, here, share.Raw, 0); err != nil {
		return fmt.Errorf("prove that %s is shared: %w", fromDir, err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shortly)
		defer cancel()
		_ = deleteVolume(ctx, from, here)
	}()
	var err error
	// A network file system may show it a moment later.
	for try := range 6 {
		if _, err = statVolume(ctx, to, there, false); err == nil || !errors.Is(err, share.ErrNotExist) {
			break
		}
		if !sleep(ctx, time.Duration(try)*200*time.Millisecond) {
			break
		}
	}
	if errors.Is(err, share.ErrNotExist) {
		return fmt.Errorf("%w: a file made in %s of %s does not appear in %s of %s: the disk is not shared; mirror it, or use SharedUnproven if you know better",
			share.ErrInvalid, fromDir, from, toDir, to)
	}
	return err
}

// shortly bounds a single call that is made after the job's context has ended.
const shortly = 10 * time.Second

// sleep reports whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
