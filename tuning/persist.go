package tuning

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmferry/vmferry/share"
)

// The files that are ours.
const (
	sysctlKept   = "/etc/sysctl.d/90-vmferry.conf"
	udevKept     = "/etc/udev/rules.d/90-vmferry.rules"
	tmpfilesKept = "/etc/tmpfiles.d/90-vmferry.conf"
)

const keptHeader = "# Written by vmferry's tuning; removed by it, too. Changes by hand make it leave this file alone.\n"

// Persisted is what [Persist] did.
type Persisted struct {
	Files []string // that are there now
	// NotKept are held values that no file can keep, and why.
	NotKept map[string]string
}

// Persist makes what the journal holds of this machine survive a reboot: sysctls
// in sysctl.d, devices' settings in a udev rule that knows the device by its
// identity and not its name, other files in tmpfiles.d; each in one file of our
// own. It is asked for, after a measurement, and never done by itself.
//
// Called again it brings the files in line with what is held now. A file of that
// name that is not ours, or was changed by hand, is [share.ErrExist] and stays
// as it is. The system must be a [Keeper].
func Persist(ctx context.Context, sys System, j *Journal, knobs []Knob) (Persisted, error) {
	if knobs == nil {
		knobs = Knobs()
	}
	keeper, ok := sys.(Keeper)
	if !ok {
		return Persisted{}, &share.UnsupportedError{What: "keeping files on " + sys.Name()}
	}
	j.work.Lock()
	defer j.work.Unlock()
	id, err := identify(ctx, sys)
	if err != nil {
		return Persisted{}, err
	}
	out := Persisted{NotKept: map[string]string{}}
	texts := map[string]string{}
	for _, h := range j.Held() {
		if h.Machine != id.Machine || h.Boot != id.Boot || h.Unsettled || h.Ours == h.Original {
			continue
		}
		file, line, err := keptLine(ctx, sys, knobs, h)
		if err != nil {
			out.NotKept[h.Path] = err.Error()
			continue
		}
		texts[file] += line
	}
	for _, file := range []string{sysctlKept, udevKept, tmpfilesKept} {
		if err := keepFile(ctx, sys, keeper, j, id, file, texts[file]); err != nil {
			return out, err
		}
		if texts[file] != "" {
			out.Files = append(out.Files, file)
		}
	}
	return out, nil
}

// Unpersist removes the files that [Persist] wrote. What is in force stays so.
// A file that was changed by hand stays, and is [share.ErrExist].
func Unpersist(ctx context.Context, sys System, j *Journal) error {
	keeper, ok := sys.(Keeper)
	if !ok {
		return &share.UnsupportedError{What: "keeping files on " + sys.Name()}
	}
	j.work.Lock()
	defer j.work.Unlock()
	id, err := identify(ctx, sys)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range j.kept(id.Machine) {
		errs = append(errs, keepFile(ctx, sys, keeper, j, id, f.Path, ""))
	}
	return errors.Join(errs...)
}

// keepFile makes a file of ours have these lines, or not be there where there
// are none.
func keepFile(ctx context.Context, sys System, keeper Keeper, j *Journal, id identity, file, lines string) error {
	var sums []string // what may be there: two, after a crash
	for _, f := range j.kept(id.Machine) {
		if f.Path == file {
			sums = strings.Split(f.Sum, ",")
		}
	}
	have, err := sys.ReadFile(ctx, file)
	gone := errors.Is(err, share.ErrNotExist)
	switch {
	case err != nil && !gone:
		return err
	case !gone && !slices.Contains(sums, sum(have)):
		return fmt.Errorf("%s: not as we left it: %w; move it away, or take it over by hand", file, share.ErrExist)
	case gone && lines == "":
		if sums == nil {
			return nil
		}
		return j.add(record{Op: opDrop, Machine: id.Machine, Path: file})
	case lines == "":
		if err := keeper.RemoveFile(ctx, file); err != nil {
			return err
		}
		return j.add(record{Op: opDrop, Machine: id.Machine, Path: file})
	}
	want := []byte(keptHeader + lines)
	if !gone && string(have) == string(want) {
		return nil
	}
	announced := sum(want)
	if !gone {
		announced += "," + sum(have)
	}
	if err := j.add(record{Op: opKeep, Machine: id.Machine, Path: file, Sum: announced}); err != nil {
		return err
	}
	if err := keeper.PutFile(ctx, file, want); err != nil {
		return err
	}
	if have, err = sys.ReadFile(ctx, file); err != nil {
		return err
	}
	if string(have) != string(want) {
		return fmt.Errorf("%s: read back something else: %w", file, share.ErrCorrupt)
	}
	return j.add(record{Op: opKeep, Machine: id.Machine, Path: file, Sum: sum(want)})
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// keptLine is the line that keeps a value, and its file.
func keptLine(ctx context.Context, sys System, knobs []Knob, h Held) (file, line string, err error) {
	k, ok := FindKnob(knobs, h.Knob)
	if !ok || k.path(h.Object) != h.Path {
		return "", "", fmt.Errorf("no knob %s in the table", h.Knob)
	}
	if strings.ContainsAny(h.Ours, "\"\\%$\n") || strings.ContainsAny(h.Path, " \"\\%$\n") {
		return "", "", fmt.Errorf("%s has characters that mean something in the file", quote(h.Ours))
	}
	switch k.Keep {
	case KeepSysctl:
		name := strings.TrimPrefix(h.Path, "/proc/sys/")
		return sysctlKept, name + " = " + h.Ours + "\n", nil
	case KeepTmpfiles:
		return tmpfilesKept, "w " + h.Path + " - - - - " + h.Ours + "\n", nil
	case KeepUdev:
		return keptRule(ctx, sys, &k, h)
	}
	return "", "", errors.New("it belongs to a service's own configuration")
}

// keptRule is a udev rule for a device. Names are given out anew at each boot,
// so that the rule goes by what the device says of itself.
func keptRule(ctx context.Context, sys System, k *Knob, h Held) (file, line string, err error) {
	dir, attribute := "/sys/block/"+h.Object+"/", ""
	names := []string{"wwid", "device/wwid", "serial"}
	subsystem := `SUBSYSTEM=="block", ENV{DEVTYPE}=="disk"`
	if k.Scope == NIC {
		dir, names, subsystem = "/sys/class/net/"+h.Object+"/", []string{"address"}, `SUBSYSTEM=="net"`
	}
	attribute, ok := strings.CutPrefix(h.Path, dir)
	if !ok {
		return "", "", errors.New("a device's setting at an unknown place")
	}
	for _, n := range names {
		b, err := sys.ReadFile(ctx, dir+n)
		identity := strings.TrimSpace(string(b))
		if err != nil || identity == "" || strings.Trim(identity, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:_-") != "" {
			continue
		}
		return udevKept, fmt.Sprintf("ACTION==\"add|change\", %s, ATTR{%s}==\"%s\", ATTR{%s}=\"%s\"\n", subsystem, n, identity, attribute, h.Ours), nil
	}
	return "", "", errors.New("the device has no identity (wwid, serial, address) that a rule could know it by")
}
