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

func TestEveryPathConforms(t *testing.T) {
	for _, p := range cpu.Paths() {
		t.Run(p.Name, func(t *testing.T) {
			if !p.Available {
				t.Skipf("SKIPPED: this machine lacks %s", p.Why)
			}
			devicetest.Run(t, opener(t, p.Name, 2), tolerances)
		})
	}
}

func TestNoResultDependsOnTheNumberOfThreads(t *testing.T) {
	for _, p := range cpu.Paths() {
		t.Run(p.Name, func(t *testing.T) {
			if !p.Available {
				t.Skipf("SKIPPED: this machine lacks %s", p.Why)
			}
			devicetest.Agree(t, opener(t, p.Name, 1), opener(t, p.Name, 2), opener(t, p.Name, 4))
		})
	}
}

func TestOperationsDoNotAllocate(t *testing.T) {
	for _, p := range cpu.Paths() {
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
