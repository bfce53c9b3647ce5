package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vmferry/vmferry/migrate"
)

// compressRows measures data like that of a guest's image over a link of
// 1 Gb/s. The link is the loopback of a network namespace of its own, shaped by
// tbf; this program runs itself again in it.
func (b *bench) compressRows(ctx context.Context) error {
	if err := missing("nbdkit", "nbdcopy", "ip", "tc"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	config, err := json.Marshal(shapedConfig{Dir: b.dir, Runs: b.runs})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, "child", "shaped", string(config))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("in a network namespace: %w", err)
	}
	var rows []row
	if err := json.Unmarshal(out, &rows); err != nil {
		return err
	}
	b.rows = append(b.rows, rows...)
	return nil
}

type shapedConfig struct {
	Dir  string
	Runs int
}

// shaped is the part that runs in the namespace.
func shaped(ctx context.Context, text []byte) error {
	var c shapedConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms"},
	} {
		if _, err := timed(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	b := &bench{dir: c.Dir, runs: c.Runs}
	const size = 512 << 20
	src, err := b.newDisk(ctx, "source", size)
	if err != nil {
		return err
	}
	if err := src.fillLikeGuest(size); err != nil {
		return err
	}
	gauge := func(f func(dst disk) (time.Duration, error)) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			dst, err := b.newDisk(ctx, "destination", size)
			if err != nil {
				return 0, err
			}
			settle()
			took, err := f(dst)
			if err == nil {
				err = sameFiles(src.path, dst.path, size)
			}
			return size / float64(1<<20) / took.Seconds(), err
		}
	}
	ours := func(z migrate.Compression) func(context.Context) (float64, error) {
		return gauge(func(dst disk) (time.Duration, error) {
			_, took, _, _, err := b.move(ctx, receiveConfig{Share: dst.share}, sendConfig{Share: src.share, Compress: z})
			return took, err
		})
	}
	list := []contender{{"vmferry", ours(migrate.CompressWhenItPays)}, {"vmferry, zstd off", ours(migrate.CompressNever)},
		{"nbdcopy, nbdkit", gauge(func(dst disk) (time.Duration, error) {
			return b.between(ctx, "nbdkit", src.path, dst.path, nbdcopy())
		})}}
	figures, err := inTurn(ctx, b.runs, list)
	if err != nil {
		return err
	}
	return say([]row{newRow("compress", "MiB/s", list[1].name, figures[0], figures[1], 2, false),
		newRow("compress beside nbdcopy", "MiB/s", list[2].name, figures[0], figures[2], 2, false)})
}

// fillLikeGuest fills the disk with what a guest's has: programs, libraries and
// texts of this machine, each file from a multiple of 4 KiB on.
func (d disk) fillLikeGuest(size int64) error {
	f, err := os.OpenFile(d.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	off := int64(0)
	full := errors.New("full")
	for off < size {
		begin := off
		for _, root := range []string{"/usr/lib", "/usr/bin", "/usr/share"} {
			err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
				if err != nil || !e.Type().IsRegular() {
					return nil // what cannot be read is left out
				}
				in, err := os.Open(path)
				if err != nil {
					return nil
				}
				defer in.Close()
				n, err := io.Copy(io.NewOffsetWriter(f, off), bufio.NewReader(io.LimitReader(in, size-off)))
				if off += (n + 4095) / 4096 * 4096; off >= size {
					return full
				}
				return err
			})
			if errors.Is(err, full) {
				return f.Sync()
			}
			if err != nil {
				return err
			}
		}
		if off == begin {
			return fmt.Errorf("this machine has no files like a guest's")
		}
	}
	return f.Sync()
}
