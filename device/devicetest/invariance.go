package devicetest

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/skein-ml/skein/device"
)

// runInvariance compares operations with themselves, bit for bit.
func runInvariance(t *testing.T, d device.Device) {
	for _, dt := range bothTypes {
		t.Run(dt.String(), func(t *testing.T) {
			t.Run("Rows", func(t *testing.T) { runRows(t, d, dt) })
			t.Run("Elements", func(t *testing.T) { runElements(t, d, dt) })
			t.Run("Batches", func(t *testing.T) { runBatches(t, d, dt) })
			t.Run("Documents", func(t *testing.T) { runDocuments(t, d, dt) })
			t.Run("Targets", func(t *testing.T) { runTargets(t, d, dt) })
		})
	}
}

// parts is an operation that can be asked for a part of its outputs.
type parts struct {
	name string
	outs []device.Tensor
	call func(lo, hi int)
}

// checkParts compares the outputs of one call on [0, n) with those of calls on ranges.
func checkParts(t *testing.T, d device.Device, n int, cuts []int, setUp func(r *rig) parts) {
	var whole [][]byte
	for _, cut := range [][]int{{0, n}, cuts} {
		r := newRig(t, d, layouts[0])
		p := setUp(r)
		for i := range len(cut) - 1 {
			p.call(cut[i], cut[i+1])
		}
		for i, out := range p.outs {
			bits := r.raw(out)
			if len(whole) <= i {
				whole = append(whole, bits)
			} else if !bytes.Equal(bits, whole[i]) {
				t.Errorf("%s: output %d of [0, %d) is not that of ranges cut at %v", p.name, i, n, cuts)
			}
		}
		r.close()
	}
}

// runRows: a row's result depends neither on its index nor on how many rows there are.
func runRows(t *testing.T, d device.Device, dt device.DType) {
	const n, in, out, dim = 200, 96, 70, 16
	cuts := []int{0, 1, 4, 37, 64, 131, n}
	rows := func(t device.Tensor, lo, hi int) device.Tensor { return t.RowRange(lo, hi) }
	s := newSource("rows " + dt.String())
	x, dy, w := roundMat(s.normal(n, in), dt), roundMat(s.normal(n, out), dt), roundMat(s.normal(out, in), dt)
	norm, gateUp := roundMat(s.normal(1, in), dt), roundMat(s.normal(n, 2*in), dt)
	table, pos := ropeTable(50, dim), s.ids(n, 0, 50)
	cases := []func(r *rig) parts{
		func(r *rig) parts {
			y, xt, wt := r.out(dt, n, out), r.in(dt, x), r.weight(dt, w, bothForms)
			ws := r.workspace(device.OpLinear, device.Shape{Rows: n, Seq: n, In: in, Out: out, DT: dt})
			return parts{"Linear", []device.Tensor{y}, func(lo, hi int) {
				r.d.Linear(r.s, rows(y, lo, hi), rows(xt, lo, hi), wt, device.Epilogue{}, ws)
			}}
		},
		func(r *rig) parts {
			dx, dyt, wt := r.out(dt, n, in), r.in(dt, dy), r.weight(dt, w, bothForms)
			ws := r.workspace(device.OpLinearDX, device.Shape{Rows: n, Seq: n, In: in, Out: out, DT: dt})
			return parts{"LinearDX", []device.Tensor{dx}, func(lo, hi int) {
				r.d.LinearDX(r.s, rows(dx, lo, hi), rows(dyt, lo, hi), wt, device.Epilogue{}, ws)
			}}
		},
		func(r *rig) parts {
			y, rstd, xt, wt := r.out(dt, n, in), r.column(newMat(n, 1)), r.in(dt, x), r.in(dt, norm)
			return parts{"RMSNorm", []device.Tensor{y, rstd}, func(lo, hi int) {
				r.d.RMSNorm(r.s, rows(y, lo, hi), rows(rstd, lo, hi), rows(xt, lo, hi), wt, eps)
			}}
		},
		func(r *rig) parts {
			_, factor := rmsNorm(x, norm, eps)
			dx, dw, g, xt := r.out(dt, n, in), r.in(device.F32, newMat(1, in)), r.in(dt, x), r.in(dt, x)
			rstd, wt := r.column(factor), r.in(dt, norm)
			ws := r.workspace(device.OpNormGrad, device.Shape{Rows: n, Seq: n, In: in, DT: dt})
			return parts{"RMSNormGrad", []device.Tensor{dx}, func(lo, hi int) {
				r.d.RMSNormGrad(r.s, rows(dx, lo, hi), dw, rows(g, lo, hi), rows(xt, lo, hi), rows(rstd, lo, hi), wt, device.Tensor{}, hi-lo, ws)
			}}
		},
		func(r *rig) parts {
			q, k, tt, pt := r.in(dt, x), r.in(dt, roundMat(x.clone(), dt)), r.in(device.F32, table), r.ints(pos)
			return parts{"Rope", []device.Tensor{q, k}, func(lo, hi int) {
				r.d.Rope(r.s, rows(q, lo, hi), rows(k, lo, hi), tt, pt.ColRange(lo, hi), dim, false)
			}}
		},
		func(r *rig) parts {
			y, xt := r.out(dt, n, in), r.in(dt, gateUp)
			return parts{"GLU", []device.Tensor{y}, func(lo, hi int) { r.d.GLU(r.s, rows(y, lo, hi), rows(xt, lo, hi), device.SiLU) }}
		},
		func(r *rig) parts {
			dx, g, xt := r.out(dt, n, 2*in), r.in(dt, x), r.in(dt, gateUp)
			return parts{"GLUGrad", []device.Tensor{dx}, func(lo, hi int) {
				r.d.GLUGrad(r.s, rows(dx, lo, hi), rows(g, lo, hi), rows(xt, lo, hi), device.SiLU)
			}}
		},
		func(r *rig) parts {
			y, tt, pt := r.out(dt, n, in), r.in(dt, x), r.ints(pos)
			return parts{"Embed", []device.Tensor{y}, func(lo, hi int) { r.d.Embed(r.s, rows(y, lo, hi), tt, pt.ColRange(lo, hi)) }}
		},
	}
	for _, c := range append(cases, plainRows(dt, x, norm)...) {
		checkParts(t, d, n, cuts, c)
	}
}

