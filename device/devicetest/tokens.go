package devicetest

import (
	"slices"

	"github.com/skein-ml/skein/device"
)

func tokenTrials() []trial {
	var all []trial
	for _, dt := range bothTypes {
		for _, sh := range [][3]int{{1, 1, 1}, {5, 3, 36}, {700, 50, 96}} { // tokens, vocabulary, width
			name := title("Embed", dt, "%d of %dx%d", sh[0], sh[1], sh[2])
			all = append(all, trial{name, func(r *rig) (func(), []result) { return embedCall(r, newSource(name), dt, sh) }})
		}
		// tokens, vocabulary, width, tokens of a sequence
		for _, sh := range [][4]int{{1, 1, 1, 1}, {12, 5, 36, 4}, {600, 7, 96, 600}, {1200, 40, 33, 600}, {1024, 300, 64, 512}} {
			name := title("EmbedGrad", dt, "%d of %dx%d in %d", sh[0], sh[1], sh[2], sh[3])
			all = append(all, trial{name, func(r *rig) (func(), []result) { return embedGradCall(r, newSource(name), dt, sh) }})
		}
		for _, sh := range headShapes {
			for _, forward := range []bool{false, true} {
				name := title("HeadLoss", dt, "%v forward=%v", sh, forward)
				all = append(all, trial{name, func(r *rig) (func(), []result) { return headCall(r, newSource(name), dt, sh, forward) }})
			}
		}
	}
	return all
}

func embedCall(r *rig, s source, dt device.DType, sh [3]int) (func(), []result) {
	table, ids := roundMat(s.normal(sh[1], sh[2]), dt), s.ids(sh[0], 0, sh[1])
	want := newMat(sh[0], sh[2])
	for i, id := range ids {
		copy(want.row(i), table.row(int(id)))
	}
	tt, it, y := r.in(dt, table), r.ints(ids), r.out(dt, sh[0], sh[2])
	return func() { r.d.Embed(r.s, y, tt, it) }, []result{{"y", y, want, dt, true}}
}

// slots is order and starts of EmbedGrad, and the id of each slot.
func slots(ids []int32) (unique, order, starts []int32) {
	unique = slices.Clone(ids)
	slices.Sort(unique)
	unique = slices.Compact(unique)
	starts = []int32{0}
	for _, id := range unique {
		for i, other := range ids {
			if other == id {
				order = append(order, int32(i))
			}
		}
		starts = append(starts, int32(len(order)))
	}
	return unique, order, starts
}

func embedGradCall(r *rig, s source, dt device.DType, sh [4]int) (func(), []result) {
	ids, dx := s.ids(sh[0], 0, sh[1]), roundMat(s.normal(sh[0], sh[2]), dt)
	unique, order, starts := slots(ids)
	before := roundMat(s.normal(len(unique), sh[2]), device.F32)
	want := before.clone()
	for i, id := range ids {
		slot, _ := slices.BinarySearch(unique, id)
		for c, v := range dx.row(i) {
			want.add(slot, c, v)
		}
	}
	rows, dxt, ot, st := r.in(device.F32, before), r.in(dt, dx), r.ints(order), r.ints(starts)
	ws := r.workspace(device.OpEmbedGrad, device.Shape{Rows: sh[0], Seq: sh[3], In: sh[2], DT: dt})
	return func() { r.d.EmbedGrad(r.s, rows, dxt, ot, st, sh[3], ws) }, []result{{"rows", rows, want, device.F32, false}}
}

// headShape is rows, rows of a sequence, vocabulary, width, and how many of ten rows have targets.
type headShape struct{ rows, seq, vocab, d, dense int }

var headShapes = []headShape{
	{1, 1, 5, 36, 10}, {7, 7, 33, 64, 10}, {8, 4, 40, 36, 0}, {40, 20, 1000, 96, 5},
	{600, 600, 97, 64, 7}, {1040, 520, 50, 36, 3}, {1024, 512, 64, 40, 10},
}

func (s source) targets(sh headShape) []int32 {
	targets := s.ids(sh.rows, 0, sh.vocab)
	for i := range targets {
		if s.IntN(10) >= sh.dense {
			targets[i] = -1 - int32(i)
		}
	}
	return targets
}

func headCall(r *rig, s source, dt device.DType, sh headShape, forward bool) (func(), []result) {
	const scale, lossBefore = 1.0 / 64, 3.5
	x, w, targets := roundMat(s.normal(sh.rows, sh.d), dt), roundMat(scaled(s.normal(sh.vocab, sh.d), 0.3), dt), s.targets(sh)
	before := roundMat(scaled(s.normal(sh.vocab, sh.d), 0.1), device.F32)
	m := memo(s.name, func() [3]mat { nll, dx, dw := headLoss(x, w, targets, scale); return [3]mat{nll, dx, dw} })
	nll, dx, dw := m[0], m[1], m[2]
	loss := mat{1, 1, []float64{lossBefore}}
	for _, v := range nll.v {
		loss.v[0] += v
	}
	h := device.HeadLossArgs{X: r.in(dt, x), W: r.weight(dt, w, bothForms), Targets: r.ints(targets), Seq: sh.seq, Scale: scale,
		Loss: r.in(device.F64, mat{1, 1, []float64{lossBefore}}), NLL: r.out(device.F32, 1, sh.rows)}
	results := []result{{"loss", h.Loss, loss, dt, false}, {"nll", h.NLL, nll, dt, false}}
	if !forward {
		h.DX, h.DW = r.out(dt, sh.rows, sh.d), r.in(device.F32, before)
		results = append(results, result{"dx", h.DX, dx, dt, sh.dense == 0}, result{"dw", h.DW, dw.plus(before), dt, sh.dense == 0})
	}
	ws := r.workspace(device.OpHeadLoss, device.Shape{Rows: sh.rows, Seq: sh.seq, In: sh.d, Out: sh.vocab, DT: dt})
	return func() { r.d.HeadLoss(r.s, h, ws) }, results
}
