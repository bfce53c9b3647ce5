package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/vmferry/vmferry/internal/virt"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
	"libvirt.org/go/libvirt"
)

// sampling is how often a job's figures are asked for.
const sampling = 100 * time.Millisecond

// copy has libvirt move the guest and returns when libvirt has let go of it:
// with nil, with why it failed, or, where libvirt does not let go, with
// share.ErrWedged. The end of ctx, and a copy in which nothing moves, abort it.
func (m *move) copy(ctx context.Context, w *watch) error {
	done, err := m.start(ctx)
	if err != nil {
		return causeOf(ctx, err)
	}
	var (
		reason  error // why the job is being aborted; nil while it is not
		since   time.Time
		aborts  = make(chan error, 1)
		asking  bool
		yanked  time.Time
		samples = make(chan sample, 1)
		looking bool
		moved   = time.Now()
		before  libvirt.DomainJobInfo
		tuned   = m.opts.MaxDowntime <= 0
	)
	// What was asked and not answered ends with the copy.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	tick := time.NewTicker(sampling)
	defer tick.Stop()
	ended := ctx.Done()
	for {
		select {
		case err := <-done:
			if err == nil {
				return nil
			}
			err = m.explain(err)
			if reason != nil {
				return fmt.Errorf("%w: %w", reason, err)
			}
			return err
		case <-ended:
			ended = nil
			if reason == nil {
				reason, since = context.Cause(ctx), time.Now()
			}
		case s := <-samples:
			looking = false
			w.report(s)
			if s.err == nil && !sameFigures(before, s.info) {
				before, moved = s.info, time.Now()
			}
			if s.err == nil && !tuned && s.info.Type == libvirt.DOMAIN_JOB_UNBOUNDED {
				tuned = true
				go m.setDowntime(own, w.r)
			}
		case err := <-aborts:
			asking = false
			// Refused means that there is nothing to abort yet, or no more.
			if err != nil && !errors.Is(err, libvirt.ERR_OPERATION_INVALID) {
				w.r.Warn(err)
			}
		case <-tick.C:
			now := time.Now()
			if !looking {
				looking = true
				go func() {
					ctx, cancel := context.WithTimeout(own, shortly)
					defer cancel()
					samples <- w.look(ctx)
				}()
			}
			if reason == nil && now.Sub(moved) > m.opts.Stall {
				reason, since = fmt.Errorf("nothing went over for %v: the destination or the way to it %w", m.opts.Stall, share.ErrUnavailable), now
			}
			if reason == nil {
				continue
			}
			if !asking {
				asking = true
				go func() {
					ctx, cancel := context.WithTimeout(own, shortly)
					defer cancel()
					aborts <- changeGuest(ctx, m.from, m.guest.uuid, "abort libvirt's job", (*libvirt.Domain).AbortJob)
				}()
			}
			if now.Sub(since) > 2*time.Second && now.Sub(yanked) > 2*time.Second {
				yanked = now
				go func() {
					ctx, cancel := context.WithTimeout(own, shortly)
					defer cancel()
					if err := m.yank(ctx); err != nil && own.Err() == nil {
						w.r.Warn(err)
					}
				}()
			}
			if now.Sub(since) > m.opts.Patience {
				return fmt.Errorf("%w: libvirt does not let go of the aborted job after %v: the job %w", reason, m.opts.Patience, share.ErrWedged)
			}
		}
	}
}

// start calls libvirt, which returns when the move has ended; that may be long
// after anybody waits for it.
func (m *move) start(ctx context.Context) (<-chan error, error) {
	from, err := m.from.hold(ctx)
	if err != nil {
		return nil, err
	}
	to, err := m.to.hold(ctx)
	if err != nil {
		virt.Close(from)
		return nil, err
	}
	params, flags := m.request()
	done := make(chan error, 1)
	go func() {
		defer virt.Close(from)
		defer virt.Close(to)
		_, err := onGuest(m.guest.uuid, func(d *libvirt.Domain) (struct{}, error) {
			arrived, err := d.Migrate3(to, params, flags)
			if err != nil {
				return struct{}{}, err
			}
			return struct{}{}, arrived.Free()
		})(from)
		done <- virt.Error("libvirt's migration", err)
	}()
	return done, nil
}