// runElements: f(x[a:b]) = f(x)[a:b] for elementwise operations.
func runElements(t *testing.T, d device.Device, dt device.DType) {
	const n = 70000
	cuts := []int{0, 1, 16, 33, 4097, 32768, 65537, n}
	s := newSource("elements " + dt.String())
	a, b, gateUp := roundMat(s.normal(1, n), dt), roundMat(s.normal(1, n), dt), roundMat(s.normal(1, 2*n), dt)
	cols := func(t device.Tensor, lo, hi int) device.Tensor { return t.ColRange(lo, hi) }
	cases := []func(r *rig) parts{
		func(r *rig) parts {
			dst, at, bt := r.out(dt, 1, n), r.in(dt, a), r.in(dt, b)
			return parts{"Add", []device.Tensor{dst}, func(lo, hi int) { r.d.Add(r.s, cols(dst, lo, hi), cols(at, lo, hi), cols(bt, lo, hi)) }}
		},
		func(r *rig) parts {
			to := device.F32 + device.BF16 - dt
			dst, at := r.out(to, 1, n), r.in(dt, a)
			return parts{"Cast", []device.Tensor{dst}, func(lo, hi int) { r.d.Cast(r.s, cols(dst, lo, hi), cols(at, lo, hi)) }}
		},
		func(r *rig) parts {
			erf, tanh, at := r.out(dt, 1, n), r.out(dt, 1, n), r.in(dt, a)
			return parts{"Activate", []device.Tensor{erf, tanh}, func(lo, hi int) {
				r.d.Activate(r.s, cols(erf, lo, hi), cols(at, lo, hi), device.GELU)
				r.d.Activate(r.s, cols(tanh, lo, hi), cols(at, lo, hi), device.GELUTanh)
			}}
		},
		func(r *rig) parts {
			erf, tanh, at, bt := r.out(dt, 1, n), r.out(dt, 1, n), r.in(dt, a), r.in(dt, b)
			return parts{"ActivateGrad", []device.Tensor{erf, tanh}, func(lo, hi int) {
				r.d.ActivateGrad(r.s, cols(erf, lo, hi), cols(bt, lo, hi), cols(at, lo, hi), device.GELU)
				r.d.ActivateGrad(r.s, cols(tanh, lo, hi), cols(bt, lo, hi), cols(at, lo, hi), device.GELUTanh)
			}}
		},
		func(r *rig) parts {
			y, xt := r.out(dt, 1, n), r.in(dt, gateUp)
			return parts{"GLU", []device.Tensor{y}, func(lo, hi int) {
				// One row of hi−lo elements: gate and up have to lie side by side.
				part := r.out(dt, 1, 2*(hi-lo))
				r.d.Cast(r.s, cols(part, 0, hi-lo), cols(xt, lo, hi))
				r.d.Cast(r.s, cols(part, hi-lo, 2*(hi-lo)), cols(xt, n+lo, n+hi))
				r.d.GLU(r.s, cols(y, lo, hi), part, device.SiLU)
			}}
		},
		func(r *rig) parts {
			m := roundMat(scaled(a.clone(), 0.01), device.F32)
			args := device.AdamWArgs{Master: r.in(device.F32, m), M: r.in(device.F32, m), V: r.in(device.F32, newMat(1, n)), Grad: r.in(device.F32, b),
				Work: r.out(dt, 1, n), GradScale: 0.5, LR: 1e-3, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8, Decay: 0.1, Correction1: 0.1, Correction2: 0.03}
			return parts{"AdamW", []device.Tensor{args.Master, args.M, args.V, args.Work}, func(lo, hi int) {
				p := args
				p.Master, p.M, p.V = cols(args.Master, lo, hi), cols(args.M, lo, hi), cols(args.V, lo, hi)
				p.Grad, p.Work = cols(args.Grad, lo, hi), cols(args.Work, lo, hi)
				r.d.AdamW(r.s, p)
			}}
		},
	}
	for _, c := range cases {
		checkParts(t, d, n, cuts, c)
	}
}

