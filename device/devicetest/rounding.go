package devicetest

import (
	"math"
	"slices"
	"testing"

	"github.com/skein-ml/skein/device"
)

// runRounding looks at where sums are cut and where results are rounded.
func runRounding(t *testing.T, d device.Device) {
	for _, dt := range bothTypes {
		t.Run(dt.String(), func(t *testing.T) {
			for _, seq := range []int{1024, 512, 300} {
				t.Run("SumsAreCutIntoBlocks", func(t *testing.T) { sumsAreCut(t, d, dt, seq) })
			}
		})
	}
	t.Run("RMSNormRoundsTwice", func(t *testing.T) { normRoundsTwice(t, d) })
	t.Run("LayerNormRoundsOnce", func(t *testing.T) { normRoundsOnce(t, d) })
	t.Run("HeadLossKeepsLogitsInF32", func(t *testing.T) { logitsInF32(t, d) })
}

// sumsAreCut adds 1.25 for each row to accumulators of 2³³, whose next number is 1,024 away. A
// block of 512 rows makes 640, which rounds up to it; all 1,024 rows at once, half a block or
// a single row would give another sum.
func sumsAreCut(t *testing.T, d device.Device, dt device.DType, seq int) {
	const sequences, cols, start = 3, 40, 1 << 33
	n := seq * sequences
	want := float64(start + sequences*(seq/device.BlockRows)*1024)
	full := func(rows, cols int, v float64) mat { return mat{rows, cols, slices.Repeat([]float64{v}, rows*cols)} }
	r := newRig(t, d, layouts[0])
	defer r.close()
	ones, g := r.in(dt, full(n, cols, 1)), r.in(dt, full(n, cols, 1.25))
	sum := func(rows, cols int) device.Tensor { return r.in(device.F32, full(rows, cols, start)) }
	sh := device.Shape{Rows: n, Seq: seq, In: cols, Out: cols, DT: dt}

	dw, db, dNorm, rows := sum(cols, cols), sum(1, cols), sum(1, cols), sum(2, cols)
	r.d.LinearDW(r.s, dw, db, g, ones, seq, r.workspace(device.OpLinearDW, sh))
	r.d.RMSNormGrad(r.s, r.out(dt, n, cols), dNorm, g, ones, r.column(full(n, 1, 1)), r.in(dt, full(1, cols, 1)), device.Tensor{}, seq,
		r.workspace(device.OpNormGrad, sh))
	dPlain, dBias := sum(1, cols), sum(1, cols)
	r.d.LayerNormGrad(r.s, r.out(dt, n, cols), dPlain, dBias, g, ones, r.make(device.F32, n, 2, 2, encode(device.F32, statsOf(n, 0, 1))),
		r.in(dt, full(1, cols, 1)), device.Tensor{}, seq, r.workspace(device.OpLayerNormGrad, sh))
	order, starts := slotsOfAll(make([]int32, n), 2) // every token is in slot 0
	r.d.EmbedGrad(r.s, rows, g, r.ints(order), r.ints(starts), seq, r.workspace(device.OpEmbedGrad, sh))
	// Two equal logits: the gradient of the one that is no target is ½·2·1.25.
	h := device.HeadLossArgs{X: g, W: r.weight(dt, newMat(2, cols), bothForms), Targets: r.ints(make([]int32, n)), Seq: seq, Scale: 2,
		Loss: r.in(device.F64, newMat(1, 1)), DX: r.out(dt, n, cols), DW: sum(2, cols)}
	r.d.HeadLoss(r.s, h, r.workspace(device.OpHeadLoss, device.Shape{Rows: n, Seq: seq, In: cols, Out: 2, DT: dt}))

	for _, c := range []struct {
		name   string
		t      device.Tensor
		lo, hi int // elements that were added to
	}{{"dw", dw, 0, cols * cols}, {"db", db, 0, cols}, {"norm's dw", dNorm, 0, cols},
		{"layer norm's dw", dPlain, 0, cols}, {"layer norm's db", dBias, 0, cols}, {"embedding's row", rows, 0, cols}, {"head's dw", h.DW, cols, 2 * cols}} {
		for i, v := range r.read(c.t)[c.lo:c.hi] {
			if v != want {
				t.Errorf("%s in sequences of %d: element %d is 2³³ %+g, want %+g", c.name, seq, i, v-start, want-start)
				break
			}
		}
	}
	for i, v := range r.read(rows)[cols:] {
		if v != start {
			t.Errorf("empty slot: element %d is 2³³ %+g", i, v-start)
		}
	}
}

