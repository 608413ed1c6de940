package model

import (
	"fmt"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/config"
)

// place is where a tensor stands in its bucket, in elements.
type place struct {
	bucket     int
	off        int64
	rows, cols int
}

// layout is the flat layout of record: tensors of a group one after the other, in
// the order of [config.Config.Groups], without gaps. What a bucket is padded with
// follows after the last and concerns only those who cut it into pieces.
type layout struct {
	elems  []int64 // per bucket, without padding
	places map[string]place
	head   int // bucket of the LM head's dense gradient
	norm   int // bucket of the final norm
}

func newLayout(cfg config.Config) layout {
	l := layout{places: map[string]place{}}
	for b, g := range cfg.Groups() {
		var off int64
		for _, t := range g.Tensors {
			l.places[t.Name] = place{bucket: b, off: off, rows: t.Rows, cols: t.Cols}
			off += int64(t.Rows) * int64(t.Cols)
		}
		l.elems = append(l.elems, off)
	}
	l.norm = l.places[nameFinalNorm].bucket
	l.head = l.places[headName(cfg)].bucket
	return l
}

// The names of the Llama family's tensors.
const (
	nameEmbedding = "model.embed_tokens.weight"
	nameFinalNorm = "model.norm.weight"
	nameHead      = "lm_head.weight"
)

func layerName(i int, suffix string) string { return fmt.Sprintf("model.layers.%d.%s", i, suffix) }

func headName(cfg config.Config) string {
	if cfg.Tied {
		return nameEmbedding
	}
	return nameHead
}

// view is n tensors of the layout that stand one after the other, first to last, as
// one matrix of their common width.
func (l layout) view(flat []device.Tensor, first string, rows int) device.Tensor {
	p, ok := l.places[first]
	if !ok {
		return device.Tensor{}
	}
	f := flat[p.bucket]
	size := f.DT.Size()
	if p.rows == 1 && rows == 1 {
		return device.Make(f.Buf.Slice(p.off*size, int64(p.cols)*size), f.DT, 1, p.cols)
	}
	return device.Make(f.Buf.Slice(p.off*size, int64(rows)*int64(p.cols)*size), f.DT, rows, p.cols)
}

// biasView is like view for bias vectors that stand one after the other.
func (l layout) biasView(flat []device.Tensor, first string, cols int) device.Tensor {
	p, ok := l.places[first]
	if !ok {
		return device.Tensor{}
	}
	f := flat[p.bucket]
	size := f.DT.Size()
	return device.Make(f.Buf.Slice(p.off*size, int64(cols)*size), f.DT, 1, cols)
}

// Weights are the working weights: flat buckets in the layout of record, which a
// trainer fills, and what is packed from them.
type Weights struct {
	flat   []device.Tensor // per bucket [1, elems]
	packed []device.Weight

	embed  device.Tensor // [V, C]
	norm   device.Tensor // [1, C]
	head   device.Weight // [V, C]
	layers []layerWeights
}

// layerWeights are one layer's weights; q|k|v and gate|up are one matrix each.
type layerWeights struct {
	norm1, norm2                           device.Tensor // [1, C]
	qkv, out, gateUp, down                 device.Weight
	qkvBias, outBias, gateUpBias, downBias device.Tensor // [1, out] or none
	qkvSrc, outSrc, gateUpSrc, downSrc     device.Tensor // where they are packed from
}

// Bucket is the flat working weights of bucket b, [1, elems] in the model's type
// and padded as the options say, which the trainer writes before it calls [Model.Repack].
func (m *Model) Bucket(b int) device.Tensor { return m.weights.flat[b] }

// Buckets is the number of buckets.
func (m *Model) Buckets() int { return len(m.weights.flat) }

func (m *Model) newWeights() error {
	w := &m.weights
	w.flat = make([]device.Tensor, len(m.layout.elems))
	for b, n := range m.layout.elems {
		if align := int64(m.opt.BucketAlign); align > 0 {
			n = (n + align - 1) / align * align
		}
		t, err := m.mem.tensor(device.KindWeights, m.opt.DType, 1, int(n))
		if err != nil {
			return err
		}
		w.flat[b] = t
	}
	c := m.cfg
	w.embed = m.layout.view(w.flat, nameEmbedding, c.Vocab)
	w.norm = m.layout.view(w.flat, nameFinalNorm, 1)
	var err error
	if w.head, err = m.newPacked(c.Vocab, c.Hidden); err != nil {
		return err
	}
	w.layers = make([]layerWeights, c.Layers)
	for i := range w.layers {
		if err := m.newLayerWeights(i, &w.layers[i]); err != nil {
			return err
		}
	}
	return nil
}

func (m *Model) newLayerWeights(i int, w *layerWeights) error {
	c, l, flat := m.cfg, m.layout, m.weights.flat
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	name := func(s string) string { return layerName(i, s) }
	w.norm1 = l.view(flat, name("input_layernorm.weight"), 1)
	w.norm2 = l.view(flat, name("post_attention_layernorm.weight"), 1)
	w.qkvSrc = l.view(flat, name("self_attn.q_proj.weight"), q+2*kv)
	w.outSrc = l.view(flat, name("self_attn.o_proj.weight"), c.Hidden)
	w.gateUpSrc = l.view(flat, name("mlp.gate_proj.weight"), 2*c.MLP)
	w.downSrc = l.view(flat, name("mlp.down_proj.weight"), c.Hidden)
	w.qkvBias = l.biasView(flat, name("self_attn.q_proj.bias"), q+2*kv)
	w.outBias = l.biasView(flat, name("self_attn.o_proj.bias"), c.Hidden)
	w.gateUpBias = l.biasView(flat, name("mlp.gate_proj.bias"), 2*c.MLP)
	w.downBias = l.biasView(flat, name("mlp.down_proj.bias"), c.Hidden)
	for _, p := range []struct {
		dst     *device.Weight
		out, in int
	}{{&w.qkv, q + 2*kv, c.Hidden}, {&w.out, c.Hidden, q}, {&w.gateUp, 2 * c.MLP, c.Hidden}, {&w.down, c.Hidden, c.MLP}} {
		packed, err := m.newPacked(p.out, p.in)
		if err != nil {
			return err
		}
		*p.dst = packed
	}
	return nil
}

func (m *Model) newPacked(out, in int) (device.Weight, error) {
	forms := device.FormForward | device.FormDX
	if m.opt.ForwardOnly {
		forms = device.FormForward
	}
	w, err := m.dev.NewWeight(out, in, m.opt.DType, forms)
	if err == nil {
		m.weights.packed = append(m.weights.packed, w)
	}
	return w, err
}

// Repack brings the packed weights of bucket b up to its flat weights.
func (m *Model) Repack(s device.Stream, b int) {
	w := &m.weights
	if b == m.layout.head {
		m.dev.Pack(s, w.head, m.layout.view(w.flat, headName(m.cfg), m.cfg.Vocab), 0)
	}
	if b >= 1 && b <= m.cfg.Layers {
		lw := &w.layers[b-1]
		m.dev.Pack(s, lw.qkv, lw.qkvSrc, 0)
		m.dev.Pack(s, lw.out, lw.outSrc, 0)
		m.dev.Pack(s, lw.gateUp, lw.gateUpSrc, 0)
		m.dev.Pack(s, lw.down, lw.downSrc, 0)
	}
}
