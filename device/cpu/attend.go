package cpu

import (
	"math"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// The generic entries for attention.

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
	sum  [2 * kernel.KeySlots][kernel.TileRows * kernel.HeadDimMax]float32
	dq   [kernel.TileRows * kernel.HeadDimMax]float32 // of one pair of tiles
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
		for head := t.Head; head < t.Head+t.Heads; head++ {
			for lo := t.Lo; lo < t.Hi; lo += kernel.TileRows {
				one := kernel.Tile{Doc: t.Doc, End: t.End, Lo: lo, Hi: min(lo+kernel.TileRows, t.Hi), Head: head}
				attendTile(a, one, dt, (*tileScratch)(scratch))
			}
		}
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

// attentionGrad: dv = Σ p·do, dk = scale·Σ ds·q and dq = scale·Σ ds·k, with ds = p·(do·v − delta) and
// p = exp(score − lse). Each tile gives a sum from zero, which is added to those of the tiles before.
func attentionGrad(dt device.DType) func(a *kernel.AttentionGrad, p kernel.Pair, scratch unsafe.Pointer) {
	return func(a *kernel.AttentionGrad, p kernel.Pair, scratch unsafe.Pointer) {
		s, dim := (*tileScratch)(scratch), a.HeadDim
		dk, dv := &s.sum[2*p.Slot], &s.sum[2*p.Slot+1]
		if p.FirstOfKeys {
			clear(dk[:(p.KeyHi-p.KeyLo)*dim])
			clear(dv[:(p.KeyHi-p.KeyLo)*dim])
		}
		if p.NewQueries {
			rowsOf(s.x[:], a.Q, dt, a.LdQ, p.QueryLo, p.QueryHi, p.Head, dim)
			rowsOf(s.y[:], a.DO, dt, a.LdDO, p.QueryLo, p.QueryHi, p.Head, dim)
		}
		clear(s.dq[:(p.QueryHi-p.QueryLo)*dim])
		for j := p.KeyLo; j < p.KeyHi; j++ {
			s.gradKey(a, p, dt, j)
		}
		width := (dim + 15) &^ 15
		sums := f32s(a.Sums, (p.Head*a.LdDelta+p.QueryLo)*width, (p.QueryHi-p.QueryLo)*width)
		for i := range p.QueryHi - p.QueryLo {
			sum := sums[i*width:][:dim]
			if p.FirstOfQueries {
				clear(sum)
			}
			if keysOf(p.QueryLo+i, p.KeyLo, a.Window) < p.KeyHi { // else it sees none of them
				axpy(sum, a.Scale, s.dq[i*dim:][:dim])
			}
			if p.LastOfQueries {
				storeRow(at(a.DQ, dt, (p.QueryLo+i)*a.LdDQ+p.Head*dim, dim), sum)
			}
		}
		if !p.LastOfKeys {
			return
		}
		for j := range p.KeyHi - p.KeyLo {
			storeRow(at(a.DK, dt, (p.KeyLo+j)*a.LdDK+p.KVHead*dim, dim), dk[j*dim:][:dim])
			storeRow(at(a.DV, dt, (p.KeyLo+j)*a.LdDV+p.KVHead*dim, dim), dv[j*dim:][:dim])
		}
	}
}

func storeRow(dst vec, src []float32) {
	for i, v := range src {
		dst.set(i, v)
	}
}

// gradKey adds what key j and the loaded queries give each other.
func (s *tileScratch) gradKey(a *kernel.AttentionGrad, p kernel.Pair, dt device.DType, j int) {
	first, last := max(p.QueryLo, j), p.QueryHi
	if a.Window > 0 {
		last = min(last, j+a.Window)
	}
	if first >= last {
		return
	}
	dim := a.HeadDim
	k, v, dk, dv := s.own[0][:dim], s.own[1][:dim], s.part[0][:dim], s.part[1][:dim]
	at(a.K, dt, j*a.LdK+p.KVHead*dim, dim).load(k)
	at(a.V, dt, j*a.LdV+p.KVHead*dim, dim).load(v)
	clear(dk)
	clear(dv)
	lse, delta := f32s(a.LSE, p.Head*a.LdLSE, p.QueryHi), f32s(a.Delta, p.Head*a.LdDelta, p.QueryHi)
	for i := first; i < last; i++ {
		row := (i - p.QueryLo) * dim
		q, do := s.x[row:][:dim], s.y[row:][:dim]
		prob := expf(float32(dot(q, k)*a.Scale) - lse[i])
		ds := prob * (dot(do, v) - delta[i])
		axpy(dv, prob, do)
		axpy(dk, ds, q)
		axpy(s.dq[row:][:dim], ds, k)
	}
	row := (j - p.KeyLo) * dim
	axpy(s.sum[2*p.Slot][row:][:dim], a.Scale, dk)
	axpy(s.sum[2*p.Slot+1][row:][:dim], 1, dv)
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
