package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// TB is what the lab needs of a *testing.T, *testing.B or *testing.F.
type TB interface {
	Helper()
	Failed() bool
	Cleanup(func())
	Logf(format string, args ...any)
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

const (
	remedy  = "run `make lab-install` or internal/lab/install.sh"
	minQEMU = 9
)

// Start is Require and New for a test. The lab is closed with the test, and its
// logs go to the test's where the test has failed.
func Start(t TB, opts *Options) *Lab {
	t.Helper()
	Require(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := New(ctx, opts)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range l.hosts {
				t.Logf("%s", h.logTail(40))
			}
		}
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

// Require skips the test where the lab cannot run, and names the remedy. With
// VMFERRY_LAB=required in the environment it fails the test instead.
func Require(t TB) {
	t.Helper()
	err := Check(context.Background())
	switch {
	case err == nil:
	case os.Getenv("VMFERRY_LAB") == "required":
		t.Fatalf("VMFERRY_LAB=required: %v", err)
	default:
		t.Skipf("%v", err)
	}
}

// Check says why the lab cannot run on this machine, or nil.
func Check(ctx context.Context) error {
	if !mayUnshare() {
		return errors.New("lab: no privilege for namespaces; run as root, or inside `unshare --user --map-root-user --net --mount --pid --fork --mount-proc`")
	}
	for _, tool := range []string{"libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "ip", "tc", "ebtables-nft-restore", "ldd", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("lab: %s is not there (%w); %s", tool, err, remedy)
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("lab: %w; guests need it for their network: modprobe tun", err)
	}
	if err := checkQEMU(ctx); err != nil {
		return err
	}
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	_, _, _, err = findPackages(cache)
	return err
}

var qemuVersion = regexp.MustCompile(`version (\d+)\.`)

func checkQEMU(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
	if err != nil {
		return fmt.Errorf("lab: qemu-system-x86_64 --version: %w; %s", err, remedy)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	m := qemuVersion.FindStringSubmatch(first)
	if m == nil {
		return fmt.Errorf("lab: QEMU of unknown version %q; %s", first, remedy)
	}
	if major, err := strconv.Atoi(m[1]); err != nil || major < minQEMU {
		return fmt.Errorf("lab: %s is too old: before version %d.0 the emulator corrupts the memory of guests that migrate live; %s", first, minQEMU, remedy)
	}
	return nil
}

// mayUnshare tries what hosts are made of.
func mayUnshare() bool {
	return onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS) }) == nil
}
