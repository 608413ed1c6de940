//go:build unix

package fleet

import (
	"os"
	"syscall"
)

// apart keeps a terminal's Ctrl-C from the workers: they are asked to leave once.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// leave asks a process to end in good order.
func leave(p *os.Process) error { return p.Signal(syscall.SIGTERM) }
