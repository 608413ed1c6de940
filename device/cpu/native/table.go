package native

import (
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// Table holds the entries of package kernel that have AVX-512 kernels, for paths
// "avx512", "avx512-bf16" and "amx-bf16"; for any other path it is empty. The machine must
// have what the path names.
//
// Bits: Rope, Add, Cast, AdamW, SqNorm, ColumnSum and EmbedGrad equal those of the plain Go
// path. The others differ from it in the last places, by the order of sums and by
// exp, and are within tolerances that the tests state. BF16 is rounded in integers, so no
// entry depends on BF16 instructions, and nothing flushes subnormals.
func Table(path string) kernel.Table {
	switch path {
	case "avx512", "avx512-bf16", "amx-bf16":
	default:
		return kernel.Table{}
	}
	t := kernel.Table{
		Scratch: attentionScratch,
		SqNorm:  sqNorm,
	}
	for dt := range t.Add {
		bf16 := int64(dt) // F32 is 0, BF16 is 1
		t.RMSNorm[dt] = func(a *kernel.RMSNorm, lo, hi int) { rmsNorm(a, lo, hi, bf16) }
		t.RMSNormGrad[dt] = func(a *kernel.RMSNormGrad, lo, hi int, partial unsafe.Pointer) {
			rmsNormGrad(a, lo, hi, partial, bf16)
		}
		t.LayerNorm[dt] = func(a *kernel.LayerNorm, lo, hi int) { layerNorm(a, lo, hi, bf16) }
		t.LayerNormGrad[dt] = func(a *kernel.LayerNormGrad, lo, hi int, partial unsafe.Pointer) {
			layerNormGrad(a, lo, hi, partial, bf16)
		}
		t.Activate[dt] = func(y, x unsafe.Pointer, n int, act device.Act) { activate(y, x, n, act, bf16) }
		t.ActivateGrad[dt] = func(dx, dy, x unsafe.Pointer, n int, act device.Act) { activateGrad(dx, dy, x, n, act, bf16) }
		t.Rope[dt] = func(a *kernel.Rope, lo, hi int) { ropeRows(a, lo, hi, bf16) }
		t.GLU[dt] = func(a *kernel.GLU, lo, hi int) { gluRows(a, lo, hi, bf16) }
		t.GLUGrad[dt] = func(a *kernel.GLUGrad, lo, hi int) { gluGradRows(a, lo, hi, bf16) }
		t.Add[dt] = func(dst, a, b unsafe.Pointer, n int) { addRange(dst, a, b, n, bf16) }
		t.Cast[dt] = func(dst, src unsafe.Pointer, n int) { castRange(dst, src, n, bf16) }
		t.CrossEntropy[dt] = func(a *kernel.CrossEntropy, lo, hi int) { crossEntropy(a, lo, hi, bf16) }
		t.ColumnSum[dt] = func(a *kernel.ColumnSum, lo, hi int) { columnSum(a, lo, hi, bf16) }
		t.EmbedGrad[dt] = func(a *kernel.EmbedGrad, lo, hi int, _ unsafe.Pointer) { embedGrad(a, lo, hi, bf16) }
		t.AdamW[dt] = func(a *kernel.AdamW, lo, hi int) { adamW(a, lo, hi, bf16) }

		t.Attention[dt] = func(a *kernel.Attention, tile kernel.Tile, scratch unsafe.Pointer) {
			attention(a, tile, scratch, bf16)
		}
		t.AttentionDelta[dt] = func(a *kernel.AttentionGrad, lo, hi int) { attentionDelta(a, lo, hi, bf16) }
		t.AttentionGradQ[dt] = func(a *kernel.AttentionGrad, tile kernel.Tile, scratch unsafe.Pointer) {
			attentionGradQ(a, tile, scratch, bf16)
		}
		t.AttentionGradKV[dt] = func(a *kernel.AttentionGrad, tile kernel.Tile, scratch unsafe.Pointer) {
			attentionGradKV(a, tile, scratch, bf16)
		}
		t.AttentionDecode[dt] = func(a *kernel.AttentionDecode, head int, scratch unsafe.Pointer) {
			attentionDecode(a, head, scratch, bf16)
		}
	}
	return t
}

// callElements bounds the elements of one assembly call, which Go cannot preempt: about
// 0.1 ms where exp is computed, less elsewhere.
const callElements = 1 << 17

// rowsPerCall is how many rows of a width one call takes.
func rowsPerCall(cols int) int { return max(1, callElements/max(1, cols)) }

func elementAt(p unsafe.Pointer, i int, bf16 int64) unsafe.Pointer {
	return unsafe.Add(p, i*(4-2*int(bf16)))
}

func rmsNorm(a *kernel.RMSNorm, lo, hi int, bf16 int64) {
	for step := rowsPerCall(a.Cols); lo < hi; lo += step {
		RmsNorm(&RmsNormArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: bf16})
	}
}

func rmsNormGrad(a *kernel.RMSNormGrad, lo, hi int, partial unsafe.Pointer, bf16 int64) {
	clear(unsafe.Slice((*float32)(partial), a.Cols))
	for step := rowsPerCall(a.Cols); lo < hi; lo += step {
		RmsNormGrad(&RmsNormGradArgs{
			Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Partial: partial, Bf16: bf16,
		})
	}
}

func layerNorm(a *kernel.LayerNorm, lo, hi int, bf16 int64) {
	for step := rowsPerCall(a.Cols); lo < hi; lo += step {
		LayerNorm(&LayerNormArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: bf16})
	}
}

