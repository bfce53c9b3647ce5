package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmferry/vmferry/share"
)

// mover does the steps of a [Move].
type mover struct {
	Move
	opts   Options
	report *Reporter
	disks  []*diskCopy
	pace   pace
	// forecast is guarded by the report's lock.
	forecast forecaster
	past     *history // what the journal said; empty where nothing did

	mu  sync.Mutex // over the journal's next number
	seq uint64
}

// Times that are no matter of taste: long enough for a slow disk's flush or a
// store's election, short enough that a person waits for them.
const (
	stepTimeout  = 30 * time.Second
	wedgeTimeout = 10 * time.Second
)

func newMover(m Move, o Options, past *history, r *Reporter) *mover {
	if m.Authority == nil {
		m.Authority = new(MemAuthority)
	}
	v := &mover{Move: m, opts: o, report: r, past: past, seq: past.seq}
	for _, d := range m.Disks {
		c := newDiskCopy(d, o)
		for _, a := range past.arrived[d.Name] {
			if share.CheckRange(d.Source.Size(), a.Off, a.Len) == nil && a.Len > 0 {
				c.suspects.add(a.Off, a.Len)
			}
		}
		if m.Journal != nil {
			c.arrived = func(list []Range) { v.noteArrived(d.Name, list) }
		}
		v.disks = append(v.disks, c)
	}
	return v
}

// run is the job's work.
func (v *mover) run(ctx context.Context) (Result, error) {
	defer func() {
		for _, d := range v.disks {
			d.close()
		}
	}()
	began := time.Now()
	v.updateProgress()
	x := &executor{steps: v, report: v.report, log: v.opts.Logger.With("job", v.ID, "guest", v.Guest.Name()),
		timeout: v.timeout, grace: wedgeTimeout}
	if v.Journal != nil {
		x.journal = v.notePhase
	}
	var in input = started{}
	if v.past.begin != nil {
		in = restarted{}
	}
	s, t := x.run(ctx, v.past.state, in)

	v.updateProgress()
	res := Result{Phase: s.Phase, Epoch: s.Epoch, Rounds: v.pace.rounds}
	for _, d := range v.disks {
		res.Disks = append(res.Disks, d.result())
	}
	for _, d := range v.disks {
		switch {
		case d.back == nil:
		case s.Phase == PhaseDone:
			if res.Return == nil {
				res.Return = map[string]*Base{}
			}
			res.Return[d.Name] = d.back
		default:
			_ = d.back.Close() // it cannot fail in a way that matters
		}
	}
	if s.Phase == PhaseDone {
		res.Receipt = v.receipt(s, began)
	}
	return res, v.verdict(ctx, s, t)
}

func (v *mover) receipt(s state, began time.Time) *Receipt {
	r := &Receipt{Job: v.ID, Guest: v.Guest.Name(), From: v.Source, To: v.Destination, Epoch: s.Epoch, Began: began, Ended: time.Now()}
	for _, d := range v.disks {
		res := d.result()
		if res.Root == "" {
			return nil // done in an earlier life of the program, or without proof
		}
		r.Disks = append(r.Disks, ReceiptDisk{Name: res.Name, Size: res.Size, Block: d.block, Root: res.Root, Proof: res.Proof})
	}
	return r
}

// verdict is the error that a job ends with.
func (v *mover) verdict(ctx context.Context, s state, t *trouble) error {
	switch s.Phase {
	case PhaseDone:
		return nil
	case PhaseCancelled:
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, ErrCancelled) {
			return fmt.Errorf("move %s: %w: %w", v.ID, ErrCancelled, cause)
		}
		return fmt.Errorf("move %s: %w", v.ID, ErrCancelled)
	case PhaseIndeterminate:
		e := &IndeterminateError{Guest: v.Guest.Name(), Epoch: s.Epoch,
			Invariant: "a side runs the guest only while it is known to hold authority",
			Check: []string{"the authority's record of the guest", "whether the guest runs at " + v.Destination,
				"whether it is paused at " + v.Source}}
		if t != nil {
			e.Err = fmt.Errorf("%s: %w", t.phase, t.err)
		} else {
			e.Err = errors.New("the store names neither host")
		}
		return fmt.Errorf("move %s: %w", v.ID, e)
	}
	if t == nil {
		return fmt.Errorf("move %s failed in an earlier attempt, and is rolled back now; Resume begins another", v.ID)
	}
	return fmt.Errorf("move %s: %s: %w", v.ID, t.phase, t.err)
}

func (v *mover) timeout(p Phase) time.Duration {
	switch p {
	case PhaseCopying:
		return 0
	case PhasePausing, PhaseFinishing, PhaseVerifying:
		return v.opts.SwitchoverTimeout
	}
	return stepTimeout
}

// append writes an entry to the journal.
func (v *mover) append(ctx context.Context, e Entry) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	e.Job, e.Seq, e.Time = v.ID, v.seq+1, time.Now()
	if err := v.Journal.Append(ctx, e); err != nil {
		return err
	}
	v.seq++
	return nil
}

