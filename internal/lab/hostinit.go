package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	hostArg = "vmferry-lab-host" // argv[0] of a host's PID 1
	execArg = "vmferry-lab-exec" // argv[0] of what enters a host
	tiedArg = "vmferry-lab-tied" // argv[0] of what then becomes the command
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
		err := hostMain()
		fmt.Fprintf(os.Stderr, "lab: PID 1: %v\n", err)
		os.Exit(1)
	case execArg:
		code, err := execMain(os.Args[1:])
		if err != nil {
			fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		}
		os.Exit(code)
	case tiedArg:
		fmt.Fprintf(os.Stderr, "lab: %v\n", tiedMain(os.Args[1:]))
		os.Exit(127)
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
	d := new(daemon)
	if err == nil {
		go d.reap()
		err = d.start()
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
	mu    sync.Mutex
	pid   int
	ended chan struct{} // closed when pid is reaped
}

func (d *daemon) start() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pid != 0 {
		return errors.New("libvirtd runs already")
	}
	path, err := exec.LookPath("libvirtd")
	if err != nil {
		return err
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
	// Not os/exec: the reaper takes every child.
	d.pid, err = syscall.ForkExec(path, []string{"libvirtd", "--listen", "--pid-file", "/run/libvirtd.pid"}, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{null.Fd(), out.Fd(), out.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		d.pid = 0
		return fmt.Errorf("start libvirtd: %w", err)
	}
	d.ended = make(chan struct{})
	return nil
}

func (d *daemon) kill() error {
	d.mu.Lock()
	pid, ended := d.pid, d.ended
	d.mu.Unlock()
	if pid == 0 {
		return errors.New("libvirtd does not run")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill libvirtd: %w", err)
	}
	<-ended
	return nil
}

// reap waits for every child, libvirtd and the orphans it leaves.
func (d *daemon) reap() {
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	for {
		var status syscall.WaitStatus
		// The lock is held, so that libvirtd's start is complete before
		// its end is seen.
		d.mu.Lock()
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == nil && pid > 0 && pid == d.pid {
			d.pid = 0
			close(d.ended)
		}
		d.mu.Unlock()
		if err != nil && err != syscall.EINTR || pid == 0 {
			<-child
		}
	}
}

// execMain enters the namespaces of the host whose PID 1 is args[0], runs the
// command args[1:] there and returns its exit code.
func execMain(args []string) (int, error) {
	if len(args) < 2 {
		return 127, errors.New("nothing to execute")
	}
	// The command is forked from this thread: into the namespaces that the
	// thread has entered, and killed with it.
	runtime.LockOSThread()
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return 127, err
	}
	target, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 127, fmt.Errorf("host's PID 1: %w", err)
	}
	// A thread shares its root and working directory with the others until
	// it says otherwise, and may not change its mount namespace before.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return 127, err
	}
	if err := unix.Setns(target, unix.CLONE_NEWNET|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC|unix.CLONE_NEWPID|unix.CLONE_NEWNS); err != nil {
		return 127, fmt.Errorf("enter the host's namespaces: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", args[1:]...)
	cmd.Args[0] = tiedArg
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), nil
	case err != nil:
		return 127, err
	}
	return 0, nil
}

// tiedMain becomes the command args, which the kernel kills with the process
// that entered the host for it. Go's own Pdeathsig cannot say that: it compares
// process ids, which differ between the namespaces.
func tiedMain(args []string) error {
	runtime.LockOSThread() // the signal belongs to the thread that executes
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, args, os.Environ())
}
