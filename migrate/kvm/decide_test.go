package kvm

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Every pair of states, with and without a job of libvirt on either side.
func TestDecide(t *testing.T) {
	all := []State{UnknownState, Absent, Running, Paused, Off}
	for _, h := range []HandOver{Strict, Unfenced} {
		for _, s := range all {
			for _, d := range all {
				for _, busy := range []struct{ s, d bool }{{}, {s: true}, {d: true}, {true, true}} {
					src, dst := sighting{state: s, busy: busy.s}, sighting{state: d, busy: busy.d}
					for name, v := range map[string]verdict{"decide": decide(src, dst, h), "surrender": surrender(src, dst, h)} {
						at := []any{"%s(%v busy %v, %v busy %v, %d) = %d", name, s, busy.s, d, busy.d, h, v}
						switch v {
						case activate:
							// The one rule that matters: nothing at the source.
							require.Contains(t, []State{Absent, Off}, s, at...)
							require.Equal(t, Paused, d, at...)
							require.False(t, busy.d, at...)
						case resumeSource:
							require.Equal(t, Paused, s, at...)
							require.NotContains(t, []State{Running, Paused}, d, at...)
							require.False(t, busy.s, at...)
							if d == UnknownState {
								require.Equal(t, Strict, h, at...)
							}
						case dropDestination:
							// Only a copy that never ran, and with the guest
							// itself at the source.
							require.Equal(t, Paused, d, at...)
							require.Contains(t, []State{Running, Paused}, s, at...)
							require.True(t, h == Strict || s == Running, at...)
							require.False(t, busy.s, at...)
						case dropSource:
							require.Equal(t, Paused, s, at...)
							require.Equal(t, Running, d, at...)
						case staySource:
							require.Equal(t, Running, s, at...)
							require.NotContains(t, []State{Running, Paused}, d, at...)
						case stayDestination:
							require.Contains(t, []State{Absent, Off}, s, at...)
							require.Equal(t, Running, d, at...)
						case ended:
							require.Contains(t, []State{Absent, Off}, s, at...)
							require.Contains(t, []State{Absent, Off}, d, at...)
						case split:
							require.Equal(t, Running, s, at...)
							require.Equal(t, Running, d, at...)
						}
					}
				}
			}
		}
	}
	// What is clear is not waited for.
	idle := func(s State) sighting { return sighting{state: s} }
	for _, c := range []struct {
		s, d State
		want verdict
	}{
		{Running, Absent, staySource}, {Running, Off, staySource}, {Running, Paused, dropDestination},
		{Paused, Absent, resumeSource}, {Paused, Paused, dropDestination}, {Paused, Running, dropSource},
		{Absent, Paused, activate}, {Off, Paused, activate}, {Absent, Running, stayDestination},
		{Off, Off, ended}, {Running, Running, split},
		{UnknownState, Running, wait}, {UnknownState, Paused, wait}, {Running, UnknownState, wait}, {Absent, UnknownState, wait},
	} {
		require.Equal(t, c.want, decide(idle(c.s), idle(c.d), Strict), "%v, %v", c.s, c.d)
	}
	require.Equal(t, staySource, surrender(idle(Running), idle(UnknownState), Strict))
	require.Equal(t, wait, surrender(idle(Running), idle(UnknownState), Unfenced))
	require.Equal(t, wait, surrender(idle(UnknownState), idle(Paused), Strict))
	require.Equal(t, wait, surrender(idle(Absent), idle(UnknownState), Strict))
}
