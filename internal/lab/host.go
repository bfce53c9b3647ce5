package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is one simulated host. Its directories outlive a PowerOff, as disks do.
// Its methods may be called concurrently.
type Host struct {
	lab    *Lab
	number int // from 1
	name   string
	addr   string
	mac    string
	port   string
	dir    string

	mu      sync.Mutex
	machine *machine // nil while the power is off
	shaped  bool
}

// machine is a host that is powered on.
type machine struct {
	pid   int
	net   *netns
	gone  chan struct{} // closed when PID 1 is reaped and its namespace empty
	calls sync.Mutex    // one request at a time on the control socket
	send  *json.Encoder
	recv  *json.Decoder
	ctl   *os.File
}

// ErrPoweredOff says that the host's power is off.
var ErrPoweredOff = errors.New("lab: host is powered off; call PowerOn")

// newHost makes the i-th of so many hosts, powered off.
func newHost(l *Lab, i, hosts int) (*Host, error) {
	n := i + 1
	h := &Host{
		lab: l, number: n,
		name: hostName(n),
		addr: hostAddr(n),
		mac:  fmt.Sprintf("02:77:00:00:00:%02x", n),
		port: fmt.Sprintf("port%d", n),
		dir:  filepath.Join(l.dir, fmt.Sprintf("h%d", n)),
	}
	if err := h.prepare(hosts); err != nil {
		return nil, fmt.Errorf("lab: %s: %w", h.name, err)
	}
	return h, nil
}

func hostName(n int) string { return fmt.Sprintf("lab-host-%d", n) }
func hostAddr(n int) string { return fmt.Sprintf("10.77.0.%d", n) }

// Name is the host's host name, which all hosts resolve.
func (h *Host) Name() string { return h.name }

// Addr is the host's IPv4 address, which its peers know it by.
func (h *Host) Addr() string { return h.addr }

// URI is libvirt's URI of the host for programs outside of it.
func (h *Host) URI() string {
	return "qemu+unix:///system?socket=" + filepath.Join(h.dir, "run", "libvirt-sock")
}

// PeerURI is libvirt's URI of the host for programs on another host, as
// peer-to-peer migration needs it.
func (h *Host) PeerURI() string { return "qemu+tcp://" + h.addr + "/system" }

// Dir is the directory outside whose files the host sees at ImagePath. No
// other host sees them.
func (h *Host) Dir() string { return filepath.Join(h.dir, "lib", "images") }

// ImagePath is where the host sees the file name of Dir: the same path on
// every host, and not the same file.
func (h *Host) ImagePath(name string) string { return filepath.Join(imagesInside, name) }

// OutsidePath is where the lab's program sees what the host sees at path, or,
// for a relative one, at ImagePath(path). A path that is not private to the
// host is returned as it is.
func (h *Host) OutsidePath(path string) string {
	if !filepath.IsAbs(path) {
		return filepath.Join(h.Dir(), path)
	}
	path = filepath.Clean(path)
	if below, ok := strings.CutPrefix(path, sharedInside+"/"); ok {
		return filepath.Join(h.lab.shared, below)
	}
	for _, p := range privateDirs {
		if below, ok := strings.CutPrefix(path, p.inside+"/"); ok {
			return filepath.Join(h.dir, p.outside, below)
		}
	}
	return path
}

func (h *Host) powered() (*machine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machine == nil {
		return nil, fmt.Errorf("%s: %w", h.name, ErrPoweredOff)
	}
	return h.machine, nil
}

// PowerOn boots the host with the directories it had and returns when its
// libvirtd answers. It does nothing on a host that is on.
func (h *Host) PowerOn(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machine != nil {
		return nil
	}
	// Sockets and pid files of the last boot: /run does not outlive it.
	run := filepath.Join(h.dir, "run")
	if err := os.RemoveAll(run); err != nil {
		return fmt.Errorf("lab: %s: %w", h.name, err)
	}
	if err := os.Mkdir(run, 0o755); err != nil {
		return fmt.Errorf("lab: %s: %w", h.name, err)
	}
	m, err := startMachine()
	if err == nil {
		err = h.boot(ctx, m)
	}
	if err != nil {
		if m != nil {
			// The cable may not have been laid yet.
			_ = h.lab.swtch.unplug(context.WithoutCancel(ctx), h.port)
			m.kill()
		}
		return fmt.Errorf("lab: boot %s: %w", h.name, err)
	}
	h.machine, h.shaped = m, false
	return nil
}

func (h *Host) boot(ctx context.Context, m *machine) (err error) {
	if m.net, err = netnsOf(m.pid); err != nil {
		return err
	}
	if err := h.lab.swtch.plug(ctx, h.port, h.mac, m.pid); err != nil {
		return err
	}
	if err := h.lab.wire.attach(h); err != nil {
		return err
	}
	spec := hostSpec{Name: h.name, Addr: h.addr, MAC: h.mac, Dir: h.dir, Shared: h.lab.shared}
	if err := m.call(ctx, spec); err != nil {
		return err
	}
	return h.awaitLibvirtd(ctx)
}

