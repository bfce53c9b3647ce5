package sharetest

import (
	"fmt"
	"os"
	"runtime"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
)

var leakChecks = []shareCheck{
	{"Leaks", func(e *env) {
		// What is made once for the whole program is no leak: so there is a
		// first time that does not count.
		e.liveOnce()
		goroutines, files := runtime.NumGoroutine(), openFiles()
		for range 3 {
			e.liveOnce()
		}
		e.eventually("what was opened is closed", func() error {
			if n := openFiles(); n > files {
				return fmt.Errorf("%d descriptors are open, and %d were before", n, files)
			}
			if n := runtime.NumGoroutine(); n > goroutines {
				return fmt.Errorf("%d goroutines run, and %d did before:\n%s", n, goroutines, stacks())
			}
			return nil
		})
	}},
}

// liveOnce uses all that there is of a handle, and closes it without closing
// the devices and locks that came from it.
func (e *env) liveOnce() {
	e.Helper()
	s := e.st.Open(e)
	for _, k := range e.info.Kinds {
		name := "leak-" + k.String()
		if e.info.Capabilities.Can(share.CanCreate).OK {
			_, err := share.Create(e.ctx, s, e.spec(name, k))
			require.NoError(e, err)
		}
		if k == share.Disk && e.info.Capabilities.Can(share.CanOpenDevice).OK {
			d, err := share.OpenDevice(e.ctx, s, name, nil)
			require.NoError(e, err)
			require.NoError(e, d.WriteAt(e.ctx, make([]byte, 4096), 0))
			_, err = share.ListExtents(e.ctx, d, 0, d.Size())
			require.NoError(e, err)
		}
		if e.info.Capabilities.Can(share.CanLock).OK {
			_, err := share.LockVolume(e.ctx, s, name, "owner")
			require.NoError(e, err)
		}
		_, err := s.Publish(e.ctx, name, []share.Access{e.access(0, share.ReadWrite)})
		require.NoError(e, err)
		_, err = s.Publish(e.ctx, name, nil)
		require.NoError(e, err)
		_, err = s.Stat(e.ctx, "none")
		require.Error(e, err)
	}
	require.NoError(e, s.Close())
}

// openFiles counts this process's descriptors.
func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}

func stacks() []byte {
	b := make([]byte, 1<<20)
	return b[:runtime.Stack(b, true)]
}
