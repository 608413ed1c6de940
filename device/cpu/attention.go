package cpu

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// Tiles are counted from each document's first row, so that no document notices what else is in
// the pack.

// attend is the task of Attention: a piece is a few tiles of queries that read the same keys, of
// several heads or of several rows. No bit depends on how many.
type attend struct {
	a    kernel.Attention
	f    func(a *kernel.Attention, t kernel.Tile, scratch unsafe.Pointer)
	d    *Device
	docs []int32

	headGroups   int // pieces across the heads
	headsInPiece int
	rowsInPiece  int
	count        int // pieces across the rows
}

func (t *attend) run(d *Device, f func(*kernel.Attention, kernel.Tile, unsafe.Pointer), docs []int32) {
	t.f, t.d, t.docs = f, d, docs
	group := t.a.Heads / t.a.KVHeads
	t.headsInPiece = min(group, kernel.TilesMax)
	t.headGroups = t.a.KVHeads * pieces(group, t.headsInPiece)
	for tall := kernel.TilesMax / t.headsInPiece; ; tall-- {
		t.rowsInPiece, t.count = tall*kernel.TileRows, 0
		for i := range len(docs) - 1 {
			t.count += pieces(int(docs[i+1]-docs[i]), t.rowsInPiece)
		}
		if tall == 1 || t.count*t.headGroups >= 4*d.pool.Workers() {
			break
		}
	}
	d.pool.Run(t.count*t.headGroups, t)
}

// Piece takes the tiles of a head from the last row to the first: later tiles
// see more keys, and the long pieces should not come last.
func (t *attend) Piece(i, worker int) {
	group := t.a.Heads / t.a.KVHeads
	n, inKV := t.count-1-i/t.headGroups, pieces(group, t.headsInPiece)
	kv, part := i%t.headGroups/inKV, i%t.headGroups%inKV
	first := part * t.headsInPiece
	tile := kernel.Tile{Head: kv*group + first, Heads: min(t.headsInPiece, group-first)}
	for j := range len(t.docs) - 1 {
		tile.Doc, tile.End = int(t.docs[j]), int(t.docs[j+1])
		if here := pieces(tile.End-tile.Doc, t.rowsInPiece); n >= here {
			n -= here
			continue
		}
		tile.Lo = tile.Doc + n*t.rowsInPiece
		tile.Hi = min(tile.Lo+t.rowsInPiece, tile.End)
		t.f(&t.a, tile, t.d.scratchOf(worker))
		return
	}
}

// Attention: o = softmax(scale·q·kᵀ)·v over the keys that a query sees.
func (d *Device) Attention(s device.Stream, o, lse, q, k, v device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	device.CheckAttention(o, lse, q, k, v, docs, a)
	d.apart("Attention", o, lse, q, k, v)
	checkAttention(a)
	args := kernel.Attention{O: d.ptr(o), LSE: d.ptr(lse), Q: d.ptr(q), K: d.ptr(k), V: d.ptr(v),
		LdO: o.Ld, LdLSE: lse.Ld, LdQ: q.Ld, LdK: k.Ld, LdV: v.Ld,
		Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim, Window: a.Window, Scale: a.Scale}
	d.ptr(docs.Cu)
	if st := d.begin(s); st != nil {
		defer st.end()
		d.jobs.attention.a = args
		d.jobs.attention.run(d, d.kernels.Attention[q.DT], docs.Host)
	}
}

func checkAttention(a device.AttnShape) {
	if a.HeadDim > kernel.HeadDimMax {
		panic("cpu: attention heads wider than 256 are not supported")
	}
	if !(a.Scale > 0) {
		panic("cpu: attention wants a scale above 0")
	}
}

// keyRows is how many keys a piece of AttentionGrad holds.
const keyRows = kernel.KeySlots * kernel.TileRows

// attendGrad is the task of AttentionGrad: a piece is a strip of key tiles of one key head, and meets all
// queries that see them. So dk and dv have one writer; dq is written by every strip in turn.
type attendGrad struct {
	a    kernel.AttentionGrad
	f    func(a *kernel.AttentionGrad, p kernel.Pair, scratch unsafe.Pointer)
	d    *Device
	docs []int32
	// turns [Heads, LdDelta] counts at each query tile's first row the strips that have met it.
	turns []int32
}

func (t *attendGrad) run(d *Device, f func(*kernel.AttentionGrad, kernel.Pair, unsafe.Pointer), docs []int32) {
	t.f, t.d, t.docs = f, d, docs
	clear(t.turns)
	strips := 0
	for i := range len(docs) - 1 {
		strips += pieces(int(docs[i+1]-docs[i]), keyRows)
	}
	d.pool.Run(strips*t.a.KVHeads, t)
}

// Piece takes the first strips of all documents first, for they have most queries, and of all heads, so that a
// strip seldom comes up before the one whose turn is before its own has gone ahead. Pieces are taken in
// order and wait for earlier ones only, so one of them can always go on.
func (t *attendGrad) Piece(i, worker int) {
	n, head := i/t.a.KVHeads, i%t.a.KVHeads
	for strip := 0; ; strip++ {
		for j := range len(t.docs) - 1 {
			doc, end := int(t.docs[j]), int(t.docs[j+1])
			if doc+strip*keyRows >= end {
				continue
			}
			if n == 0 {
				t.strip(doc, end, strip, head, t.d.scratchOf(worker))
				return
			}
			n--
		}
	}
}

