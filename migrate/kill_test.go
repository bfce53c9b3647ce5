package migrate_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/share"
	"github.com/vmferry/vmferry/share/local"
)

// The test's binary is also the programs that it kills.
func TestMain(m *testing.M) {
	switch os.Getenv("VMFERRY_TEST_PROGRAM") {
	case "sender":
		child(senderProgram)
	case "receiver":
		child(receiverProgram)
	}
	os.Exit(m.Run())
}

func child(program func(ctx context.Context, dir string) error) {
	if err := program(context.Background(), os.Getenv("VMFERRY_TEST_DIR")); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

const (
	killDisk  = 48 << 20
	killSlots = 512 // of 4 KiB, at the front of the disk
)

func killShare(ctx context.Context, dir, side string) (share.Share, share.Device, error) {
	s, err := local.Open(ctx, filepath.Join(dir, side), &local.Options{Create: true})
	if err != nil {
		return nil, nil, err
	}
	if _, err := share.Create(ctx, s, share.Spec{Name: "disk", Kind: share.Disk, Size: killDisk}); err != nil {
		return nil, nil, err
	}
	d, err := share.OpenDevice(ctx, s, "disk", nil)
	return s, d, err
}

// receiverProgram takes the disk in until it is killed.
func receiverProgram(ctx context.Context, dir string) error {
	_, d, err := killShare(ctx, dir, "b")
	if err != nil {
		return err
	}
	r, err := migrate.NewReceiver(nil)
	if err != nil {
		return err
	}
	if err := r.Expect("disk", d); err != nil {
		return err
	}
	socket := filepath.Join(dir, "receiver")
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return r.Serve(ctx, l)
}

// senderProgram moves the disk, or goes on with that, while a writer writes
// numbered records to it and prints those that were acknowledged.
func senderProgram(ctx context.Context, dir string) error {
	_, d, err := killShare(ctx, dir, "a")
	if err != nil {
		return err
	}
	tracked, err := migrate.Track(d, 0)
	if err != nil {
		return err
	}
	journal, err := migrate.OpenJournal(filepath.Join(dir, "journal"))
	if err != nil {
		return err
	}
	past, err := journal.Entries(ctx)
	if err != nil {
		return err
	}
	first := uint64(time.Now().UnixNano()) // numbers grow over all lives
	out := bufio.NewWriter(os.Stdout)
	guest := &killGuest{tracked}
	go func() {
		rng := rand.New(rand.NewPCG(first, 0))
		p := make([]byte, 4096)
		for seq := first; ; seq++ {
			slot := rng.Int64N(killSlots)
			for i := range p {
				p[i] = byte(seq)
			}
			binary.LittleEndian.PutUint64(p, seq)
			if err := tracked.WriteAt(ctx, p, slot*4096); err != nil {
				return
			}
			fmt.Fprintf(out, "ack %d %d\n", slot, seq)
			out.Flush()
			time.Sleep(200 * time.Microsecond)
		}
	}()
	throttle, err := migrate.NewThrottle(30 << 20) // slow enough to be killed in the middle
	if err != nil {
		return err
	}
	move := migrate.Move{ID: "move", Guest: guest, Source: "a", Destination: "b", Authority: fileAuthority(dir), Journal: journal,
		Disks: []migrate.DiskMove{{Name: "disk", Source: d, Tracker: tracked.Tracker(),
			Remote: &migrate.Remote{Network: "unix", Address: filepath.Join(dir, "receiver"), Disk: "disk"}}}}
	begin := migrate.Start
	if len(past) > 0 {
		begin = migrate.Resume
	}
	job, err := begin(ctx, move, &migrate.Options{Throttle: throttle, Window: 2 << 20})
	if err != nil {
		return err
	}
	res, err := job.Wait(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("done %d %d\n", res.Sent, res.Disks[0].Same)
	return nil
}

// killGuest is a writer that stops for good when it has moved.
type killGuest struct{ d *migrate.TrackedDevice }

func (g *killGuest) Name() string                             { return "guest" }
func (g *killGuest) Pause(ctx context.Context) error          { return g.d.Pause(ctx) }
func (g *killGuest) Resume(context.Context, uint64) error     { g.d.Resume(); return nil }
func (g *killGuest) Relinquish(context.Context, uint64) error { return nil }
func (g *killGuest) Activate(context.Context, uint64) error   { return nil }

// fileAuthority keeps one record in a file, replaced by rename: enough for one
// program at a time.
type fileAuthority string

func (a fileAuthority) path() string { return filepath.Join(string(a), "authority") }

func (a fileAuthority) Load(context.Context, string) (r migrate.Record, err error) {
	b, err := os.ReadFile(a.path())
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		_, err = fmt.Sscan(string(b), &r.Guest, &r.Epoch, &r.Owner)
	}
	return r, err
}

func (a fileAuthority) Swap(ctx context.Context, guest string, old, new migrate.Record) error {
	now, err := a.Load(ctx, guest)
	if err != nil {
		return err
	}
	if now != old {
		return migrate.ErrLost
	}
	if err := os.WriteFile(a.path()+".new", fmt.Appendf(nil, "%s %d %s", new.Guest, new.Epoch, new.Owner), 0o600); err != nil {
		return err
	}
	return os.Rename(a.path()+".new", a.path())
}

// life is one life of a program.
type life struct {
	cmd  *exec.Cmd
	mu   sync.Mutex
	said []string
	end  chan error
}

func start(t *testing.T, program, dir string, acks map[int64]uint64) *life {
	exe, err := os.Executable()
	require.NoError(t, err)
	l := &life{cmd: exec.Command(exe), end: make(chan error, 1)}
	l.cmd.Env = append(os.Environ(), "VMFERRY_TEST_PROGRAM="+program, "VMFERRY_TEST_DIR="+dir)
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	l.cmd.Stderr = os.Stderr
	out, err := l.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, l.cmd.Start())
	go func() {
		in := bufio.NewReader(out)
		for {
			line, err := in.ReadString('\n')
			if err == io.EOF {
				break
			}
			var slot int64
			var seq uint64
			l.mu.Lock()
			if n, _ := fmt.Sscanf(line, "ack %d %d", &slot, &seq); n == 2 {
				acks[slot] = seq
			} else {
				l.said = append(l.said, strings.TrimSpace(line))
			}
			l.mu.Unlock()
		}
		l.end <- l.cmd.Wait()
	}()
	return l
}

