package devicetest

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/skein-ml/skein/device"
)

// runValues: NaN and infinity go where arithmetic takes them and nowhere else.
func runValues(t *testing.T, d device.Device) {
	for _, dt := range bothTypes {
		t.Run(dt.String(), func(t *testing.T) {
			t.Run("ProductsPropagate", func(t *testing.T) { productsPropagate(t, d, dt) })
			t.Run("RowsPropagate", func(t *testing.T) { rowsPropagate(t, d, dt) })
			t.Run("HeadLossPropagates", func(t *testing.T) { headLossPropagates(t, d, dt) })
			t.Run("ActivationsHaveTheirLimits", func(t *testing.T) { activationLimits(t, d, dt) })
			t.Run("LargeLogitsStayFinite", func(t *testing.T) { largeLogits(t, d, dt) })
			t.Run("Spread", func(t *testing.T) { runSpread(t, d, dt) })
		})
	}
	t.Run("CastHasItsLimits", func(t *testing.T) { castLimits(t, d) })
	t.Run("UpdatesPropagate", func(t *testing.T) { updatesPropagate(t, d) })
}

// kind is what sort of number x is.
func kind(x float64) string {
	switch {
	case x != x:
		return "NaN"
	case math.IsInf(x, 0):
		return fmt.Sprint(x)
	}
	return "finite"
}

// notFinite is Inf or NaN.
const notFinite = "Inf or NaN"

// expectKinds compares kinds; want gives "" where any will do.
func expectKinds(t *testing.T, name string, got []float64, want func(i int) string) {
	t.Helper()
	for i, x := range got {
		w := want(i)
		if w == notFinite && kind(x) != "finite" {
			continue
		}
		if w != "" && kind(x) != w {
			t.Errorf("%s: element %d is %g, want %s", name, i, x, w)
			return
		}
	}
}

// productsPropagate puts infinities where a padded tile would multiply them by zero, and
// zeros where a lazy product would skip them.
func productsPropagate(t *testing.T, d device.Device, dt device.DType) {
	const rows, in, out = 5, 37, 35
	infinite := func(sign string) string { return sign + "Inf" }
	if dt == device.F32 && strings.HasSuffix(d.Info().Path, "-high") {
		infinite = func(string) string { return notFinite } // it also meets the low half of its factor, perhaps 0
	}
	s := newSource("products")
	positive := func(rows, cols int) mat {
		m := s.normal(rows, cols)
		for i, v := range m.v {
			m.v[i] = math.Abs(v) + 0.1
		}
		return roundMat(m, dt)
	}
	x, dy, w := positive(rows, in), positive(rows, out), positive(out, in)
	x.v[1*in+in-1] = math.Inf(1)
	x.v[3*in+2] = math.NaN()
	dy.v[2*out+out-1] = math.Inf(-1)
	dy.v[4*out+1] = math.NaN()
	w.v[7*in+in-1] = 0 // 0·Inf is NaN
	r := newRig(t, d, layouts[0])
	defer r.close()
	xt, dyt, wt := r.in(dt, x), r.in(dt, dy), r.weight(dt, w, bothForms)
	y, dx, dw := r.out(dt, rows, out), r.out(dt, rows, in), r.in(device.F32, newMat(out, in))
	sh := device.Shape{Rows: rows, Seq: rows, In: in, Out: out, DT: dt}
	r.d.Linear(r.s, y, xt, wt, device.Epilogue{}, r.workspace(device.OpLinear, sh))
	r.d.LinearDX(r.s, dx, dyt, wt, device.Epilogue{}, r.workspace(device.OpLinearDX, sh))
	r.d.LinearDW(r.s, dw, device.Tensor{}, dyt, xt, rows, r.workspace(device.OpLinearDW, sh))
	expectKinds(t, "y", r.read(y), func(i int) string {
		switch row, col := i/out, i%out; {
		case row == 3 || (row == 1 && col == 7):
			return "NaN"
		case row == 1:
			return infinite("+")
		}
		return "finite"
	})
	expectKinds(t, "dx", r.read(dx), func(i int) string {
		switch i / in {
		case 2:
			return infinite("-")
		case 4:
			return "NaN"
		}
		return "finite"
	})
	expectKinds(t, "dw", r.read(dw), func(i int) string {
		switch o, c := i/in, i%in; {
		case o == 1 || c == 2 || (o == out-1 && c == in-1):
			return "NaN" // the last is −Inf + Inf
		case o == out-1:
			return infinite("-")
		case c == in-1:
			return infinite("+")
		}
		return "finite"
	})
}

