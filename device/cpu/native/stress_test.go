package native

import (
	"io"
	"runtime"
	"runtime/pprof"
	"sync"
	"testing"
	"time"

	"github.com/skein-ml/skein/device"
)

// Kernels hold vector registers and a stack of their own while signals arrive, goroutines
// change threads and the collector runs: results must be the same bits each time.
func TestBitsSurviveCollectionAndProfilingSignals(t *testing.T) {
	want := stressCase(t)
	want.run()
	want.runGrad()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	if err := pprof.StartCPUProfile(io.Discard); err == nil { // fails where the test itself is profiled
		defer pprof.StopCPUProfile()
	}
	deadline := time.Now().Add(700 * time.Millisecond)
	var workers sync.WaitGroup
	for range 6 {
		c := stressCase(t)
		workers.Go(func() {
			for rounds := 0; rounds == 0 || time.Now().Before(deadline); rounds++ {
				c.run()
				c.runGrad()
				for i, pair := range [][2]*matrix{{c.o, want.o}, {c.lse, want.lse}, {c.dq, want.dq}, {c.dk, want.dk}, {c.dv, want.dv}} {
					if !equalBits(pair[0], pair[1]) {
						t.Errorf("round %d: output %d has other bits", rounds, i)
						return
					}
				}
			}
		})
	}
	stop, collected := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(collected)
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	workers.Wait()
	close(stop)
	<-collected
}

func stressCase(t *testing.T) *attnCase {
	return newAttnCase(t, newRand(11), device.BF16, []int{0, 100, 177}, 3, 1, 64, 0)
}
