package devicetest

import (
	"fmt"
	"math"

	"github.com/skein-ml/skein/device"
)

// packs are geometries without data type; the scale is set by the dimension.
var packs = []geometry{
	{heads: 1, kvHeads: 1, dim: 16, docs: []int32{0, 1}},
	{heads: 3, kvHeads: 1, dim: 16, docs: []int32{0, 1, 3, 10}},
	{heads: 4, kvHeads: 2, dim: 64, docs: []int32{0, 0, 5, 5, 70}},
	{heads: 2, kvHeads: 2, dim: 80, docs: []int32{0, 63, 127, 192, 257}},
	{heads: 9, kvHeads: 3, dim: 64, docs: []int32{0, 129}},
	{heads: 2, kvHeads: 1, dim: 96, docs: []int32{0, 65, 66}},
	{heads: 2, kvHeads: 2, dim: 128, docs: []int32{0, 100}},
	{heads: 2, kvHeads: 1, dim: 16, docs: []int32{0, 500, 530, 1100}},
	{heads: 2, kvHeads: 1, dim: 16, window: 1, docs: []int32{0, 70}},
	{heads: 2, kvHeads: 1, dim: 16, window: 7, docs: []int32{0, 3, 90}},
	{heads: 2, kvHeads: 2, dim: 36, window: 64, docs: []int32{0, 200}},
	{heads: 3, kvHeads: 3, dim: 16, window: 100, docs: []int32{0, 10, 300}},
}

func (g geometry) shape() device.AttnShape {
	return device.AttnShape{Heads: g.heads, KVHeads: g.kvHeads, HeadDim: g.dim, Scale: float32(g.scale), Window: g.window}
}

func (g geometry) String() string {
	return fmt.Sprintf("%d over %d heads of %d window %d docs %v", g.heads, g.kvHeads, g.dim, g.window, g.docs)
}

func (g geometry) documents(r *rig) device.Docs {
	return device.Docs{Cu: r.ints(g.docs), Host: g.docs}
}

func (g geometry) need(r *rig, op device.Op, dt device.DType) device.Buf {
	longest := 0
	for i := range len(g.docs) - 1 {
		longest = max(longest, int(g.docs[i+1]-g.docs[i]))
	}
	return r.workspace(op, device.Shape{Rows: g.rows(), Seq: g.rows(), DT: dt,
		Heads: g.heads, KVHeads: g.kvHeads, HeadDim: g.dim, DocTokensMax: longest})
}

func attentionTrials() []trial {
	var all []trial
	for _, dt := range bothTypes {
		for _, g := range packs {
			g.scale = roundTo(1/math.Sqrt(float64(g.dim)), device.F32)
			name := title("Attention", dt, "%v", g)
			all = append(all, trial{name, func(r *rig) (func(), []result) { return attentionCall(r, newSource(name), dt, g) }})
			gradName := title("AttentionGrad", dt, "%v", g)
			all = append(all, trial{gradName, func(r *rig) (func(), []result) { return attentionGradCall(r, newSource(gradName), dt, g) }})
			decodeName := title("AttentionDecode", dt, "%v", g)
			all = append(all, trial{decodeName, func(r *rig) (func(), []result) { return decodeCall(r, newSource(decodeName), dt, g) }})
		}
	}
	return all
}

// loud queries and keys make probabilities that are far from equal.
func (g geometry) operands(s source, dt device.DType) (q, k, v mat) {
	q = roundMat(scaled(s.normal(g.rows(), g.heads*g.dim), 1.5), dt)
	k = roundMat(scaled(s.normal(g.rows(), g.kvHeads*g.dim), 1.5), dt)
	v = roundMat(s.normal(g.rows(), g.kvHeads*g.dim), dt)
	return q, k, v
}

func attentionCall(r *rig, s source, dt device.DType, g geometry) (func(), []result) {
	q, k, v := g.operands(s, dt)
	m := memo(s.name, func() [2]mat { o, lse := attention(q, k, v, g); return [2]mat{o, lse} })
	o, lse := m[0], m[1]
	qt, kt, vt, docs := r.in(dt, q), r.in(dt, k), r.in(dt, v), g.documents(r)
	ot, lt := r.out(dt, g.rows(), g.heads*g.dim), r.out(device.F32, g.heads, g.rows())
	ws := g.need(r, device.OpAttention, dt)
	return func() { r.d.Attention(r.s, ot, lt, qt, kt, vt, docs, g.shape(), ws) },
		[]result{{"o", ot, o, dt, false}, {"lse", lt, lse, dt, false}}
}

func attentionGradCall(r *rig, s source, dt device.DType, g geometry) (func(), []result) {
	q, k, v := g.operands(s, dt)
	do := roundMat(s.normal(g.rows(), g.heads*g.dim), dt)
	m := memo(s.name, func() [5]mat {
		o, lse := attention(q, k, v, g)
		dq, dk, dv := attentionGrad(do, q, k, v, g)
		return [5]mat{roundMat(o, dt), lse, dq, dk, dv}
	})
	o, lse, dq, dk, dv := m[0], m[1], m[2], m[3], m[4]
	qt, kt, vt, dot, docs := r.in(dt, q), r.in(dt, k), r.in(dt, v), r.in(dt, do), g.documents(r)
	ot, lt := r.in(dt, o), r.in(device.F32, lse)
	dqt, dkt, dvt := r.out(dt, q.rows, q.cols), r.out(dt, k.rows, k.cols), r.out(dt, v.rows, v.cols)
	ws := g.need(r, device.OpAttentionGrad, dt)
	return func() { r.d.AttentionGrad(r.s, dqt, dkt, dvt, dot, qt, kt, vt, ot, lt, docs, g.shape(), ws) },
		[]result{{"dq", dqt, dq, dt, false}, {"dk", dkt, dk, dt, false}, {"dv", dvt, dv, dt, false}}
}

// decodeCall asks for the last row of a cache that has room for three more, which are garbage.
func decodeCall(r *rig, s source, dt device.DType, g geometry) (func(), []result) {
	g.docs = []int32{0, int32(g.rows())}
	q, k, v := g.operands(s, dt)
	want := memo(s.name, func() mat { o, _ := attention(q, k, v, g); return o })
	n := g.rows()
	cache := func(m mat) device.Tensor {
		c := newMat(n+3, m.cols)
		copy(c.v, m.v)
		for i := len(m.v); i < len(c.v); i++ {
			c.v[i] = math.NaN()
		}
		return r.in(dt, c)
	}
	qt, kt, vt, ot := r.in(dt, q.slice(n-1, n)), cache(k), cache(v), r.out(dt, 1, q.cols)
	return func() { r.d.AttentionDecode(r.s, ot, qt, kt, vt, n, g.shape()) },
		[]result{{"o", ot, want.slice(n-1, n), dt, false}}
}
