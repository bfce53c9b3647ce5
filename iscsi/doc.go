// Package iscsi is the place of iSCSI targets and initiators.
// It holds no code yet; see CHANGELOG.md for what there is.
package iscsi
