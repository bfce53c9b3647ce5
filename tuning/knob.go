package tuning

import (
	"slices"
	"strings"
)

// Knob is one setting that can be read, judged and, if it is not ReadOnly,
// changed. It is plain data.
type Knob struct {
	ID    string // "block.read-ahead"
	Scope Scope
	Title string // what it is, in a few words
	At    Place
	Range Range
	// Advice is looked through in order; the first that fits the class and
	// the machine counts. Where none fits the value is left alone.
	Advice   []Advice
	Why      string // what it does, for advice that says nothing more
	Source   string // where the recommendation comes from
	Risk     string // what can go wrong
	Severity Severity
	Effect   Effect
	Verify   string // how to see that it took effect
	Keep     Keep
	// Disturbs are knobs of the same object that the kernel resets when this
	// one is written. Their values are kept.
	Disturbs []string
}

// Scope is the kind of object that a knob belongs to.
type Scope string

const (
	Host          Scope = "host"
	BlockDevice   Scope = "block"
	NIC           Scope = "nic"
	GuestXML      Scope = "guest-xml"
	NFSClient     Scope = "nfs-client"
	NFSServer     Scope = "nfs-server"
	ISCSINode     Scope = "iscsi-node"
	ISCSITarget   Scope = "iscsi-target"
	CephClient    Scope = "ceph-client"
	CephPool      Scope = "ceph-pool"
	GlusterVolume Scope = "gluster-volume"
	Migration     Scope = "migration"
)

// Place is where a knob's value is.
type Place struct {
	// Path is a file. One path element may have a "*", which stands for the
	// object: a device, a session, a volume.
	Path string
	// Command is read instead of a file: its standard output is JSON, an
	// array of objects named by ObjectKey.
	Command   []string
	ObjectKey string
	Syntax    Syntax
	Key       string // the word in files that hold many: an option, a JSON field
	Default   string // what a missing Key means
	// Skip are the beginnings of objects' names that are not meant.
	Skip []string
	// Needs is a file that an object must have, "*" standing for it.
	Needs string
	// Limit is a file with the largest value that the object takes.
	Limit string
	// ReadOnly knobs are never written by this package: they belong to a file
	// or a service of somebody else. Set is what the administrator does, with
	// OBJECT and VALUE to be replaced.
	ReadOnly bool
	Set      string
}

// Syntax is how a value is written down.
type Syntax uint8

const (
	_         Syntax = iota
	Number           // one integer
	Numbers          // integers between blanks
	Choice           // "none [mq-deadline] bfq": one of those that are offered
	Word             // a word
	Setting          // Key = value, one per line, # and ; begin comments
	Option           // an option of a mount, as in /proc/self/mounts; objects are mount points of NFS
	JSONField        // a field of a command's output
	XMLPath          // an element or attribute of a domain's definition; see tuning/domain
	Parameter        // a parameter of a migration; see AdviseMigration
)

// Range is what values a knob takes: integers from Min to Max, Count of them
// where there are several, and Words.
type Range struct {
	Min, Max int64
	Count    int
	Words    []string
}

// Advice is one recommendation.
type Advice struct {
	For   []Class // empty: every class
	If    []Cond  // all must hold
	How   How
	Value string
	Why   string // in place of Knob.Why
}

// How a recommended value is meant.
type How uint8

const (
	_       How = iota
	Exactly     // the value itself
	AtLeast     // less is raised to it
	AtMost      // more is lowered to it
	OneOf       // one of several words; the first is what to make it
	Leave       // whatever is there stays
)

// Cond is something that must be so of the machine, or of the object.
type Cond struct {
	// Path is a file; "*" stands for the object. With Any it is a pattern
	// instead, and one file that fits will do.
	Path string
	Any  bool
	Is   string // the whole content, without blanks around
	Has  string // the content begins with it
	Min  int64  // the content is a number at least so large
}

// Severity is what is at stake.
type Severity uint8

const (
	_    Severity = iota
	Note          // good to know
	Gain          // speed is left unused
	Harm          // data or availability is at risk
)

// String is "note", "gain" or "harm".
func (s Severity) String() string { return name(severities, s) }

// MarshalText is String.
func (s Severity) MarshalText() ([]byte, error) { return marshalName(severities, s) }

// UnmarshalText accepts what MarshalText returns.
func (s *Severity) UnmarshalText(b []byte) error { return unmarshalName(severities, b, s) }

var severities = []string{"", "note", "gain", "harm"}

// Effect is when a change takes effect.
type Effect string

const (
	AtOnce       Effect = "at once"
	AfterRemount Effect = "after a remount"
	AfterLogin   Effect = "after the next login to the target"
	AfterReload  Effect = "after the service is reloaded"
	AfterRestart Effect = "after the guest's next start"
	NextMove     Effect = "with the next migration"
)

// Keep is the kind of file that makes a knob survive a reboot.
type Keep uint8

const (
	KeepNot      Keep = iota
	KeepSysctl        // a line of sysctl.d
	KeepUdev          // a rule for the device, by its identity
	KeepTmpfiles      // a line of tmpfiles.d
)

// Knobs are the knobs that this package knows, ordered by scope. The slice is
// the caller's.
func Knobs() []Knob {
	return slices.Concat(hostKnobs, networkKnobs, blockKnobs, nicKnobs, nfsKnobs, iscsiKnobs, cephKnobs, glusterKnobs, guestKnobs, migrationKnobs)
}

// FindKnob is the knob with that ID, and whether there is one.
func FindKnob(knobs []Knob, id string) (Knob, bool) {
	i := slices.IndexFunc(knobs, func(k Knob) bool { return k.ID == id })
	if i < 0 {
		return Knob{}, false
	}
	return knobs[i], true
}

// Writable reports whether [Apply] can write the knob.
func (k *Knob) Writable() bool {
	return !k.At.ReadOnly && k.At.Path != "" && k.At.Syntax >= Number && k.At.Syntax <= Word
}

// path is where the knob of an object is.
func (k *Knob) path(object string) string { return strings.Replace(k.At.Path, "*", object, 1) }

// advice is what is recommended for the class where holds says which conditions
// are met. It is Leave where nothing is.
func (k *Knob) advice(class Class, holds func([]Cond) bool) Advice {
	for _, a := range k.Advice {
		if (len(a.For) == 0 || slices.Contains(a.For, class)) && holds(a.If) {
			return a
		}
	}
	return Advice{How: Leave}
}
