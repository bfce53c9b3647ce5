// Command testsum reads the output of go test -json on standard input and
// writes what a person wants of it: a line for each package, the whole output
// of what failed, the tests that were skipped with their reasons, and a closing
// line with the counts. It exits with 1 if anything failed, or if nothing ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if !summarise(os.Stdin, os.Stdout) {
		os.Exit(1)
	}
}

// event is what go test -json writes; see go doc test2json.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build output
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

// skip is a test that did not run, and why.
type skip struct{ name, reason string }

func summarise(in io.Reader, out io.Writer) bool {
	var (
		passed, failed int
		skips          []skip
		// output of tests under way, by package and test; of packages, under
		// the empty test; of builds, by import path.
		output = map[[2]string][]string{}
		broken bool
	)
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(out, "%s", line) // not of go test: show it as it is
				continue
			}
			key := [2]string{e.Package, e.Test}
			name := strings.TrimPrefix(e.Package+" "+e.Test, "github.com/vmferry/vmferry/")
			switch e.Action {
			case "output":
				output[key] = append(output[key], e.Output)
			case "build-output":
				fmt.Fprint(out, e.Output)
			case "build-fail":
				broken = true
			case "pass":
				if e.Test != "" {
					passed++
				} else {
					fmt.Fprintf(out, "ok    %7.1fs  %s\n", e.Elapsed, e.Package)
				}
				delete(output, key)
			case "skip":
				if e.Test != "" {
					skips = append(skips, skip{name, reason(output[key])})
				}
				delete(output, key)
			case "fail":
				if e.Test != "" {
					failed++
				} else {
					broken = true
					fmt.Fprintf(out, "FAIL  %7.1fs  %s\n", e.Elapsed, e.Package)
				}
				fmt.Fprintf(out, "\n=== %s failed ===\n%s\n", name, strings.Join(output[key], ""))
				delete(output, key)
			}
		}
		if err != nil {
			break
		}
	}
	if len(skips) > 0 {
		fmt.Fprintf(out, "\nskipped:\n")
		for _, s := range skips {
			fmt.Fprintf(out, "  %s: %s\n", s.name, s.reason)
		}
	} else {
		fmt.Fprintf(out, "\nskipped: nothing\n")
	}
	fmt.Fprintf(out, "\n%d passed, %d failed, %d skipped\n", passed, failed, len(skips))
	return failed == 0 && !broken && passed > 0
}

// reason is what a test said before it was skipped, on one line.
func reason(output []string) string {
	var said []string
	for _, l := range output {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "=== ") || strings.HasPrefix(l, "--- ") {
			continue
		}
		// "file_test.go:12: why"
		if _, after, ok := strings.Cut(l, ".go:"); ok {
			if _, text, ok := strings.Cut(after, ": "); ok {
				l = text
			}
		}
		said = append(said, l)
	}
	if len(said) == 0 {
		return "no reason was given"
	}
	return strings.Join(said, " ")
}
