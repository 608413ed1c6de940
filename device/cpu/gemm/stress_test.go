package gemm

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// Kernels share their threads with the collector, with profiling signals and with more
// goroutines than there are threads; not one bit may change. SKEIN_TEST_LONG=1 runs it for a
// minute.
func TestStressLeavesEveryBitAlone(t *testing.T) {
	duration := time.Second
	if long() {
		duration = time.Minute
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		t.Logf("without profiling signals: %v", err)
	} else {
		defer pprof.StopCPUProfile()
	}
	end := time.Now().Add(duration)
	var wg sync.WaitGroup
	var products atomic.Int64
	wg.Go(func() {
		for time.Now().Before(end) {
			runtime.GC()
		}
	})
	for _, path := range testPaths(t) {
		for i := range 6 {
			wg.Go(func() {
				n, err := stress(newHost(t, path, 1+i%2), types[i%2], uint64(i), end)
				products.Add(n)
				if err != nil {
					t.Errorf("%s, seed %d: %v", path, i, err)
				}
			})
		}
	}
	wg.Wait()
	t.Logf("%d products", products.Load())
}

// stress repeats three products until end and compares each result with the first one.
func stress(h host, dt device.DType, seed uint64, end time.Time) (n int64, err error) {
	r := rand.New(rand.NewPCG(9, seed))
	s := shape{m: 30 + r.IntN(100), n: 30 + r.IntN(100), k: 30 + r.IntN(300)}
	if quick() {
		s = shape{m: 33, n: 34, k: 35}
	}
	x, dy := newMat(h.t, dt, s.m, s.k, normals(r)), newMat(h.t, dt, s.m, s.n, normals(r))
	src := newMat(h.t, dt, s.n, s.k, normals(r))
	var first [3]mat
	for n = 0; n < 9 || time.Now().Before(end); n += 3 {
		round := &round{TB: h.t}
		h := host{round, h.g, h.pool}
		if n == 0 {
			round.TB.Cleanup(round.end) // what it gives is kept
		}
		w := h.weight(src, device.FormForward|device.FormDX)
		got := [3]mat{newMat(round, dt, s.m, s.n, zeros), newMat(round, dt, s.m, s.k, zeros), newMat(round, device.F32, s.n, s.k, zeros)}
		h.linear(got[0], x, w, kernel.Matrix{}, kernel.Matrix{})
		h.linearDX(got[1], dy, w, kernel.Matrix{})
		h.linearDW(got[2], dy, x, s.m)
		if n == 0 {
			first = got
			continue
		}
		for i := range got {
			if err := got[i].equalBits(first[i]); err != nil {
				return n, fmt.Errorf("product %d of round %d at %w", i, n/3, err)
			}
		}
		round.end()
	}
	return n, nil
}

// round cleans up in the middle of a test.
type round struct {
	testing.TB
	todo []func()
}

func (r *round) Cleanup(f func()) { r.todo = append(r.todo, f) }

func (r *round) end() {
	for _, f := range r.todo {
		f()
	}
}
