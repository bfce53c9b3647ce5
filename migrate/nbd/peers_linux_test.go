package nbd_test

import (
	"os/exec"
	"syscall"
)

// endWithUs ends a program with the test, however that ends.
func endWithUs(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
