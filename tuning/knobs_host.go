package tuning

const (
	sourceVM   = "kernel: admin-guide/sysctl/vm.rst"
	sourceTHP  = "kernel: admin-guide/mm/transhuge.rst"
	sourceNet  = "kernel: admin-guide/sysctl/net.rst"
	sourceIP   = "kernel: networking/ip-sysctl.rst"
	sourceBlk  = "kernel: block/queue-sysfs (ABI/stable/sysfs-block)"
	sourceNFS  = "nfs(5)"
	tunedLat   = "tuned: latency-performance"
	tunedThru  = "tuned: throughput-performance"
	tunedHost  = "tuned: virtual-host"
	tunedGuest = "tuned: virtual-guest"
	tunedNet   = "tuned: network-throughput"
	tunedNetL  = "tuned: network-latency"
)

func sysctl(name string, s Syntax) Place { return Place{Path: "/proc/sys/" + name, Syntax: s} }

// Where dirty memory is limited in bytes, the ratios read 0, and writing one
// would take the administrator's limit away for good.
var (
	ratioRules      = Cond{Path: "/proc/sys/vm/dirty_bytes", Is: "0"}
	backgroundRules = Cond{Path: "/proc/sys/vm/dirty_background_bytes", Is: "0"}
)

var hostKnobs = []Knob{
	{
		ID: "vm.dirty-ratio", Scope: Host, Title: "dirty memory at which writers wait, percent", At: sysctl("vm/dirty_ratio", Number),
		Range: Range{Min: 0, Max: 100}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{
			{For: []Class{Latency}, If: []Cond{ratioRules}, How: Exactly, Value: "10", Why: "a short backlog of writes keeps an fsync from waiting behind it"},
			{For: []Class{InGuest}, If: []Cond{ratioRules}, How: Exactly, Value: "30", Why: "a guest absorbs bursts, without filling its memory with what the host must write"},
			{For: []Class{Throughput}, If: []Cond{ratioRules}, How: Exactly, Value: "40", Why: "bursts are absorbed, and written out as long sequential runs"},
		},
		Why: "how much unwritten data may pile up before programs are made to wait", Source: tunedThru + ", " + tunedLat + ", " + tunedGuest,
		Risk: "more memory is lost with a power failure for programs that do not sync", Verify: "pressure in /proc/pressure/io while a large file is written",
	},
	{
		ID: "vm.dirty-background-ratio", Scope: Host, Title: "dirty memory at which writing out begins, percent", At: sysctl("vm/dirty_background_ratio", Number),
		Range: Range{Min: 0, Max: 100}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{
			{For: []Class{Latency}, If: []Cond{backgroundRules}, How: Exactly, Value: "3", Why: "writing out early keeps bursts short"},
			{For: []Class{Mixed}, If: []Cond{backgroundRules}, How: Exactly, Value: "5", Why: "one guest's burst does not become all guests' stall"},
			{For: []Class{Throughput}, If: []Cond{backgroundRules}, How: Exactly, Value: "10"},
		},
		Why: "when the kernel begins to write out by itself", Source: tunedHost + ", " + tunedLat, Risk: "earlier writing merges less",
		Verify: "Dirty and Writeback in /proc/meminfo",
	},
	{
		ID: "vm.swappiness", Scope: Host, Title: "readiness to swap programs rather than drop cached files", At: sysctl("vm/swappiness", Number),
		Range: Range{Min: 0, Max: 200}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{
			{For: []Class{InGuest}, How: AtMost, Value: "30", Why: "a guest's swap is slow storage twice over"},
			{For: []Class{Latency, Throughput, Mixed}, How: Exactly, Value: "10", Why: "guests' memory stays; 0 would risk the out-of-memory killer instead"},
		},
		Why: "what is taken back first when memory is short", Source: tunedHost + ", " + tunedGuest, Risk: "fewer cached files under memory pressure", Verify: "si and so of vmstat",
	},
	{
		ID: "vm.zone-reclaim-mode", Scope: Host, Title: "reclaim of a NUMA node's memory before using another's", At: sysctl("vm/zone_reclaim_mode", Number),
		Range: Range{Min: 0, Max: 7}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{How: Exactly, Value: "0", Why: "reclaiming cached files costs more than memory of the other node"}},
		Source: sourceVM, Risk: "remote memory is a little slower", Verify: "numastat",
	},
	{
		ID: "vm.vfs-cache-pressure", Scope: Host, Title: "readiness to drop cached names and inodes", At: sysctl("vm/vfs_cache_pressure", Number),
		Range: Range{Min: 1, Max: 1000}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{SharedFiles}, How: AtMost, Value: "100", Why: "trees of files live on cached inodes"}},
		Why:    "balance between cached names and cached data", Source: sourceVM, Risk: "0 ends in the out-of-memory killer; it is not accepted here", Verify: "dentry and inode rows of /proc/slabinfo",
	},
	{
		ID: "vm.nr-hugepages", Scope: Host, Title: "static huge pages", At: sysctl("vm/nr_hugepages", Number),
		Range: Range{Min: 0, Max: 1 << 24}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{How: Leave, Why: "the sum of the guests' memory decides; give a value to the plan"}},
		Why:    "guests on huge pages miss the TLB less", Source: "libvirt: memoryBacking, tuned", Risk: "memory that nothing else can use", Verify: "HugePages_Total in /proc/meminfo",
	},
	{
		ID: "vm.max-map-count", Scope: Host, Title: "mappings per process", At: sysctl("vm/max_map_count", Number),
		Range: Range{Min: 65530, Max: 1<<31 - 1}, Keep: KeepSysctl, Severity: Note, Effect: AtOnce,
		Advice: []Advice{{How: Leave, Why: "a limit; raising it makes nothing faster"}},
		Source: sourceVM, Risk: "none", Verify: "no ENOMEM from mmap with memory left",
	},
	{
		ID: "kernel.numa-balancing", Scope: Host, Title: "automatic moving of memory between NUMA nodes", At: sysctl("kernel/numa_balancing", Number),
		Range: Range{Min: 0, Max: 3}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Latency}, How: Exactly, Value: "0", Why: "its sampling faults are latency; pin guests instead"}},
		Source: tunedNetL, Risk: "unpinned guests stay where memory is far", Verify: "numa_hint_faults in /proc/vmstat stands still",
	},
	{
		ID: "thp.enabled", Scope: Host, Title: "transparent huge pages", At: Place{Path: "/sys/kernel/mm/transparent_hugepage/enabled", Syntax: Choice},
		Range: Range{Words: []string{"always", "madvise", "never"}}, Keep: KeepTmpfiles, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{
			{For: []Class{Latency}, How: Exactly, Value: "madvise", Why: "QEMU asks for them for guests' memory, databases are spared the compaction"},
			{For: []Class{Throughput, Mixed}, How: Exactly, Value: "always", Why: "guests' memory needs fewer TLB entries"},
		},
		Source: sourceTHP + ", " + tunedThru, Risk: "always can stall on compaction and use more memory", Verify: "AnonHugePages in /proc/meminfo",
	},
	{
		ID: "thp.defrag", Scope: Host, Title: "waiting for huge pages", At: Place{Path: "/sys/kernel/mm/transparent_hugepage/defrag", Syntax: Choice},
		Range: Range{Words: []string{"always", "defer", "defer+madvise", "madvise", "never"}}, Keep: KeepTmpfiles, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Latency, Mixed, InGuest}, How: Exactly, Value: "madvise", Why: "a page fault does not wait for memory to be compacted unless it asked"}},
		Source: sourceTHP, Risk: "huge pages come later, from khugepaged", Verify: "compact_stall in /proc/vmstat",
	},
	{
		ID: "ksm.run", Scope: Host, Title: "merging of equal memory pages", At: Place{Path: "/sys/kernel/mm/ksm/run", Syntax: Number},
		Range: Range{Min: 0, Max: 2}, Keep: KeepTmpfiles, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Latency, Throughput}, How: Exactly, Value: "0", Why: "scanning costs processor time, and unmerging a page costs a fault in the guest"}},
		Why:    "saves memory where many guests are alike", Source: "kernel: admin-guide/mm/ksm.rst", Risk: "0 keeps merged pages merged, but memory use grows as they are written", Verify: "/sys/kernel/mm/ksm/pages_sharing",
	},
	{
		ID: "cpu.governor", Scope: Host, Title: "frequency governor", At: Place{Path: "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor", Syntax: Word},
		Range: Range{Words: []string{"performance", "powersave", "schedutil", "ondemand", "conservative", "userspace"}}, Keep: KeepTmpfiles, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Latency, Throughput, Mixed}, How: Exactly, Value: "performance", Why: "short bursts end before another governor has noticed them"}},
		Source: tunedThru, Risk: "power and heat", Verify: "scaling_cur_freq under load",
	},
	{
		ID: "cpu.resume-latency", Scope: Host, Title: "longest wake-up from idle, µs; 0 is any", At: Place{Path: "/sys/devices/system/cpu/cpu*/power/pm_qos_resume_latency_us", Syntax: Word},
		Range: Range{Min: 0, Max: 1000000, Words: []string{"n/a"}}, Keep: KeepTmpfiles, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Latency}, If: []Cond{{Path: "/sys/devices/system/cpu/cpu*/cpuidle/state2/name"}}, How: Exactly, Value: "3", Why: "idle states deeper than C1 wake up later than a fast disk answers"}},
		Source: tunedLat + " (force_latency)", Risk: "power and heat; less turbo for other cores", Verify: "usage of the states below cpuidle",
	},
	{
		ID: "fs.aio-max-nr", Scope: Host, Title: "asynchronous requests of all programs", At: sysctl("fs/aio-max-nr", Number),
		Range: Range{Min: 65536, Max: 1 << 40}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Latency, Throughput, Mixed}, How: AtLeast, Value: "1048576", Why: "guests with io=native take from it; when it is used up the next guest does not start"}},
		Source: "kernel: admin-guide/sysctl/fs.rst, io_setup(2)", Risk: "kernel memory, only where used", Verify: "/proc/sys/fs/aio-nr stays below",
	},
	{
		ID: "kvm.halt-poll-ns", Scope: Host, Title: "polling before a guest's processor sleeps, ns", At: Place{Path: "/sys/module/kvm/parameters/halt_poll_ns", Syntax: Number},
		Range: Range{Min: 0, Max: 1000000}, Keep: KeepTmpfiles, Severity: Note, Effect: AtOnce,
		Advice: []Advice{{How: Leave, Why: "it adapts by itself; 0 only where processors are pinned and guests poll themselves"}},
		Source: "kernel: virt/kvm/halt-polling.rst", Risk: "processor time of idle guests", Verify: "halt_successful_poll of kvm_stat",
	},
}
