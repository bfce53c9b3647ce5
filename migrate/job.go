package migrate

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"
)

// Job is a move under way. It goes on by itself until it ends: the context that
// it was started with bounds it, and [Job.Cancel] asks it to go back. It never
// waits for those who watch it.
//
// A job owns its goroutines, connections and temporary objects; when
// [Job.Done] is closed they are gone. All methods may be called from several
// goroutines at once.
type Job struct {
	id      string
	started time.Time
	cancel  context.CancelCauseFunc
	done    chan struct{}

	mu       sync.Mutex
	progress Progress
	paused   time.Time // when the guest stopped; zero while it runs
	events   []Event   // the latest, at most maxEvents
	seq      uint64
	news     chan struct{} // closed and replaced at each event
	result   Result
	err      error
}

// maxEvents bounds what a job keeps for those who read its events late.
const maxEvents = 1024

// Result is how a job ended.
type Result struct {
	ID string `json:"id"`
	// Phase is the last one: done, failed, cancelled or indeterminate.
	Phase Phase `json:"phase"`
	// Total is the time from start to end.
	Total time.Duration `json:"total_ns"`
	// Downtime is how long the guest stood still, as the host saw it.
	Downtime time.Duration `json:"downtime_ns"`
	// Rounds is the number of passes over what is dirty: of the disks, or,
	// where QEMU copies, of the memory.
	Rounds int `json:"rounds"`
	// Sent is the number of bytes of disks and memory that went over.
	Sent int64 `json:"sent_bytes"`
	// Epoch is the epoch of the guest's authority after the job.
	Epoch uint64 `json:"epoch"`
	// Disks say for each disk what went over and how equality was shown.
	Disks []DiskResult `json:"disks,omitempty"`
	// Receipt can be stored and checked later. It is nil unless the move is
	// done and its disks were copied by this engine.
	Receipt *Receipt `json:"receipt,omitempty"`
	// Return holds, by the disks' names, the bases that were asked for with
	// [DiskMove].Return. They are the caller's to use or close.
	Return map[string]*Base `json:"-"`
}

// DiskResult is how the copy of one disk ended.
type DiskResult struct {
	Name string `json:"name"`
	Size int64  `json:"size_bytes"`
	// Sent is data that went over, Zero what was made zero or left so.
	Sent int64 `json:"sent_bytes"`
	Zero int64 `json:"zero_bytes"`
	// Same is data that the destination had from an earlier attempt.
	Same int64 `json:"same_bytes,omitempty"`
	// Root is the root of the tree of hashes over the disk at switchover, the
	// same on both sides; empty where the copy was not made by this engine.
	Root string `json:"root,omitempty"`
	// Proof says what Root stands on: "read back" from the destination's disk,
	// "received" and hashed there, "difference" where only what changed since a
	// [Base] was sent and compared, or "none".
	Proof string `json:"proof"`
}

// Work is the body of a job. It reports through r, ends soon after ctx does,
// and before it returns has undone or finished whatever it began. The cause of
// ctx is [ErrCancelled] where the caller asked for that.
type Work func(ctx context.Context, r *Reporter) (Result, error)

// Go runs work as a job. It is the way in for packages that bring their own
// machinery, such as migrate/kvm; programs call [Start] or that package. The
// job fills in the result's ID, phase and times where the work left them zero.
func Go(ctx context.Context, id string, work Work) *Job {
	ctx, cancel := context.WithCancelCause(ctx)
	j := &Job{id: id, started: time.Now(), cancel: cancel, done: make(chan struct{}), news: make(chan struct{})}
	go j.run(ctx, work)
	return j
}

func (j *Job) run(ctx context.Context, work Work) {
	defer close(j.done)
	defer j.cancel(nil)
	res, err := work(ctx, &Reporter{j})

	r := &Reporter{j}
	p := r.Progress()
	res.ID = j.id
	res.Total = time.Since(j.started)
	if res.Phase == PhaseUnknown {
		res.Phase = p.Phase
	}
	r.Enter(res.Phase)
	if res.Downtime == 0 {
		res.Downtime = p.Downtime
	}
	if res.Sent == 0 {
		res.Sent = p.Sent()
	}
	j.mu.Lock()
	j.result, j.err = res, err
	j.mu.Unlock()
	j.emit(Event{Kind: JobEnded, Err: err, Text: fmt.Sprintf("job ended: %s", res.Phase)})
}

// ID is the job's name, as given at its start.
func (j *Job) ID() string { return j.id }

// Cancel asks the job to go back: the guest stays at the source, or resumes
// there, and what was made at the destination is removed. It returns at once.
// After the authority was handed over there is no way back, and Cancel does
// nothing. Wait tells which it was.
func (j *Job) Cancel() { j.cancel(ErrCancelled) }

