package cpu

import (
	"unsafe"

	"github.com/skein-ml/skein/device"
)

// Activate: y = act(x).
func (d *Device) Activate(s device.Stream, y, x device.Tensor, act device.Act) {
	device.CheckActivate(y, x, act)
	d.apart("Activate", y, x)
	t := elements{activate: d.kernels.Activate[x.DT], act: act, dst: d.matrix(y), a: d.matrix(x)}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.elementwise(t)
	}
}

// ActivateGrad: dx = dy·act'(x).
func (d *Device) ActivateGrad(s device.Stream, dx, dy, x device.Tensor, act device.Act) {
	device.CheckActivateGrad(dx, dy, x, act)
	d.sameOrApart("ActivateGrad", dx, dy)
	d.sameOrApart("ActivateGrad", dx, x)
	t := elements{grad: d.kernels.ActivateGrad[x.DT], act: act, dst: d.matrix(dx), a: d.matrix(dy), b: d.matrix(x)}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.elementwise(t)
	}
}

// The tanh form is a sigmoid: (1 + tanh u)/2 = σ(2u), 2u = √(8/π)·(x + 0.044715·x³).
const (
	tanhScale = 1.59576912160573071176
	tanhCube  = 0.044715
)

// sigmoid2u is s = σ(2u) and s·(1−s). With e = exp(−2u) of |x|, which is at most 1, no
// difference of near numbers is taken.
func sigmoid2u(x float32) (s, rest float32) {
	a := max(x, -x)
	cube := float32(float32(a*a) * a)
	e := expf(-float32(tanhScale * (a + float32(tanhCube*cube))))
	s = 1 / (1 + e)
	less := float32(e * s)
	rest = float32(less * s)
	if x > 0 {
		return s, rest
	}
	return less, rest
}

func geluTanh(x float32) float32 {
	s, _ := sigmoid2u(x)
	return x * s
}

// geluTanhSlope: s + x·s·(1−s)·(2u)'.
func geluTanhSlope(x float32) float32 {
	s, rest := sigmoid2u(x)
	inner := float32(tanhScale * (1 + float32((3*tanhCube)*float32(x*x))))
	return s + float32(float32(x*rest)*inner)
}

func gelu(x float32) float32 {
	cdf, _ := normal(x)
	return x * float32(cdf)
}

// geluSlope: Φ(x) + x·φ(x).
func geluSlope(x float32) float32 {
	cdf, density := normal(x)
	return float32(cdf) + float32(x*float32(density))
}

func activate(dt device.DType) func(y, x unsafe.Pointer, n int, act device.Act) {
	return func(y, x unsafe.Pointer, n int, act device.Act) {
		f := gelu
		if act == device.GELUTanh {
			f = geluTanh
		}
		from, to := at(x, dt, 0, n), at(y, dt, 0, n)
		for i := range n {
			to.set(i, f(from.get(i)))
		}
	}
}

func activateGrad(dt device.DType) func(dx, dy, x unsafe.Pointer, n int, act device.Act) {
	return func(dx, dy, x unsafe.Pointer, n int, act device.Act) {
		slope := geluSlope
		if act == device.GELUTanh {
			slope = geluTanhSlope
		}
		from, g, to := at(x, dt, 0, n), at(dy, dt, 0, n), at(dx, dt, 0, n)
		for i := range n {
			to.set(i, g.get(i)*slope(from.get(i)))
		}
	}
}
