package devicetest

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/skein-ml/skein/device"
)

// Digest is a hash of what every operation makes of fixed data: devices of one
// numeric class have one digest. Data are multiples of a power of two made from integers, so that
// every machine has the same.
func Digest(t *testing.T, d device.Device) string {
	h := sha256.New()
	for _, dt := range bothTypes {
		r := newRig(t, d, layouts[0])
		for _, out := range digestRun(r, dt) {
			h.Write(r.raw(out))
		}
		r.close()
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:12])
}

// PlainDigest is Digest for the operations that layers of the GPT-2 kind need besides.
func PlainDigest(t *testing.T, d device.Device) string {
	h := sha256.New()
	for _, dt := range bothTypes {
		r := newRig(t, d, layouts[0])
		for _, out := range plainDigestRun(r, dt) {
			h.Write(r.raw(out))
		}
		r.close()
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:12])
}

func plainDigestRun(r *rig, dt device.DType) []device.Tensor {
	const seq, n, d = 530, 1060, 83
	rng := rand.New(rand.NewPCG(3, 4))
	in := func(dt device.DType, rows, cols int) device.Tensor { return r.in(dt, dyadic(rng, rows, cols)) }
	x, w, b, dy := in(dt, n, d), in(dt, 1, d), in(dt, 1, d), in(dt, n, d)
	y, stats, dx := r.out(dt, n, d), r.make(device.F32, n, 2, 2, nil), r.out(dt, n, d)
	dw, db := r.in(device.F32, newMat(1, d)), r.in(device.F32, newMat(1, d))
	r.d.LayerNorm(r.s, y, stats, x, w, b, 1e-5)
	ws := r.workspace(device.OpLayerNormGrad, device.Shape{Rows: n, Seq: seq, In: d, DT: dt})
	r.d.LayerNormGrad(r.s, dx, dw, db, dy, x, stats, w, x, seq, ws)
	outs := []device.Tensor{y, stats, dx, dw, db}
	for _, act := range activations {
		a, da := r.out(dt, n, d), r.out(dt, n, d)
		r.d.Activate(r.s, a, y, act)
		r.d.ActivateGrad(r.s, da, dy, y, act)
		outs = append(outs, a, da)
	}
	return outs
}

// dyadic numbers are in [−2, 2), and exact in BF16.
func dyadic(rng *rand.Rand, rows, cols int) mat {
	m := newMat(rows, cols)
	for i := range m.v {
		m.v[i] = float64(rng.IntN(256)-128) / 64
	}
	return m
}

