package vmferry

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/vmferry/vmferry"

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath   string
	Imports      []string
	Deps         []string
	TestImports  []string
	XTestImports []string
	CgoFiles     []string
	Standard     bool
}

// list returns the packages that match, for a build with or without cgo.
func list(t *testing.T, cgo string, patterns ...string) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps,TestImports,XTestImports,CgoFiles,Standard"}, patterns...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	found := map[string]pkg{}
	for dec := json.NewDecoder(out); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		found[p.ImportPath] = p
	}
	require.NoError(t, cmd.Wait())
	return found
}

// A rule says what packages below a folder may import of this module. The first
// rule whose folder matches counts; "" is the root package alone.
var rules = []struct {
	folder string
	may    []string
	why    string
}{
	{"internal/virt", []string{"share", "internal"}, "the wrapper around libvirt serves migrate/kvm and share/guest"},
	{"internal/lab", []string{"internal"}, "the laboratory stands beside what it tests"},
	{"internal/bench", []string{"share", "share/local", "migrate", "migrate/nbd", "internal"}, "the harness measures what users use"},
	{"internal", []string{"internal"}, "leaves"},
	{"share/guest", []string{"share", "internal", "migrate/nbd"}, "guests take any source"},
	{"share/local", []string{"share", "internal", "migrate/nbd"}, "a backend; qcow2 is reached through NBD"},
	{"share/", []string{"share", "internal", "migrate/nbd"}, "a backend, or the suite for all"},
	{"share", []string{"internal"}, "the contract stands on nothing"},
	{"nfs", []string{"share", "internal"}, "a backend"},
	{"iscsi", []string{"share", "internal", "migrate/nbd"}, "a backend"},
	{"ceph", []string{"share", "internal", "migrate"}, "a backend, and a store of authority and journals"},
	{"gluster", []string{"share", "internal"}, "a backend"},
	{"tuning", []string{"share", "internal"}, "knobs need no migration"},
	{"migrate/nbd", []string{"share", "internal"}, "a transport of devices, which backends may use"},
	{"migrate/migratetest", []string{"share", "internal", "migrate", "share/sharetest"}, "fakes"},
	{"migrate/kvm", []string{"share", "internal", "migrate", "migrate/nbd"}, "guests through libvirt"},
	{"migrate", []string{"share", "internal"}, "the core knows no backend and no hypervisor"},
	{"examples", []string{"share", "share/local", "share/guest", "nfs", "iscsi", "ceph", "gluster", "tuning", "migrate", "migrate/nbd", "migrate/kvm", "internal", "examples"}, "users of all"},
	{"", nil, "documentation"},
}

// allowed reports whether from may import to, both below the module.
func allowed(from, to string) (ok bool, why string) {
	for _, r := range rules {
		if r.folder != "" && from != strings.TrimSuffix(r.folder, "/") && !strings.HasPrefix(from, strings.TrimSuffix(r.folder, "/")+"/") {
			continue
		}
		if strings.HasSuffix(r.folder, "/") && from == strings.TrimSuffix(r.folder, "/") {
			continue
		}
		if r.folder == "" && from != "" {
			continue
		}
		own := strings.TrimSuffix(r.folder, "/")
		for _, m := range r.may {
			// share and migrate stand for the package alone: below them are
			// other packages with rules of their own.
			if to == m || m != "share" && m != "migrate" && strings.HasPrefix(to, m+"/") {
				return true, r.why
			}
		}
		// A backend's own sub-packages see each other.
		if own != "" && own != "share" && own != "migrate" && (to == own || strings.HasPrefix(to, own+"/")) && !strings.HasSuffix(r.folder, "/") {
			return true, r.why
		}
		return false, r.why
	}
	return false, "no rule speaks of " + from
}

func TestImportDirection(t *testing.T) {
	for name, p := range list(t, "1", "./...") {
		from := strings.TrimPrefix(strings.TrimPrefix(name, module), "/")
		for _, imp := range p.Imports {
			if to, ours := strings.CutPrefix(imp, module+"/"); ours {
				ok, why := allowed(from, to)
				require.True(t, ok, "%s imports %s, and may not: %s", name, imp, why)
			}
		}
	}
}

