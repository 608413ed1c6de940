package native

import (
	"math"
	"testing"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// gradients views what CrossEntropy left in the memory of logits.
func gradients(logits *matrix, dt device.DType) *matrix {
	g := *logits
	g.dt = dt
	if dt == device.BF16 {
		g.ld *= 2
	}
	return &g
}

func crossEntropyArgs(logits, nll *matrix, targets []int32, grad int) kernel.CrossEntropy {
	return kernel.CrossEntropy{Logits: logits.p(), Targets: unsafe.Pointer(&targets[0]), NLL: nll.p(),
		Vocab: logits.cols, Ld: logits.ld, Grad: grad, Scale: 1.0 / 64}
}

// Losses within 1e-6, gradients within 1e-6 of the largest.
func TestCrossEntropyIsItsDefinition(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, vocab := range append(widths, 5003, 49152) {
			const rows = 4
			rng := newRand(uint64(vocab))
			logits, nll := randomMatrix(t, rng, device.F32, rows, vocab, 5, 4), newMatrix(t, device.F32, 1, rows, 0)
			targets := []int32{0, int32(vocab - 1), int32(vocab / 2), int32(vocab / 3)}
			logits.set(2, vocab/2, 300) // certain: a loss of zero
			logits.set(3, vocab/3, -300)
			before := logits.clone()
			a := crossEntropyArgs(logits, nll, targets, 0)
			table.CrossEntropy[dt](&a, 0, rows)
			if !equalBits(logits, before) {
				t.Fatal("logits changed though no gradient was wanted")
			}
			losses := nll.clone()
			a.Grad = 1
			table.CrossEntropy[dt](&a, 0, 1)
			table.CrossEntropy[dt](&a, 1, rows)
			if !equalBits(losses, nll) {
				t.Error("losses differ with and without gradients")
			}
			total := make([]float64, rows)
			for r := range rows {
				for c := range vocab {
					total[r] += math.Exp(before.f64(r, c) - 300)
				}
			}
			expect(t, nll, name("loss of ", vocab), 1e-6, func(_, r int) float64 {
				return math.Log(total[r]) + 300 - before.f64(r, int(targets[r]))
			})
			g := gradients(logits, dt)
			for r := range rows {
				for c := range vocab {
					want := math.Exp(before.f64(r, c)-300) / total[r]
					if c == int(targets[r]) {
						want--
					}
					if !near(dt, g.get(r, c)*64, want, 1, 1e-6) {
						t.Fatalf("vocab %d: gradient [%d, %d] = %v, want %v", vocab, r, c, g.get(r, c)*64, want)
					}
				}
			}
		}
	})
}

func TestCrossEntropyPassesNaNAndInfinityOn(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, bad := range []float64{math.NaN(), math.Inf(1)} {
			for _, c := range []int{0, 17, 99} {
				logits, nll := randomMatrix(t, newRand(1), device.F32, 3, 100, 0, 1), newMatrix(t, device.F32, 1, 3, 0)
				logits.set(1, c, float32(bad))
				a := crossEntropyArgs(logits, nll, []int32{1, 2, 3}, 1)
				table.CrossEntropy[dt](&a, 0, 3)
				g := gradients(logits, dt)
				for r := range 3 {
					if isNaN := math.IsNaN(nll.f64(0, r)) && math.IsNaN(g.f64(r, 50)); isNaN != (r == 1) {
						t.Errorf("%v at %d: row %d: loss %v, gradient %v", bad, c, r, nll.get(0, r), g.get(r, 50))
					}
				}
			}
		}
		logits, nll := randomMatrix(t, newRand(1), device.F32, 1, 100, 0, 1), newMatrix(t, device.F32, 1, 1, 0)
		logits.set(0, 60, float32(math.Inf(-1))) // impossible, which is fine
		a := crossEntropyArgs(logits, nll, []int32{1}, 1)
		table.CrossEntropy[dt](&a, 0, 1)
		if g := gradients(logits, dt); math.IsNaN(nll.f64(0, 0)) || g.get(0, 60) != 0 {
			t.Errorf("logit −Inf: loss %v, gradient %v", nll.get(0, 0), g.get(0, 60))
		}
	})
}
