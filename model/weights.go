package model

import (
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
	elems     []int64 // per bucket, without padding
	places    map[string]place
	head      int // bucket of the LM head's dense gradient
	norm      int // bucket of the final norm
	positions int // bucket of a learned table of positions, 0 without one
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
	l.norm = l.places[cfg.FinalNormName()].bucket
	l.head = l.places[cfg.HeadName()].bucket
	if !cfg.Rotary() {
		l.positions = l.places[cfg.PositionsName()].bucket
	}
	return l
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
	flat []device.Tensor // per bucket [1, elems]
	all  []device.Weight

	embed     device.Tensor // [V, C]
	positions device.Tensor // [positions, C] or none
	norm      normParts
	head      device.Weight // [V, C]
	layers    []layerWeights
}

// layerWeights are one layer's weights; q|k|v and gate|up are one matrix each.
type layerWeights struct {
	norm1, norm2                          normParts
	qkv, out, inner, down                 device.Weight
	qkvBias, outBias, innerBias, downBias device.Tensor // [1, out] or none
}

// Bucket is the flat working weights of bucket b, [1, elems] in the model's type
// and padded as the options say, which the trainer writes before it calls [Model.Repack].
// With LayerSlots they are those of another layer at other times.
func (m *Model) Bucket(b int) device.Tensor { return m.weights.flat[b] }

// GradOrder lists a model's buckets in the order in which a run adds to their gradients.
func GradOrder(cfg config.Config) []int {
	l := newLayout(cfg)
	var order []int
	if cfg.Tied {
		order = append(order, l.head)
	}
	order = append(order, l.norm)
	for b := cfg.Layers; b >= 1; b-- {
		order = append(order, b)
	}
	if !cfg.Rotary() {
		order = append(order, l.positions)
	}
	if !cfg.Tied {
		order = append(order, 0)
	}
	return order
}

// Buckets is the number of buckets.
func (m *Model) Buckets() int { return len(m.weights.flat) }

func (m *Model) newWeights() error {
	w := &m.weights
	w.flat = make([]device.Tensor, len(m.layout.elems))
	slots := m.opt.LayerSlots
	for b, n := range m.layout.elems {
		if slots > 0 && b > slots && b <= m.cfg.Layers { // bucket 1 is the first layer's
			w.flat[b] = w.flat[b-slots]
			continue
		}
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
	w.embed = m.layout.view(w.flat, c.EmbeddingName(), c.Vocab)
	if !c.Rotary() {
		w.positions = m.layout.view(w.flat, c.PositionsName(), c.MaxPositions)
	}
	w.norm = m.normParts(w.flat, m.names.finalNorm)
	var err error
	if w.head, err = m.newWeight(m.layout.view(w.flat, c.HeadName(), c.Vocab)); err != nil {
		return err
	}
	w.layers = make([]layerWeights, c.Layers)
	for i := range w.layers {
		if slots > 0 && i >= slots {
			w.layers[i] = w.layers[i-slots]
			continue
		}
		if err := m.newLayerWeights(i, &w.layers[i]); err != nil {
			return err
		}
	}
	return nil
}

func (m *Model) newLayerWeights(i int, w *layerWeights) error {
	c, flat, n := m.cfg, m.weights.flat, m.names.layer(i)
	q, kv, inner := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim, m.innerCols()
	matrix := func(name string, rows int) device.Tensor { return m.layout.view(flat, name+".weight", rows) }
	bias := func(name string, cols int) device.Tensor { return m.layout.biasView(flat, name+".bias", cols) }
	w.norm1, w.norm2 = m.normParts(flat, n.norm1), m.normParts(flat, n.norm2)
	w.qkvBias, w.outBias = bias(n.qkv, q+2*kv), bias(n.out, c.Hidden)
	w.innerBias, w.downBias = bias(n.inner, inner), bias(n.down, c.Hidden)
	for _, p := range []struct {
		dst *device.Weight
		src device.Tensor
	}{{&w.qkv, matrix(n.qkv, q+2*kv)}, {&w.out, matrix(n.out, c.Hidden)}, {&w.inner, matrix(n.inner, inner)}, {&w.down, matrix(n.down, c.Hidden)}} {
		weight, err := m.newWeight(p.src)
		if err != nil {
			return err
		}
		*p.dst = weight
	}
	return nil
}

func (m *Model) newWeight(src device.Tensor) (device.Weight, error) {
	forms := device.FormForward | device.FormDX
	if m.opt.ForwardOnly {
		forms = device.FormForward
	}
	w, err := m.dev.NewWeight(src, forms)
	if err == nil {
		m.weights.all = append(m.weights.all, w)
	}
	return w, err
}

// Repack brings the packed weights of bucket b up to its flat weights.
func (m *Model) Repack(s device.Stream, b int) {
	w := &m.weights
	if b == m.layout.head {
		m.dev.Pack(s, w.head, 0, m.cfg.Vocab)
	}
	if b >= 1 && b <= m.cfg.Layers {
		l := &w.layers[b-1]
		for _, x := range [...]device.Weight{l.qkv, l.out, l.inner, l.down} {
			rows, _ := x.Shape()
			m.dev.Pack(s, x, 0, rows)
		}
	}
}