// statsOf is mean and factor of so many rows.
func statsOf(rows int, mean, rstd float64) []float64 {
	return slices.Repeat([]float64{mean, rstd}, rows)
}

// normRoundsOnce: LayerNorm rounds nothing but its result.
func normRoundsOnce(t *testing.T, d device.Device) {
	const rows, cols = 50, 96
	s := newSource("normRoundsOnce")
	x, w, b := roundMat(s.normal(rows, cols), device.BF16), roundMat(s.normal(1, cols), device.BF16), roundMat(s.normal(1, cols), device.BF16)
	r := newRig(t, d, layouts[0])
	defer r.close()
	y := r.out(device.BF16, rows, cols)
	r.d.LayerNorm(r.s, y, device.Tensor{}, r.in(device.BF16, x), r.in(device.BF16, w), r.in(device.BF16, b), eps)
	want, _ := layerNorm(x, w, b, eps)
	differ := 0
	for i, got := range r.read(y) {
		if got != roundTo(want.v[i], device.BF16) {
			differ++
		}
	}
	if differ > rows*cols/100 {
		t.Errorf("%d of %d elements are not those of one rounding", differ, rows*cols)
	}
}

// normRoundsTwice: in BF16 the normalised row is rounded before the weight
// multiplies it. One unit of the factor moves few elements across a boundary.
func normRoundsTwice(t *testing.T, d device.Device) {
	const rows, cols = 50, 96
	s := newSource("normRoundsTwice")
	x, w := roundMat(s.normal(rows, cols), device.BF16), roundMat(s.normal(1, cols), device.BF16)
	r := newRig(t, d, layouts[0])
	defer r.close()
	y := r.out(device.BF16, rows, cols)
	r.d.RMSNorm(r.s, y, device.Tensor{}, r.in(device.BF16, x), r.in(device.BF16, w), eps)
	_, rstd := rmsNorm(x, w, eps)
	differ := 0
	for i, got := range r.read(y) {
		if got != roundTo(roundTo(x.v[i]*rstd.v[i/cols], device.BF16)*w.v[i%cols], device.BF16) {
			differ++
		}
	}
	if differ > rows*cols/100 {
		t.Errorf("%d of %d elements are not those of two roundings", differ, rows*cols)
	}
}

// logitsInF32: two logits that BF16 can not tell apart have different losses.
func logitsInF32(t *testing.T, d device.Device) {
	const width = 32
	x, w := newMat(1, width), newMat(2, width)
	x.v[0], x.v[1] = 256, 0.25
	w.v[0], w.v[width], w.v[width+1] = 1, 1, 1 // logits 256 and 256.25
	r := newRig(t, d, layouts[0])
	defer r.close()
	h := device.HeadLossArgs{X: r.in(device.BF16, x), W: r.weight(device.BF16, w, bothForms), Targets: r.ints([]int32{0}), Seq: 1, Scale: 1,
		Loss: r.in(device.F64, newMat(1, 1))}
	r.d.HeadLoss(r.s, h, r.workspace(device.OpHeadLoss, device.Shape{Rows: 1, Seq: 1, In: width, Out: 2, DT: device.BF16}))
	if got, want := r.read(h.Loss)[0], math.Log(1+math.Exp(0.25)); math.Abs(got-want) > 1e-6 {
		t.Errorf("loss %g, want %g", got, want)
	}
}
