package tuning

import (
	"encoding/xml"
	"io"
	"path"
	"slices"
	"strings"
)

// setting is one thing that a configuration file sets.
type setting struct {
	Line                int
	Section, Key, Value string
}

// parsed is what a configuration file says, and the numbers of lines that say
// nothing a parser understands. Contents of such lines are not kept: they may
// be secrets.
type parsed struct {
	settings  []setting
	mounts    []mountLine
	malformed []int
}

type mountLine struct {
	Line        int
	Source, Dir string
	Type        string
	Options     []string
}

// kind is a kind of configuration file.
type kind string

const (
	sysctlFile   kind = "sysctl"
	fstabFile    kind = "fstab"
	modprobeFile kind = "modprobe"
	cmdlineFile  kind = "kernel command line"
	grubFile     kind = "grub defaults"
	exportsFile  kind = "exports"
	smbFile      kind = "smb.conf"
	cephFile     kind = "ceph.conf"
	nfsFile      kind = "nfs.conf"
	nfsMountFile kind = "nfsmount.conf"
	glusterFile  kind = "gluster volume"
	domainFile   kind = "domain XML"
	udevFile     kind = "udev rules"
	scriptFile   kind = "boot script"
	mtuFile      kind = "network configuration"
)

// places are the files that administrators write, by kind. What distributions
// ship below /usr is theirs.
var places = []struct {
	kind    kind
	pattern string
	// ending is what a file's name must end in to be read by its service.
	ending string
}{
	{sysctlFile, "/etc/sysctl.conf", ""},
	{sysctlFile, "/etc/sysctl.d/*", ".conf"},
	{sysctlFile, "/run/sysctl.d/*", ".conf"},
	{sysctlFile, "/usr/local/lib/sysctl.d/*", ".conf"},
	{fstabFile, "/etc/fstab", ""},
	{modprobeFile, "/etc/modprobe.d/*", ".conf"},
	{cmdlineFile, "/proc/cmdline", ""},
	{cmdlineFile, "/etc/kernel/cmdline", ""},
	{grubFile, "/etc/default/grub", ""},
	{exportsFile, "/etc/exports", ""},
	{exportsFile, "/etc/exports.d/*", ".exports"},
	{smbFile, "/etc/samba/smb.conf", ""},
	{cephFile, "/etc/ceph/*.conf", ""},
	{nfsFile, "/etc/nfs.conf", ""},
	{nfsFile, "/etc/nfs.conf.d/*", ".conf"},
	{nfsMountFile, "/etc/nfsmount.conf", ""},
	{nfsMountFile, "/etc/nfsmount.conf.d/*", ".conf"},
	{glusterFile, "/var/lib/glusterd/vols/*/info", ""},
	{domainFile, "/etc/libvirt/qemu/*.xml", ""},
	{udevFile, "/etc/udev/rules.d/*", ".rules"},
	{scriptFile, "/etc/rc.local", ""},
	{scriptFile, "/etc/rc.d/rc.local", ""},
	{mtuFile, "/etc/network/interfaces", ""},
	{mtuFile, "/etc/network/interfaces.d/*", ""},
	{mtuFile, "/etc/sysconfig/network-scripts/ifcfg-*", ""},
	{mtuFile, "/etc/systemd/network/*", ""},
	{mtuFile, "/etc/NetworkManager/system-connections/*", ".nmconnection"},
	{mtuFile, "/etc/netplan/*", ".yaml"},
}

// parse reads a file of a kind.
func parse(k kind, text string) parsed {
	switch k {
	case sysctlFile:
		return parseSysctl(text)
	case fstabFile:
		return parseFstab(text)
	case modprobeFile:
		return parseModprobe(text)
	case cmdlineFile:
		return parsed{settings: parseWords(1, text)}
	case grubFile:
		return parseGrub(text)
	case exportsFile:
		return parseExports(text)
	case domainFile:
		return parseDomain(text)
	case udevFile:
		return parseUdev(text)
	case scriptFile:
		return parseScript(text)
	case mtuFile:
		return parseMTU(text)
	case glusterFile:
		return parseGluster(text)
	}
	p := parseINI(text, false)
	for i := range p.settings {
		s := &p.settings[i]
		s.Key, s.Section = plainKey(s.Key), strings.ToLower(s.Section)
		if k == cephFile {
			s.Key = strings.ReplaceAll(s.Key, "-", "_")
		}
	}
	return p
}

