package tuning

func mount(key, def string) Place {
	return Place{Path: "/proc/self/mounts", Syntax: Option, Key: key, Default: def, ReadOnly: true, Set: "mount with " + key + "=VALUE, and remount"}
}

var nfsKnobs = []Knob{
	{
		ID: "nfs.nconnect", Scope: NFSClient, Title: "connections to the server", At: mount("nconnect", "1"),
		Range: Range{Min: 1, Max: 16}, Severity: Gain, Effect: AfterRemount,
		Advice: []Advice{{For: []Class{Throughput, SharedFiles, Mixed}, How: AtLeast, Value: "4", Why: "one connection is one queue and one processor"}},
		Source: sourceNFS, Risk: "the first mount of a server decides for all", Verify: "xprt lines of /proc/self/mountstats",
	},
	{
		ID: "nfs.hard", Scope: NFSClient, Title: "what happens when the server does not answer",
		At:    Place{Path: "/proc/self/mounts", Syntax: Option, Key: "hard|soft|softerr", Default: "hard", ReadOnly: true, Set: "mount with VALUE, and remount"},
		Range: Range{Words: []string{"hard", "soft", "softerr"}}, Severity: Harm, Effect: AfterRemount,
		Advice: []Advice{{How: Exactly, Value: "hard", Why: "soft gives a write up that a guest believes is done"}},
		Source: sourceNFS, Risk: "programs wait for a server that is away", Verify: "/proc/self/mounts",
	},
	{
		ID: "nfs.proto", Scope: NFSClient, Title: "transport", At: mount("proto", "tcp"),
		Range: Range{Words: []string{"tcp", "tcp6", "rdma", "rdma6", "udp", "udp6"}}, Severity: Harm, Effect: AfterRemount,
		Advice: []Advice{{How: OneOf, Value: "tcp tcp6 rdma rdma6", Why: "fragments of UDP are put together wrongly at high rates: silent corruption"}},
		Source: sourceNFS, Risk: "none", Verify: "/proc/self/mounts",
	},
	{
		ID: "nfs.vers", Scope: NFSClient, Title: "version of the protocol", At: mount("vers", ""),
		Range: Range{Words: []string{"3", "4.0", "4.1", "4.2"}}, Severity: Gain, Effect: AfterRemount,
		Advice: []Advice{{How: AtLeast, Value: "4.1", Why: "sessions make retries exact; 4.2 adds holes and server-side copies"}},
		Source: sourceNFS, Risk: "the server must speak it", Verify: "/proc/self/mounts",
	},
	{
		ID: "nfs.rsize", Scope: NFSClient, Title: "largest read, bytes", At: mount("rsize", ""),
		Range: Range{Min: 1024, Max: 1 << 20}, Severity: Gain, Effect: AfterRemount,
		Advice: []Advice{{How: AtLeast, Value: "1048576", Why: "leave it to negotiation: both sides agree on 1 MiB"}},
		Source: sourceNFS, Risk: "a server that takes less says so", Verify: "/proc/self/mounts",
	},
	{
		ID: "nfs.wsize", Scope: NFSClient, Title: "largest write, bytes", At: mount("wsize", ""),
		Range: Range{Min: 1024, Max: 1 << 20}, Severity: Gain, Effect: AfterRemount,
		Advice: []Advice{{How: AtLeast, Value: "1048576", Why: "leave it to negotiation: both sides agree on 1 MiB"}},
		Source: sourceNFS, Risk: "a server that takes less says so", Verify: "/proc/self/mounts",
	},
	{
		ID: "nfs.max-slots", Scope: NFSClient, Title: "requests under way per connection", At: sysctl("sunrpc/tcp_max_slot_table_entries", Number),
		Range: Range{Min: 2, Max: 65536}, Keep: KeepSysctl, Severity: Gain, Effect: AfterRemount,
		Advice: []Advice{{How: AtLeast, Value: "128", Why: "fewer hold a fast server back"}},
		Source: "kernel: admin-guide/nfs/nfs-client.rst", Risk: "none; the server limits, too", Verify: "xprt lines of /proc/self/mountstats",
	},
	{
		ID: "nfsd.threads", Scope: NFSServer, Title: "threads of the kernel's NFS server", At: Place{Path: "/proc/fs/nfsd/threads", Syntax: Number},
		Range: Range{Min: 1, Max: 8192}, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{If: []Cond{{Path: "/proc/fs/nfsd/threads", Min: 1}}, How: AtLeast, Value: "16", Why: "a request waits when all threads wait for the disk"}},
		Source: "rpc.nfsd(8)", Risk: "a stack of memory for each", Verify: "th line of /proc/net/rpc/nfsd",
	},
}

func conf(file, key, def string) Place {
	return Place{Path: file, Syntax: Setting, Key: key, Default: def, ReadOnly: true, Set: "set " + key + " to VALUE in " + file}
}

