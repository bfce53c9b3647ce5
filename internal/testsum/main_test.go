package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const sample = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":1}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:12: no server: install it\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestB","Elapsed":0}
`

func TestSummary(t *testing.T) {
	var out strings.Builder
	require.True(t, summarise(strings.NewReader(sample+`{"Action":"pass","Package":"p","Elapsed":2}`), &out))
	require.Contains(t, out.String(), "p TestB: no server: install it\n")
	require.Contains(t, out.String(), "\n1 passed, 0 failed, 1 skipped\n")
}

func TestFailures(t *testing.T) {
	for name, more := range map[string]string{
		"a test":          `{"Action":"output","Package":"p","Test":"TestC","Output":"what happened\n"}` + "\n" + `{"Action":"fail","Package":"p","Test":"TestC"}`,
		"a package":       `{"Action":"output","Package":"p","Output":"what happened\n"}` + "\n" + `{"Action":"fail","Package":"p"}`,
		"a build":         `{"Action":"build-output","ImportPath":"p","Output":"what happened\n"}` + "\n" + `{"Action":"build-fail","ImportPath":"p"}`,
		"not go's output": "what happened\n" + `{"Action":"fail","Package":"p"}`,
	} {
		var out strings.Builder
		require.False(t, summarise(strings.NewReader(sample+more), &out), name)
		require.Contains(t, out.String(), "what happened", name)
	}
	require.False(t, summarise(strings.NewReader(""), new(strings.Builder)), "nothing ran")
}