// rowsPropagate: NaN in a row spoils that row and no other.
func rowsPropagate(t *testing.T, d device.Device, dt device.DType) {
	const rows, cols = 9, 40
	s := newSource("rowsPropagate")
	x := roundMat(s.normal(rows, 2*cols), dt)
	x.v[4*2*cols+3] = math.NaN()
	r := newRig(t, d, layouts[0])
	defer r.close()
	xt := r.in(dt, x)
	w := r.in(dt, roundMat(s.normal(1, 2*cols), dt))
	y, rstd, g := r.out(dt, rows, 2*cols), r.column(newMat(rows, 1)), r.out(dt, rows, cols)
	r.d.RMSNorm(r.s, y, rstd, xt, w, eps)
	r.d.GLU(r.s, g, xt, device.SiLU)
	sum := r.out(dt, rows, 2*cols)
	r.d.Add(r.s, sum, xt, xt)
	centered, erf, tanh := r.out(dt, rows, 2*cols), r.out(dt, rows, 2*cols), r.out(dt, rows, 2*cols)
	r.d.LayerNorm(r.s, centered, device.Tensor{}, xt, w, w, eps)
	r.d.Activate(r.s, erf, xt, device.GELU)
	r.d.Activate(r.s, tanh, xt, device.GELUTanh)
	expectKinds(t, "RMSNorm", r.read(y), spoilt(func(i int) bool { return i/(2*cols) == 4 }))
	expectKinds(t, "GLU", r.read(g), spoilt(func(i int) bool { return i == 4*cols+3 }))
	expectKinds(t, "Add", r.read(sum), spoilt(func(i int) bool { return i == 4*2*cols+3 }))
	expectKinds(t, "LayerNorm", r.read(centered), spoilt(func(i int) bool { return i/(2*cols) == 4 }))
	expectKinds(t, "GELU", r.read(erf), spoilt(func(i int) bool { return i == 4*2*cols+3 }))
	expectKinds(t, "GELUTanh", r.read(tanh), spoilt(func(i int) bool { return i == 4*2*cols+3 }))
}

func headLossPropagates(t *testing.T, d device.Device, dt device.DType) {
	const rows, vocab, width = 6, 40, 36
	s := newSource("headLossPropagates")
	x := roundMat(s.normal(rows, width), dt)
	x.v[2*width] = math.NaN()
	x.v[4*width] = math.NaN() // has no target: nobody looks at it
	w := roundMat(s.normal(vocab, width), dt)
	r := newRig(t, d, layouts[0])
	defer r.close()
	h := device.HeadLossArgs{X: r.in(dt, x), W: r.weight(dt, w, bothForms), Targets: r.ints([]int32{1, 2, 3, 4, -1, 5}), Seq: rows, Scale: 1,
		Loss: r.in(device.F64, newMat(1, 1)), NLL: r.out(device.F32, 1, rows), DX: r.out(dt, rows, width), DW: r.in(device.F32, newMat(vocab, width))}
	r.d.HeadLoss(r.s, h, r.workspace(device.OpHeadLoss, device.Shape{Rows: rows, Seq: rows, In: width, Out: vocab, DT: dt}))
	atRow := func(width int) func(i int) string {
		return func(i int) string {
			if i/width == 2 {
				return "NaN"
			}
			return "finite"
		}
	}
	expectKinds(t, "nll", r.read(h.NLL), atRow(1))
	expectKinds(t, "dx", r.read(h.DX), atRow(width))
	expectKinds(t, "loss", r.read(h.Loss), func(int) string { return "NaN" })
	expectKinds(t, "dw", r.read(h.DW), func(int) string { return "NaN" })
}

// largeLogits: softmax subtracts the largest score first, so none overflows.
func largeLogits(t *testing.T, d device.Device, dt device.DType) {
	const rows, vocab, width = 3, 33, 32
	x, w := newMat(rows, width), newMat(vocab, width)
	for i := range rows {
		x.v[i*width] = 1000
	}
	for i := range vocab {
		w.v[i*width] = float64(i - 16)
	}
	r := newRig(t, d, layouts[0])
	defer r.close()
	h := device.HeadLossArgs{X: r.in(dt, x), W: r.weight(dt, w, bothForms), Targets: r.ints([]int32{32, 31, 0}), Seq: rows, Scale: 1,
		Loss: r.in(device.F64, newMat(1, 1)), NLL: r.out(device.F32, 1, rows)}
	r.d.HeadLoss(r.s, h, r.workspace(device.OpHeadLoss, device.Shape{Rows: rows, Seq: rows, In: width, Out: vocab, DT: dt}))
	for i, want := range []float64{0, 1000, 32000} {
		if got := r.read(h.NLL)[i]; got != want {
			t.Errorf("loss %d is %g, want %g", i, got, want)
		}
	}
	down := newMat(rows, width) // logits from −1000 down: even the largest one's e^x is 0
	for i := range rows {
		down.v[i*width] = 1000
	}
	for i := range vocab {
		w.v[i*width] = -1 - float64(i)
	}
	h.X, h.W, h.Targets = r.in(dt, down), r.weight(dt, w, bothForms), r.ints([]int32{0, 1, 32})
	r.d.HeadLoss(r.s, h, r.workspace(device.OpHeadLoss, device.Shape{Rows: rows, Seq: rows, In: width, Out: vocab, DT: dt}))
	for i, want := range []float64{0, 1000, 32000} {
		if got := r.read(h.NLL)[i]; got != want {
			t.Errorf("loss %d of small logits is %g, want %g", i, got, want)
		}
	}
	g := geometry{heads: 1, kvHeads: 1, dim: width, scale: 1, docs: []int32{0, rows}}
	o, lse := r.out(dt, rows, width), r.out(device.F32, 1, rows)
	r.d.Attention(r.s, o, lse, h.X, h.X, h.X, g.documents(r), g.shape(), g.need(r, device.OpAttention, dt))
	for i, got := range r.read(o) {
		if want := x.v[i]; got != want {
			t.Errorf("attention: element %d is %g, want %g", i, got, want)
		}
	}
	if got := r.read(lse)[0]; got != 1e6 {
		t.Errorf("lse is %g, want 1e6", got)
	}
}

