//go:build linux

package main

import (
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// config is what the kernel command line asks for.
type config struct {
	guest   [16]byte
	addr    *net.IPNet
	beat    net.IP
	beatMAC net.HardwareAddr
	memory  uint64
	dirty   uint64
	disks   []diskConfig
}

type diskConfig struct {
	serial string
	rate   uint64
	block  uint32
	slots  uint32
	span   uint64
}

func readConfig(path string) (*config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseConfig(string(text))
}

func parseConfig(line string) (*config, error) {
	c := new(config)
	for _, word := range strings.Fields(line) {
		name, ours := strings.CutPrefix(word, "vmferry.")
		if !ours {
			continue
		}
		name, value, _ := strings.Cut(name, "=")
		if err := c.set(name, value); err != nil {
			return nil, fmt.Errorf("kernel command line: vmferry.%s=%s: %w", name, value, err)
		}
	}
	if c.addr == nil || c.beat == nil {
		return nil, fmt.Errorf("kernel command line: no vmferry.addr or no vmferry.beat")
	}
	return c, nil
}

func (c *config) set(name, value string) (err error) {
	switch name {
	case "guest":
		raw, err := hex.DecodeString(strings.ReplaceAll(value, "-", ""))
		if err == nil && copy(c.guest[:], raw) != 16 {
			err = fmt.Errorf("not a UUID")
		}
		return err
	case "addr":
		ip, network, err := net.ParseCIDR(value)
		if err == nil {
			network.IP = ip.To4()
			c.addr = network
		}
		return err
	case "beat":
		ip, mac, _ := strings.Cut(value, ",")
		if c.beat = net.ParseIP(ip).To4(); c.beat == nil {
			return fmt.Errorf("not an IPv4 address")
		}
		c.beatMAC, err = net.ParseMAC(mac)
		return err
	case "memory":
		c.memory, err = strconv.ParseUint(value, 10, 64)
		return err
	case "dirty":
		c.dirty, err = strconv.ParseUint(value, 10, 64)
		return err
	case "disk":
		f := strings.Split(value, ",")
		if len(f) != 5 {
			return fmt.Errorf("not five fields")
		}
		n := make([]uint64, 5)
		for i := 1; i < 5; i++ {
			if n[i], err = strconv.ParseUint(f[i], 10, 64); err != nil {
				return err
			}
		}
		c.disks = append(c.disks, diskConfig{serial: f[0], rate: n[1], block: uint32(n[2]), slots: uint32(n[3]), span: n[4]})
		return nil
	}
	return fmt.Errorf("unknown parameter")
}
