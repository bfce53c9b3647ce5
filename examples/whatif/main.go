// Command whatif says how a live copy of a disk would go, before anyone starts
// it: it plays a trace of writes against links of several speeds, in virtual
// time, and prints a table.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vmferry/vmferry/examples/internal/show"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
)

const usage = `whatif says how a live copy of a disk would go, without making one.

  whatif -lab
        needs nothing: plays a made-up guest that writes 500 times a second,
        mostly to the same 2 GiB
  whatif -trace FILE -size 100G
        plays a trace of yours: a JSON object a line, {"at_ns":…,"off":…,"len":…},
        as migrate.TrackedDevice.Record gives them

The exit status is 0 if the copy converges on at least one link.

Options:
`

// figures are what the program says at the end.
type figures struct {
	Verified bool  `json:"verified"` // the same play twice gave the same result
	Writes   int   `json:"writes"`
	Links    []row `json:"links"`
}

type row struct {
	BytesPerSecond int64 `json:"bytes_per_second"`
	migrate.WhatIfResult
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "whatif:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("whatif", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() { fmt.Fprint(stderr, usage); f.PrintDefaults() }
	lab := f.Bool("lab", false, "play a made-up guest")
	file := f.String("trace", "", "the trace to play; - is standard input")
	size := f.String("size", "100G", "size of the disk")
	allocated := f.String("allocated", "", "how much of it holds data; empty: all")
	links := f.String("links", "20M,60M,110M,1100M", "speeds of links in bytes per second")
	downtime := f.Duration("max-downtime", 300*time.Millisecond, "how long the switchover may take")
	asJSON := f.Bool("json", false, "end with one JSON object of the figures on standard output")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *lab == (*file != "") {
		return fmt.Errorf("give either -lab or -trace; see whatif -h")
	}
	s := migrate.Scenario{RoundTrip: 5 * time.Millisecond}
	if err := parse(*size, &s.Size); err != nil {
		return err
	}
	if *allocated != "" {
		if err := parse(*allocated, &s.Allocated); err != nil {
			return err
		}
	}
	var err error
	if *lab {
		s.Trace = madeUp(s.Size)
	} else if s.Trace, err = read(*file); err != nil {
		return err
	}
	fig := figures{Verified: true, Writes: len(s.Trace)}
	for _, l := range strings.Split(*links, ",") {
		if err := parse(l, &s.Rate); err != nil {
			return err
		}
		opts := &migrate.Options{MaxDowntime: *downtime}
		res, err := migrate.WhatIf(ctx, s, opts)
		if err != nil {
			return err
		}
		again, err := migrate.WhatIf(ctx, s, opts)
		if err != nil {
			return err
		}
		fig.Verified = fig.Verified && again.Total == res.Total && again.Sent == res.Sent
		fig.Links = append(fig.Links, row{s.Rate, res})
	}
	if *asJSON {
		err = show.JSON(stdout, fig)
	} else {
		err = table(stdout, fig)
	}
	for _, r := range fig.Links {
		if r.Converges && fig.Verified {
			return err
		}
	}
	return errors.Join(err, errors.New("the copy converges on none of the links"))
}

// parse reads a size.
func parse(text string, n *int64) error {
	b, err := share.ParseBytes(strings.TrimSpace(text))
	*n = int64(b)
	return err
}

func table(w io.Writer, fig figures) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "link\tconverges\ttotal\tdowntime\trounds\tsent\t")
	for _, r := range fig.Links {
		link := share.Bytes(r.BytesPerSecond).String() + "/s"
		if !r.Converges {
			fmt.Fprintf(t, "%s\tno\t\t\t%d\t%v\tthe guest dirties %v/s\n", link, r.Rounds, share.Bytes(r.Sent), share.Bytes(r.Why.DirtyRate))
			continue
		}
		fmt.Fprintf(t, "%s\tyes\t%v\t%v\t%d\t%v\t\n", link, r.Total.Round(time.Second/10), r.Downtime.Round(time.Millisecond), r.Rounds, share.Bytes(r.Sent))
	}
	return t.Flush()
}

// madeUp is a minute of a guest that writes 500 times a second, nine times out
// of ten to the first 2 GiB of its disk.
func madeUp(size int64) (out []migrate.TraceWrite) {
	const rate = 500
	rng := rand.New(rand.NewPCG(1, 1))
	hot := min(size, 2<<30)
	for i := range 60 * rate {
		within := hot
		if rng.IntN(10) == 0 {
			within = size
		}
		out = append(out, migrate.TraceWrite{At: time.Duration(i) * time.Second / rate, Off: rng.Int64N(max(1, within/4096)) * 4096, Len: 4096})
	}
	return out
}

// read reads a trace: an object a line.
func read(name string) ([]migrate.TraceWrite, error) {
	in := os.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	var out []migrate.TraceWrite
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		var w migrate.TraceWrite
		if err := json.Unmarshal(lines.Bytes(), &w); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", name, n, err)
		}
		out = append(out, w)
	}
	return out, lines.Err()
}
