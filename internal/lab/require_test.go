package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmferry/vmferry/internal/lab"
)

// verdictOf records how Require ends a test.
type verdictOf struct {
	*testing.T
	skipped, failed string
}

func (v *verdictOf) Skipf(format string, args ...any)  { v.skipped = fmt.Sprintf(format, args...) }
func (v *verdictOf) Fatalf(format string, args ...any) { v.failed = fmt.Sprintf(format, args...) }

func TestRequireRefusesOldQEMU(t *testing.T) {
	lab.Require(t)
	bin := t.TempDir()
	old := "#!/bin/sh\necho 'QEMU emulator version 7.2.9 (Debian 1:7.2+dfsg-7)'\n"
	require.NoError(t, os.WriteFile(filepath.Join(bin, "qemu-system-x86_64"), []byte(old), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))

	t.Setenv("VMFERRY_LAB", "")
	v := &verdictOf{T: t}
	lab.Require(v)
	require.Contains(t, v.skipped, "too old")
	require.Contains(t, v.skipped, "make lab-install")
	require.Empty(t, v.failed)

	t.Setenv("VMFERRY_LAB", "required")
	v = &verdictOf{T: t}
	lab.Require(v)
	require.Contains(t, v.failed, "too old")
	require.Empty(t, v.skipped)
}

func TestRequireNamesWhatIsMissing(t *testing.T) {
	lab.Require(t)
	t.Setenv("VMFERRY_LAB", "")
	t.Setenv("PATH", t.TempDir())
	v := &verdictOf{T: t}
	lab.Require(v)
	require.Contains(t, v.skipped, "libvirtd")
	require.Contains(t, v.skipped, "internal/lab/install.sh")
}
