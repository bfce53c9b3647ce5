// Package tuning finds what slows a host, a guest or its storage down, changes
// only what is right for the workload, proves it by measuring, and can always
// go back.
//
//	sys, err := tuning.OpenLocal(nil)
//	report, err := tuning.Check(ctx, sys, &tuning.CheckOptions{Class: tuning.Throughput})
//	plan, err := report.Plan(nil)                    // what would be written, with a hash
//	j, err := tuning.OpenJournal("/var/lib/me/tuning.journal")
//	verdicts, err := tuning.Measure(ctx, sys, j, plan, workload, nil) // keeps what helps
//	undone, err := tuning.Revert(ctx, sys, j, nil)   // everything as it was
//
// # Knobs are data
//
// A [Knob] says where a setting is, how it is read, what values it takes, what
// is recommended for which [Class] of workload, why, from which source, and at
// which risk. [Knobs] are those that the package knows; [CheckOptions] and
// [ApplyOptions] take others. No knob has code of its own.
//
// Settings that do nothing or harm, as guides on the web repeat them, are data
// too: [Myths]. They are reported, and never applied.
//
// # Reading, writing, going back
//
// [Check] reads only, and runs unprivileged as far as it can: what may not be
// read is inconclusive, not a failure. [Apply] does what a [Plan] shows and
// nothing else; before each write the [Journal] has the old value. Within a
// [Scope] all of a plan's steps succeed or none stays. [Revert] compares before
// it writes: a value that somebody else has changed meanwhile is theirs. It
// works after a crash at any point; after a reboot there is nothing to revert,
// since nothing that Apply writes outlives one. [Persist] makes what is held
// survive a reboot, on request, in files of its own.
//
// The kernel's files have no compare-and-swap: between Revert's comparison and
// its write lies a moment in which another's write is overwritten.
//
// # Machines
//
// A [System] is the local machine ([OpenLocal], also with another root), a
// machine that was recorded ([Snapshot]), or a running guest through its agent
// ([NewGuest]).
//
// The package is pure Go. Domain definitions are advised on in tuning/domain,
// and libvirt's side of guests, throttling and definitions is in tuning/kvm.
package tuning
