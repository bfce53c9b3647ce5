package share

import (
	"fmt"
	"maps"
	"slices"
)

// Capability names one thing that a share may be able to do besides the
// methods of [Share]. Each stands for one optional interface.
type Capability string

const (
	CanCreate       Capability = "create"        // Creator
	CanDelete       Capability = "delete"        // Deleter
	CanList         Capability = "list"          // Lister
	CanResize       Capability = "resize"        // Resizer
	CanSnapshot     Capability = "snapshot"      // Snapshotter
	CanClone        Capability = "clone"         // Cloner
	CanOpenDevice   Capability = "open-device"   // DeviceOpener
	CanListChanges  Capability = "list-changes"  // ChangeLister
	CanLock         Capability = "lock"          // Locker
	CanReportHealth Capability = "report-health" // Healther
)

// Support is yes, or no with the reason.
type Support struct {
	OK bool
	// Reason says why not, and what would help; required for a no. A yes may
	// carry a limit: "qcow2 only".
	Reason string
}

// Yes is support without a limit.
var Yes = Support{OK: true}

// No is the lack of support for that reason.
func No(reason string) Support { return Support{Reason: reason} }

// Capabilities answer for every [Capability]. One that is missing in the map
// is a fault of the backend, which share/sharetest reports.
type Capabilities map[Capability]Support

// Can returns the support for c. One that is not stated is a no.
func (c Capabilities) Can(what Capability) Support {
	if s, ok := c[what]; ok {
		return s
	}
	return No("the backend does not say")
}

// reach holds, for each capability, how its interface is found.
var reach = map[Capability]func(Share) bool{
	CanCreate:       has[Creator],
	CanDelete:       has[Deleter],
	CanList:         has[Lister],
	CanResize:       has[Resizer],
	CanSnapshot:     has[Snapshotter],
	CanClone:        has[Cloner],
	CanOpenDevice:   has[DeviceOpener],
	CanListChanges:  has[ChangeLister],
	CanLock:         has[Locker],
	CanReportHealth: has[Healther],
}

func has[T any](s Share) bool { _, ok := As[T](s); return ok }

// AllCapabilities lists them all, sorted.
func AllCapabilities() []Capability { return slices.Sorted(maps.Keys(reach)) }

// CheckCapabilities returns an error for the first capability of which s says
// otherwise than it is: a yes without the interface, the interface with a no,
// a no without a reason, or no answer.
func CheckCapabilities(s Share) error {
	stated := s.Info().Capabilities
	for _, c := range AllCapabilities() {
		sup, ok := stated[c]
		found := reach[c](s)
		switch {
		case !ok:
			return fmt.Errorf("capability %s is not stated", c)
		case sup.OK && !found:
			return fmt.Errorf("capability %s is stated, and its interface is missing", c)
		case !sup.OK && found:
			return fmt.Errorf("capability %s is denied, and its interface is there", c)
		case !sup.OK && sup.Reason == "":
			return fmt.Errorf("capability %s is denied without a reason", c)
		}
	}
	for c := range stated {
		if reach[c] == nil {
			return fmt.Errorf("capability %s is unknown", c)
		}
	}
	return nil
}

// unsupported is the error for a capability that s lacks.
func unsupported(op string, s Share, c Capability, volume string) error {
	info := s.Info()
	return &Error{Op: op, Backend: info.Backend, Volume: volume,
		Err: &UnsupportedError{What: string(c), Reason: info.Capabilities.Can(c).Reason}}
}
