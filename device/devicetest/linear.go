package devicetest

import (
	"github.com/skein-ml/skein/device"
)

const bothForms = device.FormForward | device.FormDX

// linearShapes are rows, out, in: single ones, tails of every tile, and more than one slice of k.
var linearShapes = [][3]int{
	{1, 1, 1}, {1, 96, 36}, {2, 7, 36}, {3, 36, 96}, {17, 33, 64}, {31, 130, 50},
	{33, 48, 33}, {64, 64, 64}, {65, 200, 96}, {130, 97, 513}, {300, 40, 320}, {513, 65, 1100},
}

// epilogue is what a product adds.
type epilogue struct {
	name             string
	bias, biasF32    bool
	add, addIsOutput bool
}

var epilogues = []epilogue{
	{name: "plain"}, {name: "bias", bias: true}, {name: "bias32", bias: true, biasF32: true},
	{name: "add", add: true}, {name: "bias+add", bias: true, add: true}, {name: "addInPlace", add: true, addIsOutput: true},
}

func linearTrials() []trial {
	var all []trial
	for _, dt := range bothTypes {
		for i, sh := range linearShapes {
			yt := dt
			if i%3 == 1 {
				yt = device.F32
			}
			e := epilogues[i%len(epilogues)]
			name := title("Linear", dt, "%dx%dx%d to %v %s", sh[0], sh[1], sh[2], yt, e.name)
			all = append(all,
				trial{name, func(r *rig) (func(), []result) { return linearCall(r, newSource(name), dt, yt, sh, e, false) }},
				trial{name + " integers", func(r *rig) (func(), []result) {
					return linearCall(r, newSource(name+" integers"), dt, yt, sh, e, true)
				}})
			dxE := e
			if e.bias {
				dxE = epilogues[3]
			}
			dxName := title("LinearDX", dt, "%dx%dx%d to %v %s", sh[0], sh[1], sh[2], yt, dxE.name)
			all = append(all,
				trial{dxName, func(r *rig) (func(), []result) { return linearDXCall(r, newSource(dxName), dt, yt, sh, dxE, false) }},
				trial{dxName + " integers", func(r *rig) (func(), []result) {
					return linearDXCall(r, newSource(dxName+" integers"), dt, yt, sh, dxE, true)
				}})
		}
		// rows, out, in, rows of a sequence
		for _, sh := range [][4]int{{1, 1, 1, 1}, {1, 36, 96, 1}, {6, 33, 36, 3}, {64, 96, 64, 64}, {150, 50, 130, 75},
			{600, 70, 33, 600}, {1024, 40, 40, 512}, {1300, 33, 50, 650}, {1030, 16, 16, 1030}} {
			name := title("LinearDW", dt, "%dx%dx%d in %d", sh[0], sh[1], sh[2], sh[3])
			all = append(all,
				trial{name, func(r *rig) (func(), []result) { return linearDWCall(r, newSource(name), dt, sh, false) }},
				trial{name + " integers", func(r *rig) (func(), []result) { return linearDWCall(r, newSource(name+" integers"), dt, sh, true) }})
		}
	}
	return all
}

// data is integers for a test to the bit.
func (s source) data(exact bool) func(rows, cols int) mat {
	if exact {
		return s.integers
	}
	return s.normal
}

// addends makes an epilogue's tensors and adds them to want.
func (e epilogue) addends(r *rig, data func(rows, cols int) mat, yt device.DType, want mat) (mat, device.Epilogue, device.Tensor) {
	var ep device.Epilogue
	if e.bias {
		bt := yt
		if e.biasF32 {
			bt = device.F32
		}
		bias := roundMat(data(1, want.cols), bt)
		ep.Bias = r.in(bt, bias)
		for i := range want.v {
			want.v[i] += bias.v[i%want.cols]
		}
	}
	y := device.Tensor{}
	if e.add {
		add := roundMat(data(want.rows, want.cols), yt)
		ep.Add = r.in(yt, add)
		want = want.plus(add)
		if e.addIsOutput {
			y = ep.Add
		}
	}
	if y.IsZero() {
		y = r.out(yt, want.rows, want.cols)
	}
	return want, ep, y
}

func linearCall(r *rig, s source, dt, yt device.DType, sh [3]int, e epilogue, exact bool) (func(), []result) {
	data := s.data(exact)
	x, w := roundMat(data(sh[0], sh[2]), dt), roundMat(data(sh[1], sh[2]), dt)
	want, ep, y := e.addends(r, data, yt, memo(s.name, func() mat { return linear(x, w) }).clone())
	xt, wt := r.in(dt, x), r.weight(dt, w, device.FormForward)
	ws := r.workspace(device.OpLinear, device.Shape{Rows: sh[0], Seq: sh[0], In: sh[2], Out: sh[1], DT: dt})
	return func() { r.d.Linear(r.s, y, xt, wt, ep, ws) }, []result{{"y", y, want, dt, exact}}
}

func linearDXCall(r *rig, s source, dt, yt device.DType, sh [3]int, e epilogue, exact bool) (func(), []result) {
	data := s.data(exact)
	dy, w := roundMat(data(sh[0], sh[1]), dt), roundMat(data(sh[1], sh[2]), dt)
	dx := memo(s.name, func() mat { dx, _ := linearGrad(dy, newMat(sh[0], sh[2]), w); return dx })
	want, ep, out := e.addends(r, data, yt, dx.clone())
	dyt, wt := r.in(dt, dy), r.weight(dt, w, bothForms)
	ws := r.workspace(device.OpLinearDX, device.Shape{Rows: sh[0], Seq: sh[0], In: sh[2], Out: sh[1], DT: dt})
	return func() { r.d.LinearDX(r.s, out, dyt, wt, ep, ws) }, []result{{"dx", out, want, dt, exact}}
}

func linearDWCall(r *rig, s source, dt device.DType, sh [4]int, exact bool) (func(), []result) {
	data := s.data(exact)
	dy, x := roundMat(data(sh[0], sh[1]), dt), roundMat(data(sh[0], sh[2]), dt)
	before, beforeB := roundMat(data(sh[1], sh[2]), device.F32), roundMat(data(1, sh[1]), device.F32)
	dw := memo(s.name, func() mat { _, dw := linearGrad(dy, x, newMat(sh[1], sh[2])); return dw.plus(before) })
	db := beforeB.clone()
	for i, v := range dy.v {
		db.v[i%dy.cols] += v
	}
	dwt, dbt, dyt, xt := r.in(device.F32, before), r.in(device.F32, beforeB), r.in(dt, dy), r.in(dt, x)
	ws := r.workspace(device.OpLinearDW, device.Shape{Rows: sh[0], Seq: sh[3], In: sh[2], Out: sh[1], DT: dt})
	return func() { r.d.LinearDW(r.s, dwt, dbt, dyt, xt, sh[3], ws) },
		[]result{{"dw", dwt, dw, device.F32, exact}, {"db", dbt, db, device.F32, exact}}
}
