package devicetest

import (
	"math"

	"github.com/skein-ml/skein/device"
)

func normTrials() []trial {
	var all []trial
	for _, dt := range bothTypes {
		// rows, columns, rows of a sequence
		for _, sh := range [][3]int{{1, 5, 1}, {1, 36, 1}, {6, 96, 3}, {65, 64, 65}, {600, 33, 600}, {1100, 576, 550}} {
			name := title("RMSNorm", dt, "%dx%d", sh[0], sh[1])
			all = append(all, trial{name, func(r *rig) (func(), []result) { return normCall(r, newSource(name), dt, sh) }})
			for _, add := range []string{"", " add", " addInPlace"} {
				name := title("RMSNormGrad", dt, "%dx%d in %d%s", sh[0], sh[1], sh[2], add)
				all = append(all, trial{name, func(r *rig) (func(), []result) { return normGradCall(r, newSource(name), dt, sh, add) }})
			}
		}
		// rows, heads, key heads, dimension
		for _, sh := range [][4]int{{1, 1, 1, 2}, {5, 3, 1, 16}, {33, 4, 2, 64}, {7, 2, 2, 80}, {130, 9, 3, 96}, {9, 3, 0, 128}} {
			for _, inverse := range []bool{false, true} {
				name := title("Rope", dt, "%d rows %d+%d heads of %d inverse=%v", sh[0], sh[1], sh[2], sh[3], inverse)
				all = append(all, trial{name, func(r *rig) (func(), []result) { return ropeCall(r, newSource(name), dt, sh, inverse) }})
			}
		}
		for _, sh := range [][2]int{{1, 1}, {3, 36}, {17, 96}, {70, 1536}} {
			name := title("GLU", dt, "%dx%d", sh[0], sh[1])
			all = append(all, trial{name, func(r *rig) (func(), []result) { return gluCall(r, newSource(name), dt, sh) }})
			for _, inPlace := range []bool{false, true} {
				name := title("GLUGrad", dt, "%dx%d inPlace=%v", sh[0], sh[1], inPlace)
				all = append(all, trial{name, func(r *rig) (func(), []result) { return gluGradCall(r, newSource(name), dt, sh, inPlace) }})
			}
		}
	}
	return all
}

const eps = 1e-3

func normCall(r *rig, s source, dt device.DType, sh [3]int) (func(), []result) {
	x, w := roundMat(s.normal(sh[0], sh[1]), dt), roundMat(s.normal(1, sh[1]), dt)
	want, rstd := rmsNorm(x, w, eps)
	xt, wt, y, rt := r.in(dt, x), r.in(dt, w), r.out(dt, sh[0], sh[1]), r.column(newMat(sh[0], 1))
	return func() { r.d.RMSNorm(r.s, y, rt, xt, wt, eps) },
		[]result{{"y", y, want, dt, false}, {"rstd", rt, rstd, device.F32, false}}
}

func normGradCall(r *rig, s source, dt device.DType, sh [3]int, mode string) (func(), []result) {
	x, w, dy := roundMat(s.normal(sh[0], sh[1]), dt), roundMat(s.normal(1, sh[1]), dt), roundMat(s.normal(sh[0], sh[1]), dt)
	before := roundMat(s.normal(1, sh[1]), device.F32)
	_, rstd := rmsNorm(x, w, eps)
	dx, dw := rmsNormGrad(dy, x, w, eps)
	dw = dw.plus(before)
	xt, wt, dyt, dwt, rt := r.in(dt, x), r.in(dt, w), r.in(dt, dy), r.in(device.F32, before), r.column(rstd)
	var out, addT device.Tensor
	if mode != "" {
		add := roundMat(s.normal(sh[0], sh[1]), dt)
		dx = dx.plus(add)
		addT = r.in(dt, add)
		out = addT
	}
	if mode != " addInPlace" {
		out = r.out(dt, sh[0], sh[1])
	}
	ws := r.workspace(device.OpNormGrad, device.Shape{Rows: sh[0], Seq: sh[2], In: sh[1], DT: dt})
	return func() { r.d.RMSNormGrad(r.s, out, dwt, dyt, xt, rt, wt, addT, sh[2], ws) },
		[]result{{"dx", out, dx, dt, false}, {"dw", dwt, dw, dt, false}}
}

