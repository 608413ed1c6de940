package devicetest

import (
	"math"
	"testing"

	"github.com/skein-ml/skein/device"
)

// runSpread puts a NaN into one element of an operand and looks at how far it comes: never out
// of its row, its pair, its token or its document, and never less far than it should.
func runSpread(t *testing.T, d device.Device, dt device.DType) {
	t.Run("NormGradients", func(t *testing.T) { normGradsSpread(t, d, dt) })
	t.Run("ActivationGradients", func(t *testing.T) { activationGradsSpread(t, d, dt) })
	t.Run("Rope", func(t *testing.T) { ropeSpread(t, d, dt) })
	t.Run("Attention", func(t *testing.T) { attentionSpread(t, d, dt) })
	t.Run("AttentionGrad", func(t *testing.T) { attentionGradSpread(t, d, dt) })
	t.Run("AttentionDecode", func(t *testing.T) { decodeSpread(t, d, dt) })
	t.Run("TokensAndBias", func(t *testing.T) { tokensSpread(t, d, dt) })
}

// spoilt says which elements are NaN; the others are finite.
func spoilt(where func(i int) bool) func(i int) string {
	return func(i int) string {
		if where(i) {
			return "NaN"
		}
		return "finite"
	}
}

// spoil is m with a NaN at row, col.
func spoil(m mat, row, col int) mat {
	m.v[row*m.cols+col] = math.NaN()
	return m
}

func normGradsSpread(t *testing.T, d device.Device, dt device.DType) {
	const rows, cols, bad, col = 9, 45, 4, 41
	s := newSource("normGradsSpread")
	r := newRig(t, d, layouts[1])
	defer r.close()
	x, w, add := r.in(dt, roundMat(s.normal(rows, cols), dt)), r.in(dt, roundMat(s.normal(1, cols), dt)), r.in(dt, roundMat(s.normal(rows, cols), dt))
	dy := r.in(dt, spoil(roundMat(s.normal(rows, cols), dt), bad, col))
	rstd, stats := r.column(newMat(rows, 1)), r.make(device.F32, rows, 2, 2, nil)
	y, dx := r.out(dt, rows, cols), r.out(dt, rows, cols)
	sh := device.Shape{Rows: rows, Seq: rows, In: cols, DT: dt}
	inRow := spoilt(func(i int) bool { return i/cols == bad })
	inCol := spoilt(func(i int) bool { return i == col })

	dw := r.in(device.F32, newMat(1, cols))
	r.d.RMSNorm(r.s, y, rstd, x, w, eps)
	r.d.RMSNormGrad(r.s, dx, dw, dy, x, rstd, w, add, rows, r.workspace(device.OpNormGrad, sh))
	expectKinds(t, "dx of RMSNorm", r.read(dx), inRow)
	expectKinds(t, "dw of RMSNorm", r.read(dw), inCol)

	dw, db := r.in(device.F32, newMat(1, cols)), r.in(device.F32, newMat(1, cols))
	r.d.LayerNorm(r.s, y, stats, x, w, w, eps)
	r.d.LayerNormGrad(r.s, dx, dw, db, dy, x, stats, w, add, rows, r.workspace(device.OpLayerNormGrad, sh))
	expectKinds(t, "dx of LayerNorm", r.read(dx), inRow)
	expectKinds(t, "dw of LayerNorm", r.read(dw), inCol)
	expectKinds(t, "db of LayerNorm", r.read(db), inCol)
}

func activationGradsSpread(t *testing.T, d device.Device, dt device.DType) {
	const rows, f, bad = 3, 37, 1*37 + 36
	s := newSource("activationGradsSpread")
	r := newRig(t, d, layouts[1])
	defer r.close()
	x, dy := roundMat(s.normal(rows, f), dt), roundMat(s.normal(rows, f), dt)
	gateUp := roundMat(s.normal(rows, 2*f), dt)
	at := spoilt(func(i int) bool { return i == bad })
	both := spoilt(func(i int) bool { return i == 1*2*f+36 || i == 1*2*f+f+36 })
	xt, dyt, gt := r.in(dt, x), r.in(dt, dy), r.in(dt, gateUp)
	nanX, nanDY := r.in(dt, spoil(x.clone(), 1, 36)), r.in(dt, spoil(dy.clone(), 1, 36))
	dx, dg := r.out(dt, rows, f), r.out(dt, rows, 2*f)
	for _, act := range activations {
		r.d.ActivateGrad(r.s, dx, nanDY, xt, act)
		expectKinds(t, "ActivateGrad of a NaN dy", r.read(dx), at)
		r.d.ActivateGrad(r.s, dx, dyt, nanX, act)
		expectKinds(t, "ActivateGrad at a NaN x", r.read(dx), at)
	}
	r.d.GLUGrad(r.s, dg, nanDY, gt, device.SiLU)
	expectKinds(t, "GLUGrad of a NaN dy", r.read(dg), both)
	r.d.GLUGrad(r.s, dg, dyt, r.in(dt, spoil(gateUp.clone(), 1, 36)), device.SiLU)
	expectKinds(t, "GLUGrad at a NaN gate", r.read(dg), both)
	r.d.GLUGrad(r.s, dg, dyt, r.in(dt, spoil(gateUp.clone(), 1, f+36)), device.SiLU) // up does not enter its own slope
	expectKinds(t, "GLUGrad at a NaN up", r.read(dg), spoilt(func(i int) bool { return i == 1*2*f+36 }))
}

