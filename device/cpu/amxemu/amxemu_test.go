//go:build linux && amd64

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-ml/skein/device/cpu/native"
)

// underEmulation are the tests that run the AMX kernels.
var underEmulation = []struct{ pkg, run string }{
	{"gemm", "./amx-bf16"},
	{".", "TestEveryPathConforms/amx-bf16"},
}

// touchSources reads the sources of the packages, so that the go command's test cache
// knows what this test depends on.
func touchSources(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{"../*.go", "../gemm/*.go", "../kernel/*.go", "../native/*.go", "../native/*.s", "../../*.go", "../../devicetest/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if _, err := os.ReadFile(f); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// build makes the emulator, and skips where it cannot work.
func build(t *testing.T) string {
	t.Helper()
	if have := native.Features(); !have.AVX512BF16 {
		t.Skipf("SKIPPED: the AMX kernels need AVX-512, this machine has %v", have)
	}
	bin := filepath.Join(t.TempDir(), "amxemu")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(bin, os.Args[0], "-test.run=^$").CombinedOutput()
	if strings.Contains(string(out), "ptrace") {
		t.Skipf("SKIPPED: %s", out)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

func TestTileKernelsPassTheirTestsUnderEmulation(t *testing.T) {
	if native.Features().AMXBF16 {
		t.Skip("SKIPPED: this machine has AMX, its packages' own tests run the kernels")
	}
	emulator := build(t)
	touchSources(t)
	for i, c := range underEmulation {
		if i > 0 && testing.Short() {
			t.Logf("SKIPPED: %s in short tests", c.pkg)
			continue
		}
		pkg := "../" + c.pkg
		bin := filepath.Join(t.TempDir(), "pkg.test")
		if out, err := exec.Command("go", "test", "-c", "-tags", "invariants", "-o", bin, pkg).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		cmd := exec.Command(emulator, bin, "-test.v", "-test.short", "-test.run="+c.run)
		cmd.Env = append(os.Environ(), "AMXEMU_VERBOSE=1")
		cmd.Dir = t.TempDir()
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", pkg, err, out)
		}
		if !strings.Contains(string(out), "/amx-bf16") || strings.Contains(string(out), "amxemu: 0 tile instructions") {
			t.Errorf("%s ran no tile kernel:\n%s", pkg, out)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Logf("%s: %s", pkg, lines[len(lines)-1])
	}
}

// An emulated program's signals, threads, children and exit code are its own.
func TestProgramsRunAsWithoutTheEmulator(t *testing.T) {
	emulator := build(t)
	for _, c := range []struct {
		mode string
		code int
		out  string
	}{
		{"exit", 3, ""}, {"signal", 0, "caught"}, {"child", 0, "child code 3"}, {"ill", 2, "SIGILL"},
	} {
		cmd := exec.Command(emulator, os.Args[0], "-test.run=^TestHelperProgram$")
		cmd.Env = append(os.Environ(), "AMXEMU_HELPER="+c.mode)
		out, err := cmd.CombinedOutput()
		code := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			code = exit.ExitCode()
		}
		if code != c.code || !strings.Contains(string(out), c.out) {
			t.Errorf("%s: exit code %d, want %d with %q\n%s", c.mode, code, c.code, c.out, out)
		}
	}
}
