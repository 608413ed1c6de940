package cpu

import (
	"math"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// tiles is the task of an attention operation: a piece is one tile of rows of one head.
// Tiles are counted from each document's first row, so that no document
// notices what else is in the pack.
type tiles[A any] struct {
	a     A
	f     func(a *A, t kernel.Tile, scratch unsafe.Pointer)
	d     *Device
	docs  []int32
	heads int
	count int // tiles of one head
}

func (t *tiles[A]) run(d *Device, f func(*A, kernel.Tile, unsafe.Pointer), docs []int32, heads int) {
	t.f, t.d, t.docs, t.heads, t.count = f, d, docs, heads, 0
	for i := range len(docs) - 1 {
		t.count += pieces(int(docs[i+1]-docs[i]), kernel.TileRows)
	}
	d.pool.Run(t.count*heads, t)
}

// Piece takes the tiles of a head from the last row to the first: later tiles
// see more keys, and the long pieces should not come last.
func (t *tiles[A]) Piece(i, worker int) {
	head, n := i%t.heads, t.count-1-i/t.heads
	for j := range len(t.docs) - 1 {
		doc, end := int(t.docs[j]), int(t.docs[j+1])
		if here := pieces(end-doc, kernel.TileRows); n >= here {
			n -= here
			continue
		}
		lo := doc + n*kernel.TileRows
		t.f(&t.a, kernel.Tile{Doc: doc, End: end, Lo: lo, Hi: min(lo+kernel.TileRows, end), Head: head}, t.d.scratchOf(worker))
		return
	}
}

// Attention: o = softmax(scale·q·kᵀ)·v over the keys that a query sees.
func (d *Device) Attention(s device.Stream, o, lse, q, k, v device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	device.CheckAttention(o, lse, q, k, v, docs, a)
	d.apart("Attention", o, lse, q, k, v)
	checkHeadDim(a)
	args := kernel.Attention{O: d.ptr(o), LSE: d.ptr(lse), Q: d.ptr(q), K: d.ptr(k), V: d.ptr(v),
		LdO: o.Ld, LdLSE: lse.Ld, LdQ: q.Ld, LdK: k.Ld, LdV: v.Ld,
		Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim, Window: a.Window, Scale: a.Scale}
	d.ptr(docs.Cu)
	if st := d.begin(s); st != nil {
		defer st.end()
		d.jobs.attention.a = args
		d.jobs.attention.run(d, d.kernels.Attention[q.DT], docs.Host, a.Heads)
	}
}

func checkHeadDim(a device.AttnShape) {
	if a.HeadDim > kernel.HeadDimMax {
		panic("cpu: attention heads wider than 256 are not supported")
	}
}

// AttentionGrad: dq by tiles of queries, then dk and dv by tiles of keys. Computing the
// probabilities twice is what it costs that every output has one writer.
func (d *Device) AttentionGrad(s device.Stream, dq, dk, dv, do, q, k, v, o, lse device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	device.CheckAttentionGrad(dq, dk, dv, do, q, k, v, o, lse, docs, a)
	d.apart("AttentionGrad", dq, dk, dv, do, q, k, v, o, lse)
	d.apart("AttentionGrad", dk, dv, do, q, k, v, o, lse)
	d.apart("AttentionGrad", dv, do, q, k, v, o, lse)
	checkHeadDim(a)
	args := kernel.AttentionGrad{DQ: d.ptr(dq), DK: d.ptr(dk), DV: d.ptr(dv), DO: d.ptr(do),
		Q: d.ptr(q), K: d.ptr(k), V: d.ptr(v), O: d.ptr(o), LSE: d.ptr(lse),
		LdDQ: dq.Ld, LdDK: dk.Ld, LdDV: dv.Ld, LdDO: do.Ld, LdQ: q.Ld, LdK: k.Ld, LdV: v.Ld, LdO: o.Ld,
		LdLSE: lse.Ld, LdDelta: q.Rows,
		Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim, Window: a.Window, Scale: a.Scale}
	d.ptr(docs.Cu)
	mem := d.workspace("AttentionGrad", ws, d.Need(device.OpAttentionGrad, device.Shape{Rows: q.Rows, Heads: a.Heads}))
	args.Delta = unsafe.Pointer(unsafe.SliceData(mem))
	st := d.begin(s)
	if st == nil {
		return
	}
	defer st.end()
	d.jobs.delta.a, d.jobs.gradQ.a, d.jobs.gradKV.a = args, args, args
	d.jobs.delta.run(d.pool, d.kernels.AttentionDelta[q.DT], q.Rows, 2*q.Cols)
	d.jobs.gradQ.run(d, d.kernels.AttentionGradQ[q.DT], docs.Host, a.Heads)
	d.jobs.gradKV.run(d, d.kernels.AttentionGradKV[q.DT], docs.Host, a.KVHeads)
}

// keysOf is the keys [first, i] that query i of a document sees.
func keysOf(i, doc, window int) (first int) {
	if window > 0 {
		return max(doc, i-window+1)
	}
	return doc
}

// tileScratch is what a generic attention entry keeps of one pair of tiles, in F32.
type tileScratch struct {
	x, y [kernel.TileRows * kernel.HeadDimMax]float32 // the other tile's keys and values, or queries and do
	own  [2][kernel.HeadDimMax]float32                // a row of the own tile
	sum  [2][kernel.TileRows * kernel.HeadDimMax]float32
	part [2][kernel.HeadDimMax]float32
	p    [kernel.TileRows]float32
	m, l [kernel.TileRows]float32
}

// rowsOf loads rows [lo, hi) of one head of a matrix, dense.
func rowsOf(dst []float32, p unsafe.Pointer, dt device.DType, ld, lo, hi, head, dim int) {
	for r := lo; r < hi; r++ {
		at(p, dt, r*ld+head*dim, dim).load(dst[(r-lo)*dim:][:dim])
	}
}

func attention(dt device.DType) func(a *kernel.Attention, t kernel.Tile, scratch unsafe.Pointer) {
	return func(a *kernel.Attention, t kernel.Tile, scratch unsafe.Pointer) {
		attendTile(a, t, dt, (*tileScratch)(scratch))
	}
}

// attendTile streams over key tiles: with m the largest score so far and l the sum of
// exp(score − m), a tile with a larger maximum scales l and the output down first.
func attendTile(a *kernel.Attention, t kernel.Tile, dt device.DType, s *tileScratch) {
	dim, kvHead := a.HeadDim, t.Head*a.KVHeads/a.Heads
	for i := range t.Hi - t.Lo {
		s.m[i], s.l[i] = float32(math.Inf(-1)), 0
		clear(s.sum[0][i*dim:][:dim])
	}
	for lo := tileOf(keysOf(t.Lo, t.Doc, a.Window), t.Doc); lo < t.Hi; lo += kernel.TileRows {
		hi := min(lo+kernel.TileRows, t.End)
		rowsOf(s.x[:], a.K, dt, a.LdK, lo, hi, kvHead, dim)
		rowsOf(s.y[:], a.V, dt, a.LdV, lo, hi, kvHead, dim)
		for i := t.Lo; i < t.Hi; i++ {
			q := s.own[0][:dim]
			at(a.Q, dt, i*a.LdQ+t.Head*dim, dim).load(q)
			s.attend(q, i-t.Lo, max(lo, keysOf(i, t.Doc, a.Window))-lo, min(hi, i+1)-lo, a.Scale)
		}
	}
	for i := t.Lo; i < t.Hi; i++ {
		out, sum, l := at(a.O, dt, i*a.LdO+t.Head*dim, dim), s.sum[0][(i-t.Lo)*dim:][:dim], s.l[i-t.Lo]
		for j, v := range sum {
			out.set(j, v/l)
		}
		if a.LSE != nil {
			f32s(a.LSE, t.Head*a.LdLSE+i, 1)[0] = s.m[i-t.Lo] + logf(l)
		}
	}
}

// tileOf is the first row of the tile that has row i.
func tileOf(i, doc int) int { return doc + (i-doc)/kernel.TileRows*kernel.TileRows }

// attend adds keys [lo, hi) of the loaded tile to row's softmax.
func (s *tileScratch) attend(q []float32, row, lo, hi int, scale float32) {
	if lo >= hi {
		return
	}
	dim, m := len(q), s.m[row]
	for j := lo; j < hi; j++ {
		s.p[j] = dot(q, s.x[j*dim:][:dim]) * scale
		if s.p[j] > m {
			m = s.p[j]
		}
	}
	sum, down := s.sum[0][row*dim:][:dim], expf(s.m[row]-m)
	if down != 1 {
		for i := range sum {
			sum[i] *= down
		}
	}
	part := s.part[0][:dim]
	clear(part)
	var l float32
	for j := lo; j < hi; j++ {
		p := expf(s.p[j] - m)
		l += p
		axpy(part, p, s.y[j*dim:][:dim])
	}
	for i, v := range part {
		sum[i] += v
	}
	s.m[row], s.l[row] = m, float32(s.l[row]*down)+l
}

// axpy: y += a·x.
func axpy(y []float32, a float32, x []float32) {
	for i, v := range x[:len(y)] {
		y[i] += float32(a * v)
	}
}

// attentionDelta is do·o of every head: what softmax's gradient takes off each score's.
func attentionDelta(dt device.DType) func(a *kernel.AttentionGrad, lo, hi int) {
	return func(a *kernel.AttentionGrad, lo, hi int) {
		for r := lo; r < hi; r++ {
			for h := range a.Heads {
				do, o := at(a.DO, dt, r*a.LdDO+h*a.HeadDim, a.HeadDim), at(a.O, dt, r*a.LdO+h*a.HeadDim, a.HeadDim)
				var sum float32
				for i := range a.HeadDim {
					sum += float32(do.get(i) * o.get(i))
				}
				f32s(a.Delta, h*a.LdDelta+r, 1)[0] = sum
			}
		}
	}
}

// attentionGradQ: dq = scale·Σ ds·k with ds = p·(do·v − delta), p = exp(score − lse).
func attentionGradQ(dt device.DType) func(a *kernel.AttentionGrad, t kernel.Tile, scratch unsafe.Pointer) {
	return func(a *kernel.AttentionGrad, t kernel.Tile, scratch unsafe.Pointer) {
		s := (*tileScratch)(scratch)
		dim, kvHead := a.HeadDim, t.Head*a.KVHeads/a.Heads
		clear(s.sum[0][:(t.Hi-t.Lo)*dim])
		for lo := tileOf(keysOf(t.Lo, t.Doc, a.Window), t.Doc); lo < t.Hi; lo += kernel.TileRows {
			hi := min(lo+kernel.TileRows, t.End)
			rowsOf(s.x[:], a.K, dt, a.LdK, lo, hi, kvHead, dim)
			rowsOf(s.y[:], a.V, dt, a.LdV, lo, hi, kvHead, dim)
			for i := t.Lo; i < t.Hi; i++ {
				first, last := max(lo, keysOf(i, t.Doc, a.Window)), min(hi, i+1)
				if first >= last {
					continue
				}
				q, do, part := s.own[0][:dim], s.own[1][:dim], s.part[0][:dim]
				at(a.Q, dt, i*a.LdQ+t.Head*dim, dim).load(q)
				at(a.DO, dt, i*a.LdDO+t.Head*dim, dim).load(do)
				clear(part)
				lse, delta := f32s(a.LSE, t.Head*a.LdLSE+i, 1)[0], f32s(a.Delta, t.Head*a.LdDelta+i, 1)[0]
				for j := first - lo; j < last-lo; j++ {
					k := s.x[j*dim:][:dim]
					p := expf(float32(dot(q, k)*a.Scale) - lse)
					axpy(part, p*(dot(do, s.y[j*dim:][:dim])-delta), k)
				}
				axpy(s.sum[0][(i-t.Lo)*dim:][:dim], a.Scale, part)
			}
		}
		for i := t.Lo; i < t.Hi; i++ {
			storeRow(at(a.DQ, dt, i*a.LdDQ+t.Head*dim, dim), s.sum[0][(i-t.Lo)*dim:][:dim])
		}
	}
}

func storeRow(dst vec, src []float32) {
	for i, v := range src {
		dst.set(i, v)
	}
}

// attentionGradKV: dv = Σ p·do and dk = scale·Σ ds·q, over the query heads that read
// this key head and the queries that see the key.
func attentionGradKV(dt device.DType) func(a *kernel.AttentionGrad, t kernel.Tile, scratch unsafe.Pointer) {
	return func(a *kernel.AttentionGrad, t kernel.Tile, scratch unsafe.Pointer) {
		s := (*tileScratch)(scratch)
		dim, group := a.HeadDim, a.Heads/a.KVHeads
		clear(s.sum[0][:(t.Hi-t.Lo)*dim])
		clear(s.sum[1][:(t.Hi-t.Lo)*dim])
		end := t.End
		if a.Window > 0 {
			end = min(end, t.Hi-1+a.Window)
		}
		for head := t.Head * group; head < (t.Head+1)*group; head++ {
			for lo := t.Lo; lo < end; lo += kernel.TileRows {
				hi := min(lo+kernel.TileRows, end)
				rowsOf(s.x[:], a.Q, dt, a.LdQ, lo, hi, head, dim)
				rowsOf(s.y[:], a.DO, dt, a.LdDO, lo, hi, head, dim)
				for j := t.Lo; j < t.Hi; j++ {
					s.gradKey(a, t, dt, head, j, lo, hi)
				}
			}
		}
		for j := t.Lo; j < t.Hi; j++ {
			storeRow(at(a.DK, dt, j*a.LdDK+t.Head*dim, dim), s.sum[0][(j-t.Lo)*dim:][:dim])
			storeRow(at(a.DV, dt, j*a.LdDV+t.Head*dim, dim), s.sum[1][(j-t.Lo)*dim:][:dim])
		}
	}
}

// gradKey adds what the loaded queries [lo, hi) of head give to key j.
func (s *tileScratch) gradKey(a *kernel.AttentionGrad, t kernel.Tile, dt device.DType, head, j, lo, hi int) {
	first, last := max(lo, j), hi
	if a.Window > 0 {
		last = min(last, j+a.Window)
	}
	if first >= last {
		return
	}
	dim := a.HeadDim
	k, v, dk, dv := s.own[0][:dim], s.own[1][:dim], s.part[0][:dim], s.part[1][:dim]
	at(a.K, dt, j*a.LdK+t.Head*dim, dim).load(k)
	at(a.V, dt, j*a.LdV+t.Head*dim, dim).load(v)
	clear(dk)
	clear(dv)
	lse, delta := f32s(a.LSE, head*a.LdLSE+lo, hi-lo), f32s(a.Delta, head*a.LdDelta+lo, hi-lo)
	for i := first - lo; i < last-lo; i++ {
		q, do := s.x[i*dim:][:dim], s.y[i*dim:][:dim]
		p := expf(float32(dot(q, k)*a.Scale) - lse[i])
		axpy(dv, p, do)
		axpy(dk, p*(dot(do, v)-delta[i]), q)
	}
	row := (j - t.Lo) * dim
	axpy(s.sum[0][row:][:dim], a.Scale, dk)
	axpy(s.sum[1][row:][:dim], 1, dv)
}

// decode is the task of AttentionDecode: a piece is a head.
type decode struct {
	a kernel.AttentionDecode
	f func(a *kernel.AttentionDecode, head int, scratch unsafe.Pointer)
	d *Device
}

func (t *decode) Piece(i, worker int) { t.f(&t.a, i, t.d.scratchOf(worker)) }

// AttentionDecode: attention of one query over a cache.
func (d *Device) AttentionDecode(s device.Stream, o, q, keys, values device.Tensor, n int, a device.AttnShape) {
	device.CheckAttentionDecode(o, q, keys, values, n, a)
	checkHeadDim(a)
	args := kernel.AttentionDecode{O: d.ptr(o), Q: d.ptr(q), Keys: d.ptr(keys), Values: d.ptr(values), N: n,
		LdK: keys.Ld, LdV: values.Ld, Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim, Window: a.Window, Scale: a.Scale}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.jobs.decode = decode{args, d.kernels.AttentionDecode[q.DT], d}
		d.pool.Run(a.Heads, &d.jobs.decode)
	}
}

// attentionDecode gives the bits that attention gives the last of N rows.
func attentionDecode(dt device.DType) func(a *kernel.AttentionDecode, head int, scratch unsafe.Pointer) {
	return func(a *kernel.AttentionDecode, head int, scratch unsafe.Pointer) {
		last := a.N - 1
		one := kernel.Attention{O: a.O, Q: a.Q, K: a.Keys, V: a.Values, // LdO and LdQ are 0: every row is row 0
			LdK: a.LdK, LdV: a.LdV, Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim, Window: a.Window, Scale: a.Scale}
		attendTile(&one, kernel.Tile{Doc: 0, End: a.N, Lo: last, Hi: a.N, Head: head}, dt, (*tileScratch)(scratch))
	}
}