// lines yields the lines that are no comments, without blanks around them. A
// backslash at the end joins the next line where join says so.
func lines(text string, comments string, join bool, f func(n int, line string)) {
	var held string
	first := 0
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if held == "" {
			first = n
			if line == "" || strings.ContainsRune(comments, rune(line[0])) {
				continue
			}
		}
		if rest, more := strings.CutSuffix(line, `\`); join && more {
			held += rest + " "
			continue
		}
		f(first, strings.TrimSpace(held+line))
		held = ""
	}
	if held = strings.TrimSpace(held); held != "" {
		f(first, held)
	}
}

// plainKey is how Ceph and Samba compare keys: without regard to case and to
// the kind of blanks.
func plainKey(key string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(strings.ToLower(key)), " "), " ", "_")
}

func blanks(s string) string { return strings.Join(strings.Fields(s), " ") }

// parseSysctl reads sysctl.d(5).
func parseSysctl(text string) (p parsed) {
	lines(text, "#;", false, func(n int, line string) {
		key, value, ok := strings.Cut(line, "=")
		key = strings.TrimSpace(key)
		if !ok && strings.HasPrefix(key, "-") && len(key) > 1 && !strings.ContainsAny(key, " \t") {
			return // "-key": left out of patterns
		}
		key = strings.TrimPrefix(key, "-")
		if !ok || key == "" || strings.ContainsAny(key, " \t") {
			p.malformed = append(p.malformed, n)
			return
		}
		p.settings = append(p.settings, setting{Line: n, Key: sysctlKey(key), Value: blanks(value)})
	})
	return p
}

// sysctlKey is the key with dots between its parts, however it was written.
func sysctlKey(key string) string {
	slash, dot := strings.IndexByte(key, '/'), strings.IndexByte(key, '.')
	if slash >= 0 && (dot < 0 || slash < dot) { // slashes separate, dots are dots
		return strings.NewReplacer("/", ".", ".", "/").Replace(key)
	}
	return key
}

// parseFstab reads fstab(5), and /proc/mounts, which looks the same.
func parseFstab(text string) (p parsed) {
	lines(text, "#", false, func(n int, line string) {
		f := strings.Fields(line)
		if len(f) < 3 || len(f) > 6 {
			p.malformed = append(p.malformed, n)
			return
		}
		m := mountLine{Line: n, Source: f[0], Dir: unescape(f[1]), Type: f[2]}
		if len(f) > 3 {
			m.Options = strings.Split(f[3], ",")
		}
		p.mounts = append(p.mounts, m)
		for _, o := range m.Options {
			key, value, _ := strings.Cut(o, "=")
			p.settings = append(p.settings, setting{Line: n, Section: m.Type, Key: key, Value: value})
		}
	})
	return p
}

// unescape undoes the octal escapes of mount tables: blank, tab, newline, \.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// parseModprobe reads modprobe.d(5), of which the options count.
func parseModprobe(text string) (p parsed) {
	lines(text, "#", true, func(n int, line string) {
		f := strings.Fields(line)
		switch f[0] {
		case "options":
			if len(f) < 3 {
				p.malformed = append(p.malformed, n)
				return
			}
			for _, s := range parseWords(n, strings.Join(f[2:], " ")) {
				s.Section = strings.ReplaceAll(f[1], "-", "_")
				p.settings = append(p.settings, s)
			}
		case "alias", "blacklist", "install", "remove", "softdep", "weakdep":
			if len(f) < 2 {
				p.malformed = append(p.malformed, n)
			}
		default:
			p.malformed = append(p.malformed, n)
		}
	})
	return p
}

// parseWords reads words of the form key=value or key.
func parseWords(line int, text string) (out []setting) {
	for w := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(w, "=")
		if key != "" {
			out = append(out, setting{Line: line, Key: key, Value: strings.Trim(value, `"`)})
		}
	}
	return out
}

// parseGrub reads the kernel's words from the assignments of /etc/default/grub.
func parseGrub(text string) (p parsed) {
	lines(text, "#", true, func(n int, line string) {
		name, value, ok := strings.Cut(line, "=")
		if ok && strings.HasPrefix(name, "GRUB_CMDLINE_LINUX") {
			p.settings = append(p.settings, parseWords(n, strings.Trim(value, `"'`))...)
		}
	})
	return p
}