// runBatches: sums over tokens do not know how many sequences were in one call.
func runBatches(t *testing.T, d device.Device, dt device.DType) {
	const sequences, in, out = 4, 36, 50
	for _, seq := range []int{1, 300, 512, 600} {
		n := seq * sequences
		s := newSource(fmt.Sprintf("batches %v %d", dt, seq))
		x, dy, w := roundMat(s.normal(n, in), dt), roundMat(s.normal(n, out), dt), roundMat(s.normal(out, in), dt)
		norm, ids, targets := roundMat(s.normal(1, in), dt), s.ids(n, 0, 9), s.targets(headShape{n, seq, out, in, 6})
		cases := []func(r *rig) parts{
			func(r *rig) parts {
				dw, db, g, xt := r.in(device.F32, newMat(out, in)), r.in(device.F32, newMat(1, out)), r.in(dt, dy), r.in(dt, x)
				ws := r.workspace(device.OpLinearDW, device.Shape{Rows: n, Seq: seq, In: in, Out: out, DT: dt})
				return parts{"LinearDW", []device.Tensor{dw, db}, func(lo, hi int) {
					r.d.LinearDW(r.s, dw, db, g.RowRange(lo*seq, hi*seq), xt.RowRange(lo*seq, hi*seq), seq, ws)
				}}
			},
			func(r *rig) parts {
				_, factor := rmsNorm(x, norm, eps)
				dx, dw, g, xt := r.out(dt, n, in), r.in(device.F32, newMat(1, in)), r.in(dt, x), r.in(dt, x)
				rstd, wt := r.column(factor), r.in(dt, norm)
				ws := r.workspace(device.OpNormGrad, device.Shape{Rows: n, Seq: seq, In: in, DT: dt})
				return parts{"RMSNormGrad", []device.Tensor{dx, dw}, func(lo, hi int) {
					lo, hi = lo*seq, hi*seq
					r.d.RMSNormGrad(r.s, dx.RowRange(lo, hi), dw, g.RowRange(lo, hi), xt.RowRange(lo, hi), rstd.RowRange(lo, hi), wt, device.Tensor{}, seq, ws)
				}}
			},
			func(r *rig) parts {
				_, factors := layerNorm(x, norm, norm, eps)
				dw, db, g, xt := r.in(device.F32, newMat(1, in)), r.in(device.F32, newMat(1, in)), r.in(dt, x), r.in(dt, x)
				dx, stats, wt := r.out(dt, n, in), r.make(device.F32, n, 2, 2, encode(device.F32, factors.v)), r.in(dt, norm)
				ws := r.workspace(device.OpLayerNormGrad, device.Shape{Rows: n, Seq: seq, In: in, DT: dt})
				return parts{"LayerNormGrad", []device.Tensor{dx, dw, db}, func(lo, hi int) {
					lo, hi = lo*seq, hi*seq
					r.d.LayerNormGrad(r.s, dx.RowRange(lo, hi), dw, db, g.RowRange(lo, hi), xt.RowRange(lo, hi), stats.RowRange(lo, hi), wt, device.Tensor{}, seq, ws)
				}}
			},
			func(r *rig) parts {
				rows, dx := r.in(device.F32, newMat(9, in)), r.in(dt, x)
				ws := r.workspace(device.OpEmbedGrad, device.Shape{Rows: n, Seq: seq, In: in, DT: dt})
				return parts{"EmbedGrad", []device.Tensor{rows}, func(lo, hi int) {
					order, starts := slotsOfAll(ids[lo*seq:hi*seq], 9)
					r.d.EmbedGrad(r.s, rows, dx.RowRange(lo*seq, hi*seq), r.ints(order), r.ints(starts), seq, ws)
				}}
			},
			func(r *rig) parts {
				h := device.HeadLossArgs{X: r.in(dt, x), W: r.weight(dt, w, bothForms), Targets: r.ints(targets), Seq: seq, Scale: 0.125,
					Loss: r.in(device.F64, newMat(1, 1)), NLL: r.out(device.F32, 1, n), DX: r.out(dt, n, in), DW: r.in(device.F32, newMat(out, in))}
				ws := r.workspace(device.OpHeadLoss, device.Shape{Rows: n, Seq: seq, In: in, Out: out, DT: dt})
				return parts{"HeadLoss", []device.Tensor{h.Loss, h.NLL, h.DX, h.DW}, func(lo, hi int) {
					lo, hi = lo*seq, hi*seq
					p := h
					p.X, p.DX, p.Targets, p.NLL = h.X.RowRange(lo, hi), h.DX.RowRange(lo, hi), h.Targets.ColRange(lo, hi), h.NLL.ColRange(lo, hi)
					r.d.HeadLoss(r.s, p, ws)
				}}
			},
		}
		for _, c := range cases {
			checkParts(t, d, sequences, []int{0, 2, 4}, c)
			checkParts(t, d, sequences, []int{0, 1, 2, 3, 4}, c)
		}
	}
}

