//go:build !linux

package nbd_test

import "os/exec"

func endWithUs(*exec.Cmd) {}