// Done is closed when the job has ended.
func (j *Job) Done() <-chan struct{} { return j.done }

// Wait waits for the job's end and returns how it ended. The end of ctx ends
// the waiting, not the job.
func (j *Job) Wait(ctx context.Context) (Result, error) {
	select {
	case <-j.done:
	case <-ctx.Done():
		select {
		case <-j.done:
		default:
			return Result{}, context.Cause(ctx)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.result, j.err
}

// Close cancels the job, waits for its end and returns nil. A second Close
// does nothing.
func (j *Job) Close() error {
	j.Cancel()
	<-j.done
	return nil
}

// Progress returns the figures as they are now.
func (j *Job) Progress() Progress { return (&Reporter{j}).Progress() }

// Events yields what happens in the job, from its first event on as far as
// that is still kept, until the job has ended or ctx has. A slow reader loses
// the oldest events, and sees that in [Event.Seq]; the job never waits for it.
// Any number of readers may iterate at once.
func (j *Job) Events(ctx context.Context) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		var last uint64
		for {
			// Taken before the events: one that is emitted in between closes it.
			batch, news, ended := j.eventsAfter(last)
			for _, e := range batch {
				if !yield(e) {
					return
				}
				last = e.Seq
				if e.Kind == JobEnded {
					return
				}
			}
			if ended && len(batch) == 0 {
				return
			}
			select {
			case <-news:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (j *Job) eventsAfter(seq uint64) (batch []Event, news <-chan struct{}, ended bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if k := len(j.events); k > 0 {
		first := j.events[0].Seq
		from := 0
		if seq >= first {
			from = int(seq - first + 1)
		}
		batch = append(batch, j.events[from:]...)
		ended = j.events[k-1].Kind == JobEnded
	}
	return batch, j.news, ended
}

// emit stamps an event and keeps it.
func (j *Job) emit(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.emitLocked(e)
}

func (j *Job) emitLocked(e Event) {
	j.seq++
	e.Seq, e.Time = j.seq, time.Now()
	j.progress.Elapsed = e.Time.Sub(j.started)
	e.Phase, e.Progress = j.progress.Phase, j.progress.clone()
	if len(j.events) == maxEvents {
		// Drop a quarter at once, so that dropping costs little for each.
		j.events = append(j.events[:0], j.events[maxEvents/4:]...)
	}
	j.events = append(j.events, e)
	close(j.news)
	j.news = make(chan struct{})
}

func (p Progress) clone() Progress {
	p.Disks = append([]DiskProgress(nil), p.Disks...)
	if p.Memory != nil {
		m := *p.Memory
		p.Memory = &m
	}
	return p
}

// Reporter is how a job's [Work] tells what it does. Its methods never block.
type Reporter struct{ j *Job }

// Enter reports that the job entered a phase.
func (r *Reporter) Enter(p Phase) {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	if r.j.progress.Phase == p {
		return
	}
	r.j.progress.Phase = p
	r.j.emitLocked(Event{Kind: PhaseEntered, Text: p.String()})
}

// Update changes the figures; f must not keep the pointer nor call the job.
func (r *Reporter) Update(f func(*Progress)) {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	f(&r.j.progress)
	r.j.emitLocked(Event{Kind: Progressed})
}

// Round reports the end of a round, after f changed the figures; f may be nil.
func (r *Reporter) Round(text string, f func(*Progress)) {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	if f != nil {
		f(&r.j.progress)
	}
	r.j.emitLocked(Event{Kind: RoundEnded, Text: text})
}

// Warn reports something wrong that does not end the job.
func (r *Reporter) Warn(err error) { r.j.emit(Event{Kind: Warned, Err: err, Text: err.Error()}) }

// Paused reports that the guest stopped: downtime begins. It may be repeated.
func (r *Reporter) Paused() {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	if r.j.paused.IsZero() {
		r.j.paused = time.Now()
		r.j.emitLocked(Event{Kind: GuestPaused, Text: "the guest is paused"})
	}
}

// Resumed reports that the guest runs again: downtime ends. Several pauses add
// up.
func (r *Reporter) Resumed() {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	if !r.j.paused.IsZero() {
		r.j.progress.Downtime += time.Since(r.j.paused)
		r.j.paused = time.Time{}
		r.j.emitLocked(Event{Kind: GuestResumed, Text: "the guest runs"})
	}
}

// Progress returns a copy of the figures.
func (r *Reporter) Progress() Progress {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	if r.j.progress.Phase.Ended() {
		return r.j.progress.clone()
	}
	p := r.j.progress.clone()
	p.Elapsed = time.Since(r.j.started)
	return p
}
