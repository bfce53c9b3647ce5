// Package sharetest checks implementations of package share, and stands in for
// them in tests.
//
//   - [Run] is the conformance suite: what package share promises, every
//     backend must pass, ours and third parties'.
//   - [NewDevice] is a disk in memory that can lose power, [NewMem] a share in
//     memory with every optional interface.
//   - [FaultyDevice] and [FaultyShare] make calls fail by a [Schedule]: at the
//     nth call or by seed, before or after the effect, slowly, partly, or not
//     at all until the context ends.
//
// Nothing here touches the network or needs privileges.
package sharetest