const (
	iscsid    = "/etc/iscsi/iscsid.conf"
	multipath = "/etc/multipath.conf"
	openISCSI = "open-iscsi: README, iscsid.conf"
)

// multipathed: a map of device mapper that is a multipath one.
var multipathed = Cond{Path: "/sys/block/dm-*/dm/uuid", Any: true, Has: "mpath-"}

var iscsiKnobs = []Knob{
	{
		ID: "iscsi.recovery-tmo", Scope: ISCSINode, Title: "time for a session to come back, s", At: Place{Path: "/sys/class/iscsi_session/*/recovery_tmo", Syntax: Number},
		Range: Range{Min: 0, Max: 86400}, Severity: Harm, Effect: AtOnce,
		Advice: []Advice{
			{If: []Cond{multipathed}, How: AtMost, Value: "20", Why: "multipath has another path; waiting for this one delays it"},
			{How: AtLeast, Value: "120", Why: "without another path an error too early is an error in the guest"},
		},
		Source: openISCSI, Risk: "too short: errors in guests; too long: guests hang on a dead path", Verify: "pull a path and time the failover",
	},
	{
		ID: "iscsi.replacement-timeout", Scope: ISCSINode, Title: "time for a session to come back, for new sessions, s", At: conf(iscsid, "node.session.timeo.replacement_timeout", "120"),
		Range: Range{Min: 0, Max: 86400}, Severity: Harm, Effect: AfterLogin,
		Advice: []Advice{
			{If: []Cond{multipathed}, How: AtMost, Value: "20", Why: "multipath has another path; waiting for this one delays it"},
			{How: AtLeast, Value: "120", Why: "without another path an error too early is an error in the guest"},
		},
		Source: openISCSI, Risk: "as with the live one", Verify: "recovery_tmo of the session",
	},
	{
		ID: "iscsi.noop-interval", Scope: ISCSINode, Title: "pings to the target, s", At: conf(iscsid, "node.conn[0].timeo.noop_out_interval", "5"),
		Range: Range{Min: 0, Max: 3600}, Severity: Gain, Effect: AfterLogin,
		Advice: []Advice{{How: Exactly, Value: "5", Why: "a dead path is found in seconds; 0 does not look"}},
		Source: openISCSI, Risk: "none", Verify: "noop_out_pdus of iscsiadm -m session -s",
	},
	{
		ID: "iscsi.noop-timeout", Scope: ISCSINode, Title: "wait for a ping's answer, s", At: conf(iscsid, "node.conn[0].timeo.noop_out_timeout", "5"),
		Range: Range{Min: 0, Max: 3600}, Severity: Gain, Effect: AfterLogin,
		Advice: []Advice{{How: Exactly, Value: "5", Why: "long enough for a busy target, short enough for a failover"}},
		Source: openISCSI, Risk: "none", Verify: "pull a path and time the failover",
	},
	{
		ID: "iscsi.cmds-max", Scope: ISCSINode, Title: "commands per session", At: conf(iscsid, "node.session.cmds_max", "128"),
		Range: Range{Min: 2, Max: 2048}, Severity: Gain, Effect: AfterLogin,
		Advice: []Advice{{How: AtLeast, Value: "128", Why: "the session's disks share them"}},
		Source: openISCSI, Risk: "a power of two, and what the target takes", Verify: "aqu-sz of iostat -x",
	},
	{
		ID: "iscsi.queue-depth", Scope: ISCSINode, Title: "commands per disk", At: conf(iscsid, "node.session.queue_depth", "32"),
		Range: Range{Min: 1, Max: 1024}, Severity: Gain, Effect: AfterLogin,
		Advice: []Advice{{How: AtLeast, Value: "32", Why: "fewer leave the array idle between answers"}},
		Source: openISCSI, Risk: "QUEUE FULL where hosts together ask for too much", Verify: "aqu-sz of iostat -x",
	},
	{
		ID: "multipath.path-grouping", Scope: ISCSINode, Title: "grouping of paths", At: conf(multipath, "path_grouping_policy", "group_by_prio"),
		Range: Range{Words: []string{"failover", "multibus", "group_by_serial", "group_by_prio", "group_by_node_name", "group_by_tpg"}}, Severity: Gain, Effect: AfterReload,
		Advice: []Advice{{How: Exactly, Value: "group_by_prio", Why: "ALUA says which paths are near; the far ones stay in reserve"}},
		Source: "multipath.conf(5), vendors' guides", Risk: "the array's own guide has precedence", Verify: "multipath -ll",
	},
	{
		ID: "multipath.path-selector", Scope: ISCSINode, Title: "choice among paths", At: conf(multipath, "path_selector", "service-time 0"),
		Range: Range{Words: []string{"service-time 0", "queue-length 0", "round-robin 0", "historical-service-time 0"}}, Severity: Gain, Effect: AfterReload,
		Advice: []Advice{{How: Exactly, Value: "service-time 0", Why: "the path that will be done first"}},
		Source: "multipath.conf(5)", Risk: "none", Verify: "multipath -ll",
	},
	{
		ID: "multipath.no-path-retry", Scope: ISCSINode, Title: "queueing when no path is left", At: conf(multipath, "no_path_retry", "fail"),
		Range: Range{Min: 1, Max: 1000, Words: []string{"fail", "queue"}}, Severity: Harm, Effect: AfterReload,
		Advice: []Advice{{How: AtMost, Value: "60", Why: "bounded: queueing for ever leaves processes that nothing can end, failing at once breaks guests"}},
		Source: "multipath.conf(5)", Risk: "the array's own guide has precedence", Verify: "a test with all paths down",
	},
	{
		ID: "lio.cmdsn-depth", Scope: ISCSITarget, Title: "commands per session that the target takes",
		At:    Place{Path: "/sys/kernel/config/target/iscsi/*/tpgt_1/attrib/default_cmdsn_depth", Syntax: Number},
		Range: Range{Min: 1, Max: 512}, Severity: Gain, Effect: AfterLogin,
		Advice: []Advice{{How: AtLeast, Value: "64", Why: "an initiator cannot have more under way than this"}},
		Source: "kernel: target/iscsi, targetcli(8)", Risk: "memory per session", Verify: "cmdsn of the session",
	},
	{
		ID: "lio.immediate-data", Scope: ISCSITarget, Title: "data along with the command",
		At:    Place{Path: "/sys/kernel/config/target/iscsi/*/tpgt_1/param/ImmediateData", Syntax: Word},
		Range: Range{Words: []string{"Yes", "No"}}, Severity: Gain, Effect: AfterLogin,
		Advice: []Advice{{How: Exactly, Value: "Yes", Why: "a small write needs no extra round trip"}},
		Source: "RFC 7143, section 13.11", Risk: "none", Verify: "iscsiadm -m session -P 2",
	},
	{
		ID: "lio.max-recv-segment", Scope: ISCSITarget, Title: "largest data segment that the target takes, bytes",
		At:    Place{Path: "/sys/kernel/config/target/iscsi/*/tpgt_1/param/MaxRecvDataSegmentLength", Syntax: Number},
		Range: Range{Min: 512, Max: 1<<24 - 1}, Severity: Gain, Effect: AfterLogin,
		Advice: []Advice{{For: []Class{Throughput, Mixed}, How: AtLeast, Value: "262144", Why: "what open-iscsi offers; smaller ones cut a write into pieces"}},
		Source: "RFC 7143, section 13.12", Risk: "memory per connection", Verify: "iscsiadm -m session -P 2",
	},
}

