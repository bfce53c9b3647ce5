package tuning

// element is a knob of a domain's definition, which tuning/domain judges.
func element(id, path, title, why, source, risk, verify string, r Range, s Severity, advice ...Advice) Knob {
	return Knob{ID: "guest." + id, Scope: GuestXML, Title: title, At: Place{Syntax: XMLPath, Key: path, ReadOnly: true, Set: "virsh edit OBJECT"},
		Range: r, Advice: advice, Why: why, Source: source, Risk: risk, Verify: verify, Severity: s, Effect: AfterRestart}
}

func words(w ...string) Range { return Range{Words: w} }

const cacheGuide = "RHEL: virtual disk caching; qemu(1)"

var guestKnobs = []Knob{
	element("disk-cache", "devices/disk/driver/@cache", "the host's cache for a disk", "the guest caches already; the host's second copy is memory and time, and hides no flush",
		cacheGuide, "needs O_DIRECT of the file system below", "query-block", words("none", "writeback", "writethrough", "directsync", "unsafe", "default"), Gain,
		Advice{How: Exactly, Value: "none"}),
	element("disk-io", "devices/disk/driver/@io", "how QEMU submits requests", "kernel AIO past the cache: no thread per request",
		cacheGuide+"; Proxmox bug 4525", "native needs cache none or directsync", "query-block", words("native", "threads", "io_uring"), Gain,
		Advice{For: []Class{Latency, Throughput, Mixed}, How: Exactly, Value: "native"}),
	element("disk-iothread", "devices/disk/driver/@iothread", "thread that serves a disk", "requests do not wait for QEMU's main loop",
		"Red Hat: iothread virtqueue mapping", "a thread per busy disk", "QOM: iothread of the device", Range{Min: 1, Max: 64}, Gain,
		Advice{For: []Class{Latency, Throughput}, How: AtLeast, Value: "1"}, Advice{For: []Class{Mixed}, How: AtLeast, Value: "1"}),
	element("iothreads", "iothreads", "threads for disks", "latency: one per disk; mixed: one for all of a guest's disks", "libvirt: IOThreads allocation", "processor time", "virsh iothreadinfo",
		Range{Min: 1, Max: 64}, Gain, Advice{How: AtLeast, Value: "1"}),
	element("disk-queues", "devices/disk/driver/@queues", "queues of a disk", "a queue per processor, so that processors do not share one; never more than there are processors",
		"qemu: virtio-blk num-queues", "memory and interrupts", "/sys/block/*/mq in the guest", Range{Min: 1, Max: 256}, Gain, Advice{For: []Class{Latency, Throughput}, How: AtLeast, Value: "1"}),
	element("disk-discard", "devices/disk/driver/@discard", "giving freed blocks back", "freed space of a thin disk comes back, and a migration skips it",
		"libvirt: disk driver", "the storage must be thin to gain", "fstrim, then the allocation", words("unmap", "ignore"), Gain,
		Advice{For: []Class{Mixed, Throughput, SharedFiles, InGuest}, How: Exactly, Value: "unmap"}),
	element("disk-detect-zeroes", "devices/disk/driver/@detect_zeroes", "zeros become holes", "zeros take no space; for latency the look at every write costs more",
		"libvirt: disk driver", "processor time per write", "allocation after writing zeros", words("off", "on", "unmap"), Gain,
		Advice{For: []Class{Mixed}, How: Exactly, Value: "unmap"}, Advice{For: []Class{Latency}, How: Exactly, Value: "off"}),
	element("disk-bus", "devices/disk/target/@bus", "the disk's controller", "an emulated controller exits to QEMU for every register",
		"libvirt: target", "the guest needs the driver, and finds the disk under another name", "lspci in the guest", words("virtio", "scsi", "sata", "ide", "usb"), Gain,
		Advice{How: OneOf, Value: "virtio scsi"}),
	element("nic-model", "devices/interface/model/@type", "network card", "virtio has queues and offloads; e1000 and rtl8139 are old chips, register by register",
		"libvirt: interface model", "the guest needs the driver", "ethtool -i in the guest", words("virtio", "virtio-transitional", "virtio-non-transitional", "e1000", "e1000e", "rtl8139"), Gain,
		Advice{How: OneOf, Value: "virtio virtio-transitional virtio-non-transitional"}),
	element("nic-queues", "devices/interface/driver/@queues", "queues of a network card", "one queue is one processor", "libvirt: interface driver", "needs vhost, and memory", "ethtool -l in the guest",
		Range{Min: 1, Max: 256}, Gain, Advice{For: []Class{Throughput, Latency}, How: AtLeast, Value: "1"}),
	element("hugepages", "memoryBacking/hugepages", "memory on huge pages", "fewer TLB misses, and memory that is there", "libvirt: memoryBacking", "the host must have them free", "HugePages_Free on the host",
		words("yes", "no"), Gain, Advice{For: []Class{Latency}, How: Exactly, Value: "yes"}),
	element("numa", "numatune/memory/@nodeset", "memory of one NUMA node", "memory, processors and the disk's thread on the node of the device", "libvirt: numatune; tuned", "the node must have room", "numastat -p",
		Range{Min: 0, Max: 1023}, Gain, Advice{For: []Class{Latency}, How: Leave, Why: "which node, the host's topology says"}),
	element("shared-memory", "memoryBacking/access/@mode", "memory that others may map", "virtiofs and vhost-user read requests straight from the guest's memory", "libvirt: virtiofs", "none known", "virsh dumpxml",
		words("shared", "private"), Harm, Advice{How: Exactly, Value: "shared"}),
	element("balloon", "devices/memballoon/@model", "balloon", "free pages are reported, and a migration skips them", "libvirt: memballoon", "none", "virsh dommemstat", words("virtio", "none"), Note,
		Advice{How: Leave}),
}

func parameter(id, title, why, risk string, r Range) Knob {
	return Knob{ID: "migration." + id, Scope: Migration, Title: title, At: Place{Syntax: Parameter, Key: id, ReadOnly: true, Set: "virDomainMigrate3: VALUE"},
		Range: r, Advice: []Advice{{How: Leave, Why: "chosen from measured rates; see AdviseMigration"}}, Why: why, Source: "QEMU: migration", Risk: risk,
		Verify: "virsh domjobinfo", Severity: Note, Effect: NextMove}
}

var migrationKnobs = []Knob{
	parameter("downtime-ms", "pause that is allowed, ms", "pre-copy ends when what is left fits into it", "the guest's clients notice", Range{Min: 1, Max: 2000000}),
	parameter("bandwidth-mib", "bandwidth, MiB/s", "leave some for the guests", "too little never converges", Range{Min: 1, Max: 1 << 40}),
	parameter("multifd-channels", "connections", "one connection is one processor", "processor time of both hosts", Range{Min: 1, Max: 255}),
	parameter("compression", "compression", "a slow link and a spare processor", "processor time; slower on a fast link", words("none", "zlib", "zstd")),
	parameter("zstd-level", "level of zstd", "1 keeps up with a link, more seldom does", "processor time", Range{Min: 1, Max: 20}),
	parameter("auto-converge", "slowing of the guest's processors", "ends a pre-copy that would not", "the guest becomes slow", words("on", "off")),
	parameter("post-copy", "running at the destination before all memory is there", "ends every move in bounded time", "a broken link after the switch costs the guest", words("on", "off")),
	parameter("dirty-limit", "slowing of those processors only that write", "readers go on at full speed; QEMU 8.1 and a dirty ring", "writers become slow", words("on", "off")),
}
