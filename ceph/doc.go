// Package ceph is the place of Ceph RBD images and CephFS subvolumes.
// It holds no code yet; see CHANGELOG.md for what there is.
package ceph
