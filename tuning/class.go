package tuning

import (
	"fmt"

	"github.com/vmferry/vmferry/share"
)

// Class is what a machine is used for. The right value of a knob depends on it.
type Class uint8

const (
	_           Class = iota
	Latency           // databases and whatever waits for single requests
	Throughput        // streaming: backup, media, migration
	Mixed             // many guests of all kinds
	SharedFiles       // trees of files that many clients use
	InGuest           // the inside of a guest, whatever it does
)

var classNames = map[Class]string{
	Latency: "latency", Throughput: "throughput", Mixed: "mixed", SharedFiles: "files", InGuest: "guest",
}

// Classes are all classes.
func Classes() []Class { return []Class{Latency, Throughput, Mixed, SharedFiles, InGuest} }

// ParseClass is the class of that name: latency, throughput, mixed, files, guest.
func ParseClass(name string) (Class, error) {
	for c, n := range classNames {
		if n == name {
			return c, nil
		}
	}
	return 0, fmt.Errorf("workload class %q %w; take latency, throughput, mixed, files or guest", name, share.ErrInvalid)
}

// String is the class's name.
func (c Class) String() string {
	if n := classNames[c]; n != "" {
		return n
	}
	return fmt.Sprintf("Class(%d)", uint8(c))
}

// MarshalText is String of a class that is one.
func (c Class) MarshalText() ([]byte, error) {
	if _, ok := classNames[c]; !ok {
		return nil, fmt.Errorf("%v %w", c, share.ErrInvalid)
	}
	return []byte(c.String()), nil
}

// UnmarshalText accepts what MarshalText returns.
func (c *Class) UnmarshalText(b []byte) (err error) {
	*c, err = ParseClass(string(b))
	return err
}
