// Package tuning is the place of measured, reversible tuning of hosts, guests and storage.
// It holds no code yet; see CHANGELOG.md for what there is.
package tuning
