package devicetest

import "github.com/skein-ml/skein/device"

// activations are those of Activate.
var activations = []device.Act{device.GELU, device.GELUTanh}

// plainLayerTrials are of the operations that layers of the GPT-2 kind need.
func plainLayerTrials() []trial {
	var all []trial
	for _, dt := range bothTypes {
		// rows, columns, rows of a sequence
		for _, sh := range [][3]int{{1, 5, 1}, {1, 36, 1}, {6, 96, 3}, {65, 64, 65}, {600, 33, 600}, {1100, 576, 550}, {7, 1100, 7}} {
			name := title("LayerNorm", dt, "%dx%d", sh[0], sh[1])
			all = append(all, trial{name, func(r *rig) (func(), []result) { return layerNormCall(r, newSource(name), dt, sh) }})
			for _, add := range []string{"", " add", " addInPlace"} {
				name := title("LayerNormGrad", dt, "%dx%d in %d%s", sh[0], sh[1], sh[2], add)
				all = append(all, trial{name, func(r *rig) (func(), []result) { return layerNormGradCall(r, newSource(name), dt, sh, add) }})
			}
		}
		for _, act := range activations {
			for _, sh := range [][2]int{{1, 1}, {3, 36}, {17, 97}, {2, 40000}} {
				name := title("Activate", dt, "%d on %dx%d", act, sh[0], sh[1])
				all = append(all, trial{name, func(r *rig) (func(), []result) { return activateCall(r, newSource(name), dt, sh, act) }})
				for _, inPlace := range []string{"", " dx=x", " dx=dy"} {
					name := title("ActivateGrad", dt, "%d on %dx%d%s", act, sh[0], sh[1], inPlace)
					all = append(all, trial{name, func(r *rig) (func(), []result) {
						return activateGradCall(r, newSource(name), dt, sh, act, inPlace)
					}})
				}
			}
		}
	}
	return all
}

// offCenter is normal with a mean, so that what subtracts it shows.
func (s source) offCenter(rows, cols int) mat {
	m := s.normal(rows, cols)
	for i := range m.v {
		m.v[i] += 3
	}
	return m
}

func layerNormCall(r *rig, s source, dt device.DType, sh [3]int) (func(), []result) {
	x, w, b := roundMat(s.offCenter(sh[0], sh[1]), dt), roundMat(s.normal(1, sh[1]), dt), roundMat(s.normal(1, sh[1]), dt)
	want, stats := layerNorm(x, w, b, eps)
	xt, wt, bt, y, st := r.in(dt, x), r.in(dt, w), r.in(dt, b), r.out(dt, sh[0], sh[1]), r.make(device.F32, sh[0], 2, 2, nil)
	return func() { r.d.LayerNorm(r.s, y, st, xt, wt, bt, eps) },
		[]result{{"y", y, want, dt, false}, {"stats", st, stats, device.F32, false}}
}

func layerNormGradCall(r *rig, s source, dt device.DType, sh [3]int, mode string) (func(), []result) {
	x, w, dy := roundMat(s.offCenter(sh[0], sh[1]), dt), roundMat(s.normal(1, sh[1]), dt), roundMat(s.normal(sh[0], sh[1]), dt)
	beforeW, beforeB := roundMat(s.normal(1, sh[1]), device.F32), roundMat(s.normal(1, sh[1]), device.F32)
	_, stats := layerNorm(x, w, newMat(1, sh[1]), eps)
	dx, dw, db := layerNormGrad(dy, x, w, eps)
	xt, wt, dyt, st := r.in(dt, x), r.in(dt, w), r.in(dt, dy), r.make(device.F32, sh[0], 2, 2, encode(device.F32, stats.v))
	dwt, dbt := r.in(device.F32, beforeW), r.in(device.F32, beforeB)
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
	ws := r.workspace(device.OpLayerNormGrad, device.Shape{Rows: sh[0], Seq: sh[2], In: sh[1], DT: dt})
	return func() { r.d.LayerNormGrad(r.s, out, dwt, dbt, dyt, xt, st, wt, addT, sh[2], ws) },
		[]result{{"dx", out, dx, dt, false}, {"dw", dwt, dw.plus(beforeW), device.F32, false}, {"db", dbt, db.plus(beforeB), device.F32, false}}
}