// activationLimits: far out an activation is its input or zero, and so is its slope 1 or 0.
func activationLimits(t *testing.T, d device.Device, dt device.DType) {
	x := mat{1, 8, []float64{0, 1e15, -1e15, 300, -300, 40, -40, 1e-30}}
	slope := []float64{0.5, 1, 0, 1, 0, 1, 0, 0.5}
	want := []float64{0, 1e15, 0, 300, 0, 40, 0, 0.5e-30}
	roundMat(x, dt)
	r := newRig(t, d, layouts[0])
	defer r.close()
	ones := mat{1, 8, []float64{1, 1, 1, 1, 1, 1, 1, 1}}
	xt, g, y, dx := r.in(dt, x), r.in(dt, ones), r.out(dt, 1, 8), r.out(dt, 1, 8)
	for _, act := range activations {
		r.d.Activate(r.s, y, xt, act)
		r.d.ActivateGrad(r.s, dx, g, xt, act)
		got, gotSlope := r.read(y), r.read(dx)
		for i := range want {
			if math.Abs(got[i]-want[i]) > 0.01*math.Abs(want[i]) || gotSlope[i] != slope[i] {
				t.Errorf("activation %d at %g: %g with slope %g, want %g with %g", act, x.v[i], got[i], gotSlope[i], want[i], slope[i])
			}
		}
	}
}

func castLimits(t *testing.T, d device.Device) {
	inf, huge, tiny := math.Inf(1), float64(math.MaxFloat32), math.Ldexp(1, -149)
	half := 1 + math.Ldexp(1, -8) // midway between two BF16
	x := mat{1, 14, []float64{0, math.Copysign(0, -1), inf, -inf, math.NaN(), huge, -huge, tiny, math.Ldexp(1, -133), 1e-40,
		half, half + math.Ldexp(1, -7), half + math.Ldexp(1, -23), -half}}
	r := newRig(t, d, layouts[0])
	defer r.close()
	xt, b, f := r.in(device.F32, x), r.out(device.BF16, 1, 14), r.out(device.F32, 1, 14)
	r.d.Cast(r.s, b, xt)
	r.d.Cast(r.s, f, b)
	want := encode(device.BF16, x.v)
	got := r.raw(b)
	for i, v := range decode(device.BF16, got) {
		if x.v[i] != x.v[i] && v != v {
			copy(want[2*i:2*i+2], got[2*i:]) // any NaN will do
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%v became %v, want %v", x.v, decode(device.BF16, got), decode(device.BF16, want))
	}
	if back := r.read(f); !bytes.Equal(encode(device.BF16, back), got) {
		t.Errorf("%v came back as %v", decode(device.BF16, got), back)
	}
}

func updatesPropagate(t *testing.T, d device.Device) {
	const n = 5000
	r := newRig(t, d, layouts[0])
	defer r.close()
	for _, c := range []struct {
		value float64
		want  string
	}{{math.NaN(), "NaN"}, {math.Inf(-1), "+Inf"}, {1e30, "finite"}} { // 1e60 is finite in F64
		x := newMat(1, n)
		x.v[n-1] = c.value
		out := r.out(device.F64, 1, 1)
		r.d.SqNorm(r.s, out, r.in(device.F32, x))
		expectKinds(t, "SqNorm", r.read(out), func(int) string { return c.want })
	}
	grad := newMat(1, n)
	grad.v[77] = math.NaN()
	zero := newMat(1, n)
	a := device.AdamWArgs{Master: r.in(device.F32, zero), M: r.in(device.F32, zero), V: r.in(device.F32, zero), Grad: r.in(device.F32, grad),
		GradScale: 1, LR: 1, Beta1: 0.9, Beta2: 0.9, Eps: 1e-8, Correction1: 1, Correction2: 1}
	r.d.AdamW(r.s, a)
	expectKinds(t, "AdamW", r.read(a.Master), func(i int) string {
		if i == 77 {
			return "NaN"
		}
		return "finite"
	})
}