func ropeSpread(t *testing.T, d device.Device, dt device.DType) {
	const rows, heads, dim = 5, 3, 20
	s := newSource("ropeSpread")
	r := newRig(t, d, layouts[1])
	defer r.close()
	q, k := r.in(dt, spoil(roundMat(s.normal(rows, heads*dim), dt), 2, dim+3)), r.in(dt, spoil(roundMat(s.normal(rows, dim), dt), 4, 19))
	r.d.Rope(r.s, q, k, r.in(device.F32, ropeTable(rows, dim)), r.ints([]int32{1, 2, 3, 4, 0}), dim, false)
	expectKinds(t, "q", r.read(q), spoilt(func(i int) bool { return i == 2*heads*dim+dim+3 || i == 2*heads*dim+dim+13 }))
	expectKinds(t, "k", r.read(k), spoilt(func(i int) bool { return i == 4*dim+9 || i == 4*dim+19 }))
}

// spreading are documents beside the one that has the NaN, two query heads to a key head, and a
// window or none.
func spreading(window int) geometry {
	return geometry{heads: 4, kvHeads: 2, dim: 24, window: window, scale: 0.2, docs: []int32{0, 7, 150, 157}}
}

// looks says how query i takes key j: a NaN where it sees it, nothing where j comes later or is
// another document's. Of a key that has left the window, "" says that the weight of zero may be
// multiplied with it or not: a kernel that works by tiles would pay for the difference, and a
// step with a NaN anywhere is skipped in any case.
func (g geometry) looks(i, j int) string {
	for n := range len(g.docs) - 1 {
		if lo, hi := int(g.docs[n]), int(g.docs[n+1]); j >= lo && i < hi && i >= j {
			if g.window > 0 && i-j >= g.window {
				return ""
			}
			return "NaN"
		}
	}
	return "finite"
}

// looksWhere is looks for the elements that where picks; the others are finite.
func (g geometry) looksWhere(query, key func(i int) int, where func(i int) bool) func(i int) string {
	return func(i int) string {
		if !where(i) {
			return "finite"
		}
		return g.looks(query(i), key(i))
	}
}

func attentionSpread(t *testing.T, d device.Device, dt device.DType) {
	for _, window := range []int{0, 70} {
		for _, bad := range []int{7, 70, 71, 149} {
			g := spreading(window)
			q, k, v := g.operands(newSource("attentionSpread"), dt)
			r := newRig(t, d, layouts[1])
			o, lse := r.out(dt, g.rows(), q.cols), r.out(device.F32, g.heads, g.rows())
			attend := func(q, k, v mat) []float64 {
				r.d.Attention(r.s, o, lse, r.in(dt, q), r.in(dt, k), r.in(dt, v), g.documents(r), g.shape(), g.need(r, device.OpAttention, dt))
				return r.read(o)
			}
			row, head := func(i int) int { return i / q.cols }, func(i int) int { return i % q.cols / g.dim }
			badRow := func(int) int { return bad }
			expectKinds(t, "o of a NaN query", attend(spoil(q.clone(), bad, 2*g.dim+5), k, v),
				spoilt(func(i int) bool { return row(i) == bad && head(i) == 2 }))
			expectKinds(t, "o of a NaN key", attend(q, spoil(k.clone(), bad, g.dim+5), v),
				g.looksWhere(row, badRow, func(i int) bool { return head(i) >= 2 }))
			expectKinds(t, "o of a NaN value", attend(q, k, spoil(v.clone(), bad, g.dim+5)),
				g.looksWhere(row, badRow, func(i int) bool { return head(i) >= 2 && i%g.dim == 5 }))
			r.close()
		}
	}
}