// strip meets keys [doc+strip·keyRows, …) of key head kv with the queries that see them.
func (t *attendGrad) strip(doc, end, strip, kv int, scratch unsafe.Pointer) {
	lo := doc + strip*keyRows
	hi := min(lo+keyRows, end)
	group := t.a.Heads / t.a.KVHeads
	for head := kv * group; head < (kv+1)*group; head++ {
		for q := lo; q < t.lastQuery(hi-1, end); q += kernel.TileRows {
			turn := &t.turns[head*t.a.LdDelta+q]
			firstKey := tileOf(keysOf(q, doc, t.a.Window), doc)
			if !t.await(turn, int32(strip-(firstKey-doc)/keyRows)) {
				return
			}
			fresh := true
			for k := max(lo, firstKey); k < min(hi, q+kernel.TileRows); k += kernel.TileRows {
				khi := min(k+kernel.TileRows, end)
				qhi := min(q+kernel.TileRows, end)
				t.f(&t.a, kernel.Pair{KeyLo: k, KeyHi: khi, QueryLo: q, QueryHi: qhi,
					KVHead: kv, Head: head, Slot: (k - lo) / kernel.TileRows, NewQueries: fresh,
					FirstOfKeys: head == kv*group && q == k, LastOfKeys: head == (kv+1)*group-1 && qhi >= t.lastQuery(khi-1, end),
					FirstOfQueries: k == firstKey, LastOfQueries: k == q,
				}, scratch)
				fresh = false
			}
			atomic.AddInt32(turn, 1)
		}
	}
}

// lastQuery is the end of the queries that see key.
func (t *attendGrad) lastQuery(key, end int) int {
	if t.a.Window > 0 {
		return min(end, key+t.a.Window)
	}
	return end
}

// await returns when so many strips have met the queries of turn. It gives up, with false, if another piece of
// the task has failed: that one's turn may never come.
func (t *attendGrad) await(turn *int32, want int32) bool {
	for n := 1; atomic.LoadInt32(turn) < want; n++ {
		if n%64 == 0 {
			if t.d.pool.failure.Load() != nil {
				return false
			}
			runtime.Gosched()
		}
	}
	return true
}

// gradLayout is how AttentionGrad cuts its workspace: delta, turns and sums, in bytes.
func gradLayout(rows, heads, headDim int) (turnsAt, sumsAt, end int64) {
	align := func(n int64) int64 { return (n + 63) &^ 63 }
	each := align(int64(heads) * int64(rows) * 4)
	return each, 2 * each, 2*each + int64(heads)*int64(rows)*int64((headDim+15)&^15)*4
}

// AttentionGrad meets each tile of queries with each tile of keys that it sees once, for dq, dk and dv together.
func (d *Device) AttentionGrad(s device.Stream, dq, dk, dv, do, q, k, v, o, lse device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	device.CheckAttentionGrad(dq, dk, dv, do, q, k, v, o, lse, docs, a)
	d.apart("AttentionGrad", dq, dk, dv, do, q, k, v, o, lse)
	d.apart("AttentionGrad", dk, dv, do, q, k, v, o, lse)
	d.apart("AttentionGrad", dv, do, q, k, v, o, lse)
	checkAttention(a)
	args := kernel.AttentionGrad{DQ: d.ptr(dq), DK: d.ptr(dk), DV: d.ptr(dv), DO: d.ptr(do),
		Q: d.ptr(q), K: d.ptr(k), V: d.ptr(v), O: d.ptr(o), LSE: d.ptr(lse),
		LdDQ: dq.Ld, LdDK: dk.Ld, LdDV: dv.Ld, LdDO: do.Ld, LdQ: q.Ld, LdK: k.Ld, LdV: v.Ld, LdO: o.Ld,
		LdLSE: lse.Ld, LdDelta: q.Rows,
		Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim, Window: a.Window, Scale: a.Scale}
	d.ptr(docs.Cu)
	mem := d.workspace("AttentionGrad", ws, d.Need(device.OpAttentionGrad, device.Shape{Rows: q.Rows, Heads: a.Heads, HeadDim: a.HeadDim}))
	if q.Rows == 0 {
		return
	}
	mem = kernel.Aligned(mem)
	turnsAt, sumsAt, _ := gradLayout(q.Rows, a.Heads, a.HeadDim)
	args.Delta, args.Sums = unsafe.Pointer(&mem[0]), unsafe.Pointer(&mem[sumsAt])
	st := d.begin(s)
	if st == nil {
		return
	}
	defer st.end()
	d.jobs.delta.a, d.jobs.grad.a = args, args
	d.jobs.delta.run(d.pool, d.kernels.AttentionDelta[q.DT], q.Rows, 2*q.Cols)
	d.jobs.grad.turns = i32s(unsafe.Pointer(&mem[turnsAt]), a.Heads*q.Rows)
	d.jobs.grad.run(d, d.kernels.AttentionGrad[q.DT], docs.Host)
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
	checkAttention(a)
	args := kernel.AttentionDecode{O: d.ptr(o), Q: d.ptr(q), Keys: d.ptr(keys), Values: d.ptr(values), N: n,
		LdK: keys.Ld, LdV: values.Ld, Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim, Window: a.Window, Scale: a.Scale}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.jobs.decode = decode{args, d.kernels.AttentionDecode[q.DT], d}
		d.pool.Run(a.Heads, &d.jobs.decode)
	}
}