func layerNormGrad(a *kernel.LayerNormGrad, lo, hi int, partial unsafe.Pointer, bf16 int64) {
	clear(unsafe.Slice((*float32)(partial), 2*a.Cols))
	for step := rowsPerCall(a.Cols); lo < hi; lo += step {
		LayerNormGrad(&LayerNormGradArgs{
			Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Partial: partial, Bf16: bf16,
		})
	}
}

// plain holds activations to those that the kernels know.
func plain(act device.Act) {
	if act != device.GELU && act != device.GELUTanh {
		panic("native: unknown activation function")
	}
}

func activate(y, x unsafe.Pointer, n int, act device.Act, bf16 int64) {
	plain(act)
	for lo := 0; lo < n; lo += callElements {
		Activate(&ActivateArgs{X: elementAt(x, lo, bf16), Y: elementAt(y, lo, bf16),
			N: int64(min(n-lo, callElements)), Act: int64(act), Bf16: bf16})
	}
}

func activateGrad(dx, dy, x unsafe.Pointer, n int, act device.Act, bf16 int64) {
	plain(act)
	for lo := 0; lo < n; lo += callElements {
		ActivateGrad(&ActivateGradArgs{X: elementAt(x, lo, bf16), Dy: elementAt(dy, lo, bf16), Dx: elementAt(dx, lo, bf16),
			N: int64(min(n-lo, callElements)), Act: int64(act), Bf16: bf16})
	}
}

func ropeRows(a *kernel.Rope, lo, hi int, bf16 int64) {
	for step := rowsPerCall((a.Heads + a.KVHeads) * a.HeadDim); lo < hi; lo += step {
		Rope(&RopeArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: bf16})
	}
}

// silu is the only activation that the kernels know.
func silu(act int) {
	if device.Act(act) != device.SiLU {
		panic("native: unknown activation function")
	}
}

func gluRows(a *kernel.GLU, lo, hi int, bf16 int64) {
	silu(a.Act)
	for step := rowsPerCall(a.F); lo < hi; lo += step {
		GLU(&GLUArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: bf16})
	}
}

func gluGradRows(a *kernel.GLUGrad, lo, hi int, bf16 int64) {
	silu(a.Act)
	for step := rowsPerCall(a.F); lo < hi; lo += step {
		GLUGrad(&GLUGradArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: bf16})
	}
}

func addRange(dst, a, b unsafe.Pointer, n int, bf16 int64) {
	for lo := 0; lo < n; lo += callElements {
		Add(&AddArgs{
			Dst: elementAt(dst, lo, bf16), A: elementAt(a, lo, bf16), B: elementAt(b, lo, bf16),
			N: int64(min(n-lo, callElements)), Bf16: bf16,
		})
	}
}

func castRange(dst, src unsafe.Pointer, n int, bf16 int64) {
	for lo := 0; lo < n; lo += callElements {
		Cast(&CastArgs{
			Dst: elementAt(dst, lo, 1-bf16), Src: elementAt(src, lo, bf16),
			N: int64(min(n-lo, callElements)), Bf16: bf16,
		})
	}
}

func crossEntropy(a *kernel.CrossEntropy, lo, hi int, bf16 int64) {
	for step := rowsPerCall(a.Vocab); lo < hi; lo += step {
		CrossEntropy(&CrossEntropyArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: bf16})
	}
}

// columnSum adds up a block in one go for a few columns at a time.
func columnSum(a *kernel.ColumnSum, lo, hi int, bf16 int64) {
	const step = callElements / device.BlockRows
	for seq := 0; seq < a.Rows; seq += a.Seq {
		for r := seq; r < seq+a.Seq; r += device.BlockRows {
			for c := lo; c < hi; c += step {
				SumRows(&SumRowsArgs{
					Dst: a.DB, Src: elementAt(a.DY, r*a.LdDY, bf16), LD: int64(a.LdDY),
					N: int64(min(device.BlockRows, seq+a.Seq-r)), From: int64(c), To: int64(min(hi, c+step)), Bf16: bf16,
				})
			}
		}
	}
}

func embedGrad(a *kernel.EmbedGrad, lo, hi int, bf16 int64) {
	starts := unsafe.Slice((*int32)(a.Starts), hi+1)
	order := unsafe.Slice((*int32)(a.Order), starts[hi])
	for slot := lo; slot < hi; slot++ {
		tokens := order[starts[slot]:starts[slot+1]]
		for len(tokens) > 0 {
			n := sameBlock(tokens, a.Seq)
			SumRows(&SumRowsArgs{
				Dst: unsafe.Add(a.Rows, 4*slot*a.LdRows), Src: a.DX, Order: unsafe.Pointer(&tokens[0]),
				LD: int64(a.LdDX), N: int64(n), To: int64(a.Cols), Bf16: bf16,
			})
			tokens = tokens[n:]
		}
	}
}

// sameBlock counts the tokens at the head of a list that fall into the block of the first.
func sameBlock(tokens []int32, seq int) int {
	first := int(tokens[0])
	start := first - first%seq
	start += (first - start) / device.BlockRows * device.BlockRows
	end := min(start+device.BlockRows, first-first%seq+seq)
	n := 1
	for n < len(tokens) && int(tokens[n]) < end {
		n++
	}
	return n
}

func adamW(a *kernel.AdamW, lo, hi int, bf16 int64) {
	for ; lo < hi; lo += callElements {
		Adamw(&AdamwArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+callElements)), Bf16: bf16})
	}
}

func sqNorm(x unsafe.Pointer, n int) float64 {
	var out float64
	SqNorm(&SqNormArgs{X: x, N: int64(n), Out: unsafe.Pointer(&out)})
	return out
}
