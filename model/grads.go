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
	norm1, norm2                           device.Tensor
	qkv, out, gateUp, down                 device.Tensor
	qkvBias, outBias, gateUpBias, downBias device.Tensor
}

func (m *Model) layerGrads(g Grads, i int) layerGrads {
	c, l := m.cfg, m.layout
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	name := func(s string) string { return layerName(i, s) }
	return layerGrads{
		norm1:      l.view(g.Flat, name("input_layernorm.weight"), 1),
		norm2:      l.view(g.Flat, name("post_attention_layernorm.weight"), 1),
		qkv:        l.view(g.Flat, name("self_attn.q_proj.weight"), q+2*kv),
		out:        l.view(g.Flat, name("self_attn.o_proj.weight"), c.Hidden),
		gateUp:     l.view(g.Flat, name("mlp.gate_proj.weight"), 2*c.MLP),
		down:       l.view(g.Flat, name("mlp.down_proj.weight"), c.Hidden),
		qkvBias:    l.biasView(g.Flat, name("self_attn.q_proj.bias"), q+2*kv),
		outBias:    l.biasView(g.Flat, name("self_attn.o_proj.bias"), c.Hidden),
		gateUpBias: l.biasView(g.Flat, name("mlp.gate_proj.bias"), 2*c.MLP),
		downBias:   l.biasView(g.Flat, name("mlp.down_proj.bias"), c.Hidden),
	}
}
