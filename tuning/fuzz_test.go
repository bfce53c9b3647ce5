package tuning

import (
	"strings"
	"testing"
)

// Whatever a file holds, parsing ends, and what is found has a place.
func FuzzParse(f *testing.F) {
	kinds := []kind{sysctlFile, fstabFile, modprobeFile, cmdlineFile, grubFile, exportsFile, smbFile, cephFile, nfsFile, glusterFile, domainFile, udevFile, scriptFile, mtuFile}
	for i, s := range []string{"a.b = c\n-x\n", "a /b ext4 rw 0 0\n", "options a b=c \\\n d\n", "a=b c", `GRUB_CMDLINE_LINUX="a b"`, "/a b(rw) (ro)\n\"/c d\" -rw e\n", "[a]\nb = c\n",
		"[x\n", "[nfsd]\n", "a.b=c\n", "<domain><devices><disk><driver io='native'/></disk></devices></domain>", `ATTR{a}="b"`, "echo 1 > /proc/sys/a/b\n", "mtu 9000\n"} {
		f.Add(uint8(i), s)
	}
	finder, err := newMythFinder(Myths())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, n uint8, s string) {
		k := kinds[int(n)%len(kinds)]
		p := parse(k, s)
		most := strings.Count(s, "\n") + 1
		for _, x := range p.settings {
			if x.Line < 1 || x.Line > most {
				t.Fatalf("%s: line %d of %d", k, x.Line, most)
			}
			finder.find(k, x)
		}
		for _, line := range p.malformed {
			if line < 1 || line > most+1 {
				t.Fatalf("%s: line %d of %d", k, line, most)
			}
		}
		parseINI(s, true)
		parseCgroup(s, "8:0")
		redact([]byte(s))
	})
}

// A value that is read is one that reads the same again.
func FuzzValue(f *testing.F) {
	for _, s := range []string{"1", " 007\n", "4096\t131072 6291456", "none [mq-deadline] bfq\n", "[a]", "x y", "n/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, x := range []Syntax{Number, Numbers, Choice, Word} {
			v, _, err := parseValue(x, s)
			if err != nil {
				continue
			}
			if again, _, err := parseValue(x, v); err != nil || again != v {
				t.Fatalf("%q became %q, and that %q: %v", s, v, again, err)
			}
		}
	})
}

// A journal of any bytes is read, mended at its end, or refused.
func FuzzJournal(f *testing.F) {
	good, err := encodeRecord(record{Op: opIntent, Path: "/proc/sys/a", Old: "1", New: "2"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(append(good, good[:9]...))
	f.Add([]byte("x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		records, n, err := parseJournal(b)
		if err != nil {
			return
		}
		j := &Journal{}
		for _, r := range records {
			j.fold(r)
		}
		again, m, err := parseJournal(b[:n])
		if err != nil || m != n || len(again) != len(records) {
			t.Fatalf("%d records in %d bytes, then %d in %d: %v", len(records), n, len(again), m, err)
		}
	})
}

func FuzzFio(f *testing.F) {
	f.Add([]byte(`note {"jobs":[{"job_runtime":100,"usr_cpu":1,"read":{"total_ios":3,"io_bytes":12288,"iops":30,"bw_bytes":1000,"clat_ns":{"percentile":{"99.000000":5}}}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		fig, err := parseFio(b)
		if err == nil && (fig.IOPS < 0 || fig.BytesPerSecond < 0 || fig.P99 < 0) {
			t.Fatalf("%+v", fig)
		}
	})
}