func (v *mover) notePhase(ctx context.Context, s state) error {
	if s.Phase == PhasePreparing {
		return nil // the attempt's own entry stands for it; see begin
	}
	return v.append(ctx, Entry{Phase: &PhaseEntry{Phase: s.Phase, Epoch: s.Epoch, Owner: v.host(s.Owner), Cancelled: s.Cancelled, HandBack: s.HandBack}})
}

// noteArrived writes down what need only be compared after a crash. That it
// cannot be costs time then, and nothing else.
func (v *mover) noteArrived(disk string, list []Range) {
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	if err := v.append(ctx, Entry{Arrived: &ArrivedEntry{Disk: disk, Ranges: list}}); err != nil {
		v.report.Warn(fmt.Errorf("journal: %w", err))
	}
}

// begin notes what moves, and makes sure that it is what moved before.
func (v *mover) begin(ctx context.Context) error {
	if v.Journal == nil {
		return nil
	}
	b := &BeginEntry{Guest: v.Guest.Name(), Source: v.Source, Destination: v.Destination}
	for _, d := range v.disks {
		b.Disks = append(b.Disks, DiskEntry{Name: d.Name, Size: d.Source.Size(), SourceID: share.IdentityOf(d.Source), DestinationID: d.destinationID()})
		b.Attempt = max(b.Attempt, d.epoch)
	}
	if v.past.begin != nil {
		if err := v.past.begin.same(b); err != nil {
			return fmt.Errorf("the journal is of another move: %w", err)
		}
	}
	return v.append(ctx, Entry{Begin: b})
}

func (v *mover) host(s side) string {
	switch s {
	case source:
		return v.Source
	case destination:
		return v.Destination
	}
	return ""
}

// do runs the effect of one phase.
func (v *mover) do(ctx context.Context, s state) (ended, error) {
	switch s.Phase {
	case PhasePreparing:
		return v.prepare(ctx)
	case PhaseCopying:
		return outcomeOf(v.copyRounds(ctx))
	case PhasePausing:
		return v.pause(ctx)
	case PhaseFinishing:
		return outcomeOf(v.finish(ctx))
	case PhaseVerifying:
		return outcomeOf(v.verify(ctx))
	case PhaseRelinquishing:
		return outcomeOf(v.Guest.Relinquish(ctx, s.Epoch))
	case PhaseSwapping:
		return v.swap(ctx, s, destination)
	case PhaseReclaiming:
		return v.swap(ctx, s, source)
	case PhaseReading:
		return v.read(ctx)
	case PhaseActivating:
		return v.activate(ctx, s)
	case PhaseResuming:
		return v.resume(ctx, s)
	case PhaseRollingBack:
		return outcomeOf(v.rollBack(ctx))
	case PhaseCompleting:
		return ended{}, nil
	}
	return ended{Outcome: refused}, fmt.Errorf("phase %s has no effect", s.Phase)
}

// outcomeOf takes every failure for an unknown outcome: the safe reading.
func outcomeOf(err error) (ended, error) {
	if err != nil {
		return ended{Outcome: unknown}, err
	}
	return ended{}, nil
}

// prepare makes sure that the source may run the guest, and begins to track.
func (v *mover) prepare(ctx context.Context) (ended, error) {
	rec, err := v.Authority.Load(ctx, v.Guest.Name())
	if err != nil {
		return ended{Outcome: refused}, fmt.Errorf("authority: %w", err)
	}
	if rec == (Record{}) {
		rec = Record{Guest: v.Guest.Name(), Epoch: 1, Owner: v.Source}
		if err := v.Authority.Swap(ctx, rec.Guest, Record{}, rec); err != nil {
			return ended{Outcome: refused}, fmt.Errorf("authority: first record: %w", err)
		}
	}
	if rec.Owner != v.Source {
		return ended{Outcome: refused}, fmt.Errorf("host %s may not run the guest: %w: in epoch %d it is %s's", v.Source, share.ErrDenied, rec.Epoch, rec.Owner)
	}
	// Without a journal the clock alone makes later attempts greater.
	attempt := max(uint64(time.Now().UnixNano()), v.past.attempt+1)
	for _, d := range v.disks {
		if err := d.reach(ctx, attempt); err != nil {
			return ended{Outcome: refused}, fmt.Errorf("disk %s: %w", d.Name, err)
		}
	}
	if err := v.begin(ctx); err != nil { // before anything is written
		return ended{Outcome: refused}, err
	}
	for _, d := range v.disks {
		if err := d.open(ctx); err != nil {
			return ended{Outcome: refused}, fmt.Errorf("disk %s: %w", d.Name, err)
		}
	}
	return ended{Owner: source, Epoch: rec.Epoch}, nil
}

