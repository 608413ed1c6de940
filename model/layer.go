package model

import (
	"math"

	"github.com/skein-ml/skein/device"
)

// residual is the stream [N, C] before and after a layer. Without out, a forward
// ends where the backward has all it needs.
type residual struct{ in, out device.Tensor }

// layerForward runs layer i:
//
//	mid = in + O·attention(rope(QKV·norm1(in)))
//	out = mid + Down·(silu(Gate·norm2(mid)) ⊙ (Up·norm2(mid)))
func (m *Model) layerForward(s device.Stream, b batchView, i int, a layerActs, r residual) {
	m.layerForwardWith(s, b, i, a, r, func(o, q, k, v device.Tensor) {
		m.dev.Attention(s, o, a.lse, q, k, v, b.docs, m.attnShape(i), m.ws)
		if m.afterAttention != nil {
			m.afterAttention(i, k, v)
		}
	})
}

// layerForwardWith is layerForward with attention left to the caller.
func (m *Model) layerForwardWith(s device.Stream, b batchView, i int, a layerActs, r residual, attend func(o, q, k, v device.Tensor)) {
	d, w, x := m.dev, &m.weights.layers[i], m.scratch.rows(b.n)
	q, k, v := m.splitQKV(a.qkv)

	d.RMSNorm(s, x.c1, a.rstd1, r.in, w.norm1, m.cfg.NormEps)
	d.Linear(s, a.qkv, x.c1, w.qkv, device.Epilogue{Bias: w.qkvBias}, m.ws)
	d.Rope(s, q, k, m.rope, b.pos, m.cfg.HeadDim, false)
	attend(a.o, q, k, v)
	d.Linear(s, a.mid, a.o, w.out, device.Epilogue{Bias: w.outBias, Add: r.in}, m.ws)

	d.RMSNorm(s, x.c1, a.rstd2, a.mid, w.norm2, m.cfg.NormEps)
	d.Linear(s, a.gateUp, x.c1, w.gateUp, device.Epilogue{Bias: w.gateUpBias}, m.ws)
	if r.out.IsZero() {
		return
	}
	d.GLU(s, x.f, a.gateUp, device.SiLU)
	d.Linear(s, r.out, x.f, w.down, device.Epilogue{Bias: w.downBias, Add: a.mid}, m.ws)
}

// layerBackward turns x.dh from the gradient at the layer's output into that at its
// input and adds the weights' gradients to g. Norm outputs and the gated product are
// computed again: they are cheap, and keeping them would cost 2·(2C+F) bytes a token.
func (m *Model) layerBackward(s device.Stream, b batchView, i int, a layerActs, in device.Tensor, g layerGrads) {
	d, w, x, seq := m.dev, &m.weights.layers[i], m.scratch.rows(b.n), m.opt.SeqLen
	q, k, v := m.splitQKV(a.qkv)
	dq, dk, dv := m.splitQKV(x.dqkv)

	d.GLU(s, x.f, a.gateUp, device.SiLU)
	d.LinearDW(s, g.down, g.downBias, x.dh, x.f, seq, m.ws)
	d.LinearDX(s, x.f, x.dh, w.down, device.Epilogue{}, m.ws)
	d.GLUGrad(s, a.gateUp, x.f, a.gateUp, device.SiLU)
	d.RMSNorm(s, x.c1, a.rstd2, a.mid, w.norm2, m.cfg.NormEps)
	d.LinearDW(s, g.gateUp, g.gateUpBias, a.gateUp, x.c1, seq, m.ws)
	d.LinearDX(s, x.c1, a.gateUp, w.gateUp, device.Epilogue{}, m.ws)
	d.RMSNormGrad(s, x.dh, g.norm2, x.c1, a.mid, a.rstd2, w.norm2, x.dh, seq, m.ws)

	d.LinearDW(s, g.out, g.outBias, x.dh, a.o, seq, m.ws)
	d.LinearDX(s, x.q, x.dh, w.out, device.Epilogue{}, m.ws)
	d.AttentionGrad(s, dq, dk, dv, x.q, q, k, v, a.o, a.lse, b.docs, m.attnShape(i), m.ws)
	d.Rope(s, dq, dk, m.rope, b.pos, m.cfg.HeadDim, true)
	d.RMSNorm(s, x.c1, a.rstd1, in, w.norm1, m.cfg.NormEps)
	d.LinearDW(s, g.qkv, g.qkvBias, x.dqkv, x.c1, seq, m.ws)
	d.LinearDX(s, x.c1, x.dqkv, w.qkv, device.Epilogue{}, m.ws)
	d.RMSNormGrad(s, x.dh, g.norm1, x.c1, in, a.rstd1, w.norm1, x.dh, seq, m.ws)
}

// splitQKV views the columns q | k | v of one matrix.
func (m *Model) splitQKV(t device.Tensor) (q, k, v device.Tensor) {
	nq, nk := m.cfg.Heads*m.cfg.HeadDim, m.cfg.KVHeads*m.cfg.HeadDim
	return t.ColRange(0, nq), t.ColRange(nq, nq+nk), t.ColRange(nq+nk, nq+2*nk)
}

func (m *Model) attnShape(layer int) device.AttnShape {
	c := m.cfg
	return device.AttnShape{Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim, Scale: float32(1 / math.Sqrt(float64(c.HeadDim))), Window: c.WindowAt(layer)}
}

// rows views the first n rows of kept activations.
func (a layerActs) rows(n int) layerActs {
	for _, t := range []*device.Tensor{&a.qkv, &a.o, &a.mid, &a.gateUp, &a.rstd1, &a.rstd2} {
		*t = t.RowRange(0, n)
	}
	a.lse = device.Make(a.lse.Buf, device.F32, a.lse.Rows, n)
	return a
}

// rows views the first n rows of the scratch.
func (x scratch) rows(n int) scratch {
	for _, t := range []*device.Tensor{&x.c1, &x.c2, &x.f, &x.q, &x.dqkv, &x.dh} {
		if !t.IsZero() {
			*t = t.RowRange(0, n)
		}
	}
	return x
}
