//go:build linux && amd64

package cpu_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-ml/skein/device/cpu/native"
)

// emulated are the tests that the AMX path has to pass under emulation: all that
// reach its products.
const (
	emulated     = `^TestEveryPathConforms$/^amx-bf16$/^(Rounding|Values|Operations)$/^(bf16|Linear|LinearDX|LinearDW|HeadLoss)`
	emulatedHigh = `^TestEveryPathConforms$/^amx-bf16-high$/^Values$/^f32`
)

func TestTheAMXPathConformsUnderEmulation(t *testing.T) {
	switch have := native.Features(); {
	case have.AMXBF16:
		t.Skip("this machine runs the AMX path as it is: see TestEveryPathConforms")
	case !have.AVX512BF16:
		t.Skipf("SKIPPED: the AMX path needs AVX-512 too, this machine has %v", have)
	case testing.Short():
		t.Skip("SKIPPED: -short")
	}
	bin := filepath.Join(t.TempDir(), "amxemu")
	if out, err := exec.Command("go", "build", "-o", bin, "./amxemu").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for run, pass := range map[string]string{
		emulated:                        "--- PASS: TestEveryPathConforms/amx-bf16/Operations/HeadLoss",
		emulatedHigh:                    "--- PASS: TestEveryPathConforms/amx-bf16-high/Values/f32/ProductsPropagate",
		`^TestAClassKeepsItsBits$/^amx`: "--- PASS: TestAClassKeepsItsBits/amx-bf16-high",
	} {
		out, err := exec.Command(bin, os.Args[0], "-test.v", "-test.run", run).CombinedOutput()
		if strings.Contains(string(out), "ptrace") {
			t.Skipf("SKIPPED: %s", out)
		}
		if err != nil || !strings.Contains(string(out), pass) {
			t.Errorf("%v\n%s", err, out)
		}
	}
}
