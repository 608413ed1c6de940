package model

import (
	"math"

	"github.com/skein-ml/skein/device"
)

// newRope fills the table of cosines and sines: angles are F32 as in PyTorch, their
// functions F64, rounded once.
func (m *Model) newRope() error {
	inv, scale := m.cfg.InvFreq()
	d, half := m.cfg.HeadDim, m.cfg.HeadDim/2
	var err error
	if m.rope, err = m.mem.tensor(device.KindWeights, device.F32, m.opt.SeqLen, d); err != nil {
		return err
	}
	host := make([]float32, m.opt.SeqLen*d)
	for p := range m.opt.SeqLen {
		for j := range half {
			sin, cos := sincos(float64(float32(p) * inv[j]))
			host[p*d+j] = float32(cos) * scale
			host[p*d+half+j] = float32(sin) * scale
		}
	}
	s := m.dev.Stream(device.StreamCompute)
	m.dev.Upload(s, m.rope.Buf, device.HostBytes(host))
	return s.Record().Wait()
}

// sincos is the sine and cosine of 0 ≤ x < 2^20. Unlike package math it rounds every
// product by itself, so that no compiler fuses it into an addition and all machines
// agree on every bit. Reduction by π/2 in three parts and the polynomials are those
// of fdlibm's k_sin and k_cos.
func sincos(x float64) (sin, cos float64) {
	const (
		twoOverPi = 0.63661977236758134308
		pio2a     = 1.57079632673412561417e+00 // first 33 bits of π/2
		pio2b     = 6.07710050630396597660e-11 // next 33
		pio2c     = 2.02226624879595063154e-21 // the rest
	)
	k := math.Floor(float64(x*twoOverPi) + 0.5)
	r := x - float64(k*pio2a)
	r -= float64(k * pio2b)
	r -= float64(k * pio2c)
	z := float64(r * r)
	s := r + float64(float64(r*z)*poly(z, sinPoly[:]))
	c := 1 - float64(0.5*z) + float64(float64(z*z)*poly(z, cosPoly[:]))
	switch int64(k) & 3 {
	case 0:
		return s, c
	case 1:
		return c, -s
	case 2:
		return -s, -c
	}
	return -c, s
}

var (
	sinPoly = [...]float64{-1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
		2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10}
	cosPoly = [...]float64{4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
		-2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11}
)

// poly is Σ c[i]·zⁱ by Horner's rule.
func poly(z float64, c []float64) float64 {
	sum := c[len(c)-1]
	for i := len(c) - 2; i >= 0; i-- {
		sum = c[i] + float64(z*sum)
	}
	return sum
}