// parseExports reads exports(5). A client's options become settings of its
// path; a list of options with a blank before it is for the whole world, under
// the key "world".
func parseExports(text string) (p parsed) {
	lines(text, "#", true, func(n int, line string) {
		dir, rest := exportPath(line)
		if dir == "" {
			p.malformed = append(p.malformed, n)
			return
		}
		clients := 0
		for c := range strings.FieldsSeq(rest) {
			client, options, has := strings.Cut(c, "(")
			if has && !strings.HasSuffix(options, ")") || !has && strings.Contains(c, ")") {
				p.malformed = append(p.malformed, n)
				return
			}
			if client == "" && clients > 0 {
				p.settings = append(p.settings, setting{Line: n, Section: dir, Key: "world", Value: strings.TrimSuffix(options, ")")})
			}
			if client == "-" || strings.HasPrefix(client, "-") { // defaults for those that follow
				options = client[1:]
			}
			clients++
			for o := range strings.SplitSeq(strings.TrimSuffix(options, ")"), ",") {
				if key, value, _ := strings.Cut(o, "="); key != "" {
					p.settings = append(p.settings, setting{Line: n, Section: dir, Key: key, Value: value})
				}
			}
		}
	})
	return p
}

func exportPath(line string) (dir, rest string) {
	if quoted, ok := strings.CutPrefix(line, `"`); ok {
		dir, rest, ok = strings.Cut(quoted, `"`)
		if !ok {
			return "", ""
		}
	} else {
		i := strings.IndexAny(line, " \t")
		if i < 0 {
			i = len(line)
		}
		dir, rest = line[:i], line[i:]
	}
	if !strings.HasPrefix(dir, "/") {
		return "", ""
	}
	return dir, rest
}

// parseINI reads files of sections and "key = value". With braces sections are
// "name {" to "}", and a key is followed by a blank.
func parseINI(text string, braces bool) (p parsed) {
	section := ""
	depth := 0
	lines(text, "#;", !braces, func(n int, line string) {
		if braces {
			if i := strings.IndexAny(line, "#!"); i > 0 && !strings.Contains(line[:i], `"`) {
				line = strings.TrimSpace(line[:i])
			}
			switch {
			case strings.HasSuffix(line, "{"):
				if depth == 0 {
					section = strings.TrimSpace(strings.TrimSuffix(line, "{"))
				} else {
					section += "/" + strings.TrimSpace(strings.TrimSuffix(line, "{"))
				}
				depth++
			case line == "}":
				if depth = max(0, depth-1); depth == 0 {
					section = ""
				} else {
					section = path.Dir(section)
				}
			default:
				key, value, ok := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
				if !ok {
					p.malformed = append(p.malformed, n)
					return
				}
				p.settings = append(p.settings, setting{Line: n, Section: section, Key: key, Value: blanks(strings.Trim(strings.TrimSpace(value), `"`))})
			}
			return
		}
		if strings.HasPrefix(line, "[") {
			if !strings.Contains(line, "]") {
				p.malformed = append(p.malformed, n)
				return
			}
			section = strings.TrimSpace(strings.Trim(line[:strings.IndexByte(line, ']')], "["))
			return
		}
		key, value, ok := strings.Cut(line, "=")
		if key = strings.TrimSpace(key); !ok || key == "" {
			p.malformed = append(p.malformed, n)
			return
		}
		p.settings = append(p.settings, setting{Line: n, Section: section, Key: key, Value: blanks(value)})
	})
	return p
}

// parseGluster reads the file that glusterd keeps for a volume.
func parseGluster(text string) parsed {
	p := parseINI(text, false)
	return p
}

// parseUdev reads the attributes that rules set.
func parseUdev(text string) (p parsed) {
	lines(text, "#", true, func(n int, line string) {
		rest, seen := line, false
		for {
			i := strings.Index(rest, `ATTR{`)
			if i < 0 {
				break
			}
			rest = rest[i+len(`ATTR{`):]
			key, after, ok := strings.Cut(rest, "}")
			if !ok {
				break
			}
			rest, seen = after, true
			if quoted, is := strings.CutPrefix(after, `="`); is {
				value, _, closed := strings.Cut(quoted, `"`)
				if closed {
					p.settings = append(p.settings, setting{Line: n, Key: key, Value: blanks(value)})
				}
			}
		}
		if !seen && !strings.Contains(line, "=") {
			p.malformed = append(p.malformed, n)
		}
	})
	return p
}

