//go:build !unix

package fleet

import (
	"os"
	"syscall"
)

func apart() *syscall.SysProcAttr { return nil }

// leave ends a process: this system has no way to ask.
func leave(p *os.Process) error { return p.Kill() }
