package cpu

import (
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// GLU: y = act(gate) ⊙ up.
func (d *Device) GLU(s device.Stream, y, gateUp device.Tensor, act device.Act) {
	device.CheckGLU(y, gateUp, act)
	d.apart("GLU", y, gateUp)
	a := kernel.GLU{Y: d.ptr(y), GateUp: d.ptr(gateUp), F: y.Cols, LdY: y.Ld, LdG: gateUp.Ld, Act: int(act)}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.jobs.glu.a = a
		d.jobs.glu.run(d.pool, d.kernels.GLU[y.DT], y.Rows, 4*y.Cols)
	}
}

// GLUGrad: the gradients of gate and up.
func (d *Device) GLUGrad(s device.Stream, dGateUp, dy, gateUp device.Tensor, act device.Act) {
	device.CheckGLUGrad(dGateUp, dy, gateUp, act)
	d.apart("GLUGrad", dGateUp, dy)
	d.sameOrApart("GLUGrad", dGateUp, gateUp)
	a := kernel.GLUGrad{DGateUp: d.ptr(dGateUp), DY: d.ptr(dy), GateUp: d.ptr(gateUp),
		F: dy.Cols, LdDG: dGateUp.Ld, LdDY: dy.Ld, LdG: gateUp.Ld, Act: int(act)}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.jobs.gluGrad.a = a
		d.jobs.gluGrad.run(d.pool, d.kernels.GLUGrad[dy.DT], dy.Rows, 4*dy.Cols)
	}
}

// sigmoid is 1/(1+e^−x).
func sigmoid(x float32) float32 { return 1 / (1 + expf(-x)) }

func glu(dt device.DType) func(a *kernel.GLU, lo, hi int) {
	return func(a *kernel.GLU, lo, hi int) {
		for r := lo; r < hi; r++ {
			x, y := at(a.GateUp, dt, r*a.LdG, 2*a.F), at(a.Y, dt, r*a.LdY, a.F)
			for i := range a.F {
				g := x.get(i)
				y.set(i, float32(g*sigmoid(g))*x.get(a.F+i))
			}
		}
	}
}

// gluGrad: silu(g) = g·σ, silu'(g) = σ·(1 + g·(1−σ)).
func gluGrad(dt device.DType) func(a *kernel.GLUGrad, lo, hi int) {
	return func(a *kernel.GLUGrad, lo, hi int) {
		for r := lo; r < hi; r++ {
			x, dx := at(a.GateUp, dt, r*a.LdG, 2*a.F), at(a.DGateUp, dt, r*a.LdDG, 2*a.F)
			dy := at(a.DY, dt, r*a.LdDY, a.F)
			for i := range a.F {
				g, up, d := x.get(i), x.get(a.F+i), dy.get(i)
				sig := sigmoid(g)
				slope := sig * (1 + float32(g*(1-sig)))
				dx.set(i, float32(d*up)*slope)
				dx.set(a.F+i, d*float32(g*sig))
			}
		}
	}
}
