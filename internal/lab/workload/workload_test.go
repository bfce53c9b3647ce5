//go:build linux

package main

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMemoryCheckFindsDamage(t *testing.T) {
	m, err := newMemory(&config{memory: 64 * pageSize})
	require.NoError(t, err)
	s := new(memoryState)
	for i := range m.generations {
		m.stamp(i)
		m.check(i, true, s)
	}
	require.Zero(t, s.errors.Load())
	found := func(what string) {
		t.Helper()
		require.EqualValues(t, 1, s.errors.Swap(0), what)
		for i := range m.generations {
			m.check(i, true, s)
		}
		require.Zero(t, s.errors.Load(), "reported once, and mended")
	}

	m.page(3)[101] ^= 1
	m.check(3, false, s)
	require.Zero(t, s.errors.Load(), "between the stamps only a deep check looks")
	m.check(3, true, s)
	found("a bit")

	old := slices.Clone(m.page(5))
	m.stamp(5)
	copy(m.page(5), old)
	m.check(5, false, s)
	found("a page that misses its last write")

	old = slices.Clone(m.page(5))
	m.stamp(5)
	copy(m.page(5)[pageWords/2:], old[pageWords/2:])
	m.check(5, false, s)
	found("half a page that misses its last write")

	copy(m.page(7), m.page(8))
	m.check(7, false, s)
	found("a page in the wrong place")

	clear(m.page(9))
	m.check(9, false, s)
	found("a page that never arrived")
}

func TestParseConfig(t *testing.T) {
	const needed = "vmferry.addr=10.77.1.1/16 vmferry.beat=10.77.0.254,02:77:00:00:00:fe"
	c, err := parseConfig("console=ttyS0 quiet " + needed +
		" vmferry.guest=00112233-4455-6677-8899-aabbccddeeff vmferry.memory=4096 vmferry.dirty=20 vmferry.disk=a,1,4096,10,0 vmferry.disk=b,2,8192,20,65536\n")
	require.NoError(t, err)
	require.Equal(t, "10.77.1.1/16", c.addr.String())
	require.Equal(t, byte(0xff), c.guest[15])
	require.EqualValues(t, 4096, c.memory)
	require.Equal(t, []diskConfig{{"a", 1, 4096, 10, 0}, {"b", 2, 8192, 20, 65536}}, c.disks)
	for _, line := range []string{
		"", "vmferry.addr=10.77.1.1/16", needed + " vmferry.disk=a,1,2,3", needed + " vmferry.memory=much",
		needed + " vmferry.guest=42", needed + " vmferry.unheard=of", "vmferry.addr=ten vmferry.beat=10.77.0.254,02:77:00:00:00:fe",
	} {
		_, err := parseConfig(line)
		require.Error(t, err, line)
	}
}
