package cpu_test

import (
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/device/devicetest"
)

// opener opens a path with a number of threads.
func opener(t *testing.T, path string, threads int) func() device.Device {
	return func() device.Device {
		d, err := cpu.New(cpu.Options{Path: path, Threads: threads})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

// tolerances are relative to the largest element of a result. BF16 rounds by 2⁻⁹; a
// gradient of the head goes through one rounding more.
var tolerances = devicetest.Tolerance{F32: 4e-6, BF16: 1e-2}

// highTolerances are of paths whose F32 products are three of BF16.
var highTolerances = devicetest.Tolerance{F32: 5e-5, BF16: 1e-2}

func allPaths() []cpu.PathStatus { return append(cpu.Paths(), cpu.HighPaths()...) }

func TestEveryPathConforms(t *testing.T) {
	for _, p := range allPaths() {
		t.Run(p.Name, func(t *testing.T) {
			if !p.Available {
				t.Skipf("SKIPPED: this machine lacks %s", p.Why)
			}
			tol := tolerances
			if p.High {
				tol = highTolerances
			}
			devicetest.Run(t, opener(t, p.Name, 2), tol)
		})
	}
}

func TestNoResultDependsOnTheNumberOfThreads(t *testing.T) {
	for _, p := range allPaths() {
		t.Run(p.Name, func(t *testing.T) {
			if !p.Available {
				t.Skipf("SKIPPED: this machine lacks %s", p.Why)
			}
			devicetest.Agree(t, opener(t, p.Name, 1), opener(t, p.Name, 2), opener(t, p.Name, 4))
		})
	}
}

// Paths avx2 and avx512 are two forms of the same sources, which have as many lanes.
func TestAVX2GivesTheBitsOfAVX512(t *testing.T) {
	for _, p := range cpu.Paths() {
		if (p.Name == "avx2" || p.Name == "avx512") && !p.Available {
			t.Skipf("SKIPPED: this machine lacks %s", p.Why)
		}
	}
	devicetest.Agree(t, opener(t, "avx512", 2), opener(t, "avx2", 2))
}

func TestOperationsDoNotAllocate(t *testing.T) {
	for _, p := range allPaths() {
		t.Run(p.Name, func(t *testing.T) {
			if !p.Available {
				t.Skipf("SKIPPED: this machine lacks %s", p.Why)
			}
			d := opener(t, p.Name, 2)()
			defer d.Close()
			devicetest.NoAllocations(t, d)
		})
	}
}
