package sharetest

import (
	"errors"
	"testing"

	"github.com/vmferry/vmferry/share"
)

// memHarness is the harness of shares in memory, each handle passed through
// wrap.
func memHarness(opts *MemOptions, wrap func(*Mem) share.Share) Harness {
	if wrap == nil {
		wrap = func(m *Mem) share.Share { return m }
	}
	a1, _ := share.Address("192.0.2.1")
	u, _ := share.User("u")
	return Harness{
		Clients: []share.Client{a1, u},
		Credential: func(_ share.Client, secret share.Secret) *share.Credential {
			return &share.Credential{User: "u", Secret: secret}
		},
		New: func(testing.TB) Storage {
			m := NewMem(opts)
			return Storage{
				Open: func(testing.TB) share.Share { return wrap(m.Reopen()) },
				OpenSource: func(t testing.TB, src share.Source) (share.Device, error) {
					return m.OpenSource(t.Context(), src)
				},
				PowerCut: func(_ testing.TB, seed uint64) {
					r := m.Reopen()
					r.Crash(seed)
				},
				CrashAt: func(_ testing.TB, n int, do func(share.Share) error) bool {
					// A share in memory has two points: before and after the
					// effect of the call.
					dead := errors.New("died")
					r := m.Reopen()
					sched := Script(Fault{N: 1, Err: dead, After: n%2 == 1})
					err := do(FaultyShare(wrap(r), sched))
					_ = r.Close()
					return n < 2 && errors.Is(err, dead)
				},
			}
		},
	}
}

func TestMemConforms(t *testing.T) { Run(t, memHarness(nil, nil)) }

func TestMemOpenToTheWorldConforms(t *testing.T) {
	h := memHarness(&MemOptions{AllowWorld: true}, nil)
	h.Clients = []share.Client{share.Everyone()}
	Run(t, h)
}

func TestMemDeviceConforms(t *testing.T) {
	RunDevice(t, func(testing.TB) share.Device { return NewDevice(int64(share.MiB) + 12345) })
}
