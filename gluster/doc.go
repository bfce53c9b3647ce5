// Package gluster is the place of GlusterFS volumes.
// It holds no code yet; see CHANGELOG.md for what there is.
package gluster
