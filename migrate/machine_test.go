package migrate

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// world is what the machine acts on, as small as it can be: who runs, what the
// store says, what the source has given up, and swaps that are still on their
// way.
type world struct {
	srcRuns, dstRuns bool
	relinquished     uint64
	owner            side
	epoch            uint64
	late             [2]lateSwap
}

// lateSwap is a swap whose caller got an error, and that may yet happen.
type lateSwap struct {
	from  side
	epoch uint64
	to    side
}

// node is one moment of one course of things. pending: the effect of the phase
// is yet to be run.
type node struct {
	s                state
	w                world
	faults, restarts uint8
	cancels          uint8
}

// explorer walks through all courses with a bounded number of faults.
type explorer struct {
	t    *testing.T
	seen map[node]bool
	ends map[Phase]int
	path []string
}

func (x *explorer) fail(n node, format string, args ...any) {
	x.t.Helper()
	for _, p := range x.path {
		x.t.Log(p)
	}
	x.t.Fatalf("%s\nstate %+v\nworld %+v", fmt.Sprintf(format, args...), n.s, n.w)
}

// visit checks a node and goes on from it in every way.
func (x *explorer) visit(n node) {
	if x.seen[n] {
		return
	}
	x.seen[n] = true
	if n.w.srcRuns && n.w.dstRuns {
		x.fail(n, "two copies run")
	}
	if n.w.dstRuns && n.w.owner != destination {
		x.fail(n, "the destination runs without authority")
	}
	if n.w.srcRuns && n.w.owner != source {
		x.fail(n, "the source runs without authority")
	}
	// A swap that is late may happen now.
	for i, l := range n.w.late {
		if l == (lateSwap{}) {
			continue
		}
		m := n
		m.w.late[i] = lateSwap{}
		if m.w.owner == l.from && m.w.epoch == l.epoch {
			m.w.owner, m.w.epoch = l.to, l.epoch+1
		}
		x.to(m, "late swap to %d happens", l.to)
	}
	if n.s.Phase.Ended() {
		x.end(n)
		return
	}
	for _, c := range x.choices(n) {
		// The program dies before the effect, or with its outcome unseen.
		if n.restarts > 0 {
			m := n
			m.restarts--
			m.s, _ = step(n.s, restarted{})
			x.to(m, "restart before the effect")
			m.w = c.w
			x.to(m, "restart after the effect: %s", c.name)
		}
		if c.faults > n.faults {
			continue
		}
		m := n
		m.w, m.faults = c.w, n.faults-c.faults
		m.s, _ = step(n.s, c.e)
		x.to(m, "%s", c.name)
		if n.cancels > 0 {
			m.cancels--
			s, _ := step(n.s, cancelAsked{})
			m.s, _ = step(s, c.e)
			x.to(m, "cancel, then %s", c.name)
		}
	}
}

func (x *explorer) to(n node, format string, args ...any) {
	x.path = append(x.path, fmt.Sprintf(format, args...)+" → "+n.s.Phase.String())
	x.visit(n)
	x.path = x.path[:len(x.path)-1]
}

func (x *explorer) end(n node) {
	x.ends[n.s.Phase]++
	switch n.s.Phase {
	case PhaseDone:
		if !n.w.dstRuns || n.w.srcRuns {
			x.fail(n, "done, and the guest does not run at the destination alone")
		}
	case PhaseFailed, PhaseCancelled:
		if n.w.dstRuns || !n.w.srcRuns {
			x.fail(n, "%s, and the guest does not run at the source alone", n.s.Phase)
		}
		// Someone resumes what failed: the move begins again.
		if n.restarts > 0 {
			m := n
			m.restarts--
			m.s, _ = step(n.s, restarted{})
			x.to(m, "resume")
		}
	case PhaseIndeterminate:
		// Someone looks, and the move goes on.
		if n.restarts > 0 {
			m := n
			m.restarts--
			m.s, _ = step(n.s, restarted{})
			x.to(m, "try again")
		}
	}
}

// choice is one way in which an effect can end.
type choice struct {
	name   string
	w      world
	e      ended
	faults uint8
}

