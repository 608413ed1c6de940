package gemm

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
	"github.com/skein-ml/skein/device/cpu/native"
)

// benchShapes are those of a SmolLM2-135M step with 1,024 rows, and the head's
// with a chunk of 512.
var benchShapes = []struct {
	name string
	shape
}{
	{"qkv", shape{1024, 960, 576}}, {"o", shape{1024, 576, 576}},
	{"gateup", shape{1024, 3072, 576}}, {"down", shape{1024, 576, 1536}},
	{"head", shape{512, 49152, 576}},
}

// BenchmarkGEMM prints GF/s of each product, and beside it the share of what the
// registers alone can do, measured in the same run.
func BenchmarkGEMM(b *testing.B) {
	for _, path := range testPaths(b) {
		for _, dt := range types {
			if strings.HasSuffix(path, "bf16") && dt == device.F32 || high(path) && dt == device.BF16 { // as another path
				continue
			}
			if path == "amx-bf16" && quick() {
				continue
			}
			for _, workers := range []int{1, runtime.GOMAXPROCS(0)} {
				for _, s := range benchShapes {
					benchShape(b, fmt.Sprintf("%s/%v/threads=%d/%s", path, dt, workers, s.name), path, dt, workers, s.shape)
				}
			}
		}
	}
}

func benchShape(b *testing.B, name, path string, dt device.DType, workers int, s shape) {
	b.Run(name, func(b *testing.B) {
		h := newHost(b, path, workers)
		r := rand.New(rand.NewPCG(1, 1))
		x, dy, src := denseMat(dt, s.m, s.k, r), denseMat(dt, s.m, s.n, r), denseMat(dt, s.n, s.k, r)
		y, dx, dw := denseMat(dt, s.m, s.n, r), denseMat(dt, s.m, s.k, r), denseMat(device.F32, s.n, s.k, r)
		w := h.weight(mat{Matrix: src}, device.FormForward|device.FormDX)
		sh := device.Shape{Rows: s.m, Seq: s.m, In: s.k, Out: s.n, DT: dt}
		ws := make([]byte, max(h.g.Need(device.OpLinear, sh, workers), h.g.Need(device.OpLinearDX, sh, workers), h.g.Need(device.OpLinearDW, sh, workers)))
		pool := h.pool
		for _, op := range []struct {
			name string
			f    func()
		}{
			{"y", func() { h.g.Linear(pool, y, x, w, kernel.Matrix{}, kernel.Matrix{}, ws) }},
			{"dx", func() { h.g.LinearDX(pool, dx, dy, w, kernel.Matrix{}, ws) }},
			{"dw", func() { h.g.LinearDW(pool, dw, dy, x, min(512, s.m), ws) }},
		} {
			b.Run(op.name, func(b *testing.B) {
				best := time.Hour
				for b.Loop() {
					start := time.Now()
					op.f()
					best = min(best, time.Since(start))
				}
				peak := registerPeak(workers)
				rate := 2 * float64(s.m) * float64(s.n) * float64(s.k) / best.Seconds() / 1e9
				b.ReportMetric(rate, "GF/s")
				b.ReportMetric(peak, "f32-peak-GF/s")
				b.ReportMetric(100*rate/peak, "%")
			})
		}
	})
}

// denseMat is random, on huge pages where there are any.
func denseMat(dt device.DType, rows, cols int, r *rand.Rand) kernel.Matrix {
	mem := make([]byte, rows*cols*int(dt.Size())+64)
	off := int(-uintptr(unsafe.Pointer(&mem[0])) & 63)
	m := kernel.Matrix{DT: dt, Rows: rows, Cols: cols, Ld: cols, P: unsafe.Pointer(&mem[off])}
	for i := range rows * cols {
		x := r.Float32() - 0.5
		if dt == device.BF16 {
			*(*uint16)(unsafe.Add(m.P, 2*i)) = toBF16(x)
		} else {
			*(*float32)(unsafe.Add(m.P, 4*i)) = x
		}
	}
	return m
}

// registerPeak is the best of 20 rounds of multiply-adds on every thread, in GF/s.
func registerPeak(workers int) (best float64) {
	const rounds = 20_000
	for range 20 {
		start := time.Now()
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				var out [16]float32
				native.PeakFMA(&native.PeakFMAArgs{Rounds: rounds, Out: unsafe.Pointer(&out)})
			})
		}
		wg.Wait()
		best = max(best, float64(workers)*rounds*512/time.Since(start).Seconds()/1e9)
	}
	return best
}
