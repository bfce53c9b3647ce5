package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Verify checks that the guest's disks on a host hold every write that was
// acknowledged before the call, and returns an error that names the first
// fault of each disk. Without disks it checks those the guest was started
// with, at the same paths; where path or format changed on the way, the caller
// names what is there now, with the Serial of old. The guest may run or not,
// and the host's power be off.
func (g *Guest) Verify(ctx context.Context, h *Host, disks ...Disk) ([]Verdict, error) {
	if len(disks) == 0 {
		disks = g.Disks
	}
	acked := map[string]Acked{}
	for _, k := range g.watch.Acked() {
		acked[k.Serial] = k
	}
	var verdicts []Verdict
	var errs []error
	for _, d := range disks {
		k, ok := acked[d.Serial]
		if !ok {
			return nil, fmt.Errorf("lab: %s never told of a disk with serial %q", g.Name, d.Serial)
		}
		v, err := checkImage(ctx, h, d, k)
		if err == nil {
			err = v.Err()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s of %s on %s: %w", d.Path, g.Name, h.name, err))
		}
		verdicts = append(verdicts, v)
	}
	return verdicts, errors.Join(errs...)
}

func checkImage(ctx context.Context, h *Host, d Disk, acked Acked) (Verdict, error) {
	path := h.OutsidePath(d.Path)
	if d.Format != "raw" {
		flat, err := flatten(ctx, h, d)
		if err != nil {
			return Verdict{}, err
		}
		defer os.Remove(flat)
		path = flat
	}
	f, err := os.Open(path)
	if err != nil {
		return Verdict{}, fmt.Errorf("lab: %w", err)
	}
	defer f.Close()
	return CheckDisk(f, acked)
}

// flatten converts an image, with what backs it, to a sparse raw file and
// returns its path outside. The image may be in use: whatever the guest has
// flushed, QEMU has written to the file, metadata included.
func flatten(ctx context.Context, h *Host, d Disk) (string, error) {
	f, err := os.CreateTemp(h.Dir(), ".verify-")
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	f.Close()
	args := []string{"convert", "-U", "-f", d.Format, "-O", "raw"}
	if _, off := h.powered(); off != nil {
		err = runTool(ctx, "", "qemu-img", append(args, h.OutsidePath(d.Path), f.Name())...)
	} else {
		// Inside, where the paths of backing files lead somewhere.
		path := d.Path
		if !filepath.IsAbs(path) {
			path = h.ImagePath(path)
		}
		cmd := h.Command(ctx, "qemu-img", append(args, path, h.ImagePath(filepath.Base(f.Name())))...)
		var out []byte
		if out, err = cmd.CombinedOutput(); err != nil {
			err = fmt.Errorf("lab: %s: qemu-img convert %s: %w: %s", h.name, d.Path, err, out)
		}
	}
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}
