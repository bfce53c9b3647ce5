package tuning

import "math"

// effect is how much better the samples after a change are than those before,
// as a part of those before: 0.1 is 10 % better. Low and High are the bounds of
// a confidence interval of 99 %.
type effect struct{ gain, low, high float64 }

// student are the 99.5 % quantiles of Student's t by degrees of freedom.
var student = []float64{math.Inf(1), 63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947}

// compare compares runs in pairs, each with the one next to it in time, so that
// what drifts slowly does not count. Ratios are compared by their logarithms:
// twice as fast and half as fast are equally far from no change. All samples are
// positive, and there are at least two pairs.
func compare(before, after []float64, lowerIsBetter bool) effect {
	n := float64(len(before))
	var sum, squares float64
	for i := range before {
		d := math.Log(after[i] / before[i])
		if lowerIsBetter {
			d = -d
		}
		sum += d
		squares += d * d
	}
	mean := sum / n
	deviation := math.Sqrt(max(0, squares-n*mean*mean) / (n - 1))
	t := 2.8
	if df := len(before) - 1; df < len(student) {
		t = student[df]
	}
	half := t * deviation / math.Sqrt(n)
	return effect{math.Expm1(mean), math.Expm1(mean - half), math.Expm1(mean + half)}
}
