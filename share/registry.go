package share

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// Opener opens the share that a URL names. The URL's scheme is one that the
// opener was registered for. Credentials never stand in it.
type Opener func(ctx context.Context, u *url.URL) (Share, error)

// Registry maps URL schemes to openers. It is a value of the caller's; there
// is no global one, and importing a backend registers nothing:
//
//	var r share.Registry
//	err := r.Register("local", local.OpenURL)
//	s, err := r.Open(ctx, "local:///srv/images")
//
// The zero value is empty and ready. It may be used from several goroutines
// at once.
type Registry struct {
	mu      sync.RWMutex
	openers map[string]Opener
}

// Register makes open answer for the scheme, which is in lower case. A scheme
// that is taken is [ErrExist].
func (r *Registry) Register(scheme string, open Opener) error {
	if scheme == "" || open == nil || strings.Trim(scheme, "abcdefghijklmnopqrstuvwxyz0123456789+-.") != "" {
		return fmt.Errorf("%w: URL scheme %s", ErrInvalid, quote(scheme))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.openers[scheme] != nil {
		return fmt.Errorf("URL scheme %s %w", scheme, ErrExist)
	}
	if r.openers == nil {
		r.openers = map[string]Opener{}
	}
	r.openers[scheme] = open
	return nil
}

// Schemes lists what is registered, sorted.
func (r *Registry) Schemes() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Sorted(maps.Keys(r.openers))
}

// Open opens the share that the URL names. An unknown scheme is an
// errors.ErrUnsupported; a password in the URL is [ErrInvalid].
func (r *Registry) Open(ctx context.Context, rawURL string) (Share, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		// The parser's message repeats the URL, and a secret may stand in it.
		return nil, fmt.Errorf("%w: the share's URL cannot be parsed", ErrInvalid)
	}
	if _, has := u.User.Password(); has {
		return nil, fmt.Errorf("%w: a share's URL holds no password; use the backend's options", ErrInvalid)
	}
	r.mu.RLock()
	open := r.openers[u.Scheme]
	r.mu.RUnlock()
	if open == nil {
		return nil, &UnsupportedError{What: "URL scheme " + quote(u.Scheme), Reason: fmt.Sprintf("registered are %v", r.Schemes())}
	}
	return open(ctx, u)
}
