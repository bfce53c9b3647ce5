package tuning

// notDisks are block devices that have no queue worth tuning.
var notDisks = []string{"loop", "ram", "zram", "sr", "fd", "dm-", "md", "drbd"}

func queue(file string, s Syntax) Place {
	return Place{Path: "/sys/block/*/queue/" + file, Syntax: s, Skip: notDisks}
}

var (
	flash    = Cond{Path: "/sys/block/*/queue/rotational", Is: "0"}
	spinning = Cond{Path: "/sys/block/*/queue/rotational", Is: "1"}
)

var blockKnobs = []Knob{
	{
		ID: "block.scheduler", Scope: BlockDevice, Title: "order of requests", At: queue("scheduler", Choice), Disturbs: []string{"block.nr-requests", "block.wbt"},
		Range: Range{Words: []string{"none", "mq-deadline", "kyber", "bfq"}}, Keep: KeepUdev, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{
			{For: []Class{InGuest}, How: Exactly, Value: "none", Why: "the host orders requests; a second time costs and gains nothing"},
			{If: []Cond{flash}, How: Exactly, Value: "none", Why: "flash has no head to move; ordering only costs"},
			{If: []Cond{spinning}, How: Exactly, Value: "mq-deadline", Why: "long seeks are avoided, and no request starves"},
		},
		Source: "RHEL 8 and 9: setting the disk scheduler", Risk: "the queue is drained for a moment; nr_requests is set anew", Verify: "/sys/block/*/queue/scheduler",
	},
	{
		ID: "block.read-ahead", Scope: BlockDevice, Title: "reading ahead, KiB", At: queue("read_ahead_kb", Number),
		Range: Range{Min: 0, Max: 1 << 20}, Keep: KeepUdev, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Throughput}, How: AtLeast, Value: "4096", Why: "one program that reads in sequence keeps the disk busy"}},
		Why:    "how far the kernel reads ahead of one that reads in sequence", Source: tunedThru, Risk: "mapped files that are read at random read too much", Verify: "a sequential against a random fio",
	},
	{
		ID: "block.nr-requests", Scope: BlockDevice, Title: "requests in a queue", At: queue("nr_requests", Number),
		Range: Range{Min: 4, Max: 65536}, Keep: KeepUdev, Severity: Note, Effect: AtOnce,
		Advice: []Advice{{How: Leave, Why: "longer queues trade latency for throughput; give a value to the plan and measure"}},
		Source: sourceBlk, Risk: "latency", Verify: "aqu-sz of iostat -x",
	},
	{
		ID: "block.nomerges", Scope: BlockDevice, Title: "merging of requests: 0 all, 1 simple ones, 2 none", At: queue("nomerges", Number),
		Range: Range{Min: 0, Max: 2}, Keep: KeepUdev, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Throughput, Mixed, SharedFiles, InGuest}, How: Exactly, Value: "0", Why: "neighbouring requests become one"}},
		Source: sourceBlk, Risk: "some processor time per request", Verify: "wrqm/s of iostat -x",
	},
	{
		ID: "block.rq-affinity", Scope: BlockDevice, Title: "processor that completes a request", At: queue("rq_affinity", Number),
		Range: Range{Min: 0, Max: 2}, Keep: KeepUdev, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{
			{For: []Class{Latency}, If: []Cond{flash}, How: Exactly, Value: "2", Why: "the processor that asked has the data's structures in its cache"},
			{How: AtLeast, Value: "1"},
		},
		Why: "completion near the processor that asked", Source: sourceBlk, Risk: "one busy processor completes all it asked for", Verify: "softirqs of /proc/softirqs",
	},
	{
		ID: "block.add-random", Scope: BlockDevice, Title: "entropy from the disk's timing", At: queue("add_random", Number),
		Range: Range{Min: 0, Max: 1}, Keep: KeepUdev, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{If: []Cond{flash}, How: Exactly, Value: "0", Why: "a lock and no entropy: nothing turns"}},
		Source: "RHEL: block device tunables", Risk: "none where there is a random number generator", Verify: "IOPS of small random reads",
	},
	{
		ID: "block.max-sectors-kb", Scope: BlockDevice, Title: "largest request, KiB", At: Place{Path: "/sys/block/*/queue/max_sectors_kb", Syntax: Number, Skip: notDisks, Limit: "/sys/block/*/queue/max_hw_sectors_kb"},
		Range: Range{Min: 4, Max: 1<<31 - 1}, Keep: KeepUdev, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Throughput, Mixed, SharedFiles, InGuest}, How: AtLeast, Value: "1280", Why: "large reads and writes go out in few requests; the kernel's own default"}},
		Source: sourceBlk, Risk: "small requests wait longer behind a large one", Verify: "rareq-sz and wareq-sz of iostat -x",
	},
	{
		ID: "block.wbt", Scope: BlockDevice, Title: "latency that writing out may cause, µs", At: queue("wbt_lat_usec", Number),
		Range: Range{Min: -1, Max: 1 << 30}, Severity: Note, Effect: AtOnce, Keep: KeepUdev,
		Advice: []Advice{{How: Leave, Why: "2 ms for flash and 75 ms for spinning disks are set by the kernel"}},
		Source: sourceBlk, Risk: "0 lets writing out starve reads", Verify: "read latency while a large file is written",
	},
	{
		ID: "block.iostats", Scope: BlockDevice, Title: "statistics per disk", At: queue("iostats", Number),
		Range: Range{Min: 0, Max: 1}, Severity: Note, Effect: AtOnce, Keep: KeepUdev,
		Advice: []Advice{{How: Exactly, Value: "1", Why: "what cannot be seen cannot be tuned; the cost is below what can be measured"}},
		Source: sourceBlk, Risk: "none", Verify: "/proc/diskstats",
	},
	{
		ID: "block.queue-depth", Scope: BlockDevice, Title: "commands that a SCSI disk has at a time", At: Place{Path: "/sys/block/*/device/queue_depth", Syntax: Number, Skip: notDisks},
		Range: Range{Min: 1, Max: 4096}, Keep: KeepUdev, Severity: Note, Effect: AtOnce,
		Advice: []Advice{{How: Leave, Why: "32 for iSCSI; the array's limit divided by its hosts decides"}},
		Source: "kernel: scsi/scsi_mid_low_api, open-iscsi", Risk: "QUEUE FULL where hosts together ask for too much", Verify: "aqu-sz of iostat -x",
	},
	{
		ID: "block.scsi-timeout", Scope: BlockDevice, Title: "time for a SCSI command, s", At: Place{Path: "/sys/block/*/device/timeout", Syntax: Number, Skip: notDisks},
		Range: Range{Min: 1, Max: 3600}, Keep: KeepUdev, Severity: Harm, Effect: AtOnce,
		Advice: []Advice{{How: AtLeast, Value: "30", Why: "shorter than the path's own recovery it turns a pause into an error"}},
		Source: "RHEL: storage timeouts", Risk: "a dead disk is noticed later", Verify: "/sys/block/*/device/timeout",
	},
}