// copyRounds sends what is dirty, round after round, until what is left fits
// into the allowed downtime.
func (v *mover) copyRounds(ctx context.Context) error {
	for {
		begin, sent, taken, dirty := time.Now(), v.sent(), v.taken(), v.remaining()
		if err := v.round(ctx); err != nil {
			return err
		}
		v.pace.roundEnded(dirty, v.taken()-taken, v.sent()-sent, v.remaining(), time.Since(begin))
		v.report.Round(v.pace.String(), func(p *Progress) {
			p.Round, p.Rate, p.DirtyRate, p.Expected = v.pace.rounds, int64(v.pace.rate), int64(v.pace.dirtyRate), v.pace.downtime()
		})
		if v.pace.downtime() <= v.opts.MaxDowntime {
			return nil
		}
		if v.pace.stalled >= v.opts.StallRounds {
			switch v.opts.NotConverging {
			case SwitchIfNotConverging:
				return nil
			case FailIfNotConverging:
				return v.pace.explain(v.opts.MaxDowntime)
			}
		}
	}
}

// round makes one pass over all disks.
func (v *mover) round(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range v.disks {
		g.Go(func() error { return d.pass(ctx, v.updateProgress) })
	}
	return g.Wait()
}

func (v *mover) pause(ctx context.Context) (ended, error) {
	v.report.Paused()
	return outcomeOf(v.Guest.Pause(ctx))
}

// finish sends the last dirty blocks. The guest is paused, so the second pass
// finds nothing; that it does is part of the proof.
func (v *mover) finish(ctx context.Context) error {
	for _, d := range v.disks {
		d.hurry.Store(true)
		defer d.hurry.Store(false)
	}
	for range 2 {
		if err := v.round(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (v *mover) verify(ctx context.Context) error {
	for _, d := range v.disks {
		if err := d.settled(ctx); err != nil {
			return err
		}
		if err := d.leaveBase(ctx); err != nil {
			return err
		}
	}
	return nil
}

// swap gives authority to a side, from the record that was last known.
func (v *mover) swap(ctx context.Context, s state, to side) (ended, error) {
	guest := v.Guest.Name()
	err := v.Authority.Swap(ctx, guest, Record{guest, s.Epoch, v.host(s.Owner)}, Record{guest, s.Epoch + 1, v.host(to)})
	switch {
	case err == nil:
		return ended{}, nil
	case errors.Is(err, ErrLost):
		return ended{Outcome: refused}, err
	}
	return ended{Outcome: unknown}, err
}

// read asks the store who may run the guest.
func (v *mover) read(ctx context.Context) (ended, error) {
	rec, err := v.Authority.Load(ctx, v.Guest.Name())
	if err != nil {
		return ended{Outcome: unknown}, fmt.Errorf("authority: %w", err)
	}
	e := ended{Epoch: rec.Epoch}
	switch rec.Owner {
	case v.Source:
		e.Owner = source
	case v.Destination:
		e.Owner = destination
	default:
		return e, fmt.Errorf("authority: in epoch %d the guest is %q's", rec.Epoch, rec.Owner)
	}
	return e, nil
}

func (v *mover) activate(ctx context.Context, s state) (ended, error) {
	err := v.Guest.Activate(ctx, s.Epoch)
	switch {
	case err == nil:
		v.report.Resumed()
		return ended{}, nil
	case errors.Is(err, ErrNotActivated):
		return ended{Outcome: refused}, err
	}
	return ended{Outcome: unknown}, err
}

func (v *mover) resume(ctx context.Context, s state) (ended, error) {
	if err := v.Guest.Resume(ctx, s.Epoch); err != nil {
		return ended{Outcome: unknown}, err
	}
	v.report.Resumed()
	return ended{}, nil
}

// rollBack removes what was made at the destination.
func (v *mover) rollBack(ctx context.Context) error {
	var errs []error
	for _, d := range v.disks {
		d.close()
		if d.Undo != nil {
			if err := d.Undo(ctx); err != nil {
				errs = append(errs, fmt.Errorf("disk %s: undo: %w", d.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (v *mover) sent() (n int64) {
	for _, d := range v.disks {
		n += d.sentBytes.Load()
	}
	return n
}

func (v *mover) taken() (n int64) {
	for _, d := range v.disks {
		n += d.takenBytes.Load()
	}
	return n
}

func (v *mover) remaining() (n int64) {
	for _, d := range v.disks {
		n += d.cursor.Dirty() + d.cursor.Leased()
	}
	return n
}

func (v *mover) updateProgress() {
	disks := make([]DiskProgress, len(v.disks))
	var left int64
	for i, d := range v.disks {
		disks[i] = d.progress()
		left += disks[i].Remaining
	}
	now := time.Now()
	v.report.Update(func(p *Progress) {
		p.Disks = disks
		if p.Phase == PhaseCopying {
			v.forecast.observe(now, left)
			p.Finish = v.forecast.forecast()
		} else {
			p.Finish = Forecast{}
		}
	})
}