// explain adds the remedy to the failures that a first try meets.
func (m *move) explain(err error) error {
	if errors.Is(err, libvirt.ERR_MIGRATE_UNSAFE) {
		return fmt.Errorf("%w: libvirt does not see that a shared disk lies on a shared file system, or that a disk does without the host's page cache (cache='none'): mirror the disk, change its cache mode, or say Unsafe: %w", share.ErrInvalid, err)
	}
	text := err.Error()
	if m.opts.Plaintext || !strings.Contains(text, "credentials") && !strings.Contains(text, "TLS") && !strings.Contains(text, "ertificate") {
		return err
	}
	return fmt.Errorf("TLS between the hosts %w: give both hosts certificates that the other verifies (migrate_tls_x509_cert_dir in qemu.conf), TLSName the name in the destination's, or say Plaintext: %w", share.ErrDenied, err)
}

// sameFigures says that nothing went over between two looks. What remains is no
// measure: the guest writes on.
func sameFigures(a, b libvirt.DomainJobInfo) bool {
	return a.Type == b.Type && a.MemProcessed == b.MemProcessed && a.DiskProcessed == b.DiskProcessed
}

func (m *move) setDowntime(ctx context.Context, r *migrate.Reporter) {
	ctx, cancel := context.WithTimeout(ctx, shortly)
	defer cancel()
	err := changeGuest(ctx, m.from, m.guest.uuid, "set the downtime allowed", func(d *libvirt.Domain) error {
		return d.MigrateSetMaxDowntime(uint64(max(1, m.opts.MaxDowntime.Milliseconds())), 0)
	})
	// A job that has ended meanwhile needs no limit.
	if err != nil && ctx.Err() == nil && !errors.Is(err, libvirt.ERR_OPERATION_INVALID) {
		r.Warn(err)
	}
}

// yank cuts the source's connections of the migration. A mirror that waits for
// an answer from behind a dead link cannot be cancelled, and libvirt waits for
// it; QEMU's yank makes every request on such a connection fail at once. It
// goes past libvirt, which marks the guest as tainted in its log for that, and
// is used only where an abort has not helped.
func (m *move) yank(ctx context.Context) error {
	return changeGuest(ctx, m.from, m.guest.uuid, "cut the migration's connections", func(d *libvirt.Domain) error {
		text, err := d.QemuMonitorCommand(`{"execute":"query-yank"}`, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
		if err != nil {
			return err
		}
		command, some, err := yankCommand(text)
		if err != nil || !some {
			return err
		}
		_, err = d.QemuMonitorCommand(command, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
		return err
	})
}

type yankInstance struct {
	Type string `json:"type"`
	Node string `json:"node-name,omitempty"`
	ID   string `json:"id,omitempty"`
}

// yankCommand makes the command of the answer to query-yank: the migration
// stream and the disks' mirrors, which libvirt calls migration-…, and nothing
// else that the guest has connections for.
func yankCommand(answer string) (command string, some bool, err error) {
	var have struct {
		Return []yankInstance `json:"return"`
	}
	if err := json.Unmarshal([]byte(answer), &have); err != nil {
		return "", false, fmt.Errorf("%w: QEMU's answer to query-yank: %w", share.ErrInvalid, err)
	}
	ours := slices.DeleteFunc(have.Return, func(i yankInstance) bool {
		return i.Type != "migration" && !(i.Type == "block-node" && strings.HasPrefix(i.Node, "migration-"))
	})
	if len(ours) == 0 {
		return "", false, nil
	}
	text, err := json.Marshal(map[string]any{"execute": "yank", "arguments": map[string]any{"instances": ours}})
	return string(text), true, err
}

// bracket makes a host of a URI.
func bracket(host string) string {
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		return "[" + host + "]"
	}
	return host
}
