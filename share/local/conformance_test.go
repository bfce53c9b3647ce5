package local

import (
	"bytes"
	"log/slog"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/sharetest"
)

// harness is a directory of its own for each check.
func harness(opts Options) sharetest.Harness {
	return sharetest.Harness{
		Clients: []share.Client{share.LocalHost()},
		Format:  opts.Format,
		New: func(t testing.TB) sharetest.Storage {
			dir := t.TempDir()
			logs := &syncBuffer{}
			opts := opts
			opts.Logger = slog.New(slog.NewJSONHandler(logs, nil))
			var opened []share.Share
			return sharetest.Storage{
				Paths: []string{dir},
				Logs:  logs.String,
				Open: func(t testing.TB) share.Share {
					s, err := Open(t.Context(), dir, &opts)
					require.NoError(t, err)
					opened = append(opened, s)
					return s
				},
				// The page cache cannot be lost here; what QEMU has not
				// written can.
				PowerCut: func(t testing.TB, _ uint64) {
					for _, s := range opened {
						killServers(s)
					}
				},
				CrashAt: func(t testing.TB, n int, do func(share.Share) error) bool {
					d, err := openDir(dir, &opts)
					require.NoError(t, err)
					crashed := false
					d.hook = func(string) {
						if n--; n < 0 {
							crashed = true
							runtime.Goexit() // nothing but deferred closes runs
						}
					}
					err = do(d.withTools())
					if !crashed {
						require.NoError(t, err)
					}
					require.NoError(t, d.Close())
					return crashed
				},
			}
		},
	}
}

// killServers kills what serves the open qcow2 disks of a share.
func killServers(s share.Share) {
	q, ok := s.(qemuDir)
	if !ok {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for c := range q.held {
		if d, ok := c.(*device); ok {
			if q, ok := d.blocks.(*qcow2Image); ok {
				_ = q.server.cmd.Process.Kill()
				<-q.server.done
			}
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestRawConforms(t *testing.T) { sharetest.Run(t, harness(Options{})) }

func TestQcow2Conforms(t *testing.T) { sharetest.Run(t, harness(Options{Format: share.Qcow2})) }
