package tuning

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/vmferry/vmferry/share"
)

// model is a workload whose figures follow from the machine's values, with
// noise and a drift.
type model struct {
	random *rand.Rand
	noise  float64
	runs   int
	fail   int // the run that fails, from 1
}

func (m *model) Run(ctx context.Context, sys System) (Figures, error) {
	m.runs++
	if m.runs == m.fail {
		return Figures{}, errors.New("the disk fell off")
	}
	v := 1e6
	for path, gain := range map[string]float64{readAhead: 1.3, swappy: 0.7} {
		b, err := sys.ReadFile(ctx, path)
		if err != nil {
			return Figures{}, err
		}
		if s := string(b); s == "4096\n" || s == "10\n" {
			v *= gain
		}
	}
	v *= math.Exp(m.noise*m.random.NormFloat64() + 0.01*float64(m.runs))
	return Figures{BytesPerSecond: v, IOPS: v / 4096, P99: time.Duration(1e12 / v)}, nil
}

func TestMeasure(t *testing.T) {
	for _, objective := range []Objective{Bandwidth, IOPS, P99} {
		sys, dir := newKernel(t, nil)
		before := contents(t, dir)
		j := openJournal(t, filepath.Join(t.TempDir(), "journal"))
		plan := planFor(t, sys, Throughput)
		verdicts, err := Measure(context.Background(), sys, j, plan, &model{random: rand.New(rand.NewPCG(1, 2)), noise: 0.01}, &MeasureOptions{Objective: objective})
		require.NoError(t, err)
		outcomes := map[string]Outcome{}
		for _, v := range verdicts {
			outcomes[v.Step.Knob] = v.Outcome
			require.Len(t, v.Before, 5)
			require.Len(t, v.After, 5)
		}
		require.Equal(t, Kept, outcomes["block.read-ahead"])
		require.Equal(t, Harmful, outcomes["vm.swappiness"])
		for k, o := range outcomes {
			if k != "block.read-ahead" && k != "vm.swappiness" {
				require.Equal(t, NoEffect, o, k)
			}
		}
		require.Len(t, j.Held(), 1)
		require.Equal(t, "4096\n", contents(t, dir)["/sys/devices/virtual/block/vda/queue/read_ahead_kb"])
		_, err = Revert(context.Background(), sys, j, nil)
		require.NoError(t, err)
		require.Equal(t, before, contents(t, dir))
	}
}

// A workload that fails, a caller who leaves, a value changed under the
// measurement: nothing stays.
func TestMeasureFails(t *testing.T) {
	ctx := context.Background()
	for fail := 2; fail < 12; fail++ {
		sys, dir := newKernel(t, nil)
		before := contents(t, dir)
		r, err := Check(ctx, sys, &CheckOptions{Class: Throughput})
		require.NoError(t, err)
		plan, err := r.Plan(&PlanOptions{Only: []string{"block.read-ahead"}})
		require.NoError(t, err)
		j := openJournal(t, filepath.Join(t.TempDir(), "journal"))
		v, err := Measure(ctx, sys, j, plan, &model{random: rand.New(rand.NewPCG(1, 2)), fail: fail}, nil)
		require.NoError(t, err)
		if fail <= 11 {
			require.Equal(t, Failed, v[0].Outcome)
			require.Contains(t, v[0].String(), "fell off")
		}
		require.Equal(t, before, contents(t, dir))

		gone, cancel := context.WithCancel(ctx)
		w := workloadFunc(func() (Figures, error) { cancel(); return Figures{}, context.Canceled })
		_, err = Measure(gone, sys, j, plan, w, nil)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, before, contents(t, dir))
	}
	sys, _ := newKernel(t, nil)
	plan := planFor(t, sys, Throughput)
	j := openJournal(t, filepath.Join(t.TempDir(), "journal"))
	for _, o := range []MeasureOptions{{Pairs: 2}, {Pairs: 1000}, {MinGain: -1}} {
		_, err := Measure(ctx, sys, j, plan, &model{}, &o)
		require.ErrorIs(t, err, share.ErrInvalid)
	}
	v, err := Measure(ctx, sys, j, plan, workloadFunc(func() (Figures, error) { return Figures{}, nil }), nil)
	require.NoError(t, err)
	require.Contains(t, v[0].Err, "no figure for bandwidth")
}

type workloadFunc func() (Figures, error)

func (f workloadFunc) Run(context.Context, System) (Figures, error) { return f() }

// Of placebos next to none is called a gain, under noise of any size.
func TestPlacebos(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, noise := range []float64{0.01, 0.05, 0.2} {
		const trials = 5000
		kept := 0
		for range trials {
			before, after := make([]float64, 5), make([]float64, 5)
			for i := range before {
				before[i], after[i] = math.Exp(noise*random.NormFloat64()), math.Exp(noise*random.NormFloat64())
			}
			if compare(before, after, false).low > 0.02 {
				kept++
			}
		}
		require.Less(t, kept, trials/100, "noise %v", noise)
	}
}

// Swapping before and after inverts the gain; scaling both changes nothing.
func TestCompare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(3, 20).Draw(t, "n")
		sample := rapid.SliceOfN(rapid.Float64Range(0.1, 1000), n, n)
		a, b := sample.Draw(t, "before"), sample.Draw(t, "after")
		e, r := compare(a, b, false), compare(b, a, false)
		if e.low > e.gain+1e-9 || e.gain > e.high+1e-9 || math.Abs((1+e.gain)*(1+r.gain)-1) > 1e-6 || math.Abs(compare(a, b, true).gain-r.gain) > 1e-6*(1+math.Abs(r.gain)) {
			t.Fatalf("%+v %+v", e, r)
		}
	})
}

func TestEmbedded(t *testing.T) {
	l, err := OpenLocal(nil)
	require.NoError(t, err)
	defer l.Close()
	dir := t.TempDir()
	for _, c := range []Class{Latency, Throughput} {
		f, err := (&Embedded{Class: c, Dir: dir, Size: 4 << 20, Time: 50 * time.Millisecond}).Run(context.Background(), l)
		if errors.Is(err, share.ErrInvalid) && c == Latency {
			continue // a tmpfs
		}
		require.NoError(t, err)
		require.Positive(t, f.P99)
		require.Positive(t, f.IOPS)
		require.Positive(t, f.BytesPerSecond)
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	sys, _ := newKernel(t, nil)
	_, err = (&Embedded{Dir: dir}).Run(context.Background(), sys)
	require.ErrorIs(t, err, errors.ErrUnsupported)
	_, err = (&Embedded{Dir: dir, Size: 1}).Run(context.Background(), l)
	require.ErrorIs(t, err, share.ErrInvalid)
}

func TestFioOptions(t *testing.T) {
	for _, bad := range []Fio{{File: "x"}, {File: "/a:b"}, {File: "/a", Job: []string{"--x"}}, {File: "/a", Job: []string{"x\n[y]"}}, {File: "/a", Job: []string{""}}} {
		_, err := bad.argv()
		require.ErrorIs(t, err, share.ErrInvalid, "%+v", bad)
	}
	argv, err := (&Fio{Class: Latency, File: "/dev/vda"}).argv()
	require.NoError(t, err)
	require.Contains(t, argv, "--readonly")
	for _, bad := range []string{"", "x", "{}", `{"jobs":[]}`, `{"jobs":[{"error":5}]}`, `{"jobs":[{"read":{"total_ios":1,"iops":-1}}]}`} {
		_, err := parseFio([]byte(bad))
		require.Error(t, err, bad)
	}
}