// slotsOfAll is order and starts with one slot for each of vocab ids, empty ones too.
func slotsOfAll(ids []int32, vocab int) (order, starts []int32) {
	starts = []int32{0}
	for id := range vocab {
		for i, other := range ids {
			if int(other) == id {
				order = append(order, int32(i))
			}
		}
		starts = append(starts, int32(len(order)))
	}
	return order, starts
}

// runDocuments: a document's bits stay when the one before it changes in content (to NaN,
// even) or in length, and when there is one after it.
func runDocuments(t *testing.T, d device.Device, dt device.DType) {
	const b = 150
	for _, window := range []int{0, 40} {
		g := geometry{heads: 4, kvHeads: 2, dim: 64, window: window, scale: 0.125}
		s := newSource("documents " + dt.String())
		own := geometry{heads: 4, kvHeads: 2, dim: 64, docs: []int32{0, b}}
		q, k, v := own.operands(s, dt)
		do := roundMat(s.normal(b, g.heads*g.dim), dt)
		var alone [][]byte
		for _, c := range []struct {
			name          string
			before, after int
			value         float64
		}{{"alone", 0, 0, 0}, {"after 3 rows", 3, 0, 1}, {"after 70 rows", 70, 5, -2}, {"after 64 rows of NaN", 64, 64, math.NaN()}} {
			g.docs = slices.Compact([]int32{0, int32(c.before), int32(c.before + b), int32(c.before + b + c.after)})
			r := newRig(t, d, layouts[0])
			around := func(m mat) mat {
				all := newMat(g.rows(), m.cols)
				for i := range all.v {
					all.v[i] = c.value
				}
				copy(all.v[c.before*m.cols:], m.v)
				return all
			}
			bits := documentBits(r, dt, g, around(q), around(k), around(v), around(do), c.before, b)
			r.close()
			if alone == nil {
				alone = bits
			}
			for i := range bits {
				if !bytes.Equal(bits[i], alone[i]) {
					t.Errorf("window %d: %s of a document is another %s", window, [...]string{"o", "lse", "dq", "dk", "dv"}[i], c.name)
				}
			}
		}
	}
}

