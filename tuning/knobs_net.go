package tuning

// fastLink: buffers beyond the kernel's own maxima pay from 40 Gbit/s on.
var fastLink = Cond{Path: "/sys/class/net/*/speed", Any: true, Min: 40000}

var networkKnobs = []Knob{
	{
		ID: "net.rmem-max", Scope: Host, Title: "largest receive buffer that programs may ask for, bytes", At: sysctl("net/core/rmem_max", Number),
		Range: Range{Min: 2304, Max: 1<<31 - 1}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Throughput, SharedFiles}, If: []Cond{fastLink}, How: AtLeast, Value: "16777216", Why: "a link of 40 Gbit/s holds more than the default window"}},
		Source: tunedNet, Risk: "memory per connection; more queueing on slow paths", Verify: "rcv_space of ss -ti",
	},
	{
		ID: "net.wmem-max", Scope: Host, Title: "largest send buffer that programs may ask for, bytes", At: sysctl("net/core/wmem_max", Number),
		Range: Range{Min: 4608, Max: 1<<31 - 1}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Throughput, SharedFiles}, If: []Cond{fastLink}, How: AtLeast, Value: "16777216", Why: "a link of 40 Gbit/s holds more than the default window"}},
		Source: tunedNet, Risk: "memory per connection", Verify: "skmem of ss -tim",
	},
	{
		ID: "net.tcp-rmem", Scope: Host, Title: "receive buffer of TCP: least, first, most, bytes", At: sysctl("net/ipv4/tcp_rmem", Numbers),
		Range: Range{Min: 4096, Max: 1<<31 - 1, Count: 3}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Throughput}, If: []Cond{fastLink}, How: Exactly, Value: "4096 131072 16777216", Why: "the window may grow to what 40 Gbit/s hold; its beginning stays as it is"}},
		Source: tunedNet, Risk: "memory; below 40 Gbit/s it only lengthens queues", Verify: "rcv_space of ss -ti",
	},
	{
		ID: "net.tcp-wmem", Scope: Host, Title: "send buffer of TCP: least, first, most, bytes", At: sysctl("net/ipv4/tcp_wmem", Numbers),
		Range: Range{Min: 4096, Max: 1<<31 - 1, Count: 3}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Throughput}, If: []Cond{fastLink}, How: Exactly, Value: "4096 16384 16777216", Why: "the window may grow to what 40 Gbit/s hold; its beginning stays as it is"}},
		Source: tunedNet, Risk: "memory; below 40 Gbit/s it only lengthens queues", Verify: "cwnd of ss -ti",
	},
	{
		ID: "net.tcp-window-scaling", Scope: Host, Title: "windows over 64 KiB", At: sysctl("net/ipv4/tcp_window_scaling", Number),
		Range: Range{Min: 0, Max: 1}, Keep: KeepSysctl, Severity: Harm, Effect: AtOnce,
		Advice: []Advice{{How: Exactly, Value: "1", Why: "without scaling a connection carries 64 KiB per round trip at most"}},
		Source: sourceIP, Risk: "none", Verify: "wscale of ss -ti, for new connections",
	},
	{
		ID: "net.tcp-timestamps", Scope: Host, Title: "timestamps of TCP", At: sysctl("net/ipv4/tcp_timestamps", Number),
		Range: Range{Min: 0, Max: 2}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{How: AtLeast, Value: "1", Why: "they protect fast connections from old sequence numbers, and measure round trips"}},
		Source: sourceIP, Risk: "none", Verify: "ts of ss -ti, for new connections",
	},
	{
		ID: "net.tcp-sack", Scope: Host, Title: "selective acknowledgements", At: sysctl("net/ipv4/tcp_sack", Number),
		Range: Range{Min: 0, Max: 1}, Keep: KeepSysctl, Severity: Harm, Effect: AtOnce,
		Advice: []Advice{{How: Exactly, Value: "1", Why: "without it one lost packet costs a round trip for each that follows"}},
		Source: sourceIP, Risk: "none", Verify: "sack of ss -ti, for new connections",
	},
	{
		ID: "net.tcp-moderate-rcvbuf", Scope: Host, Title: "receive buffers that grow by themselves", At: sysctl("net/ipv4/tcp_moderate_rcvbuf", Number),
		Range: Range{Min: 0, Max: 1}, Keep: KeepSysctl, Severity: Harm, Effect: AtOnce,
		Advice: []Advice{{How: Exactly, Value: "1", Why: "without it every connection keeps its first, small window"}},
		Source: sourceIP, Risk: "none", Verify: "rcv_space of ss -ti grows",
	},
	{
		ID: "net.tcp-slow-start-after-idle", Scope: Host, Title: "slow start after a pause", At: sysctl("net/ipv4/tcp_slow_start_after_idle", Number),
		Range: Range{Min: 0, Max: 1}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Throughput, SharedFiles}, How: Exactly, Value: "0", Why: "storage and migration pause between bursts on one connection, on a network of one's own"}},
		Source: sourceIP, Risk: "bursts into a path that has become narrow meanwhile", Verify: "cwnd of ss -ti after a pause",
	},
	{
		ID: "net.tcp-congestion-control", Scope: Host, Title: "congestion control of TCP", At: sysctl("net/ipv4/tcp_congestion_control", Word),
		Keep: KeepSysctl, Severity: Note, Effect: AtOnce,
		Advice: []Advice{{How: Leave, Why: "bbr pays on lossy or long paths; give it to the plan and measure"}},
		Source: sourceIP, Risk: "unfair to other connections on a shared path", Verify: "ss -ti",
	},
	{
		ID: "net.default-qdisc", Scope: Host, Title: "queue of new network devices", At: sysctl("net/core/default_qdisc", Word),
		Keep: KeepSysctl, Severity: Note, Effect: AtOnce,
		Advice: []Advice{{How: Leave, Why: "fq serves bbr; fq_codel is right for the rest"}},
		Source: sourceNet, Risk: "only devices that come later take it", Verify: "tc qdisc",
	},
	{
		ID: "net.somaxconn", Scope: Host, Title: "connections that wait to be accepted", At: sysctl("net/core/somaxconn", Number),
		Range: Range{Min: 1, Max: 1<<31 - 1}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{SharedFiles, Mixed}, How: AtLeast, Value: "4096", Why: "many clients that come back at once are not turned away; the kernel's default since 5.4"}},
		Source: sourceIP, Risk: "none", Verify: "ListenOverflows of nstat",
	},
	{
		ID: "net.busy-read", Scope: Host, Title: "polling of a socket that is read, µs", At: sysctl("net/core/busy_read", Number),
		Range: Range{Min: 0, Max: 1000}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Latency}, How: AtLeast, Value: "50", Why: "saves an interrupt and a wake-up per message"}},
		Source: tunedNetL, Risk: "processor time", Verify: "BusyPollRxPackets of nstat",
	},
	{
		ID: "net.busy-poll", Scope: Host, Title: "polling of sockets in poll and select, µs", At: sysctl("net/core/busy_poll", Number),
		Range: Range{Min: 0, Max: 1000}, Keep: KeepSysctl, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Latency}, How: AtLeast, Value: "50", Why: "saves an interrupt and a wake-up per message"}},
		Source: tunedNetL, Risk: "processor time", Verify: "BusyPollRxPackets of nstat",
	},
	{
		ID: "net.bridge-nf-call-iptables", Scope: Host, Title: "firewall rules for bridged guests", At: sysctl("net/bridge/bridge-nf-call-iptables", Number),
		Range: Range{Min: 0, Max: 1}, Keep: KeepSysctl, Severity: Note, Effect: AtOnce,
		Advice: []Advice{{How: Leave, Why: "0 spares guests' packets the host's rules; container networks need 1"}},
		Source: "libvirt: firewall and bridges", Risk: "rules that somebody counts on stop to apply", Verify: "counters of the rules",
	},
}

