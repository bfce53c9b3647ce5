package kvm_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/kvm"
	"github.com/vmferry/vmferry/share"
)

// childEnv makes this test binary a program that moves a guest and is killed in
// the middle of it.
const childEnv = "VMFERRY_TEST_MOVE"

type childOrder struct {
	From, To, Guest string
	Bandwidth       share.Bytes
	Die             string // the phase in which to die
}

func child() int {
	var o childOrder
	err := json.Unmarshal([]byte(os.Getenv(childEnv)), &o)
	if err == nil {
		err = o.run()
	}
	fmt.Println("ended:", err)
	return 0
}

func (o *childOrder) run() error {
	ctx := context.Background()
	from, err := kvm.Connect(ctx, o.From, nil)
	if err != nil {
		return err
	}
	to, err := kvm.Connect(ctx, o.To, nil)
	if err != nil {
		return err
	}
	g, err := from.Guest(ctx, o.Guest)
	if err != nil {
		return err
	}
	job, err := kvm.Migrate(ctx, g, to, &kvm.MigrateOptions{Plaintext: true, Bandwidth: o.Bandwidth})
	if err != nil {
		return err
	}
	for e := range job.Events(ctx) {
		if e.Phase.String() == o.Die && (e.Phase != migrate.PhaseCopying || copying(e)) {
			fmt.Println("dies:", e.Phase)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	_, err = job.Wait(ctx)
	return err
}

func TestProgramKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, phase := range []migrate.Phase{migrate.PhaseCopying, migrate.PhaseFinishing, migrate.PhaseVerifying} {
		t.Run(phase.String(), func(t *testing.T) {
			r := r.with(t)
			g := r.start(0, worker())
			was := r.before(g, 0)
			order, err := json.Marshal(childOrder{From: r.lab.Host(0).URI(), To: r.lab.Host(1).URI(), Guest: g.UUID, Bandwidth: 3 * slow, Die: phase.String()})
			require.NoError(t, err)
			cmd := exec.CommandContext(r.ctx(), os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+string(order))
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			var said []string
			for lines := bufio.NewScanner(out); lines.Scan(); {
				said = append(said, lines.Text())
			}
			require.Error(t, cmd.Wait(), "%v", said)
			require.Equal(t, []string{"dies: " + phase.String()}, said)
			died := time.Now()

			at, err := kvm.Settle(r.ctx(), g.UUID, r.hosts[0], r.hosts[1])
			require.NoError(t, err)
			t.Logf("settled %v after the kill: the guest runs on %v; gap %v", time.Since(died).Round(time.Millisecond), at.Host(), g.Watch().LongestGap(died.Add(-time.Second)).Length())
			if phase != migrate.PhaseVerifying {
				require.Equal(t, r.hosts[0], at.Host())
			}
			if at.Host() == r.hosts[0] {
				r.untouched(g, 0, was)
				r.there(g, 0, kvm.MigrateOptions{})
			}
			r.runsOn(1, g)
			require.NotContains(t, r.before(g, 1).live, kvm.Namespace)
			again, err := kvm.Settle(r.ctx(), g.UUID, r.hosts[0], r.hosts[1])
			require.NoError(t, err, "settling what is settled")
			require.Equal(t, r.hosts[1], again.Host())
		})
	}
}

// A program that died between the end of the source's copy and the resume: the
// guest stands at the destination, and its note says that it may run.
func TestSettleResumesAtDestination(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	g := r.start(0, worker())
	h := r.lab.Host(0)
	ids := [2]string{}
	for i, h := range r.hosts {
		var err error
		ids[i], err = h.ID(ctx)
		require.NoError(t, err)
	}
	_, err := h.Virsh(ctx, "metadata", g.UUID, "--live", "--key", "vmferry", "--uri", kvm.Namespace,
		"--set", fmt.Sprintf("<move id='x' source='%s' destination='%s' handover='0'/>", ids[0], ids[1]))
	require.NoError(t, err)
	require.NoError(t, r.lab.Host(1).CreateImage(ctx, "a.raw", "raw", g.Disks[0].Size))
	_, err = h.Virsh(ctx, "migrate", "--live", "--suspend", "--copy-storage-all", "--persistent", "--undefinesource", g.UUID, r.lab.Host(1).URI())
	require.NoError(t, err)
	state, err := r.lab.Host(1).Virsh(ctx, "domstate", g.UUID)
	require.NoError(t, err)
	require.Equal(t, "paused", state)

	// With the hosts the wrong way round nothing is done.
	_, err = kvm.Settle(ctx, g.UUID, r.hosts[1], r.hosts[0])
	require.ErrorIs(t, err, share.ErrInvalid)
	at, err := kvm.Settle(ctx, g.UUID, r.hosts[0], r.hosts[1])
	require.NoError(t, err)
	require.Equal(t, r.hosts[1], at.Host())
	r.runsOn(1, g)
	require.False(t, strings.Contains(r.before(g, 1).live, kvm.Namespace))
}

// A guest that someone has paused, and no move: Settle leaves it alone.
func TestSettleLeavesOthersAlone(t *testing.T) {
	r := newRig(t)
	g := r.start(0, lab.GuestOptions{})
	_, err := r.lab.Host(0).Virsh(r.ctx(), "suspend", g.UUID)
	require.NoError(t, err)
	at, err := kvm.Settle(r.ctx(), g.UUID, r.hosts[0], r.hosts[1])
	require.NoError(t, err)
	require.Equal(t, r.hosts[0], at.Host())
	state, err := r.lab.Host(0).Virsh(r.ctx(), "domstate", g.UUID)
	require.NoError(t, err)
	require.Equal(t, "paused", state)
	_, err = kvm.Settle(r.ctx(), "nobody", r.hosts[0], r.hosts[1])
	require.ErrorIs(t, err, share.ErrNotExist)
}
