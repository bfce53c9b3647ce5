package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// privateDirs are the directories that each host has to itself: where it sees
// them, and their name below the host's directory outside.
var privateDirs = []struct{ inside, outside string }{
	{"/etc/libvirt", "etc"},
	{"/run/libvirt", "run"},
	{"/var/lib/libvirt", "lib"},
	{"/var/log/libvirt", "log"},
	{"/var/cache/libvirt", "cache"},
}

// Both lie below a directory that is private already, so that the lab needs no
// mount point that the packages have not made.
const (
	imagesInside = "/var/lib/libvirt/images"
	sharedInside = "/var/lib/libvirt/shared"
)

// libvirtdConf opens the daemon to the lab's network without authentication:
// nothing but the lab's hosts can reach it. The short keepalive makes a
// partition show within seven seconds.
const libvirtdConf = `listen_tls = 0
listen_tcp = 1
listen_addr = "%[1]s"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
host_uuid = "%08[2]x-feed-4000-8000-000000000001"
keepalive_interval = 2
keepalive_count = 3
log_filters = "1:qemu.qemu_migration 3:*"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
`

// qemuConf takes away what a namespace cannot have, control groups and a mount
// namespace per guest, and what would need another daemon.
const qemuConf = `user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
migration_address = "0.0.0.0"
migration_host = "%[1]s"
keepalive_interval = 2
keepalive_count = 3
`

// prepare makes the host's directories, libvirt's configuration, and the table
// of so many hosts' names.
func (h *Host) prepare(hosts int) error {
	for _, p := range privateDirs {
		if err := os.MkdirAll(filepath.Join(h.dir, p.outside), 0o755); err != nil {
			return err
		}
	}
	for _, p := range []string{"lib/images", "lib/shared", "log/qemu"} {
		if err := os.MkdirAll(filepath.Join(h.dir, p), 0o755); err != nil {
			return err
		}
	}
	h.seedCapabilities()
	names := "127.0.0.1 localhost\n"
	for n := range hosts {
		names += hostAddr(n+1) + " " + hostName(n+1) + "\n"
	}
	for name, text := range map[string]string{
		"etc/libvirtd.conf": fmt.Sprintf(libvirtdConf, h.addr, h.number),
		"etc/qemu.conf":     fmt.Sprintf(qemuConf, h.addr),
		"hosts":             names,
	} {
		if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// logTail is the end of every log on the host, n lines each.
func (h *Host) logTail(n int) string {
	var b strings.Builder
	for _, pattern := range []string{"*.log", "qemu/*.log"} {
		paths, _ := filepath.Glob(filepath.Join(h.dir, "log", pattern))
		for _, path := range paths {
			content, err := os.ReadFile(path)
			if err != nil || len(content) == 0 {
				continue
			}
			lines := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
			fmt.Fprintf(&b, "--- %s: %s\n%s\n", h.name, filepath.Base(path), strings.Join(lines[max(0, len(lines)-n):], "\n"))
		}
	}
	return b.String()
}