// aCard: a device of its own, not a bridge or a tap.
const aCard = "/sys/class/net/*/device/uevent"

var nicKnobs = []Knob{
	{
		ID: "nic.tx-queue-len", Scope: NIC, Title: "packets that wait to be sent", At: Place{Path: "/sys/class/net/*/tx_queue_len", Syntax: Number, Needs: aCard},
		Range: Range{Min: 0, Max: 1 << 20}, Keep: KeepUdev, Severity: Gain, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Throughput, SharedFiles}, How: AtLeast, Value: "1000", Why: "bursts are queued rather than dropped"}},
		Source: "ip-link(8)", Risk: "queueing delay without fair queueing", Verify: "dropped of tc -s qdisc",
	},
	{
		ID: "nic.mtu", Scope: NIC, Title: "largest packet, bytes", At: Place{Path: "/sys/class/net/*/mtu", Syntax: Number, Needs: aCard},
		Range: Range{Min: 68, Max: 65535}, Keep: KeepUdev, Severity: Note, Effect: AtOnce,
		Advice: []Advice{{How: Leave, Why: "jumbo frames only after ping -M do -s 8972 passes end to end"}},
		Source: "ping(8), RFC 4821", Risk: "connections that hang as soon as data flows", Verify: "ping -M do -s (MTU - 28)",
	},
	{
		ID: "nic.gro-flush-timeout", Scope: NIC, Title: "wait for more packets to merge, ns", At: Place{Path: "/sys/class/net/*/gro_flush_timeout", Syntax: Number, Needs: aCard},
		Range: Range{Min: 0, Max: 1000000000}, Keep: KeepUdev, Severity: Note, Effect: AtOnce,
		Advice: []Advice{{For: []Class{Latency}, How: Exactly, Value: "0", Why: "a single packet does not wait for company"}},
		Source: "kernel: networking/napi.rst", Risk: "more interrupts", Verify: "ping times",
	},
	{
		ID: "nic.napi-defer-hard-irqs", Scope: NIC, Title: "polls before interrupts come back", At: Place{Path: "/sys/class/net/*/napi_defer_hard_irqs", Syntax: Number, Needs: aCard},
		Range: Range{Min: 0, Max: 1<<31 - 1}, Keep: KeepUdev, Severity: Note, Effect: AtOnce,
		Advice: []Advice{{How: Leave, Why: "only together with busy polling programs"}},
		Source: "kernel: networking/napi.rst", Risk: "latency", Verify: "ping times",
	},
}