func digestRun(r *rig, dt device.DType) []device.Tensor {
	const f = device.F32
	const seq, n, d, dim, heads, kvHeads, mlp, vocab = 530, 1060, 80, 20, 4, 2, 96, 130
	rng := rand.New(rand.NewPCG(1, 2))
	in := func(dt device.DType, rows, cols int) device.Tensor { return r.in(dt, dyadic(rng, rows, cols)) }
	ids := func(limit int) device.Tensor {
		v := make([]int32, n)
		for i := range v {
			v[i] = int32(rng.IntN(limit))
		}
		return r.ints(v)
	}
	need := func(op device.Op, in, out int) device.Buf {
		return r.workspace(op, device.Shape{Rows: n, Seq: seq, In: in, Out: out, DT: dt, Heads: heads, KVHeads: kvHeads, HeadDim: dim, DocTokensMax: seq})
	}
	x, w, norm := in(dt, n, d), r.weight(dt, dyadic(rng, 2*mlp, d), bothForms), in(dt, 1, d)
	none := device.Tensor{}

	y, rstd := r.out(dt, n, d), r.column(newMat(n, 1))
	r.d.RMSNorm(r.s, y, rstd, x, norm, 1e-5)
	gateUp, act := r.out(dt, n, 2*mlp), r.out(dt, n, mlp)
	r.d.Linear(r.s, gateUp, y, w, device.Epilogue{Bias: in(dt, 1, 2*mlp)}, need(device.OpLinear, d, 2*mlp))
	r.d.GLU(r.s, act, gateUp, device.SiLU)
	dAct, dGateUp, dy, dx := in(dt, n, mlp), r.out(dt, n, 2*mlp), r.out(dt, n, d), r.out(dt, n, d)
	r.d.GLUGrad(r.s, dGateUp, dAct, gateUp, device.SiLU)
	dw, db, dNorm := r.in(f, newMat(2*mlp, d)), r.in(f, newMat(1, 2*mlp)), r.in(f, newMat(1, d))
	r.d.LinearDX(r.s, dy, dGateUp, w, device.Epilogue{}, need(device.OpLinearDX, d, 2*mlp))
	r.d.LinearDW(r.s, dw, db, dGateUp, y, seq, need(device.OpLinearDW, d, 2*mlp))
	r.d.RMSNormGrad(r.s, dx, dNorm, dy, x, rstd, norm, x, seq, need(device.OpNormGrad, d, 0))

	q, k, v := in(dt, n, heads*dim), in(dt, n, kvHeads*dim), in(dt, n, kvHeads*dim)
	r.d.Rope(r.s, q, k, in(f, 50, dim), ids(50), dim, false)
	g := geometry{heads: heads, kvHeads: kvHeads, dim: dim, window: 200, scale: 0.03125, docs: []int32{0, 77, seq, n}}
	docs, o, lse := g.documents(r), r.out(dt, n, heads*dim), r.out(f, heads, n)
	r.d.Attention(r.s, o, lse, q, k, v, docs, g.shape(), need(device.OpAttention, 0, 0))
	dq, dk, dv := r.out(dt, n, heads*dim), r.out(dt, n, kvHeads*dim), r.out(dt, n, kvHeads*dim)
	r.d.AttentionGrad(r.s, dq, dk, dv, in(dt, n, heads*dim), q, k, v, o, lse, docs, g.shape(), need(device.OpAttentionGrad, 0, 0))
	one := r.out(dt, 1, heads*dim)
	r.d.AttentionDecode(r.s, one, q.RowRange(7, 8), k, v, 333, g.shape())

	head := device.HeadLossArgs{X: x, W: r.weight(dt, scaled(dyadic(rng, vocab, d), 0.0625), bothForms), Targets: ids(vocab), Seq: seq, Scale: 0.5,
		Loss: r.in(device.F64, newMat(1, 1)), NLL: r.out(f, 1, n), DX: r.out(dt, n, d), DW: r.in(f, newMat(vocab, d))}
	r.d.HeadLoss(r.s, head, need(device.OpHeadLoss, d, vocab))
	master, m, vv, work, norm2 := in(f, 1, vocab*d), in(f, 1, vocab*d), r.in(f, newMat(1, vocab*d)), r.out(dt, 1, vocab*d), r.out(device.F64, 1, 1)
	flat := device.Tensor{Buf: head.DW.Buf, DT: f, Rows: 1, Cols: vocab * d, Ld: vocab * d}
	r.d.SqNorm(r.s, norm2, flat)
	r.d.AdamW(r.s, device.AdamWArgs{Master: master, M: m, V: vv, Grad: flat, Work: work, GradScale: 0.25,
		LR: 1e-3, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, Decay: 0.1, Correction1: 0.1, Correction2: 0.2})
	rows := r.in(f, newMat(3, d))
	order := make([]int32, n)
	for i := range order {
		order[i] = int32(i)
	}
	r.d.EmbedGrad(r.s, rows, dx, r.ints(order), r.ints([]int32{0, 600, 600, n}), seq, need(device.OpEmbedGrad, d, 0))
	r.d.LinearDW(r.s, dw, none, dGateUp, dx, seq, need(device.OpLinearDW, d, 2*mlp))
	return []device.Tensor{y, rstd, gateUp, act, dGateUp, dy, dx, dw, db, dNorm, q, k, o, lse, dq, dk, dv, one,
		head.Loss, head.NLL, head.DX, head.DW, norm2, master, m, vv, work, rows}
}