// The rule itself can say no.
func TestImportRules(t *testing.T) {
	for _, bad := range [][2]string{
		{"nfs", "iscsi"}, {"nfs", "migrate"}, {"share", "share/local"}, {"share/local", "migrate"}, {"migrate", "nfs"}, {"migrate", "migrate/kvm"},
		{"migrate", "share/local"}, {"share/local", "share/smb"}, {"internal/lab", "share"}, {"", "share"}, {"unheard", "share"}, {"ceph", "gluster"},
	} {
		ok, _ := allowed(bad[0], bad[1])
		require.False(t, ok, "%v", bad)
	}
	for _, good := range [][2]string{
		{"nfs", "share"}, {"share/local", "migrate/nbd"}, {"migrate/kvm", "migrate"}, {"examples/quickstart", "share/local"}, {"ceph/etcd", "ceph"},
		{"internal/lab", "internal/lab/oracle"},
	} {
		ok, why := allowed(good[0], good[1])
		require.True(t, ok, "%v: %s", good, why)
	}
}

// Packages that are pure Go, and must stay so: who imports them links no C.
var pure = []string{"./share/...", "./migrate", "./migrate/nbd", "./migrate/migratetest", "./examples/quickstart", "./examples/whatif"}

// Bindings that only their own packages may reach.
var bindings = map[string][]string{
	"libvirt.org/go/libvirt":     {"internal/virt", "migrate/kvm", "share/guest", "tuning/kvm", "examples"},
	"github.com/ceph/go-ceph":    {"ceph", "examples"},
	"github.com/gluster/gogfapi": {"gluster", "examples"},
}

// linksLibvirt: what lies below a pure package's folder and reaches guests
// through libvirt, so that the package itself need not.
func linksLibvirt(name string) bool {
	return slices.ContainsFunc([]string{"share/guest", "tuning/kvm", "internal/virt"}, func(p string) bool {
		return name == module+"/"+p || strings.HasPrefix(name, module+"/"+p+"/")
	})
}

func TestPurePackagesReachNoCgo(t *testing.T) {
	var patterns []string
	for _, p := range append(pure, "./nfs/...", "./iscsi/...", "./tuning/...") {
		if _, err := os.Stat(strings.TrimSuffix(p, "/...")); err == nil { // those that are there
			patterns = append(patterns, p)
		}
	}
	for name, p := range list(t, "0", patterns...) {
		if linksLibvirt(name) {
			continue
		}
		require.Empty(t, p.CgoFiles, name)
		for _, dep := range p.Deps {
			for b := range bindings {
				require.False(t, dep == b || strings.HasPrefix(dep, b+"/"), "%s reaches %s", name, dep)
			}
		}
	}
	// With cgo too: none of what they reach, beside the standard library, has
	// a C part.
	for name, p := range list(t, "1", append([]string{"-deps"}, patterns...)...) {
		if !p.Standard && !linksLibvirt(name) && !strings.HasPrefix(name, "libvirt.org/go/libvirt") {
			require.Empty(t, p.CgoFiles, name)
		}
	}
}

func TestBindingsStayWithTheirPackages(t *testing.T) {
	for name, p := range list(t, "1", "./...") {
		rel := strings.TrimPrefix(strings.TrimPrefix(name, module), "/")
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			for b, homes := range bindings {
				if imp != b && !strings.HasPrefix(imp, b+"/") {
					continue
				}
				ok := slices.ContainsFunc(homes, func(h string) bool { return rel == h || strings.HasPrefix(rel, h+"/") })
				require.True(t, ok, "%s imports %s; only %v may", name, imp, homes)
			}
		}
	}
}

// The folders at the top are fixed.
func TestTopLevel(t *testing.T) {
	fixed := []string{"share", "migrate", "nfs", "iscsi", "ceph", "gluster", "tuning", "examples", "internal", "build"}
	entries, err := os.ReadDir(".")
	require.NoError(t, err)
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			require.Contains(t, fixed, e.Name(), path.Join(".", e.Name()))
		}
	}
}
