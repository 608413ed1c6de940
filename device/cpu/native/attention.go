package native

import (
	"unsafe"

	"github.com/skein-ml/skein/device/cpu/kernel"
	"github.com/skein-ml/skein/internal/invariant"
)

// tileGap is GAP of src/window.h: what separates the arrays in scratch memory.
const tileGap = 80

// attentionScratch holds the largest of the passes, AttentionGrad: two arrays [64, D], five more for each
// key tile that stays, and two [64, 64], all F32. The forward has 2 + 2·4 of the former.
const attentionScratch = 4 * ((2+5*kernel.KeySlots)*(kernel.TileRows*kernel.HeadDimMax+tileGap) + 2*(kernel.TileRows*kernel.TileRows+tileGap) + 1024)

// keysPerCall bounds one assembly call of n tiles of queries: 64×64 scores with two products of
// headDim each, at 0.4 ms or so.
func keysPerCall(headDim, n int) int {
	const budget = 2560 // tiles times head dimension
	return kernel.TileRows * max(1, budget/(headDim*n))
}

// checkTile states what the kernels rely on. (Arguments of Check are only made on failure: they
// would be allocations.)
func checkTile(t kernel.Tile, heads, kvHeads, headDim int) {
	if !invariant.Enabled {
		return
	}
	ordered := 0 <= t.Doc && t.Doc <= t.Lo && t.Lo < t.Hi && t.Hi <= t.End
	placed := (t.Lo-t.Doc)%kernel.TileRows == 0 && (t.Hi == t.End || (t.Hi-t.Lo)%kernel.TileRows == 0)
	few := 0 < t.Heads && t.Heads*((t.Hi-t.Lo+kernel.TileRows-1)/kernel.TileRows) <= kernel.TilesMax
	one := 0 <= t.Head && t.Head+t.Heads <= heads && t.Head*kvHeads/heads == (t.Head+t.Heads-1)*kvHeads/heads
	if !(ordered && placed && few && one && 0 < headDim && headDim <= kernel.HeadDimMax) {
		invariant.Check(false, "attention tile %+v of %d heads of %d", t, heads, headDim)
	}
}

func checkPair(p kernel.Pair, heads, kvHeads, headDim int) {
	if !invariant.Enabled {
		return
	}
	keys, queries := p.KeyHi-p.KeyLo, p.QueryHi-p.QueryLo
	sized := 0 < keys && keys <= kernel.TileRows && 0 < queries && queries <= kernel.TileRows
	placed := p.KeyLo <= p.QueryLo && (p.QueryLo-p.KeyLo)%kernel.TileRows == 0 && (p.KeyLo == p.QueryLo || keys == kernel.TileRows)
	heard := 0 <= p.Head && p.Head < heads && p.Head*kvHeads/heads == p.KVHead && 0 <= p.Slot && p.Slot < kernel.KeySlots
	if !(sized && placed && heard && 0 < headDim && headDim <= kernel.HeadDimMax) {
		invariant.Check(false, "attention pair %+v of %d heads of %d", p, heads, headDim)
	}
}

// firstKey is where the key tiles of the queries from t.Lo on begin.
func firstKey(t kernel.Tile, window int) int {
	if window == 0 || t.Lo-window+1 <= t.Doc {
		return t.Doc
	}
	seen := t.Lo - window + 1 - t.Doc
	return t.Doc + seen - seen%kernel.TileRows
}

func attention(a *kernel.Attention, t kernel.Tile, scratch unsafe.Pointer, v variant) {
	checkTile(t, a.Heads, a.KVHeads, a.HeadDim)
	tiles := t.Heads * ((t.Hi - t.Lo + kernel.TileRows - 1) / kernel.TileRows)
	step, start := keysPerCall(a.HeadDim, tiles), firstKey(t, a.Window)
	for k := start; k < t.Hi; k += step {
		AttentionTile(&AttentionTileArgs{
			Args: unsafe.Pointer(a), Scratch: scratch, Query: int64(t.Lo), Rows: int64(t.Hi - t.Lo), Head: int64(t.Head),
			Heads: int64(t.Heads), From: int64(k), To: int64(min(k+step, t.Hi)),
			Begin: flag(k == start), End: flag(k+step >= t.Hi), Bf16: v.bf16,
		}, v.isa)
	}
}

func attentionDelta(a *kernel.AttentionGrad, lo, hi int, v variant) {
	for step := rowsPerCall(a.Heads * a.HeadDim); lo < hi; lo += step {
		AttentionDelta(&AttentionDeltaArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: v.bf16}, v.isa)
	}
}

func attentionGrad(a *kernel.AttentionGrad, p kernel.Pair, scratch unsafe.Pointer, v variant) {
	checkPair(p, a.Heads, a.KVHeads, a.HeadDim)
	AttentionTileGrad(&AttentionTileGradArgs{
		Args: unsafe.Pointer(a), Scratch: scratch, Key: int64(p.KeyLo), Keys: int64(p.KeyHi - p.KeyLo), KvHead: int64(p.KVHead),
		Slot: int64(p.Slot), Query: int64(p.QueryLo), Queries: int64(p.QueryHi - p.QueryLo), Head: int64(p.Head),
		Load: flag(p.NewQueries), Begin: flag(p.FirstOfKeys), End: flag(p.LastOfKeys),
		First: flag(p.FirstOfQueries), Last: flag(p.LastOfQueries), Bf16: v.bf16,
	}, v.isa)
}

func attentionDecode(a *kernel.AttentionDecode, head int, scratch unsafe.Pointer, v variant) {
	const step = 1024
	start := 0
	if a.Window > 0 {
		start = max(0, a.N-a.Window)
	}
	for k := start; k < a.N; k += step {
		AttentionDecode(&AttentionDecodeArgs{
			Args: unsafe.Pointer(a), Scratch: scratch, Head: int64(head), From: int64(k), To: int64(min(k+step, a.N)),
			Begin: flag(k == start), End: flag(k+step >= a.N), Bf16: v.bf16,
		}, v.isa)
	}
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
