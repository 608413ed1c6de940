package model

import "github.com/skein-ml/skein/device"

// Grads are one rank's gradients of one step, F32, to which micro-batches add: flat
// buckets in the layout of record, and the embedding's sparse rows.
type Grads struct {
	Flat   []device.Tensor // per bucket, [1, at least the bucket's elements]
	Slots  *Slots          // which ids the sparse rows stand for
	Sparse device.Tensor   // [at least len(Slots.IDs), C]
}

// layerGrads are the views of one layer's gradients, like [layerWeights].
type layerGrads struct {
	norm1, norm2                          normParts
	qkv, out, inner, down                 device.Tensor
	qkvBias, outBias, innerBias, downBias device.Tensor
}

func (m *Model) layerGrads(g Grads, i int) layerGrads {
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