// documentBits runs attention and its gradient and returns what rows [first, first+n) have.
func documentBits(r *rig, dt device.DType, g geometry, q, k, v, do mat, first, n int) [][]byte {
	qt, kt, vt, dot, docs := r.in(dt, q), r.in(dt, k), r.in(dt, v), r.in(dt, do), g.documents(r)
	o, lse := r.out(dt, q.rows, q.cols), r.out(device.F32, g.heads, q.rows)
	dq, dk, dv := r.out(dt, q.rows, q.cols), r.out(dt, k.rows, k.cols), r.out(dt, v.rows, v.cols)
	r.d.Attention(r.s, o, lse, qt, kt, vt, docs, g.shape(), g.need(r, device.OpAttention, dt))
	r.d.AttentionGrad(r.s, dq, dk, dv, dot, qt, kt, vt, o, lse, docs, g.shape(), g.need(r, device.OpAttentionGrad, dt))
	var bits [][]byte
	for _, t := range []device.Tensor{o, lse, dq, dk, dv} {
		all, row := r.raw(t), t.Cols*int(t.DT.Size())
		if t == lse {
			var own []byte
			for h := range g.heads {
				own = append(own, all[(h*t.Cols+first)*4:(h*t.Cols+first+n)*4]...)
			}
			bits = append(bits, own)
			continue
		}
		bits = append(bits, all[first*row:(first+n)*row])
	}
	return bits
}

// runTargets: a row's loss and gradient do not depend on which other rows have a target.
func runTargets(t *testing.T, d device.Device, dt device.DType) {
	const n, vocab, width = 90, 130, 36
	s := newSource("targets " + dt.String())
	x, w, targets := roundMat(s.normal(n, width), dt), roundMat(s.normal(vocab, width), dt), s.ids(n, 0, vocab)
	run := func(targets []int32) (nll, dx []byte) {
		r := newRig(t, d, layouts[0])
		defer r.close()
		h := device.HeadLossArgs{X: r.in(dt, x), W: r.weight(dt, w, bothForms), Targets: r.ints(targets), Seq: n, Scale: 1,
			Loss: r.in(device.F64, newMat(1, 1)), NLL: r.out(device.F32, 1, n), DX: r.out(dt, n, width), DW: r.in(device.F32, newMat(vocab, width))}
		r.d.HeadLoss(r.s, h, r.workspace(device.OpHeadLoss, device.Shape{Rows: n, Seq: n, In: width, Out: vocab, DT: dt}))
		return r.raw(h.NLL), r.raw(h.DX)
	}
	nll, dx := run(targets)
	row := width * int(dt.Size())
	for _, keep := range []func(i int) bool{func(i int) bool { return i == 57 }, func(i int) bool { return i%3 == 1 }} {
		some := slices.Clone(targets)
		for i := range some {
			if !keep(i) {
				some[i] = -1
			}
		}
		gotNLL, gotDX := run(some)
		for i := range n {
			if keep(i) && (!bytes.Equal(gotNLL[4*i:4*i+4], nll[4*i:4*i+4]) || !bytes.Equal(gotDX[i*row:(i+1)*row], dx[i*row:(i+1)*row])) {
				t.Fatalf("row %d changed when other rows lost their targets", i)
			}
		}
	}
}
