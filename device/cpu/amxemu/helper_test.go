//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/skein-ml/skein/device/cpu/native"
)

// TestHelperProgram is what other tests of this package run under the emulator.
func TestHelperProgram(t *testing.T) {
	mode := os.Getenv("AMXEMU_HELPER")
	switch mode {
	case "":
		t.Skip("runs only as another test's program")
	case "exit":
		os.Exit(3)
	case "signal":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGUSR1)
		go func() {
			runtime.LockOSThread()
			_ = syscall.Kill(os.Getpid(), syscall.SIGUSR1)
		}()
		select {
		case <-c:
			fmt.Println("caught")
		case <-time.After(time.Minute):
			t.Fatal("the signal did not arrive")
		}
	case "child":
		cmd := exec.Command(os.Args[0], os.Args[1:]...)
		cmd.Env = append(os.Environ(), "AMXEMU_HELPER=exit")
		var exit *exec.ExitError
		if err := cmd.Run(); !errors.As(err, &exit) {
			t.Fatal(err)
		}
		fmt.Println("child code", exit.ExitCode())
	case "ill":
		// Tiles at address zero: the emulator refuses, and the program gets its signal.
		native.GemmAMX(&native.GemmAMXArgs{Steps: 1, Panels: 1})
	}
}