const cephConf = "/etc/ceph/ceph.conf"

func pool(field string) Place {
	return Place{Command: []string{"ceph", "osd", "pool", "ls", "detail", "--format", "json", "--connect-timeout", "3"}, ObjectKey: "pool_name",
		Syntax: JSONField, Key: field, ReadOnly: true, Set: "ceph osd pool set OBJECT " + field + " VALUE"}
}

var cephKnobs = []Knob{
	{
		ID: "ceph.rbd-cache-policy", Scope: CephClient, Title: "how librbd caches", At: conf(cephConf, "rbd_cache_policy", "writearound"),
		Range: Range{Words: []string{"writearound", "writeback", "writethrough"}}, Severity: Gain, Effect: AfterRestart,
		Advice: []Advice{{How: Exactly, Value: "writearound", Why: "the guest caches already; writes go out at once and in parallel"}},
		Source: "Ceph: rbd-config-ref", Risk: "none: a flush is a flush", Verify: "config show of the client's admin socket",
	},
	{
		ID: "ceph.rbd-writethrough-until-flush", Scope: CephClient, Title: "write-through until the guest flushes", At: conf(cephConf, "rbd_cache_writethrough_until_flush", "true"),
		Range: Range{Words: []string{"true", "false"}}, Severity: Harm, Effect: AfterRestart,
		Advice: []Advice{{How: Exactly, Value: "true", Why: "a guest that never flushes would lose what is cached"}},
		Source: "Ceph: rbd-config-ref", Risk: "none", Verify: "config show of the client's admin socket",
	},
	{
		ID: "ceph.pool-size", Scope: CephPool, Title: "copies", At: pool("size"), Range: Range{Min: 1, Max: 10}, Severity: Harm, Effect: AtOnce,
		Advice: []Advice{{How: AtLeast, Value: "3", Why: "with two a single failure leaves one copy, and any error in it is a loss"}},
		Source: "Ceph: pools", Risk: "space; data moves for a while", Verify: "ceph osd pool get OBJECT size",
	},
	{
		ID: "ceph.pool-min-size", Scope: CephPool, Title: "copies that must be there to write", At: pool("min_size"), Range: Range{Min: 1, Max: 10}, Severity: Harm, Effect: AtOnce,
		Advice: []Advice{{How: AtLeast, Value: "2", Why: "with 1 an acknowledged write can be on a single disk"}},
		Source: "Ceph: pools", Risk: "I/O stops while only one copy is there", Verify: "ceph osd pool get OBJECT min_size",
	},
	{
		ID: "ceph.pool-autoscale", Scope: CephPool, Title: "placement groups that follow the data", At: pool("pg_autoscale_mode"),
		Range: Range{Words: []string{"on", "warn", "off"}}, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{How: Exactly, Value: "on", Why: "too few are hot spots, too many are memory"}},
		Source: "Ceph: placement-groups", Risk: "data moves while it adapts", Verify: "ceph osd pool autoscale-status",
	},
}