func attentionGradSpread(t *testing.T, d device.Device, dt device.DType) {
	for _, window := range []int{0, 70} {
		for _, bad := range []int{7, 70, 71, 149} {
			g := spreading(window)
			s := newSource("attentionGradSpread")
			q, k, v := g.operands(s, dt)
			do := spoil(roundMat(s.normal(g.rows(), q.cols), dt), bad, 2*g.dim+5)
			r := newRig(t, d, layouts[1])
			qt, kt, vt, docs := r.in(dt, q), r.in(dt, k), r.in(dt, v), g.documents(r)
			o, lse := r.out(dt, g.rows(), q.cols), r.out(device.F32, g.heads, g.rows())
			dq, dk, dv := r.out(dt, q.rows, q.cols), r.out(dt, k.rows, k.cols), r.out(dt, v.rows, v.cols)
			r.d.Attention(r.s, o, lse, qt, kt, vt, docs, g.shape(), g.need(r, device.OpAttention, dt))
			r.d.AttentionGrad(r.s, dq, dk, dv, r.in(dt, do), qt, kt, vt, o, lse, docs, g.shape(), g.need(r, device.OpAttentionGrad, dt))
			// A query that sees one key has a weight of one: its score has no slope, NaN or not.
			alone := g.docs[1] == int32(bad)
			query, key := func(int) int { return bad }, func(i int) int { return i / k.cols }
			expectKinds(t, "dv", r.read(dv), g.looksWhere(query, key, func(i int) bool { return i%k.cols == g.dim+5 }))
			if !alone {
				expectKinds(t, "dq", r.read(dq), spoilt(func(i int) bool { return i/q.cols == bad && i%q.cols/g.dim == 2 }))
				expectKinds(t, "dk", r.read(dk), g.looksWhere(query, key, func(i int) bool { return i%k.cols >= g.dim }))
			}
			r.close()
		}
	}
}

func decodeSpread(t *testing.T, d device.Device, dt device.DType) {
	const n, bad = 90, 30
	for _, window := range []int{0, 50, 61} { // row 90 sees all, rows from 41 on, or from 30 on
		g := geometry{heads: 4, kvHeads: 2, dim: 24, window: window, scale: 0.2, docs: []int32{0, n + 1}}
		q, k, v := g.operands(newSource("decodeSpread"), dt)
		r := newRig(t, d, layouts[1])
		o := r.out(dt, 1, q.cols)
		decode := func(k, v mat) []float64 {
			r.d.AttentionDecode(r.s, o, r.in(dt, q.slice(n, n+1)), r.in(dt, k), r.in(dt, v), n+1, g.shape())
			return r.read(o)
		}
		query, key := func(int) int { return n }, func(int) int { return bad }
		expectKinds(t, "o of a NaN key", decode(spoil(k.clone(), bad, g.dim+5), v), g.looksWhere(query, key, func(i int) bool { return i/g.dim >= 2 }))
		expectKinds(t, "o of a NaN value", decode(k, spoil(v.clone(), bad, g.dim+5)), g.looksWhere(query, key, func(i int) bool { return i/g.dim >= 2 && i%g.dim == 5 }))
		r.close()
	}
}

func tokensSpread(t *testing.T, d device.Device, dt device.DType) {
	const rows, width = 6, 37
	s := newSource("tokensSpread")
	r := newRig(t, d, layouts[1])
	defer r.close()
	dx := r.in(dt, spoil(roundMat(s.normal(rows, width), dt), 3, 36))
	unique, order, starts := slots([]int32{5, 2, 5, 9, 2, 9})
	grads := r.in(device.F32, newMat(len(unique), width))
	r.d.EmbedGrad(r.s, grads, dx, r.ints(order), r.ints(starts), rows, r.workspace(device.OpEmbedGrad, device.Shape{Rows: rows, Seq: rows, In: width, DT: dt}))
	expectKinds(t, "EmbedGrad", r.read(grads), spoilt(func(i int) bool { return i == 2*width+36 })) // 9 is the third id

	dw, db := r.in(device.F32, newMat(width, width)), r.in(device.F32, newMat(1, width))
	x := r.in(dt, roundMat(s.normal(rows, width), dt))
	r.d.LinearDW(r.s, dw, db, dx, x, rows, r.workspace(device.OpLinearDW, device.Shape{Rows: rows, Seq: rows, In: width, Out: width, DT: dt}))
	expectKinds(t, "db", r.read(db), spoilt(func(i int) bool { return i == 36 }))

	piece, sparse := r.in(device.F32, newMat(1, 4*width)), spoil(newMat(2, width), 1, 3)
	r.d.AddRows(r.s, piece, width, r.ints([]int32{1, 4}), r.in(device.F32, sparse))
	expectKinds(t, "AddRows", r.read(piece), spoilt(func(i int) bool { return i == 3*width+3 }))
}
