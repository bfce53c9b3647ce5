// Command livemigrate moves a running guest from one KVM host to another.
//
//	livemigrate -lab
//	livemigrate -from URI -to URI -guest NAME [options]
//
// See README.md, or livemigrate -h.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vmferry/vmferry/examples/internal/show"
	"github.com/vmferry/vmferry/internal/lab"
	"github.com/vmferry/vmferry/migrate"
	"github.com/vmferry/vmferry/migrate/kvm"
	"github.com/vmferry/vmferry/share"
)

const usage = `livemigrate moves a running guest from one KVM host to another, with its disks.

  livemigrate -lab
        needs nothing: starts two hosts with libvirt and QEMU on this machine,
        and a guest that writes its disk and its memory all the time; moves the
        guest to the other host with its disk, checks that no acknowledged
        write is missing and that one copy runs, and moves it back

  livemigrate -from URI -to URI -guest NAME [-shared vda] [-at vdb=/path] ...
        moves a guest of yours; URI is libvirt's, as for virsh -c

Disks are mirrored to the same path unless -shared or -at says otherwise.
Ctrl-C takes the move back: the guest stays where it was. The exit status is 0
if the guest arrived and, with -lab, everything was checked; 1 if not; 2 if the
arguments are wrong.

Options:
`

type config struct {
	lab            bool
	json           bool
	from, to       string
	guest          string
	connectTimeout time.Duration
	kvm.MigrateOptions
}

func main() {
	lab.Init() // the lab's hosts are this program, started again
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	c, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "livemigrate: %v\n", err)
		return 2
	}
	// The first signal asks, the second one kills.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	out := stdout
	if c.json {
		out = stderr // standard output holds the object alone
	}
	var rep *report
	if c.lab {
		rep, err = inLab(ctx, c, show.NewScreen(out))
	} else {
		rep, err = yours(ctx, c, show.NewScreen(out))
	}
	if err != nil {
		rep.Verified, rep.Error = false, err.Error()
	}
	if c.json {
		if err := show.JSON(stdout, rep); err != nil {
			fmt.Fprintf(stderr, "livemigrate: %v\n", err)
			return 1
		}
	}
	if err != nil {
		fmt.Fprintf(stderr, "livemigrate: %v\n", err)
		return 1
	}
	return 0
}

// yours moves a guest between two hosts of the user.
func yours(ctx context.Context, c *config, s *show.Screen) (*report, error) {
	rep := &report{Guest: c.guest}
	connect, cancel := context.WithTimeout(ctx, c.connectTimeout)
	defer cancel()
	from, err := kvm.Connect(connect, c.from, nil)
	if err != nil {
		return rep, err
	}
	defer from.Close()
	to, err := kvm.Connect(connect, c.to, nil)
	if err != nil {
		return rep, err
	}
	defer to.Close()
	// Where it is, if an earlier run was killed.
	guest, err := kvm.Settle(connect, c.guest, from, to)
	if err != nil {
		return rep, err
	}
	if guest.Host() == to {
		s.Say("%s is at %s already.", c.guest, c.to)
		return rep, nil
	}
	res, err := move(ctx, guest, to, c.MigrateOptions, s)
	rep.Moves = append(rep.Moves, moveReport{From: c.from, To: c.to, Result: res, OneCopy: res.Phase == migrate.PhaseDone})
	if err != nil {
		return rep, err
	}
	s.Say("%s runs at %s, and nowhere else. %v in all, %v sent, %v of downtime as the hosts saw it.",
		c.guest, c.to, round(res.Total), share.Bytes(res.Sent), round(res.Downtime))
	s.Say("The content of its disks was not compared: only the guest knows what it has written.")
	return rep, nil
}

// move is a move with its progress drawn. It ends with the job, whatever
// happens to ctx, whose end cancels it.
func move(ctx context.Context, g *kvm.Guest, to *kvm.Host, o kvm.MigrateOptions, s *show.Screen) (migrate.Result, error) {
	whole := context.WithoutCancel(ctx)
	job, err := kvm.Migrate(whole, g, to, &o)
	if err != nil {
		return migrate.Result{}, err
	}
	defer context.AfterFunc(ctx, job.Cancel)()
	for e := range job.Events(whole) {
		s.Draw(e)
	}
	return job.Wait(whole)
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
