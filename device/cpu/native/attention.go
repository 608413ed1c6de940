package native

import (
	"unsafe"

	"github.com/skein-ml/skein/device/cpu/kernel"
	"github.com/skein-ml/skein/internal/invariant"
)

// tileGap is GAP of src/window.h: what separates the arrays in scratch memory.
const tileGap = 80

// attentionScratch holds the largest of the passes, AttentionGradKV: six arrays [64, D]
// and two [64, 64], all F32.
const attentionScratch = 4 * (6*(kernel.TileRows*kernel.HeadDimMax+tileGap) + 2*(kernel.TileRows*kernel.TileRows+tileGap) + 1024)

// keysPerCall bounds one assembly call: tiles of 64×64 scores with up to five products
// of headDim each, at 0.4 ms or so.
func keysPerCall(headDim int) int {
	const budget = 1280 // tiles times head dimension
	return kernel.TileRows * max(1, budget/headDim)
}

// checkTile states what the kernels rely on. (Arguments of Check are only made on failure: they
// would be allocations.)
func checkTile(t kernel.Tile, heads, headDim int) {
	ordered := 0 <= t.Doc && t.Doc <= t.Lo && t.Lo < t.Hi && t.Hi <= t.End
	placed := (t.Lo-t.Doc)%kernel.TileRows == 0 && t.Hi == min(t.End, t.Lo+kernel.TileRows)
	if invariant.Enabled && !(ordered && placed && 0 <= t.Head && t.Head < heads && 0 < headDim && headDim <= kernel.HeadDimMax) {
		invariant.Check(false, "attention tile %+v of %d heads of %d", t, heads, headDim)
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
	checkTile(t, a.Heads, a.HeadDim)
	step, start := keysPerCall(a.HeadDim), firstKey(t, a.Window)
	for k := start; k < t.Hi; k += step {
		AttentionTile(&AttentionTileArgs{
			Args: unsafe.Pointer(a), Scratch: scratch, Query: int64(t.Lo), Rows: int64(t.Hi - t.Lo), Head: int64(t.Head),
			From: int64(k), To: int64(min(k+step, t.Hi)), Begin: flag(k == start), End: flag(k+step >= t.Hi), Bf16: v.bf16,
		}, v.isa)
	}
}

func attentionDelta(a *kernel.AttentionGrad, lo, hi int, v variant) {
	for step := rowsPerCall(a.Heads * a.HeadDim); lo < hi; lo += step {
		AttentionDelta(&AttentionDeltaArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: v.bf16}, v.isa)
	}
}

func attentionGradQ(a *kernel.AttentionGrad, t kernel.Tile, scratch unsafe.Pointer, v variant) {
	checkTile(t, a.Heads, a.HeadDim)
	step, start := keysPerCall(a.HeadDim), firstKey(t, a.Window)
	for k := start; k < t.Hi; k += step {
		AttentionTileDq(&AttentionTileDqArgs{
			Args: unsafe.Pointer(a), Scratch: scratch, Query: int64(t.Lo), Rows: int64(t.Hi - t.Lo), Head: int64(t.Head),
			From: int64(k), To: int64(min(k+step, t.Hi)), Begin: flag(k == start), End: flag(k+step >= t.Hi), Bf16: v.bf16,
		}, v.isa)
	}
}

func attentionGradKV(a *kernel.AttentionGrad, t kernel.Tile, scratch unsafe.Pointer, v variant) {
	checkTile(t, a.KVHeads, a.HeadDim)
	step, end := keysPerCall(a.HeadDim), t.End
	if a.Window > 0 {
		end = min(end, t.Hi-1+a.Window)
	}
	group := a.Heads / a.KVHeads
	first, last := t.Head*group, t.Head*group+group-1
	for head := first; head <= last; head++ {
		for q := t.Lo; q < end; q += step {
			AttentionTileDkv(&AttentionTileDkvArgs{
				Args: unsafe.Pointer(a), Scratch: scratch, Key: int64(t.Lo), Rows: int64(t.Hi - t.Lo),
				KvHead: int64(t.Head), Head: int64(head), From: int64(q), To: int64(min(q+step, end)),
				Begin: flag(head == first && q == t.Lo), End: flag(head == last && q+step >= end), Bf16: v.bf16,
			}, v.isa)
		}
	}
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
