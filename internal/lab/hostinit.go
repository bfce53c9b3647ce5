package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	hostArg = "vmferry-lab-host" // argv[0] of a host's PID 1
	execArg = "vmferry-lab-exec" // argv[0] of what enters a host
)

// initialised tells New that a re-execution of this program would find its way
// into Init, instead of running the program once more with privileges.
var initialised atomic.Bool

// Init must be the first thing that a program with a lab calls in main. The lab
// re-executes the program as PID 1 of its hosts; there, Init never returns.
func Init() {
	initialised.Store(true)
	switch os.Args[0] {
	case hostArg:
		if err := hostMain(); !errors.Is(err, io.EOF) {
			fmt.Fprintf(os.Stderr, "lab: PID 1: %v\n", err)
		}
		os.Exit(1)
	case execArg:
		code, err := enterHost(os.Args[1:])
		if err != nil {
			fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		}
		os.Exit(code)
	}
}

// Main is Init and then the tests, for TestMain: m is a *testing.M.
func Main(m interface{ Run() int }) {
	Init()
	os.Exit(m.Run())
}

// hostSpec is the first message to PID 1, hostRequest each other one; a
// hostAnswer answers each.
type hostSpec struct{ Name, Addr, MAC, Dir, Shared string }

type hostRequest struct{ Op string }

type hostAnswer struct{ Error string }

const (
	opStart = "start libvirtd"
	opKill  = "kill libvirtd"
)

// hostMain is PID 1 of a host. It ends when its control socket does: that is
// the end of the lab's program, should the kernel's death signal have been set
// too late to see it.
func hostMain() error {
	if os.Getpid() != 1 {
		return errors.New("started outside of its namespaces")
	}
	control := os.NewFile(3, "control")
	unix.CloseOnExec(3)
	recv, send := json.NewDecoder(control), json.NewEncoder(control)
	var spec hostSpec
	if err := recv.Decode(&spec); err != nil {
		return err
	}
	err := spec.setUp()
	c := &children{known: map[int]*child{}}
	d := &daemon{children: c}
	if err == nil {
		// Not before: setUp waits for its own.
		go c.reap()
		err = errors.Join(c.serve(), d.start())
	}
	for {
		var answer hostAnswer
		if err != nil {
			answer.Error = err.Error()
		}
		if err := send.Encode(answer); err != nil {
			return err
		}
		var r hostRequest
		if err := recv.Decode(&r); err != nil {
			return err
		}
		switch r.Op {
		case opStart:
			err = d.start()
		case opKill:
			err = d.kill()
		default:
			err = fmt.Errorf("unknown request %q", r.Op)
		}
	}
}

func (s *hostSpec) setUp() error {
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := s.mount(); err != nil {
		return err
	}
	if err := ignoreSetgroups(); err != nil {
		return err
	}
	// Guests hang on the bridge beside the host's own address. Its MAC is
	// set: it would otherwise change with the ports.
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader("link set lo up\n" +
		"link add br0 address " + s.MAC + " type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n" +
		"link set br0 addrgenmode none\nlink set eth0 addrgenmode none\n" +
		"link set eth0 master br0\nlink set eth0 up\n" +
		"addr add " + s.Addr + "/16 dev br0\nlink set br0 up\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	return nil
}

func (s *hostSpec) mount() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := os.Mkdir("/run/libvirt", 0o755); err != nil {
		return err
	}
	if err := mountDev(); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	for _, p := range privateDirs {
		if err := unix.Mount(filepath.Join(s.Dir, p.outside), p.inside, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", p.inside, err)
		}
	}
	if err := unix.Mount(s.Shared, sharedInside, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", sharedInside, err)
	}
	// Names of the hosts, where the machine has a file to lay this over.
	if err := unix.Mount(filepath.Join(s.Dir, "hosts"), "/etc/hosts", "", unix.MS_BIND, ""); err != nil && err != unix.ENOENT {
		return fmt.Errorf("bind /etc/hosts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// mountDev gives the host a /dev with only what it needs, foremost without
// kvm: libvirt and QEMU use or probe that wherever they find it, and the lab
// emulates.
func mountDev() error {
	const stage = "/run/dev"
	if err := os.Mkdir(stage, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	for _, d := range []string{"net", "pts", "shm"} {
		if err := os.Mkdir(filepath.Join(stage, d), 0o755); err != nil {
			return err
		}
	}
	for _, node := range []string{"null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun"} {
		source, target := filepath.Join("/dev", node), filepath.Join(stage, node)
		if _, err := os.Stat(source); err != nil {
			continue // what needs it says so
		}
		f, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o666)
		if err != nil {
			return err
		}
		f.Close()
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", node, err)
		}
	}
	if err := unix.Mount("devpts", filepath.Join(stage, "pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return fmt.Errorf("pts: %w", err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(stage, "shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return fmt.Errorf("shm: %w", err)
	}
	for name, target := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(target, filepath.Join(stage, name)); err != nil {
			return err
		}
	}
	return unix.Mount(stage, "/dev", "", unix.MS_BIND|unix.MS_REC, "")
}

// daemon is the host's libvirtd.
type daemon struct {
	children *children
	mu       sync.Mutex
	running  *child
}

func (d *daemon) start() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running != nil && !d.running.hasEnded() {
		return errors.New("libvirtd runs already")
	}
	out, err := os.OpenFile("/var/log/libvirt/libvirtd-stderr.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	defer null.Close()
	d.running, err = d.children.start([]string{"libvirtd", "--listen", "--pid-file", "/run/libvirtd.pid"}, os.Environ(),
		[]uintptr{null.Fd(), out.Fd(), out.Fd()})
	return err
}

func (d *daemon) kill() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running == nil || d.running.hasEnded() {
		return errors.New("libvirtd does not run")
	}
	// Alone: what it has started shares its session, and lives on.
	if err := d.children.kill(d.running, d.running.pid); err != nil {
		return fmt.Errorf("kill libvirtd: %w", err)
	}
	<-d.running.ended
	return nil
}

// children are the processes that PID 1 has started, and the orphans that it
// inherits.
type children struct {
	mu    sync.Mutex
	known map[int]*child
}

type child struct {
	pid    int
	ended  chan struct{} // closed when it is reaped
	status syscall.WaitStatus
}

func (c *child) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// start executes a command in a session of its own. It does without os/exec,
// because the reaper takes every child.
func (c *children) start(args, env []string, files []uintptr) (*child, error) {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return nil, err
	}
	// The lock is held until the child is known, so that the reaper cannot
	// find it before.
	c.mu.Lock()
	defer c.mu.Unlock()
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Dir: "/", Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return nil, fmt.Errorf("execute %s: %w", path, err)
	}
	started := &child{pid: pid, ended: make(chan struct{})}
	c.known[pid] = started
	return started, nil
}

// kill sends SIGKILL to target, the child or its process group, unless the child
// has been reaped: its number may be another's then.
func (c *children) kill(known *child, target int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[known.pid] != known {
		return nil
	}
	return syscall.Kill(target, syscall.SIGKILL)
}

// reap waits for every child, for ever.
func (c *children) reap() {
	news := make(chan os.Signal, 1)
	signal.Notify(news, syscall.SIGCHLD)
	for {
		c.mu.Lock()
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if ended := c.known[pid]; err == nil && ended != nil {
			ended.status = status
			delete(c.known, pid)
			close(ended.ended)
		}
		c.mu.Unlock()
		if pid == 0 || err != nil && err != syscall.EINTR {
			<-news
		}
	}
}
