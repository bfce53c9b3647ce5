package kvm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// ExportByDead exports a guest in the name of a program that is no longer there.
func ExportByDead(ctx context.Context, g *Guest, opts *ExportOptions) (*Export, error) {
	c := exec.Command("true")
	if err := c.Run(); err != nil {
		return nil, err
	}
	return g.exportAs(ctx, owner(fmt.Sprintf("%s%s-%s-%d-1-01234567", ownerPrefix, thisMachine(), thisBoot(), c.Process.Pid)), opts)
}

// ExportByStranger exports a guest in the name of a program on some machine.
func ExportByStranger(ctx context.Context, g *Guest, opts *ExportOptions) (*Export, error) {
	return g.exportAs(ctx, ownerPrefix+"ffffffff-ffffffff-1-1-01234567", opts)
}

// Die closes the export's connections, as the kernel does for a program that
// was killed.
func (e *Export) Die() {
	for _, d := range e.disks {
		d.view.disconnect()
	}
}

func TestOwner(t *testing.T) {
	o := newOwner()
	require.Equal(t, lives, o.fate())
	require.NotEqual(t, o, newOwner())
	require.Equal(t, o, ownerOf(o.checkpointName(12)))
	require.Equal(t, o, ownerOf(o.exportName("vda")))
	require.True(t, o.owns(o.checkpointName(1)))
	require.False(t, o.owns(newOwner().checkpointName(1)))
	m, b := thisMachine(), thisBoot()
	for name, want := range map[string]fate{
		fmt.Sprintf("vmferry-%s-%s-%d-1-01234567", m, b, os.Getpid()):                           dead, // the PID is another program's now
		fmt.Sprintf("vmferry-%s-00000000-%d-%d-01234567", m, os.Getpid(), startOf(os.Getpid())): dead, // before the last boot
		fmt.Sprintf("vmferry-00000000-%s-1-1-01234567", b):                                      fateUnknown,
		"vmferry-x": fateUnknown,
		"nightly-":  fateUnknown,
		"":          fateUnknown,
	} {
		require.Equal(t, want, owner(name).fate(), name)
	}
	require.Empty(t, ownerOf("backup-vmferry-0-0"))
}

func TestTurnstile(t *testing.T) {
	ctx := context.Background()
	var s turnstile
	require.NoError(t, s.enter(ctx))
	ended, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, s.close(ended), context.Canceled, "somebody is inside")
	require.NoError(t, s.enter(ctx), "and it is open again")
	s.leave()
	done := make(chan error)
	go func() { done <- s.close(ctx) }()
	for {
		within, cancel := context.WithTimeout(ctx, 1)
		err := s.enter(within)
		cancel()
		if err != nil {
			break
		}
		s.leave()
	}
	s.leave()
	require.NoError(t, <-done)
	go func() { done <- s.enter(ctx) }()
	s.open()
	require.NoError(t, <-done)
	s.leave()
}