func activateCall(r *rig, s source, dt device.DType, sh [2]int, act device.Act) (func(), []result) {
	x := roundMat(scaled(s.normal(sh[0], sh[1]), 3), dt)
	xt, y := r.in(dt, x), r.out(dt, sh[0], sh[1])
	return func() { r.d.Activate(r.s, y, xt, act) }, []result{{"y", y, apply(activation(act), x, mat{}), dt, false}}
}

func activateGradCall(r *rig, s source, dt device.DType, sh [2]int, act device.Act, mode string) (func(), []result) {
	x, dy := roundMat(scaled(s.normal(sh[0], sh[1]), 3), dt), roundMat(s.normal(sh[0], sh[1]), dt)
	xt, dyt := r.in(dt, x), r.in(dt, dy)
	dx := xt
	switch mode {
	case "":
		dx = r.out(dt, sh[0], sh[1])
	case " dx=dy":
		dx = dyt
	}
	return func() { r.d.ActivateGrad(r.s, dx, dyt, xt, act) }, []result{{"dx", dx, apply(activationSlope(act), x, dy), dt, false}}
}

// plainRows are the operations of plain layers whose rows are computed by themselves.
func plainRows(dt device.DType, x, norm mat) []func(r *rig) parts {
	n, in := x.rows, x.cols
	rowsOf := func(t device.Tensor, lo, hi int) device.Tensor { return t.RowRange(lo, hi) }
	return []func(r *rig) parts{
		func(r *rig) parts {
			y, stats, xt, wt := r.out(dt, n, in), r.make(device.F32, n, 2, 2, nil), r.in(dt, x), r.in(dt, norm)
			return parts{"LayerNorm", []device.Tensor{y, stats}, func(lo, hi int) {
				r.d.LayerNorm(r.s, rowsOf(y, lo, hi), rowsOf(stats, lo, hi), rowsOf(xt, lo, hi), wt, wt, eps)
			}}
		},
		func(r *rig) parts {
			_, factors := layerNorm(x, norm, norm, eps)
			dx, dw, db, g, xt := r.out(dt, n, in), r.in(device.F32, newMat(1, in)), r.in(device.F32, newMat(1, in)), r.in(dt, x), r.in(dt, x)
			stats, wt := r.make(device.F32, n, 2, 2, encode(device.F32, factors.v)), r.in(dt, norm)
			ws := r.workspace(device.OpLayerNormGrad, device.Shape{Rows: n, Seq: n, In: in, DT: dt})
			return parts{"LayerNormGrad", []device.Tensor{dx}, func(lo, hi int) {
				r.d.LayerNormGrad(r.s, rowsOf(dx, lo, hi), dw, db, rowsOf(g, lo, hi), rowsOf(xt, lo, hi), rowsOf(stats, lo, hi), wt, device.Tensor{}, hi-lo, ws)
			}}
		},
	}
}

func plainMisuse(r *rig) []misuse {
	const f = device.F32
	d, x, wide, half, flat := r.d, r.in(f, newMat(4, 8)), r.in(f, newMat(4, 9)), r.in(device.BF16, newMat(4, 8)), r.in(f, newMat(1, 8))
	return []misuse{
		{"LayerNorm without a bias", func() { d.LayerNorm(r.s, wide, device.Tensor{}, x, flat, device.Tensor{}, 1e-5) }},
		{"LayerNorm with half its stats", func() { d.LayerNorm(r.s, r.out(f, 4, 8), r.column(newMat(4, 1)), x, flat, flat, 1e-5) }},
		{"LayerNormGrad without workspace", func() {
			d.LayerNormGrad(r.s, x, flat, r.out(f, 1, 8), x, x, r.make(f, 4, 2, 2, nil), flat, device.Tensor{}, 4, device.Buf{})
		}},
		{"Activate with a gated function", func() { d.Activate(r.s, r.out(f, 4, 8), x, device.SiLU) }},
		{"ActivateGrad of another type", func() { d.ActivateGrad(r.s, x, half, x, device.GELU) }},
		{"GLU with a plain function", func() { d.GLU(r.s, r.out(f, 4, 4), x, device.GELU) }},
	}
}