// parseScript finds "echo value > file" and "sysctl -w key=value" in a script,
// without being a shell.
func parseScript(text string) (p parsed) {
	lines(text, "#", true, func(n int, line string) {
		f := strings.Fields(line)
		if i := slices.Index(f, "-w"); i > 0 && path.Base(f[0]) == "sysctl" && i+1 < len(f) {
			key, value, _ := strings.Cut(strings.Join(f[i+1:], " "), "=")
			p.settings = append(p.settings, setting{Line: n, Section: "sysctl", Key: sysctlKey(strings.TrimSpace(key)), Value: blanks(strings.Trim(value, `"'`))})
			return
		}
		what, file, ok := strings.Cut(line, ">")
		words := strings.Fields(what)
		if !ok || len(words) < 2 || words[0] != "echo" {
			return
		}
		file = strings.Trim(strings.TrimSpace(strings.TrimPrefix(file, ">")), `"'`)
		value := blanks(strings.Trim(strings.Join(words[1:], " "), `"'`))
		if key, is := strings.CutPrefix(file, "/proc/sys/"); is {
			p.settings = append(p.settings, setting{Line: n, Section: "sysctl", Key: sysctlKey(key), Value: value})
		} else if _, key, is := strings.Cut(file, "/queue/"); is && strings.HasPrefix(file, "/sys/block/") {
			p.settings = append(p.settings, setting{Line: n, Section: "block", Key: "queue/" + key, Value: value})
		}
	})
	return p
}

// parseMTU finds the MTU in any of the formats that networks are configured in.
func parseMTU(text string) (p parsed) {
	lines(text, "#;", false, func(n int, line string) {
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == '=' || r == ':' })
		if len(f) == 2 {
			switch strings.ToLower(f[0]) {
			case "mtu", "mtubytes":
				p.settings = append(p.settings, setting{Line: n, Key: "mtu", Value: strings.Trim(f[1], `"'`)})
			}
		}
	})
	return p
}

// maxDepth bounds the elements of a definition that lie in each other.
const maxDepth = 64

// parseDomain reads of a domain's definition what myths are about. Key is the
// element's path and the attribute; a disk's settings have the protocol or type
// of its source as their section.
func parseDomain(text string) (p parsed) {
	d := xml.NewDecoder(strings.NewReader(text))
	d.Strict = true
	var at []string
	var disk []setting
	source := ""
	for {
		tok, err := d.Token()
		if err == io.EOF && len(at) == 0 {
			return p
		}
		line, _ := d.InputPos()
		if err != nil || len(at) > maxDepth {
			p.malformed = append(p.malformed, line)
			return p
		}
		switch t := tok.(type) {
		case xml.StartElement:
			at = append(at, t.Name.Local)
			where := strings.TrimPrefix(strings.Join(at, "/"), "domain/")
			if where == "devices/disk" {
				disk, source = nil, ""
			}
			for _, a := range t.Attr {
				s := setting{Line: line, Key: where + "/@" + a.Name.Local, Value: a.Value}
				if !strings.HasPrefix(where, "devices/disk") {
					p.settings = append(p.settings, s)
					continue
				}
				disk = append(disk, s)
				if where == "devices/disk/source" && a.Name.Local == "protocol" {
					source = a.Value
				}
			}
		case xml.EndElement:
			where := strings.TrimPrefix(strings.Join(at, "/"), "domain/")
			at = at[:max(0, len(at)-1)]
			if where == "devices/disk" {
				p.settings = append(p.settings, diskSettings(disk, source)...)
				disk = nil
			}
		}
	}
}

// diskSettings completes a disk's settings: the section, and a pair of cache
// and io that excludes itself.
func diskSettings(disk []setting, source string) []setting {
	cache, io := setting{}, setting{}
	for i := range disk {
		disk[i].Section = source
		switch disk[i].Key {
		case "devices/disk/driver/@cache":
			cache = disk[i]
		case "devices/disk/driver/@io":
			io = disk[i]
		}
	}
	if io.Value == "native" && cache.Value != "none" && cache.Value != "directsync" {
		disk = append(disk, setting{Line: io.Line, Section: source, Key: "devices/disk/driver/native-with-cache", Value: cache.Value})
	}
	return disk
}
