package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vmferry/vmferry/tuning"
)

// session is one machine, checked, and perhaps changed.
type session struct {
	sys    tuning.System
	class  tuning.Class
	o      *options
	p      *printer
	report *tuning.Report
	plan   tuning.Plan
	fig    figures
}

// check reads the machine, shows what it found, and plans.
func (s *session) check(ctx context.Context) (err error) {
	if s.report, err = tuning.Check(ctx, s.sys, &tuning.CheckOptions{Class: s.class}); err != nil {
		return err
	}
	r := s.report
	s.fig = figures{System: r.System, Class: r.Class.String(), Good: len(r.Select(tuning.Good)), Differs: len(r.Select(tuning.Differs)),
		Myths: len(r.Select(tuning.Mythical)), Unsure: len(r.Select(tuning.Unsure, tuning.Malformed))}
	s.fig.Checked = s.fig.Good + s.fig.Differs
	s.p.report(r, s.o.all)
	if r.Boot == "" {
		return nil // nothing can be applied, and the report says why
	}
	if s.plan, err = r.Plan(&tuning.PlanOptions{Only: s.o.knobs()}); err != nil {
		return err
	}
	for _, step := range s.plan.Steps {
		if !step.Follows {
			s.fig.Planned++
		}
	}
	s.fig.Plan = s.plan.Hash
	if !s.o.revert {
		s.p.plan(s.plan, s.o.apply || s.o.lab)
	}
	return nil
}

// unchanged reads again what was read: a dry run changes nothing.
func (s *session) unchanged(ctx context.Context) error {
	again, err := tuning.Check(ctx, s.sys, &tuning.CheckOptions{Class: s.class})
	if err != nil {
		return err
	}
	return s.same(values(s.report), values(again))
}

func (s *session) same(before, after map[string]string) error {
	for path, v := range before {
		if after[path] != v {
			return fmt.Errorf("%s was %s and is %s", path, v, after[path])
		}
	}
	s.fig.Verified = true
	return nil
}

func (s *session) withJournal(f func(*tuning.Journal) error) error {
	if err := os.MkdirAll(filepath.Dir(s.o.journal), 0o700); err != nil {
		return err
	}
	j, err := tuning.OpenJournal(s.o.journal)
	if err != nil {
		return err
	}
	return errors.Join(f(j), j.Close())
}

// apply does the plan, by measuring if asked to, and reads all of it again.
func (s *session) apply(ctx context.Context, j *tuning.Journal) error {
	want := map[string]string{}
	if s.o.measure != "" {
		verdicts, err := tuning.Measure(ctx, s.sys, j, s.plan, &tuning.Fio{Class: s.class, File: s.o.measure, Time: 2 * time.Second}, nil)
		for _, v := range verdicts {
			s.p.verdict(v)
			if v.Outcome == tuning.Kept {
				s.fig.Kept++
				want[v.Step.Path] = v.Step.To
			} else {
				want[v.Step.Path] = v.Step.From
			}
		}
		s.fig.Applied = s.fig.Kept
		if err != nil {
			return err
		}
	} else {
		done, err := tuning.Apply(ctx, s.sys, j, s.plan, nil)
		for _, step := range done.Done {
			if !step.Follows {
				s.fig.Applied++
				want[step.Path] = step.To
			}
		}
		if err != nil {
			return err
		}
	}
	again, err := tuning.Check(ctx, s.sys, &tuning.CheckOptions{Class: s.class})
	if err != nil {
		return err
	}
	if err := s.same(want, values(again)); err != nil {
		return err
	}
	fmt.Fprintf(s.p.w, "applied %d of %d; -revert takes them back\n", s.fig.Applied, s.fig.Planned)
	return nil
}

// revert takes back what the journal holds, and reads it again.
func (s *session) revert(ctx context.Context, j *tuning.Journal) error {
	out, err := tuning.Revert(ctx, s.sys, j, nil)
	s.fig.Reverted, s.fig.Left = len(out.Restored), len(out.Left)
	for _, l := range out.Left {
		fmt.Fprintf(s.p.w, "left alone: %s: %s\n", l.Path, l.Why)
	}
	if err != nil {
		return err
	}
	want := map[string]string{}
	for _, h := range out.Restored {
		want[h.Path] = h.Original
	}
	again, err := tuning.Check(ctx, s.sys, &tuning.CheckOptions{Class: s.class})
	if err != nil {
		return err
	}
	if err := s.same(want, values(again)); err != nil {
		return err
	}
	fmt.Fprintf(s.p.w, "reverted %d\n", s.fig.Reverted)
	return nil
}