// startMachine re-executes this program as PID 1 of new namespaces. The kernel
// kills it when the thread that started it ends; that thread ends with this
// process, however it ends, and not before PID 1.
func startMachine() (*machine, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	// Only ours is non-blocking, which belongs to one end of a pair: calls
	// on it have deadlines.
	if err := unix.SetNonblock(pair[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(pair[0]), unix.Close(pair[1]))
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	m := &machine{gone: make(chan struct{}), ctl: ours, send: json.NewEncoder(ours), recv: json.NewDecoder(ours)}
	cmd := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{hostArg},
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"},
		Dir:        "/",
		ExtraFiles: []*os.File{theirs},
		Stderr:     os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID,
			Pdeathsig:  syscall.SIGKILL,
		},
	}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer close(m.gone)
		err := cmd.Start()
		started <- err
		if err == nil {
			// A PID namespace is empty before its PID 1 can be reaped.
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		ours.Close()
		return nil, fmt.Errorf("start PID 1 in new namespaces: %w", err)
	}
	m.pid = cmd.Process.Pid
	return m, nil
}

// call sends a request to PID 1 and returns its answer.
func (m *machine) call(ctx context.Context, request any) error {
	m.calls.Lock()
	defer m.calls.Unlock()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(30 * time.Second)
	}
	if err := m.ctl.SetDeadline(deadline); err != nil {
		return err
	}
	// A cancelled context ends the call at once.
	stop := context.AfterFunc(ctx, func() { _ = m.ctl.SetDeadline(time.Now()) })
	defer stop()
	var answer hostAnswer
	if err := m.send.Encode(request); err != nil {
		return fmt.Errorf("ask PID 1: %w", err)
	}
	if err := m.recv.Decode(&answer); err != nil {
		return fmt.Errorf("hear from PID 1: %w (does the program call lab.Init first?)", errors.Join(err, context.Cause(ctx)))
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}

// kill ends PID 1 and with it every process of the host.
func (m *machine) kill() {
	_ = syscall.Kill(m.pid, syscall.SIGKILL)
	<-m.gone
	m.ctl.Close()
	if m.net != nil {
		m.net.close()
	}
}

// PowerOff cuts the host's power: every process on it dies at once, and its
// cable is dead before that, so that no peer hears of it. It does nothing on a
// host that is off.
func (h *Host) PowerOff() {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.machine
	if m == nil {
		return
	}
	h.machine = nil
	// A cable that is gone already is as good.
	_ = h.lab.swtch.unplug(context.Background(), h.port)
	m.kill()
}

// KillLibvirtd kills the host's libvirtd with SIGKILL. Guests live on.
func (h *Host) KillLibvirtd(ctx context.Context) error { return h.request(ctx, opKill) }

// StartLibvirtd starts libvirtd after KillLibvirtd and returns when it answers.
func (h *Host) StartLibvirtd(ctx context.Context) error {
	if err := h.request(ctx, opStart); err != nil {
		return err
	}
	return h.awaitLibvirtd(ctx)
}

func (h *Host) request(ctx context.Context, op string) error {
	m, err := h.powered()
	if err != nil {
		return err
	}
	if err := m.call(ctx, hostRequest{Op: op}); err != nil {
		return fmt.Errorf("lab: %s: %w", h.name, err)
	}
	return nil
}

func (h *Host) awaitLibvirtd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	socket := filepath.Join(h.dir, "run", "libvirt-sock")
	err := poll(ctx, "libvirtd of "+h.name, func() (bool, error) {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return false, nil
		}
		return true, c.Close()
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, h.logTail(10))
	}
	return nil
}

// Dial connects from the host, as a process on it would. The address is
// numeric.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	m, err := h.powered()
	if err != nil {
		return nil, err
	}
	return m.net.dial(ctx, network, address)
}

// Listen listens on the host. The listener stays when the host's power goes,
// and is deaf from then on.
func (h *Host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	m, err := h.powered()
	if err != nil {
		return nil, err
	}
	return m.net.listen(ctx, network, address)
}

// Do runs f on a thread in the host's network namespace: every socket that f
// itself opens is on the host. Goroutines that f starts are not.
func (h *Host) Do(f func() error) error {
	m, err := h.powered()
	if err != nil {
		return err
	}
	return m.net.do(f)
}

// Virsh runs virsh against the host's libvirtd and returns its output.
func (h *Host) Virsh(ctx context.Context, args ...string) (string, error) {
	return h.virshInput(ctx, "", args...)
}

func (h *Host) virshInput(ctx context.Context, input string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", h.URI()}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("lab: %s: virsh %s: %w: %s", h.name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
