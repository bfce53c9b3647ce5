package main

import (
	"context"
	"fmt"
	"slices"
)

// row is one line of the table, and one object of the JSON list. Ours and Peer
// are medians; Ratio is the median of the pairs' ratios, because what else the
// machine does at a moment slows both of a pair.
type row struct {
	Name     string  `json:"name"`
	Ours     float64 `json:"ours"`
	Peer     float64 `json:"peer"`
	PeerName string  `json:"peer_name"`
	Unit     string  `json:"unit"`
	// Ratio is ours to the peer's, in Unit. Mark is what it must reach, or,
	// with AtMost, what it must not exceed; 0 is no mark.
	Ratio  float64 `json:"ratio"`
	Mark   float64 `json:"mark"`
	AtMost bool    `json:"at_most,omitempty"`
	Met    bool    `json:"met"`
	Runs   int     `json:"runs"`
	// OursRuns and PeerRuns are what the medians were taken of, in turn.
	OursRuns []float64 `json:"ours_runs,omitempty"`
	PeerRuns []float64 `json:"peer_runs,omitempty"`
	// Why says why the row could not be measured, or what to know about it.
	Why string `json:"why,omitempty"`
}

const tableHead = "row                                          ours       peer  unit      ratio  mark          runs  beside"

func (r row) String() string {
	if r.Runs == 0 {
		return fmt.Sprintf("%-40s not measured: %s", r.Name, r.Why)
	}
	mark, met := "", ""
	if r.Mark != 0 {
		mark, met = fmt.Sprintf("≥ %.2f", r.Mark), "MISSED"
		if r.AtMost {
			mark = fmt.Sprintf("≤ %.2f", r.Mark)
		}
		if r.Met {
			met = "met"
		}
	}
	s := fmt.Sprintf("%-40s %9.3f  %9.3f  %-8s %6.3f  %-6s %-6s %3d  %s", r.Name, r.Ours, r.Peer, r.Unit, r.Ratio, mark, met, r.Runs, r.PeerName)
	if r.Why != "" {
		s += " (" + r.Why + ")"
	}
	return s
}

// newRow makes a row of measured values.
func newRow(name, unit, peerName string, ours, peer []float64, mark float64, atMost bool) row {
	r := row{Name: name, Unit: unit, PeerName: peerName, Ours: median(ours), Peer: median(peer), Mark: mark, AtMost: atMost,
		Runs: len(ours), OursRuns: ours, PeerRuns: peer}
	r.Ratio = r.Ours / r.Peer
	if len(ours) == len(peer) {
		ratios := make([]float64, len(ours))
		for i := range ours {
			ratios[i] = ours[i] / peer[i]
		}
		r.Ratio = median(ratios)
	}
	if mark != 0 {
		r.Met = r.Ratio >= mark
		if atMost {
			r.Met = r.Ratio <= mark
		}
	}
	return r
}

// contender is one of those that are measured in turn. run returns a figure of
// one run.
type contender struct {
	name string
	run  func(ctx context.Context) (float64, error)
}

// inTurn runs all contenders n times, in turn, each time beginning with
// another, and returns their figures.
func inTurn(ctx context.Context, n int, list []contender) ([][]float64, error) {
	out := make([][]float64, len(list))
	for i := range n {
		for k := range list {
			k = (k + i) % len(list)
			v, err := list[k].run(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", list[k].name, err)
			}
			out[k] = append(out[k], v)
		}
	}
	return out, nil
}

// best is the index of the greatest median, first excluded from the contest.
func best(figures [][]float64, from int) int {
	at := from
	for i := from; i < len(figures); i++ {
		if median(figures[i]) > median(figures[at]) {
			at = i
		}
	}
	return at
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
