package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// This file is the physical bound: a file is read, sent over TCP, and written,
// in plain Go with no protocol, no checksum and no proof. At the end the file is
// flushed once.

type pourConfig struct {
	Path    string
	Address string
	Size    int64
	Streams int64
}

const pourChunk = 1 << 20

// part is the stretch of the file that stream i carries.
func (c *pourConfig) part(i int64) (off, n int64) {
	each := c.Size / c.Streams
	return i * each, each
}

// pour reads a file and sends it.
func pour(ctx context.Context, text []byte) error {
	var c pourConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	f, err := os.Open(c.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	var g errgroup.Group
	for i := range c.Streams {
		g.Go(func() error {
			conn, err := net.Dial("tcp", c.Address)
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := conn.Write([]byte{byte(i)}); err != nil {
				return err
			}
			off, n := c.part(i)
			// Reader and writer without their short cuts: read(2) and write(2).
			_, err = io.CopyBuffer(onlyWriter{conn}, onlyReader{io.NewSectionReader(f, off, n)}, make([]byte, pourChunk))
			if err != nil {
				return err
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				return err
			}
			_, err = io.ReadFull(conn, make([]byte, 1)) // it is durable
			return err
		})
	}
	return g.Wait()
}

type onlyWriter struct{ io.Writer }

// catch writes to a file what arrives, and flushes it.
func catch(ctx context.Context, text []byte) error {
	var c pourConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	f, err := os.OpenFile(c.Path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	if err := say(listening{l.Addr().String()}); err != nil {
		return err
	}
	var g errgroup.Group
	var written sync.WaitGroup
	written.Add(int(c.Streams))
	flush := sync.OnceValue(f.Sync)
	for range c.Streams {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		g.Go(func() error {
			defer conn.Close()
			var id [1]byte
			_, err := io.ReadFull(conn, id[:])
			if err == nil {
				off, _ := c.part(int64(id[0]))
				_, err = io.CopyBuffer(onlyWriter{io.NewOffsetWriter(f, off)}, onlyReader{conn}, make([]byte, pourChunk))
			}
			written.Done()
			if err != nil {
				return err
			}
			written.Wait()
			if err := flush(); err != nil {
				return err
			}
			_, err = conn.Write(id[:])
			return err
		})
	}
	return g.Wait()
}

// poured measures the bound.
func (b *bench) poured(ctx context.Context, from, to string, size, streams int64) (took time.Duration, err error) {
	c := pourConfig{Path: to, Size: size, Streams: streams}
	catcher, err := startChild(ctx, "catch", c)
	if err != nil {
		return 0, err
	}
	var l listening
	if err := catcher.answer(&l); err != nil {
		return 0, err
	}
	c.Path, c.Address = from, l.Address
	begin := time.Now()
	pourer, err := startChild(ctx, "pour", c)
	if err == nil {
		err = pourer.wait()
	}
	took = time.Since(begin)
	if err != nil {
		catcher.kill()
	}
	if e := catcher.wait(); err == nil {
		err = e
	}
	return took, err
}