func volume(key, def string) Place {
	return Place{Path: "/var/lib/glusterd/vols/*/info", Syntax: Setting, Key: key, Default: def, ReadOnly: true, Set: "gluster volume set OBJECT " + key + " VALUE"}
}

const groupVirt = "GlusterFS: group virt; oVirt"

// forGuests is a knob of Gluster's group virt: what it sets for volumes with
// guests' disks.
func forGuests(id, key, def, want, title, why string, words ...string) Knob {
	return Knob{ID: "gluster." + id, Scope: GlusterVolume, Title: title, At: volume(key, def), Range: Range{Words: words}, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Latency, Throughput, Mixed}, How: Exactly, Value: want, Why: why}},
		Source: groupVirt, Risk: "for volumes with guests' disks, not for trees of files", Verify: "gluster volume get OBJECT " + key}
}

var glusterKnobs = []Knob{
	forGuests("quick-read", "performance.quick-read", "on", "off", "small files in memory", "a cache beside the guest's own, for files that disks are not", "on", "off"),
	forGuests("read-ahead", "performance.read-ahead", "off", "off", "reading ahead", "the guest reads ahead", "on", "off"),
	forGuests("io-cache", "performance.io-cache", "off", "off", "cache of the client", "the guest caches", "on", "off"),
	forGuests("eager-lock", "cluster.eager-lock", "enable", "enable", "locks kept between writes", "one lock for a run of writes", "enable", "disable", "on", "off"),
	forGuests("strict-o-direct", "performance.strict-o-direct", "off", "on", "honouring of O_DIRECT", "cache=none reaches the bricks, also through the caches", "on", "off"),
	forGuests("remote-dio", "network.remote-dio", "disable", "off", "dropping of O_DIRECT at the client", "with strict-o-direct, which it would undo", "enable", "disable", "on", "off"),
	forGuests("shard", "features.shard", "off", "on", "disks in pieces", "healing repairs pieces, not disks; never changed on a volume with data", "on", "off"),
	forGuests("shard-block-size", "features.shard-block-size", "64MB", "64MB", "size of the pieces", "as group virt; never changed on a volume with data", "4MB", "16MB", "32MB", "64MB", "128MB", "256MB", "512MB"),
	{
		ID: "gluster.quorum-type", Scope: GlusterVolume, Title: "writing without a majority of copies", At: volume("cluster.quorum-type", "auto"),
		Range: Range{Words: []string{"auto", "fixed", "none"}}, Severity: Harm, Effect: AtOnce,
		Advice: []Advice{{How: Exactly, Value: "auto", Why: "without it both halves of a split write"}}, Source: groupVirt, Risk: "reads only, while a majority is away", Verify: "gluster volume get OBJECT cluster.quorum-type",
	},
	{
		ID: "gluster.server-quorum-type", Scope: GlusterVolume, Title: "bricks without a majority of servers", At: volume("cluster.server-quorum-type", "off"),
		Range: Range{Words: []string{"server", "none", "off"}}, Severity: Harm, Effect: AtOnce,
		Advice: []Advice{{How: Exactly, Value: "server", Why: "a server that is cut off stops its bricks"}}, Source: groupVirt, Risk: "bricks stop while a majority is away", Verify: "gluster volume get OBJECT cluster.server-quorum-type",
	},
	{
		ID: "gluster.ping-timeout", Scope: GlusterVolume, Title: "silence until a brick is given up, s", At: volume("network.ping-timeout", "42"),
		Range: Range{Min: 5, Max: 300}, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Latency, Throughput, Mixed}, How: Exactly, Value: "30", Why: "short enough for guests' disks to survive, long enough not to flap"}},
		Source: "oVirt", Risk: "too short: every busy moment is a failure, followed by healing", Verify: "gluster volume get OBJECT network.ping-timeout",
	},
}
