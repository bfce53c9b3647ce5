// Command bench measures the disk engine beside other tools: in turn, on the
// same data and the same machine. It prints a table and writes a list of the
// rows as JSON. `make bench` runs it; `make bench ONLY=name` runs the rows whose
// name contains name.
//
// Each tool works in processes of its own, ours too: a sender and a receiver, as
// on two hosts. The clock is around the program that a user would start, from
// its start to its end; the servers it speaks to are up before. Everything that
// is compared ends with the data flushed to the destination file. Traffic stays
// on loopback, files in one temporary directory that is removed at the end.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == "child" {
		if err := child(os.Args[2], []byte(os.Args[3])); err != nil {
			fmt.Fprintln(os.Stderr, "bench", os.Args[2]+":", err)
			os.Exit(1)
		}
		return
	}
	var b bench
	only := flag.String("only", "", "run the rows whose name contains this")
	out := flag.String("o", "build/bench.json", "where the list of rows is written")
	dir := flag.String("dir", "", "directory for the files; empty: that for temporary files")
	flag.IntVar(&b.runs, "runs", 3, "pairs that are measured, at least 3; the median counts")
	flag.Int64Var(&b.copySize, "size", 4<<30, "bytes of the disk that is copied in full")
	flag.Parse()
	if flag.NArg() > 0 || b.runs < 3 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx, *dir, *only, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of the harness.
type bench struct {
	dir      string // removed at the end
	runs     int
	copySize int64
	rows     []row
}

// group measures rows that have data and runs in common.
type group struct {
	names []string // what its rows' names begin with
	// within bounds a group: a tool that hangs ends it.
	within  time.Duration
	measure func(*bench, context.Context) error
}

var groups = []group{
	{[]string{"copy", "copy-tls", "bound"}, 6 * time.Minute, (*bench).copyRows},
	{[]string{"sparse"}, 3 * time.Minute, (*bench).sparseRows},
	{[]string{"resume"}, 3 * time.Minute, (*bench).resumeRows},
	{[]string{"compress"}, 3 * time.Minute, (*bench).compressRows},
	{[]string{"track"}, 2 * time.Minute, (*bench).trackRows},
	{[]string{"incremental"}, 5 * time.Minute, (*bench).incrementalRows},
}

func (b *bench) run(ctx context.Context, dir, only, out string) error {
	var err error
	if b.dir, err = os.MkdirTemp(dir, "vmferry-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	fmt.Printf("%d processors, load %s, files in %s (%s), Go %s\n\n", runtime.NumCPU(), loadAverage(), filepath.Dir(b.dir), fileSystem(b.dir), runtime.Version())
	fmt.Println(tableHead)
	for _, g := range groups {
		wanted := slices.DeleteFunc(slices.Clone(g.names), func(n string) bool { return !strings.Contains(n, only) && !strings.HasPrefix(only, n) })
		if len(wanted) == 0 {
			continue
		}
		from := len(b.rows)
		gctx, cancel := context.WithTimeoutCause(ctx, g.within, fmt.Errorf("it took longer than %v", g.within))
		err := g.measure(b, gctx)
		cancel()
		if err != nil {
			for _, n := range wanted {
				b.rows = append(b.rows, row{Name: n, Why: err.Error()})
			}
		}
		kept := b.rows[:from]
		for _, r := range b.rows[from:] {
			if strings.Contains(r.Name, only) {
				kept = append(kept, r)
				fmt.Println(r)
			}
		}
		b.rows = kept
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if len(b.rows) == 0 {
		return fmt.Errorf("no row's name contains %q", only)
	}
	text, err := json.MarshalIndent(b.rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	fmt.Printf("\nload at the end %s; %s\n", loadAverage(), out)
	return os.WriteFile(out, append(text, '\n'), 0o644)
}