func ropeCall(r *rig, s source, dt device.DType, sh [4]int, inverse bool) (func(), []result) {
	rows, dim := sh[0], sh[3]
	table, pos := ropeTable(40, dim), s.ids(rows, 0, 40)
	q := roundMat(s.normal(rows, sh[1]*dim), dt)
	qt, tt, pt := r.in(dt, q), r.in(device.F32, table), r.ints(pos)
	results := []result{{"q", qt, rope(q, table, pos, dim, inverse), dt, false}}
	var kt device.Tensor
	if sh[2] > 0 {
		k := roundMat(s.normal(rows, sh[2]*dim), dt)
		kt = r.in(dt, k)
		results = append(results, result{"k", kt, rope(k, table, pos, dim, inverse), dt, false})
	}
	return func() { r.d.Rope(r.s, qt, kt, tt, pt, dim, inverse) }, results
}

func gluCall(r *rig, s source, dt device.DType, sh [2]int) (func(), []result) {
	x := roundMat(scaled(s.normal(sh[0], 2*sh[1]), 3), dt)
	xt, y := r.in(dt, x), r.out(dt, sh[0], sh[1])
	return func() { r.d.GLU(r.s, y, xt, device.SiLU) }, []result{{"y", y, glu(x), dt, false}}
}

func gluGradCall(r *rig, s source, dt device.DType, sh [2]int, inPlace bool) (func(), []result) {
	x, dy := roundMat(scaled(s.normal(sh[0], 2*sh[1]), 3), dt), roundMat(s.normal(sh[0], sh[1]), dt)
	xt, dyt := r.in(dt, x), r.in(dt, dy)
	dx := xt
	if !inPlace {
		dx = r.out(dt, sh[0], 2*sh[1])
	}
	return func() { r.d.GLUGrad(r.s, dx, dyt, xt, device.SiLU) }, []result{{"dGateUp", dx, gluGrad(dy, x), dt, false}}
}

func scaled(m mat, k float64) mat {
	for i := range m.v {
		m.v[i] *= k
	}
	return m
}

func elementTrials() []trial {
	var all []trial
	for _, dt := range bothTypes {
		for _, sh := range [][2]int{{1, 1}, {3, 36}, {50, 33}, {2, 40000}} {
			for _, mode := range []string{"", " dst=a", " dst=b"} {
				name := title("Add", dt, "%dx%d%s", sh[0], sh[1], mode)
				all = append(all, trial{name, func(r *rig) (func(), []result) { return addCall(r, newSource(name), dt, sh, mode) }})
			}
			for _, to := range bothTypes {
				name := title("Cast", dt, "%dx%d to %v", sh[0], sh[1], to)
				all = append(all, trial{name, func(r *rig) (func(), []result) {
					x := roundMat(newSource(name).normal(sh[0], sh[1]), dt)
					xt, y := r.in(dt, x), r.out(to, sh[0], sh[1])
					return func() { r.d.Cast(r.s, y, xt) }, []result{{"dst", y, x, dt, true}}
				}})
			}
		}
	}
	for _, dt := range []device.DType{device.F32, device.BF16, device.F64} {
		name := title("Fill", dt, "5x33")
		all = append(all, trial{name, func(r *rig) (func(), []result) {
			y, want := r.out(dt, 5, 33), newMat(5, 33)
			for i := range want.v {
				want.v[i] = float64(float32(math.Pi))
			}
			return func() { r.d.Fill(r.s, y, math.Pi) }, []result{{"dst", y, want, dt, true}}
		}})
	}
	return all
}

func addCall(r *rig, s source, dt device.DType, sh [2]int, mode string) (func(), []result) {
	a, b := roundMat(s.normal(sh[0], sh[1]), dt), roundMat(s.normal(sh[0], sh[1]), dt)
	at, bt := r.in(dt, a), r.in(dt, b)
	dst := at
	switch mode {
	case "":
		dst = r.out(dt, sh[0], sh[1])
	case " dst=b":
		dst = bt
	}
	// A BF16 sum is rounded to F32 first; the model does the same.
	return func() { r.d.Add(r.s, dst, at, bt) }, []result{{"dst", dst, roundMat(a.plus(b), device.F32), dt, true}}
}
