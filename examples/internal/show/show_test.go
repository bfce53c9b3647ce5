package show

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate"
)

func TestLineNeverRunsBackwards(t *testing.T) {
	s := NewScreen(&bytes.Buffer{})
	last := -1
	for _, left := range []int64{100, 50, 80, 20, 60, 0} {
		p := migrate.Progress{Disks: []migrate.DiskProgress{{Sent: 200 - left, Remaining: left}}}
		s.goal = max(s.goal, p.Remaining()+p.Sent())
		full := strings.Count(s.line(migrate.PhaseCopying, p), "█")
		require.GreaterOrEqual(t, full, last)
		last = full
	}
	require.Contains(t, s.line(migrate.PhaseDone, migrate.Progress{}), "100%")
}
