package tuning

// Myths are the settings of bad guides that this package knows. The slice is
// the caller's.
func Myths() []Myth { return append([]Myth(nil), myths...) }

var (
	inSysctl  = []string{string(sysctlFile)}
	inMounts  = []string{string(fstabFile)}
	inModule  = []string{string(modprobeFile)}
	inCmdline = []string{string(cmdlineFile)}
	inExports = []string{string(exportsFile)}
	inSMB     = []string{string(smbFile)}
	inCeph    = []string{string(cephFile)}
	inGluster = []string{string(glusterFile)}
	inDomain  = []string{string(domainFile)}
	inUdev    = []string{string(udevFile)}
	inMTU     = []string{string(mtuFile)}
)

const (
	anyNFS     = "nfs4?"
	ofBlockMQ  = "kernel 5.0: the schedulers of the old block layer are gone"
	off        = "0|no|off|false|disable|disabled"
	mountNFS   = "nfs(5)"
	sambaConf  = "smb.conf(5)"
	cephQEMU   = "Ceph: qemu-rbd"
	virtTables = "libvirt: domain XML; qemu(1)"
)

var myths = []Myth{
	// TCP
	{ID: "tcp-small-window", In: inSysctl, Key: "net.ipv4.tcp_rmem|net.ipv4.tcp_wmem|net.core.rmem_max|net.core.wmem_max|net.ipv4.tcp_window|net.core.rmem_default|net.core.wmem_default", Value: `.*\b(8192|65535|65536)`, AtMost: 65536,
		Reason: "caps the window at 64 KiB or less; scaling, which is on, needs room to grow", Source: sourceIP, Severity: Harm},
	{ID: "tcp-old-triple", In: inSysctl, Key: "net.ipv4.tcp_rmem|net.ipv4.tcp_wmem", Value: `\d+ (87380|65536|8192) \d+`,
		Reason: "the buffers of kernels of 2008: the first window becomes smaller than today's default", Source: sourceIP, Severity: Gain},
	{ID: "tcp-fixed-triple", In: inSysctl, Key: "net.ipv4.tcp_rmem|net.ipv4.tcp_wmem", Value: `\d{6,} \d{6,} \d{6,}`,
		Reason: "every connection begins with a buffer of that size; autotuning has nothing left to tune", Source: sourceIP, Severity: Harm},
	{ID: "tcp-mem", In: inSysctl, Key: "net.ipv4.tcp_mem",
		Reason: "counted in pages, not bytes, and computed from the memory at boot; a fixed value fits one machine at most", Source: sourceIP, Severity: Harm},
	{ID: "tcp-window-scaling-off", In: inSysctl, Key: "net.ipv4.tcp_window_scaling", Value: off, Reason: "64 KiB per round trip at most", Source: sourceIP, Severity: Harm},
	{ID: "tcp-timestamps-off", In: inSysctl, Key: "net.ipv4.tcp_timestamps", Value: off, Reason: "saves twelve bytes, and takes the protection from old segments and the measure of round trips", Source: sourceIP, Severity: Gain},
	{ID: "tcp-sack-off", In: inSysctl, Key: "net.ipv4.tcp_sack|net.ipv4.tcp_dsack", Value: off, Reason: "a lost packet costs a round trip for each that follows", Source: sourceIP, Severity: Harm},
	{ID: "tcp-moderate-rcvbuf-off", In: inSysctl, Key: "net.ipv4.tcp_moderate_rcvbuf", Value: off, Reason: "receive buffers stay small for ever", Source: sourceIP, Severity: Harm},
	{ID: "tcp-low-latency", In: inSysctl, Key: "net.ipv4.tcp_low_latency", Reason: "does nothing since kernel 4.14", Source: sourceIP, Severity: Note},
	{ID: "tcp-fack", In: inSysctl, Key: "net.ipv4.tcp_fack", Reason: "does nothing since kernel 4.15", Source: sourceIP, Severity: Note},
	{ID: "tcp-tw-recycle", In: inSysctl, Key: "net.ipv4.tcp_tw_recycle", Reason: "gone since kernel 4.12; before, it dropped connections of clients behind one address", Source: sourceIP, Severity: Harm},
	// memory
	{ID: "max-map-count", In: inSysctl, Key: "vm.max_map_count", Reason: "caps the number of mappings per process; no mapping becomes faster", Source: sourceVM, Severity: Note},
	{ID: "swappiness-zero", In: inSysctl, Key: "vm.swappiness", Value: "0", Reason: "no swap until memory is all but gone, and then the out-of-memory killer; 10 keeps programs in memory, too", Source: sourceVM, Severity: Harm},
	{ID: "vfs-cache-pressure-zero", In: inSysctl, Key: "vm.vfs_cache_pressure", Value: "0", Reason: "names and inodes are never given back: out of memory in the end", Source: sourceVM, Severity: Harm},
	{ID: "drop-caches", In: inSysctl, Key: "vm.drop_caches", Reason: "throws away what was cached, once, and makes the next reads slow", Source: sourceVM, Severity: Gain},
	{ID: "dirty-ratio-huge", In: inSysctl, Key: "vm.dirty_ratio", Value: `(?:[6-9]\d|100)`, Reason: "a large machine then has minutes of unwritten data, and every sync waits for it", Source: sourceVM, Severity: Harm},
	{ID: "sched-sysctls", In: inSysctl, Key: "kernel.sched_min_granularity_ns|kernel.sched_wakeup_granularity_ns|kernel.sched_migration_cost_ns|kernel.sched_latency_ns", Reason: "no such sysctl since kernel 5.13: it fails at boot", Source: "kernel 5.13: moved to debugfs", Severity: Note},
	// disks
	{ID: "elevator", In: inCmdline, Key: "elevator", Reason: "ignored since the multi-queue block layer; schedulers are set per disk", Source: ofBlockMQ, Severity: Note},
	{ID: "no-blk-mq", In: inCmdline, Key: "scsi_mod.use_blk_mq|dm_mod.use_blk_mq", Reason: "ignored: there is only the multi-queue layer", Source: ofBlockMQ, Severity: Note},
	{ID: "no-blk-mq", In: inModule, Section: "scsi_mod|dm_mod", Key: "use_blk_mq", Reason: "ignored: there is only the multi-queue layer", Source: ofBlockMQ, Severity: Note},
	{ID: "old-scheduler", In: inUdev, Key: "queue/scheduler", Value: "noop|deadline|cfq|anticipatory", Reason: "no such scheduler: the write fails, and the default stays; they are called none, mq-deadline and bfq", Source: ofBlockMQ, Severity: Gain},
	{ID: "barriers-off", In: inMounts, Section: "ext[34]|xfs|btrfs|reiserfs|jfs", Key: "nobarrier|barrier", Value: "|0", Reason: "flushes are left out: a power failure destroys the file system", Source: "kernel: filesystems/ext4, xfs", Severity: Harm},
	{ID: "data-writeback", In: inMounts, Section: "ext[34]", Key: "data", Value: "writeback", Reason: "after a crash files hold other files' old blocks", Source: "ext4(5)", Severity: Harm},
	{ID: "nodatacow", In: inMounts, Section: "btrfs", Key: "nodatacow|nodatasum", Reason: "takes the checksums away with it, and a crash can tear a block", Source: "btrfs(5)", Severity: Harm},
	// NFS
	{ID: "nfs-udp", In: inMounts, Section: anyNFS, Key: "udp", Reason: "fragments are put together wrongly at high rates: silent corruption; removed from recent kernels", Source: mountNFS, Severity: Harm},
	{ID: "nfs-udp", In: inMounts, Section: anyNFS, Key: "proto|mountproto", Value: "udp6?", Reason: "fragments are put together wrongly at high rates: silent corruption; removed from recent kernels", Source: mountNFS, Severity: Harm},
	{ID: "nfs-soft", In: inMounts, Section: anyNFS, Key: "soft|softerr", Reason: "a server's pause becomes an error, and a write that a guest believes done is lost", Source: mountNFS, Severity: Harm},
	{ID: "nfs-intr", In: inMounts, Section: anyNFS, Key: "intr|nointr", Reason: "ignored since kernel 2.6.25", Source: mountNFS, Severity: Note},
	{ID: "nfs-small-io", In: inMounts, Section: anyNFS, Key: "rsize|wsize", AtMost: 262144, Reason: "a slow-down: both sides agree on 1 MiB by themselves", Source: mountNFS, Severity: Gain},
	{ID: "nfs-v2", In: inMounts, Section: anyNFS, Key: "vers|nfsvers", Value: "2", Reason: "no kernel speaks it any more", Source: mountNFS, Severity: Harm},
	{ID: "nfs-async-mount", In: inMounts, Section: anyNFS, Key: "async", Reason: "is the default, and not what it means in exports", Source: mountNFS, Severity: Note},
	{ID: "nfs-slots-udp", In: inModule, Section: "sunrpc", Key: "udp_slot_table_entries", Reason: "for NFS over UDP, which corrupts", Source: mountNFS, Severity: Note},
	{ID: "nfsmount-udp", In: []string{string(nfsMountFile)}, Key: "proto|mountproto|defaultproto", Value: "udp6?", Reason: "silent corruption", Source: mountNFS, Severity: Harm},
	{ID: "nfsmount-soft", In: []string{string(nfsMountFile)}, Key: "soft", Value: "true|1|yes", Reason: "a server's pause becomes lost writes", Source: mountNFS, Severity: Harm},
	{ID: "nfsmount-small-io", In: []string{string(nfsMountFile)}, Key: "rsize|wsize|bsize", AtMost: 262144, Reason: "a slow-down: both sides agree on 1 MiB by themselves", Source: mountNFS, Severity: Gain},
	{ID: "nfs-conf-invented", In: []string{string(nfsFile), string(nfsMountFile)}, Key: "client_timeo|aculate|rsize_max|async_writes", Reason: "there is no such option", Source: "nfs.conf(5)", Severity: Note},
	{ID: "nfsd-udp", In: []string{string(nfsFile)}, Section: "nfsd", Key: "udp", Value: "y|yes|1|true|on", Reason: "offers clients what corrupts silently", Source: "nfs.conf(5)", Severity: Harm},
	{ID: "export-async", In: inExports, Key: "async", Reason: "the server says done before it is: a crash loses acknowledged writes", Source: "exports(5)", Severity: Harm},
	{ID: "export-no-subtree-check", In: inExports, Key: "no_subtree_check", Reason: "the default since nfs-utils 1.1.0; it cures no time-out and secures nothing", Source: "exports(5)", Severity: Note},
	{ID: "export-world", In: inExports, Key: "world", Reason: "a blank before the parenthesis: these options are for everybody, and the client before gets the defaults", Source: "exports(5)", Severity: Harm},
	// SMB
	{ID: "smb-socket-options", In: inSMB, Key: "socket_options", Value: `.*SO_(RCVBUF|SNDBUF).*`, Reason: "fixed buffers turn the kernel's autotuning off", Source: sambaConf, Severity: Gain},
	{ID: "smb-nodelay", In: inSMB, Key: "socket_options", Value: `(TCP_NODELAY|IPTOS_LOWDELAY|SO_KEEPALIVE| )+`, Reason: "the default, or nothing that a network heeds", Source: sambaConf, Severity: Note},
	{ID: "smb-strict-sync", In: inSMB, Key: "strict_sync", Value: off, Reason: "a client's flush is answered and not done", Source: sambaConf, Severity: Harm},
	{ID: "smb1-sizes", In: inSMB, Key: "max_xmit|read_raw|write_raw|large_readwrite", Reason: "for version 1 of the protocol, which nobody should speak", Source: sambaConf, Severity: Note},
	// Ceph
	{ID: "ceph-rbd-cache", In: inCeph, Key: "rbd_cache|rbd_cache_size|rbd_cache_max_dirty", Reason: "QEMU's cache mode overrides it", Source: cephQEMU, Severity: Note},
	{ID: "ceph-until-flush", In: inCeph, Key: "rbd_cache_writethrough_until_flush", Value: off, Reason: "a guest that never flushes loses what is cached", Source: cephQEMU, Severity: Harm},
	{ID: "ceph-filestore", In: inCeph, Key: "filestore_*|journal_*|osd_op_threads|osd_disk_threads", Reason: "for a store of objects that is gone", Source: "Ceph Reef: filestore removed", Severity: Note},
	{ID: "ceph-no-crc", In: inCeph, Key: "ms_nocrc|ms_crc_data|ms_crc_header", Reason: "what the network damages is stored", Source: "Ceph: messenger", Severity: Harm},
	// Gluster
	{ID: "gluster-invented", In: inGluster, Key: "performance.io-merging|performance.io-stagger|performance.io-prefetch", Reason: "there is no such option", Source: "gluster volume set help", Severity: Note},
	{ID: "gluster-short-ping", In: inGluster, Key: "network.ping-timeout", AtMost: 9, Reason: "a busy moment is a failure, and healing follows", Source: "GlusterFS administration guide", Severity: Harm},
	{ID: "gluster-no-quorum", In: inGluster, Key: "cluster.quorum-type", Value: "none", Reason: "both halves of a split write: split brain", Source: groupVirt, Severity: Harm},
	// guests
	{ID: "cache-unsafe", In: inDomain, Key: "devices/disk/driver/@cache", Value: "unsafe", Reason: "flushes are thrown away: a crash of the host destroys the guest's file systems", Source: virtTables, Severity: Harm},
	{ID: "native-with-cache", In: inDomain, Key: "devices/disk/driver/native-with-cache", Reason: "io=native needs cache none or directsync; QEMU refuses or blocks", Source: virtTables, Severity: Harm},
	{ID: "qcow2-on-rbd", In: inDomain, Section: "rbd", Key: "devices/disk/driver/@type", Value: "qcow2", Reason: "copy-on-write on copy-on-write, and no safe migration; RBD images are raw", Source: cephQEMU, Severity: Harm},
	{ID: "emulated-nic", In: inDomain, Key: "devices/interface/model/@type", Value: "e1000e?|rtl8139|ne2k_pci|pcnet", Reason: "an old chip, register by register; virtio is several times faster", Source: virtTables, Severity: Gain},
	{ID: "jumbo-unproved", In: inMTU, Key: "mtu", Value: `(?:1[6-9]\d\d|[2-9]\d\d\d|\d{5})`, Reason: "larger than Ethernet's 1500: prove every hop with ping -M do -s (MTU - 28), or connections hang as soon as data flows", Source: "ping(8), RFC 4821", Severity: Note},
	{ID: "vhost-zerocopy", In: inModule, Section: "vhost_net", Key: "experimental_zcopytx", Value: "1|y", Reason: "off by default since kernel 5.1, because a slow receiver blocks all others", Source: "kernel: drivers/vhost/net.c", Severity: Gain},
}
