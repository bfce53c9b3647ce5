package kvm

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vmferry/vmferry/migrate"
	"libvirt.org/go/libvirt"
)

// watch turns what libvirt tells of a job, by events and when asked, into the
// job's events and figures.
type watch struct {
	m *move
	r *migrate.Reporter

	mu        sync.Mutex
	iteration int
	completed *libvirt.DomainJobInfo
	last      libvirt.DomainJobInfo
	silent    bool // no more reports: the job is at its end
	cancels   []func()
}

// watch subscribes to the events of the guest at the source. Without an event
// loop there are none, and polling has to do.
func (m *move) watch(ctx context.Context, r *migrate.Reporter) *watch {
	w := &watch{m: m, r: r}
	c, err := m.from.hold(ctx)
	if err != nil {
		return w // the next call will say the same
	}
	type ids []int
	what := "subscribe to events"
	got, err := read(ctx, m.from, what, func(*libvirt.Connect) (ids, error) {
		var got ids
		_, err := onGuest(m.guest.uuid, func(d *libvirt.Domain) (struct{}, error) {
			for _, register := range []func() (int, error){
				func() (int, error) { return c.DomainEventLifecycleRegister(d, w.lifecycle) },
				func() (int, error) { return c.DomainEventMigrationIterationRegister(d, w.iterated) },
				func() (int, error) { return c.DomainEventJobCompletedRegister(d, w.jobCompleted) },
			} {
				id, err := register()
				if err != nil {
					return struct{}{}, err
				}
				got = append(got, id)
			}
			return struct{}{}, nil
		})(c)
		return got, err
	}, nil)
	if err != nil {
		r.Warn(fmt.Errorf("the job is watched by polling alone: %w", err))
	}
	w.cancels = append(w.cancels, func() {
		// The daemon is told as well, and may not answer.
		for _, id := range got {
			_ = c.DomainEventDeregister(id)
		}
		_, _ = c.Close()
	})
	return w
}

// stop ends the subscription, without waiting longer than a moment.
func (w *watch) stop() {
	w.mu.Lock()
	w.silent = true
	w.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, c := range w.cancels {
			c()
		}
	}()
	select {
	case <-done:
	case <-time.After(shortly):
	}
}

// speak runs f unless the job has ended: libvirt may deliver late.
func (w *watch) speak(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.silent {
		f()
	}
}

func (w *watch) lifecycle(_ *libvirt.Connect, _ *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
	w.speak(func() {
		switch e.Event {
		case libvirt.DOMAIN_EVENT_SUSPENDED:
			w.paused()
		case libvirt.DOMAIN_EVENT_RESUMED:
			w.r.Resumed()
		}
	})
}

// paused is called with the lock held, by whoever notices first.
func (w *watch) paused() {
	if w.r.Progress().Phase != migrate.PhaseCopying {
		return
	}
	w.r.Enter(migrate.PhasePausing)
	w.r.Paused()
	w.r.Enter(migrate.PhaseFinishing)
}

func (w *watch) iterated(_ *libvirt.Connect, _ *libvirt.Domain, e *libvirt.DomainEventMigrationIteration) {
	w.speak(func() {
		w.iteration = max(w.iteration, e.Iteration)
		w.r.Round(fmt.Sprintf("pass %d over the memory", e.Iteration), func(p *migrate.Progress) {
			p.Round = w.iteration
			if p.Memory != nil {
				p.Memory.Iteration = w.iteration
			}
		})
	})
}

func (w *watch) jobCompleted(_ *libvirt.Connect, _ *libvirt.Domain, e *libvirt.DomainEventJobCompleted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	info := e.Info
	w.completed = &info
}

// sample is one look at a running job.
type sample struct {
	state  State
	info   libvirt.DomainJobInfo
	blocks map[string]libvirt.DomainBlockJobInfo
	err    error
}

// look asks libvirt how the job stands.
func (w *watch) look(ctx context.Context) sample {
	s, err := readGuest(ctx, w.m.from, w.m.guest.uuid, "ask for the job's figures", func(d *libvirt.Domain) (sample, error) {
		s := sample{blocks: map[string]libvirt.DomainBlockJobInfo{}}
		state, _, err := d.GetState()
		if err != nil {
			return s, err
		}
		s.state = stateOf(state)
		info, err := d.GetJobStats(0)
		if err != nil {
			return s, err
		}
		s.info = *info
		for _, k := range w.m.mirrored() {
			// A disk whose copy has not begun has no figures yet.
			if b, err := d.GetBlockJobInfo(k.Target, 0); err == nil && b != nil {
				s.blocks[k.Target] = *b
			}
		}
		return s, nil
	})
	s.err = err
	return s
}

// report puts a sample into the job's figures.
func (w *watch) report(s sample) {
	if s.err != nil {
		return
	}
	w.speak(func() {
		if s.state == Paused {
			w.paused()
		}
		if s.info.Type != libvirt.DOMAIN_JOB_UNBOUNDED {
			return
		}
		i := s.info
		w.last = i
		w.r.Update(func(p *migrate.Progress) {
			p.Round = max(p.Round, int(i.MemIteration), w.iteration)
			p.Rate = int64(i.MemBps + i.DiskBps)
			if m := p.Memory; m != nil && i.MemTotal > 0 { // 0 before its turn
				m.Total, m.Sent, m.Remaining = int64(i.MemTotal), int64(i.MemProcessed), int64(i.MemRemaining)
				m.Iteration = max(m.Iteration, int(i.MemIteration))
				m.DirtyRate = int64(i.MemDirtyRate * i.MemPageSize)
				p.DirtyRate = m.DirtyRate
			}
			for k := range p.Disks {
				d := &p.Disks[k]
				if b, ok := s.blocks[d.Name]; ok && b.End > 0 {
					d.Sent, d.Remaining = int64(b.Cur), int64(b.End-min(b.Cur, b.End))
				} else if len(p.Disks) == 1 && i.DiskTotal > 0 {
					d.Sent, d.Remaining = int64(i.DiskProcessed), int64(i.DiskRemaining)
				}
			}
		})
	})
}

// result holds the figures of the job as libvirt counted them.
func (w *watch) result() migrate.Result {
	w.mu.Lock()
	defer w.mu.Unlock()
	info := w.last
	if w.completed != nil {
		info = *w.completed
	}
	res := migrate.Result{
		Rounds: max(int(info.MemIteration), w.iteration),
		Sent:   int64(info.MemProcessed + info.DiskProcessed),
	}
	p := w.r.Progress()
	res.Downtime = p.Downtime
	if res.Downtime == 0 && info.DowntimeSet && w.completed != nil {
		res.Downtime = time.Duration(info.Downtime) * time.Millisecond
	}
	for _, d := range p.Disks {
		res.Disks = append(res.Disks, migrate.DiskResult{Name: d.Name, Size: d.Total, Sent: d.Sent, Proof: "none"})
	}
	return res
}
