package devicetest

import (
	"fmt"
	"math"

	"github.com/skein-ml/skein/device"
)

func updateTrials() []trial {
	var all []trial
	for _, n := range []int{1, 4095, 4097, 70001} {
		name := fmt.Sprintf("SqNorm/%d", n)
		all = append(all, trial{name, func(r *rig) (func(), []result) {
			x, want := roundMat(newSource(name).normal(1, n), device.F32), newMat(1, 1)
			for _, v := range x.v {
				want.v[0] += v * v
			}
			xt, out := r.in(device.F32, x), r.out(device.F64, 1, 1)
			return func() { r.d.SqNorm(r.s, out, xt) }, []result{{"out", out, want, device.F32, false}}
		}})
	}
	for i, n := range []int{1, 33, 5000, 40001} {
		for _, work := range []string{"none", "f32", "bf16"} {
			name := fmt.Sprintf("AdamW/%d work %s", n, work)
			all = append(all, trial{name, func(r *rig) (func(), []result) { return adamWCall(r, newSource(name), n, work, i%2 == 0) }})
		}
	}
	for i, c := range addRowsCases {
		name := fmt.Sprintf("AddRows/%d", i)
		all = append(all, trial{name, func(r *rig) (func(), []result) { return addRowsCall(r, newSource(name), c) }})
	}
	return all
}

// adamWCall computes the update as the contract spells it: an F32 operation is an
// F64 one rounded to F32, since F64 has more than twice the bits.
func adamWCall(r *rig, s source, n int, work string, decay bool) (func(), []result) {
	f := func(x float64) float64 { return float64(float32(x)) }
	master, m, v, grad := s.normal(1, n), s.normal(1, n), s.normal(1, n), s.normal(1, n)
	for _, x := range []mat{master, m, v, grad} {
		roundMat(scaled(x, 0.1), device.F32)
	}
	for i := range v.v {
		v.v[i] = math.Abs(v.v[i]) * v.v[i] * v.v[i]
	}
	roundMat(v, device.F32)
	a := device.AdamWArgs{GradScale: 0.37, LR: 3e-3, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, Correction1: 0.271, Correction2: 0.3776}
	if decay {
		a.Decay = 0.1
	}
	a.Master, a.M, a.V, a.Grad = r.in(device.F32, master), r.in(device.F32, m), r.in(device.F32, v), r.in(device.F32, grad)
	decayStep, step := f(float64(a.LR)*float64(a.Decay)), f(float64(a.LR)/float64(a.Correction1))
	rest1, rest2 := f(1-float64(a.Beta1)), f(1-float64(a.Beta2))
	for i := range n {
		g := f(grad.v[i] * float64(a.GradScale))
		p := f(master.v[i] - f(master.v[i]*decayStep))
		m.v[i] = f(m.v[i] + f(f(g-m.v[i])*rest1))
		v.v[i] = f(f(v.v[i]*float64(a.Beta2)) + f(f(g*g)*rest2))
		den := f(f(f(math.Sqrt(v.v[i]))/float64(a.Correction2)) + float64(a.Eps))
		master.v[i] = f(p - f(step*f(m.v[i]/den)))
	}
	results := []result{{"master", a.Master, master, device.F32, true}, {"m", a.M, m, device.F32, true}, {"v", a.V, v, device.F32, true}}
	if work != "none" {
		dt := device.F32
		if work == "bf16" {
			dt = device.BF16
		}
		a.Work = r.out(dt, 1, n)
		results = append(results, result{"work", a.Work, master, dt, true})
	}
	return func() { r.d.AdamW(r.s, a) }, results
}

// addRowsCases are a piece [lo, lo+n) of a matrix of width d, and ids.
var addRowsCases = []struct {
	lo, n, d int
	ids      []int32
}{
	{0, 40, 4, []int32{0, 3, 9}},
	{5, 20, 8, []int32{0, 1, 2, 3, 900}}, // cuts rows 0 and 3
	{100, 7, 64, []int32{1}},             // inside of a row
	{300, 10, 10, []int32{1, 2, 29, 40}}, // nothing falls inside
	{1 << 20, 100000, 96, []int32{10922, 11000, 11900, 30000}},
	{8, 16, 8, nil},
}

func addRowsCall(r *rig, s source, c struct {
	lo, n, d int
	ids      []int32
}) (func(), []result) {
	before, rows := roundMat(s.normal(1, c.n), device.F32), roundMat(s.normal(len(c.ids), c.d), device.F32)
	want := before.clone()
	for i, id := range c.ids {
		for j, v := range rows.row(i) {
			if at := int(id)*c.d + j - c.lo; at >= 0 && at < c.n {
				want.v[at] += v
			}
		}
	}
	dst, it, rt := r.in(device.F32, before), r.ints(c.ids), r.in(device.F32, rows)
	return func() { r.d.AddRows(r.s, dst, int64(c.lo), it, rt) }, []result{{"dst", dst, want, device.F32, true}}
}
