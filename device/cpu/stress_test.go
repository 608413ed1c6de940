package cpu_test

import (
	"io"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/device/devicetest"
)

// Kernels run on Go's threads: a collector that wants to stop the world, signals of
// the profiler and more threads than cores must not change a bit.
func TestBitsSurviveTheCollectorAndProfilingSignals(t *testing.T) {
	for _, p := range cpu.Paths() {
		t.Run(p.Name, func(t *testing.T) {
			if !p.Available {
				t.Skipf("SKIPPED: this machine lacks %s", p.Why)
			}
			if err := pprof.StartCPUProfile(io.Discard); err != nil {
				t.Skipf("SKIPPED: another profile is running: %v", err)
			}
			defer pprof.StopCPUProfile()
			var devices []device.Device
			for threads := range 3 {
				d := opener(t, p.Name, threads+1)()
				defer d.Close()
				devices = append(devices, d)
			}
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
						runtime.GC()
					}
				}
			}()
			defer func() { close(stop); <-stopped }()
			devicetest.Stress(t, devices, 2*time.Second)
		})
	}
}
