package devicetest

import (
	"fmt"
	"math"
	"testing"
)

// checkGradient compares grad with central differences of f at x. F may only look at x.
func checkGradient(t *testing.T, name string, x, grad mat, f func() float64) {
	t.Helper()
	const h = 1e-5
	for i := range x.v {
		was := x.v[i]
		x.v[i] = was + h
		up := f()
		x.v[i] = was - h
		down := f()
		x.v[i] = was
		if want := (up - down) / (2 * h); math.Abs(grad.v[i]-want) > 1e-6*(1+math.Abs(want)) {
			t.Errorf("%s: element %d is %g, differences give %g", name, i, grad.v[i], want)
			return
		}
	}
}

// inner is Σ a·b: a scalar whose gradient by a is b.
func inner(a, b mat) float64 {
	var sum float64
	for i, v := range a.v {
		sum += v * b.v[i]
	}
	return sum
}

func TestModelGradientsAreFiniteDifferences(t *testing.T) {
	s := newSource("models")
	t.Run("linear", func(t *testing.T) {
		x, w, dy := s.normal(3, 5), s.normal(4, 5), s.normal(3, 4)
		f := func() float64 { return inner(linear(x, w), dy) }
		dx, dw := linearGrad(dy, x, w)
		checkGradient(t, "dx", x, dx, f)
		checkGradient(t, "dw", w, dw, f)
	})
	t.Run("rmsNorm", func(t *testing.T) {
		x, w, dy := s.normal(3, 5), s.normal(1, 5), s.normal(3, 5)
		f := func() float64 { y, _ := rmsNorm(x, w, 0.1); return inner(y, dy) }
		dx, dw := rmsNormGrad(dy, x, w, 0.1)
		checkGradient(t, "dx", x, dx, f)
		checkGradient(t, "dw", w, dw, f)
	})
	t.Run("layerNorm", func(t *testing.T) {
		x, w, b, dy := s.normal(3, 5), s.normal(1, 5), s.normal(1, 5), s.normal(3, 5)
		f := func() float64 { y, _ := layerNorm(x, w, b, 0.1); return inner(y, dy) }
		dx, dw, db := layerNormGrad(dy, x, w, 0.1)
		checkGradient(t, "dx", x, dx, f)
		checkGradient(t, "dw", w, dw, f)
		checkGradient(t, "db", b, db, f)
	})
	for _, act := range activations {
		t.Run(fmt.Sprint("activation ", act), func(t *testing.T) {
			x, dy := scaled(s.normal(3, 8), 2), s.normal(3, 8)
			dx := apply(activationSlope(act), x, dy)
			checkGradient(t, "dx", x, dx, func() float64 { return inner(apply(activation(act), x, mat{}), dy) })
		})
	}
	t.Run("rope", func(t *testing.T) {
		x, dy, table, pos := s.normal(3, 8), s.normal(3, 8), ropeTable(9, 4), []int32{2, 0, 8}
		f := func() float64 { return inner(rope(x, table, pos, 4, false), dy) }
		checkGradient(t, "dx", x, rope(dy, table, pos, 4, true), f)
	})
	t.Run("glu", func(t *testing.T) {
		x, dy := s.normal(3, 8), s.normal(3, 4)
		checkGradient(t, "dGateUp", x, gluGrad(dy, x), func() float64 { return inner(glu(x), dy) })
	})
	for _, window := range []int{0, 2} {
		t.Run("attention", func(t *testing.T) {
			g := geometry{heads: 4, kvHeads: 2, dim: 3, window: window, scale: 0.6, docs: []int32{0, 1, 6, 8}}
			q, k, v, do := s.normal(8, 12), s.normal(8, 6), s.normal(8, 6), s.normal(8, 12)
			f := func() float64 { o, _ := attention(q, k, v, g); return inner(o, do) }
			dq, dk, dv := attentionGrad(do, q, k, v, g)
			checkGradient(t, "dq", q, dq, f)
			checkGradient(t, "dk", k, dk, f)
			checkGradient(t, "dv", v, dv, f)
		})
	}
	t.Run("headLoss", func(t *testing.T) {
		x, w, targets := s.normal(4, 3), s.normal(7, 3), []int32{6, -1, 0, 3}
		f := func() float64 {
			nll, _, _ := headLoss(x, w, targets, 1)
			return 0.25 * (nll.v[0] + nll.v[1] + nll.v[2] + nll.v[3])
		}
		_, dx, dw := headLoss(x, w, targets, 0.25)
		checkGradient(t, "dx", x, dx, f)
		checkGradient(t, "dw", w, dw, f)
	})
}