func (l *life) says(prefix string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.said {
		if strings.HasPrefix(s, prefix) {
			return s
		}
	}
	return ""
}

func (l *life) kill() { _ = l.cmd.Process.Kill(); <-l.end }

// Real programs are killed at random, sender and receiver by turns, and started
// again, until the move is done. Every record that was acknowledged is at the
// destination.
func TestKilledPrograms(t *testing.T) {
	runs := 10
	if testing.Short() {
		runs = 2
	}
	for run := range runs {
		t.Run(fmt.Sprint(run), func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			dir := t.TempDir()
			rng := rand.New(rand.NewPCG(uint64(run), 5))
			s, d, err := killShare(ctx, dir, "a")
			require.NoError(t, err)
			data := make([]byte, 1<<20)
			for off := int64(0); off < killDisk; off += 1 << 20 {
				for i := 0; i < len(data); i += 8 {
					binary.LittleEndian.PutUint64(data[i:], rng.Uint64())
				}
				require.NoError(t, d.WriteAt(ctx, data, off))
			}
			require.NoError(t, d.Close())
			require.NoError(t, s.Close())

			acks := map[int64]uint64{}
			receiver := start(t, "receiver", dir, nil)
			t.Cleanup(func() { _ = receiver.cmd.Process.Kill() })
			var done string
			for kills := 0; done == ""; kills++ {
				require.Less(t, kills, 20, "it does not get done")
				require.Eventually(t, func() bool { return receiver.says("ready") != "" }, 20*time.Second, time.Millisecond)
				sender := start(t, "sender", dir, acks)
				select {
				case <-sender.end:
					done = sender.says("done")
				case <-time.After(time.Duration(200+rng.IntN(1200)) * time.Millisecond):
					if kills%3 == 2 {
						receiver.kill()
						receiver = start(t, "receiver", dir, nil)
						<-sender.end // it fails, or it was done
						done = sender.says("done")
					} else {
						sender.kill()
						done = sender.says("done")
					}
				}
			}
			receiver.kill()
			s, to, err := killShare(ctx, dir, "b")
			require.NoError(t, err)
			defer s.Close()
			defer to.Close()
			p := make([]byte, 4096)
			for slot, seq := range acks {
				require.NoError(t, to.ReadAt(ctx, p, slot*4096))
				require.GreaterOrEqual(t, binary.LittleEndian.Uint64(p), seq, "slot %d: an acknowledged record is missing", slot)
			}
			t.Logf("%d slots acknowledged; the last attempt: %s (sent, same)", len(acks), done)
		})
	}
}
