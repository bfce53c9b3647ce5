package lab_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmferry/vmferry/internal/lab"
)

// victimDir in the environment makes this program start a lab there, say so and
// wait to be killed.
const victimDir = "VMFERRY_LAB_TEST_VICTIM"

func beVictim(dir string) error {
	ctx := context.Background()
	l, err := lab.New(ctx, &lab.Options{Dir: dir})
	if err != nil {
		return err
	}
	if _, err := l.StartGuest(ctx, l.Host(0), nil); err != nil {
		return err
	}
	go l.Host(1).Command(ctx, "sleep", "1000").Run()
	time.Sleep(200 * time.Millisecond)
	fmt.Println("ready")
	select {}
}

// processesOf are the commands that run with a lab below dir in their mount
// table, which is how every process of a lab's hosts can be told from those of
// other labs on this machine.
func processesOf(t *testing.T, dir string) []string {
	var found []string
	tables, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	require.NoError(t, err)
	for _, table := range tables {
		// Processes come and go.
		if text, err := os.ReadFile(table); err == nil && strings.Contains(string(text), filepath.Base(dir)) {
			command, _ := os.ReadFile(filepath.Join(filepath.Dir(table), "cmdline"))
			first, _, _ := strings.Cut(string(command), "\x00")
			found = append(found, filepath.Base(first))
		}
	}
	return found
}

// links are the network interfaces of this namespace.
func links(t *testing.T) []string {
	all, err := net.Interfaces()
	require.NoError(t, err)
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	return names
}

// eventually is require.Eventually without its goroutines.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

// labDir is a short, unique directory: sockets lie below it, and mount tables
// are searched for its name.
func labDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "leftovers-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestNothingLeft(t *testing.T) {
	lab.Require(t)
	ctx := testContext(t)
	dir := labDir(t)
	run := func() {
		l, err := lab.New(ctx, &lab.Options{Dir: dir})
		require.NoError(t, err)
		require.NoError(t, l.Cut(ctx, l.Host(0), l.Host(1)))
		require.NoError(t, l.Host(0).Shape(ctx, 1e9))
		require.NotEmpty(t, processesOf(t, dir), "the test sees what it looks for")
		require.NoError(t, l.Close())
		require.NoError(t, l.Close(), "twice")
	}
	run() // whatever the runtime opens once
	fds, goroutines, nics := descriptors(t), runtime.NumGoroutine(), links(t)
	run()
	require.Empty(t, processesOf(t, dir), "neither processes nor mounts")
	require.Equal(t, nics, links(t))
	require.Equal(t, fds, descriptors(t))
	eventually(t, "no more goroutines than before", func() bool { return runtime.NumGoroutine() <= goroutines })
	left, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Equal(t, "lock", filepath.Base(left[0]))
}

func TestKilledLabLeavesNothing(t *testing.T) {
	lab.Require(t)
	ctx := testContext(t)
	dir := labDir(t)
	nics := links(t)

	victim := exec.Command("/proc/self/exe")
	victim.Env = append(os.Environ(), victimDir+"="+dir)
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, victim.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		_ = victim.Process.Kill()
		_ = victim.Wait()
		t.Fatalf("the victim said %q: %v", line, err)
	}
	running := processesOf(t, dir)
	for _, name := range []string{"vmferry-lab-host", "libvirtd", "qemu-system-x86_64", "sleep"} {
		require.Contains(t, running, name, "the test sees what it looks for")
	}

	require.NoError(t, victim.Process.Kill())
	_ = victim.Wait()
	eventually(t, "every process and mount of the lab ends with it", func() bool { return len(processesOf(t, dir)) == 0 })
	require.Equal(t, nics, links(t))

	// Its files are there until the next lab.
	dead, err := filepath.Glob(filepath.Join(dir, "*", "*", "h1"))
	require.NoError(t, err)
	require.Len(t, dead, 1)
	l, err := lab.New(ctx, &lab.Options{Dir: dir, Hosts: 1})
	require.NoError(t, err)
	require.NoDirExists(t, filepath.Dir(dead[0]))
	// A living lab is not swept.
	other, err := lab.New(ctx, &lab.Options{Dir: dir, Hosts: 1})
	require.NoError(t, err)
	_, err = l.Host(0).Virsh(ctx, "list")
	require.NoError(t, err)
	require.DirExists(t, l.Host(0).Dir())
	require.NoError(t, l.Close())
	require.NoError(t, other.Close())
}
