// Package share is the contract between storage and those who use it: hosts
// that offer volumes, guests and hosts that reach them.
//
// # Glossary
//
//   - A [Share] is a place that holds volumes: a directory, an NFS server, a
//     Ceph pool. Each backend implements it in its own package.
//   - A [Volume] is a disk (blocks) or a tree (files) with an identity that
//     stays.
//   - A [Client] is someone who may be given access: an address, an IQN, a
//     user, a certificate.
//   - An [Access] gives one client one volume in one mode. The set of them is
//     always given as a whole.
//   - A [Source] is all that a client needs to reach a volume: plain data that
//     can be stored, sent to another host and turned into a guest's XML.
//   - A [Device] is the block view of a disk volume, opened by this program.
//
// # Lifecycle
//
// Create makes a volume, Publish hands it to clients and returns their
// sources, Publish with an empty set takes it back, Delete removes it:
//
//	vol, err := share.Create(ctx, s, share.Spec{Name: "vm1", Kind: share.Disk, Format: share.Raw, Size: 10 * share.GiB})
//	sources, err := s.Publish(ctx, "vm1", []share.Access{{Client: share.LocalHost(), Mode: share.ReadWrite}})
//	...
//	_, err = s.Publish(ctx, "vm1", nil)
//	err = share.Delete(ctx, s, "vm1")
//
// Every call may be repeated, also after a crash in its middle, and leads to
// the same end: Create with the same spec returns the volume that is there,
// Publish with the same set changes nothing, Delete of what is gone is nil.
//
// # What a backend can
//
// [Share] itself is small. Everything else is an optional interface with one
// verb ([Creator], [Deleter], [Lister], …) and a function of this package
// ([Create], [Delete], [List], …) that finds it, also through wrappers, and
// returns an error wrapping errors.ErrUnsupported with the reason where there
// is none. [Info] says the same as data, before anything is tried; see
// [Capabilities]. Package share/sharetest checks that the two agree.
//
// # Rules for all backends
//
// Every call ends by its context. Errors are an [*Error] around one of the
// kinds of this package and the native error. Credentials are a [Secret].
// Access is closed until it is given: named clients, read-only, root squashed.
// All methods may be called from several goroutines at once.
package share

import (
	"context"
)

// Share is a place that holds volumes.
type Share interface {
	// Info describes the share. It does no I/O and does not change while the
	// share is open.
	Info() Info

	// Stat returns the volume of that name as it is now, with the set of
	// access that it is published with. There being none is [ErrNotExist].
	Stat(ctx context.Context, name string) (Volume, error)

	// Publish makes access the whole set of who may reach the volume, and
	// returns the source for each, in the order of access. Clients that were
	// published and are not in the set lose their access before Publish
	// returns; the same set again changes nothing, and disturbs no client; an
	// empty set takes the volume back.
	//
	// A client named twice, one of a kind that the backend does not know, or
	// [Everyone] on a share that was not opened to the world is [ErrInvalid].
	// After a failure the old set or the new one is in force, for each client,
	// and Publish again leads to the new one.
	Publish(ctx context.Context, name string, access []Access) ([]Source, error)

	// Close gives back what this program holds for the share: connections,
	// files, servers that it started. Volumes and what is published by a
	// server that is not ours stay. Devices opened from the share are closed.
	// A second Close returns nil.
	Close() error
}

// Info describes a share.
type Info struct {
	// Backend is the name of the implementation: "local", "nfs".
	Backend string
	// URL opens the share again with [Registry.Open]. It holds no secret.
	// Empty where a share cannot be named so.
	URL string
	// Identity names the pool of storage behind the share, the same from every
	// host: two shares with one non-empty Identity hold the same volumes.
	Identity string
	// Kinds are the kinds of volume that the share can hold.
	Kinds []Kind
	// Formats are the formats that a disk can have here, the preferred one
	// first.
	Formats []Format
	// Clients are the kinds of client that Publish accepts.
	Clients []ClientKind
	// Capabilities say what the share can do besides, and why not.
	Capabilities Capabilities
}

// Unwrapper is what a wrapper around a share implements, so that [As] finds
// what lies beneath. Calls of what is found so go past the wrapper: one that
// must see every call implements [Asser] instead.
type Unwrapper interface{ Unwrap() Share }

// Asser is what a wrapper implements that stands in for the optional interfaces
// of the share beneath, and has only those which that one has.
type Asser interface {
	// As sets *target to an implementation of the interface that it points to,
	// and reports whether there is one, as errors.As does.
	As(target any) bool
}

// As finds T, mostly one of the optional interfaces, on s or, through [Asser]
// and [Unwrapper], on the shares that s wraps.
func As[T any](s Share) (T, bool) {
	var t T
	for s != nil {
		if t, ok := s.(T); ok {
			return t, true
		}
		if a, ok := s.(Asser); ok && a.As(&t) {
			return t, true
		}
		u, ok := s.(Unwrapper)
		if !ok {
			break
		}
		s = u.Unwrap()
	}
	return t, false
}
