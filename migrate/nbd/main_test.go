package nbd_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails the run if goroutines of this package or descriptors are
// left when all tests have ended.
func TestMain(m *testing.M) {
	before := descriptors()
	code := m.Run()
	if code == 0 && !ended(before) {
		code = 1
	}
	os.Exit(code)
}

func ended(before int) bool {
	var left string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		left = leftovers(before)
		if left == "" {
			return true
		}
	}
	fmt.Fprintln(os.Stderr, "left behind:", left)
	return false
}

func leftovers(before int) string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	for _, g := range strings.Split(string(buf), "\n\n") {
		if strings.Contains(g, "migrate/nbd.(") && !strings.Contains(g, "TestMain") {
			return g
		}
	}
	if now := descriptors(); now > before {
		return fmt.Sprintf("%d descriptors, there were %d", now, before)
	}
	return ""
}

// descriptors counts open files but those of the runtime's poller, which come
// with first use.
func descriptors() int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range all {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if strings.HasPrefix(to, "socket:") || strings.HasPrefix(to, "/") {
			n++
		}
	}
	return n
}
