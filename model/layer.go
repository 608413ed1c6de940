package model

import (
	"math"

	"github.com/skein-ml/skein/device"
)

// residual is the stream [N, C] before and after a layer. Without out, a forward
// ends where the backward has all it needs.
type residual struct{ in, out device.Tensor }

// layerForward runs layer i, norms, rotation and activation being the family's, see family.go:
//
//	mid = in + O·attention(rotate(QKV·norm1(in)))
//	out = mid + Down·activate(Inner·norm2(mid))
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

	m.norm(s, x.c1, a.stats1, r.in, w.norm1)
	d.Linear(s, a.qkv, x.c1, w.qkv, device.Epilogue{Bias: w.qkvBias}, m.ws)
	m.rotate(s, q, k, b, false)
	attend(a.o, q, k, v)
	d.Linear(s, a.mid, a.o, w.out, device.Epilogue{Bias: w.outBias, Add: r.in}, m.ws)

	m.mlpInner(s, b, i, a)
	if r.out.IsZero() {
		return
	}
	m.activate(s, x.f, a.inner)
	d.Linear(s, r.out, x.f, w.down, device.Epilogue{Bias: w.downBias, Add: a.mid}, m.ws)
}

// mlpInner computes the MLP's first product from the layer's middle.
func (m *Model) mlpInner(s device.Stream, b batchView, i int, a layerActs) {
	w, x := &m.weights.layers[i], m.scratch.rows(b.n)
	m.norm(s, x.c1, a.stats2, a.mid, w.norm2)
	m.dev.Linear(s, a.inner, x.c1, w.inner, device.Epilogue{Bias: w.innerBias}, m.ws)
}

// layerBackward turns x.dh from the gradient at the layer's output into that at its
// input and adds the weights' gradients to g. Norm outputs and activations are
// computed again: they are cheap, and keeping them would cost 2·(2C+F) bytes a token.
func (m *Model) layerBackward(s device.Stream, b batchView, i int, a layerActs, in device.Tensor, g *layerGrads) {
	d, w, x, seq := m.dev, &m.weights.layers[i], m.scratch.rows(b.n), m.opt.SeqLen
	q, k, v := m.splitQKV(a.qkv)
	dq, dk, dv := m.splitQKV(x.dqkv)

	m.activate(s, x.f, a.inner)
	d.LinearDW(s, g.down, g.downBias, x.dh, x.f, seq, m.ws)
	d.LinearDX(s, x.f, x.dh, w.down, device.Epilogue{}, m.ws)
	m.activateGrad(s, a.inner, x.f, a.inner)
	m.norm(s, x.c1, a.stats2, a.mid, w.norm2)
	d.LinearDW(s, g.inner, g.innerBias, a.inner, x.c1, seq, m.ws)
	d.LinearDX(s, x.c1, a.inner, w.inner, device.Epilogue{}, m.ws)
	m.normGrad(s, x.dh, g.norm2, x.c1, a.mid, a.stats2, w.norm2, x.dh)

	d.LinearDW(s, g.out, g.outBias, x.dh, a.o, seq, m.ws)
	d.LinearDX(s, x.q, x.dh, w.out, device.Epilogue{}, m.ws)
	d.AttentionGrad(s, dq, dk, dv, x.q, q, k, v, a.o, a.lse, b.docs, m.attnShape(i), m.ws)
	m.rotate(s, dq, dk, b, true)
	m.norm(s, x.c1, a.stats1, in, w.norm1)
	d.LinearDW(s, g.qkv, g.qkvBias, x.dqkv, x.c1, seq, m.ws)
	d.LinearDX(s, x.c1, x.dqkv, w.qkv, device.Epilogue{}, m.ws)
	m.normGrad(s, x.dh, g.norm1, x.c1, in, a.stats1, w.norm1, x.dh)
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
	for _, t := range []*device.Tensor{&a.qkv, &a.o, &a.mid, &a.inner, &a.stats1, &a.stats2} {
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