func (x *explorer) choices(n node) (out []choice) {
	add := func(name string, faults uint8, o outcome, change func(*world)) {
		w := n.w
		if change != nil {
			change(&w)
		}
		out = append(out, choice{name, w, ended{Outcome: o}, faults})
	}
	// happens adds the outcomes of an effect that changes the world.
	happens := func(change func(*world)) {
		add("ok", 0, ok, change)
		add("unknown, it happened", 1, unknown, change)
		add("unknown, it did not happen", 1, unknown, nil)
	}
	switch n.s.Phase {
	case PhasePreparing:
		out = append(out, choice{"ok", n.w, ended{Owner: n.w.owner, Epoch: n.w.epoch}, 0})
		add("refused", 1, refused, nil)
	case PhaseCopying, PhaseFinishing, PhaseVerifying:
		add("ok", 0, ok, nil)
		add("unknown", 1, unknown, nil)
	case PhasePausing:
		happens(func(w *world) { w.srcRuns = false })
	case PhaseRelinquishing:
		if n.w.srcRuns {
			x.fail(n, "the source relinquishes while it runs")
		}
		happens(func(w *world) { w.relinquished = max(w.relinquished, n.s.Epoch) })
		add("refused", 1, refused, nil)
	case PhaseSwapping, PhaseReclaiming:
		to := destination
		if n.s.Phase == PhaseReclaiming {
			to = source
		}
		if n.w.owner != n.s.Owner || n.w.epoch != n.s.Epoch {
			add("lost", 0, refused, nil)
			break
		}
		happens(func(w *world) { w.owner, w.epoch = to, w.epoch+1 })
		add("late", 1, unknown, func(w *world) {
			for i := range w.late {
				if w.late[i] == (lateSwap{}) {
					w.late[i] = lateSwap{n.s.Owner, n.s.Epoch, to}
					return
				}
			}
		})
	case PhaseReading:
		out = append(out, choice{"read", n.w, ended{Owner: n.w.owner, Epoch: n.w.epoch}, 0})
		add("unreachable", 1, unknown, nil)
	case PhaseActivating:
		if n.w.srcRuns {
			x.fail(n, "the destination is activated while the source runs")
		}
		happens(func(w *world) { w.dstRuns = true })
		if !n.w.dstRuns {
			add("refused", 1, refused, nil)
		}
	case PhaseResuming:
		if n.s.Epoch <= n.w.relinquished {
			x.fail(n, "the source resumes in epoch %d, which it relinquished", n.s.Epoch)
		}
		happens(func(w *world) { w.srcRuns = true })
	case PhaseRollingBack, PhaseCompleting:
		add("ok", 0, ok, nil)
		add("unknown", 1, unknown, nil)
	default:
		x.fail(n, "phase without an effect")
	}
	return out
}

// Every course of a move with up to three faults, two restarts and a cancel, at
// any point of it, leads to one running copy, or to a state that says it cannot.
func TestEveryCourse(t *testing.T) {
	x := &explorer{t: t, seen: map[node]bool{}, ends: map[Phase]int{}}
	s, _ := step(state{}, started{})
	x.visit(node{s: s, w: world{srcRuns: true, owner: source, epoch: 7}, faults: 3, restarts: 2, cancels: 1})
	t.Logf("%d moments; ends: %v", len(x.seen), x.ends)
	for _, p := range []Phase{PhaseDone, PhaseFailed, PhaseCancelled, PhaseIndeterminate} {
		require.Positive(t, x.ends[p], "no course ended %s", p)
	}
}

// Without faults a move gets done, and a cancelled one goes back.
func TestCourseWithoutFaults(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		x := &explorer{t: t, seen: map[node]bool{}, ends: map[Phase]int{}}
		s, _ := step(state{}, started{})
		n := node{s: s, w: world{srcRuns: true, owner: source, epoch: 1}}
		want := PhaseDone
		if cancelled {
			n.s, _ = step(n.s, cancelAsked{})
			want = PhaseCancelled
		}
		x.visit(n)
		require.Equal(t, map[Phase]int{want: 1}, x.ends)
	}
}

// A cancel that comes after the swap began changes nothing.
func TestCancelTooLate(t *testing.T) {
	for p := PhaseUnknown; p < phaseCount; p++ {
		before := state{Phase: p, Owner: source, Epoch: 3}
		after, effects := step(before, cancelAsked{})
		if p >= PhasePreparing && p <= PhaseRelinquishing {
			require.True(t, after.Cancelled)
			require.Equal(t, []effect{interrupt}, effects)
		} else {
			require.Equal(t, before, after)
			require.Empty(t, effects)
		}
	}
}

// The store's epoch never goes back; a store that does is not believed.
func TestStoreThatForgot(t *testing.T) {
	s, effects := step(state{Phase: PhaseReading, Owner: source, Epoch: 9}, ended{Owner: destination, Epoch: 8})
	require.Equal(t, PhaseIndeterminate, s.Phase)
	require.Empty(t, effects)
}
