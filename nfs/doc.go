// Package nfs is the place of NFS exports and mounts.
// It holds no code yet; see CHANGELOG.md for what there is.
package nfs
