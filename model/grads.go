package model

import "github.com/skein-ml/skein/device"

// Grads are one rank's gradients of one step, F32, to which micro-batches add: flat
// buckets in the layout of record, and the embedding's sparse rows. They are of one model,
// and Flat stays as it is once they were used.
type Grads struct {
	Flat   []device.Tensor // per bucket, [1, at least the bucket's elements]
	Slots  *Slots          // which ids the sparse rows stand for
	Sparse device.Tensor   // [at least len(Slots.IDs), C]

	views *gradViews // made by the first micro-batch
}

// gradViews are the views of all tensors' gradients, like [Weights].
type gradViews struct {
	layers    []layerGrads
	norm      normParts
	head      device.Tensor // [V, C]
	positions device.Tensor // [positions, C] or none
}

// layerGrads are the views of one layer's gradients, like [layerWeights].
type layerGrads struct {
	norm1, norm2                          normParts
	qkv, out, inner, down                 device.Tensor
	qkvBias, outBias, innerBias, downBias device.Tensor
}

func (m *Model) gradViews(g *Grads) *gradViews {
	if g.views != nil {
		return g.views
	}
	v := &gradViews{norm: m.normParts(g.Flat, m.names.finalNorm), head: m.layout.view(g.Flat, m.cfg.HeadName(), m.cfg.Vocab)}
	if !m.cfg.Rotary() {
		v.positions = m.layout.view(g.Flat, m.cfg.PositionsName(), m.cfg.MaxPositions)
	}
	for i := range m.cfg.Layers {
		v.layers = append(v.layers, m.layerGrads(g, i))
	}
	g.views = v
	return v
}

func (m *Model) layerGrads(g *Grads, i int) layerGrads {
	c, n := m.cfg, m.names.layer(i)
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	matrix := func(name string, rows int) device.Tensor { return m.layout.view(g.Flat, name+".weight", rows) }
	bias := func(name string, cols int) device.Tensor { return m.layout.biasView(g.Flat, name+".bias", cols) }
	return layerGrads{
		norm1: m.normParts(g.Flat, n.norm1), norm2: m.normParts(g.Flat, n.norm2),
		qkv: matrix(n.qkv, q+2*kv), out: matrix(n.out, c.Hidden),
		inner: matrix(n.inner, m.innerCols()), down: matrix(n.down, c.Hidden),
		qkvBias: bias(n.qkv, q+2*kv), outBias: bias(n.out, c.Hidden),
		innerBias: bias(n.inner, m.innerCols()), downBias: bias(n.down, c.Hidden),
	}
}
