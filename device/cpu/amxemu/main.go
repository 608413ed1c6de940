//go:build linux && amd64

// Command amxemu runs a program on a machine without AMX as if it had it:
//
//	amxemu PROGRAM ARGS…
//
// It traces every thread of the program, and of its children. A tile instruction ends
// in SIGILL; amxemu computes what it would have done, on tiles that it keeps for
// the thread, and lets the thread go on behind it. So the very machine code of the
// AMX kernels is tested, at about 40 µs an instruction. All other signals are passed on.
//
// It sets SKEIN_AMX_EMULATED=1, by which package native knows that tiles may be used.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/skein-ml/skein/device/cpu/native"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: amxemu PROGRAM ARGS…")
		os.Exit(2)
	}
	runtime.LockOSThread() // a tracer is a thread
	code, err := run(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "amxemu:", err)
		code = exitCannot
	}
	os.Exit(code)
}

// exitCannot says that the program did not run, or not to its end.
const exitCannot = 125

func run(program string, args []string) (code int, err error) {
	cmd := exec.Command(program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), native.EmulationEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
			err = fmt.Errorf("this system does not permit ptrace: %w", err)
		}
		return 0, err
	}
	t := newTracer(cmd.Process.Pid)
	defer func() {
		if os.Getenv("AMXEMU_VERBOSE") != "" {
			fmt.Fprintf(os.Stderr, "amxemu: %d tile instructions in %d stops\n", t.instructions, t.stops)
		}
	}()
	return t.loop()
}
