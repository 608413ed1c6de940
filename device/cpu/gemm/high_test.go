package gemm

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// In a sum of many terms their errors, of either sign, mostly cancel: what is left, relative to the
// largest result, is ten times that of f32 and a thousandth of that of bf16.
func TestHighLiesBetweenBF16AndF32(t *testing.T) {
	const m, n, k = 64, 96, 576
	r := rand.New(rand.NewPCG(21, 1))
	x, src := newMat(t, device.F32, m, k, normals(r)), newMat(t, device.F32, n, k, normals(r))
	exact, largest := make([]float64, m*n), 0.0
	for i := range m {
		for j := range n {
			sum := 0.0
			for l := range k {
				sum += float64(x.get(i, l)) * float64(src.get(j, l))
			}
			exact[i*n+j] = sum
			largest = max(largest, math.Abs(sum))
		}
	}
	for _, path := range testPaths(t) {
		h := newHost(t, path, 1)
		y := newMat(t, device.F32, m, n, zeros)
		h.linear(y, x, h.weight(src, device.FormForward), kernel.Matrix{}, kernel.Matrix{})
		worst := 0.0
		for i := range m {
			for j := range n {
				worst = max(worst, math.Abs(float64(y.get(i, j))-exact[i*n+j])/largest)
			}
		}
		limit := 5e-7
		if high(path) {
			limit = 6e-6
		}
		t.Logf("%s: %.2g of the largest", path, worst)
		if worst > limit {
			t.Errorf("%s: off by %.2g of the largest, want %.2g", path, worst, limit)
		}
	}
}

// What has no two bf16 must come out as it went in, and a large f32 must not become Inf where its half does.
func TestHighTakesEveryValue(t *testing.T) {
	for _, path := range testPaths(t) {
		if !high(path) {
			continue
		}
		one := newHost(t, path, 1).weight(newMat(t, device.F32, 1, 1, func(int, int) float32 { return 1 }), device.FormForward)
		for _, v := range []float32{0, 1, -1.0009765625, 3.4e38, -3.4e38, 1e-30} {
			h := newHost(t, path, 1)
			y := newMat(t, device.F32, 1, 1, zeros)
			h.linear(y, newMat(t, device.F32, 1, 1, func(int, int) float32 { return v }), one, kernel.Matrix{}, kernel.Matrix{})
			if got := y.get(0, 0); math.Abs(float64(got)-float64(v)) > math.Abs(float64(v))/65536 {
				t.Errorf("%s: %v·1 is %v", path, v, got)
			}
		}
		for _, bits := range []uint32{0x7f800000, 0xff800000, 0x7f800001, 0x7fc00000, 0xffffffff} {
			v := math.Float32frombits(bits)
			h := newHost(t, path, 1)
			y := newMat(t, device.F32, 1, 1, zeros)
			h.linear(y, newMat(t, device.F32, 1, 1, func(int, int) float32 { return v }), one, kernel.Matrix{}, kernel.Matrix{})
			if got := float64(y.get(0, 0)); !math.IsNaN(got) && !math.IsInf(got, 0) {
				t.Errorf("%s: %v (%08x)·1 is %v", path, v, bits, got)
			}
		}
	}
}
