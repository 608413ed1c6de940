package native

import (
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// Table holds the entries of package kernel that have native kernels, for paths
// "avx2", "avx512", "avx512-bf16" and "amx-bf16"; for any other path it is empty. The machine
// must have what the path names. All of them have the same bits.
//
// Bits: Rope, Add, Cast, AdamW, SqNorm, ColumnSum and EmbedGrad equal those of the plain Go
// path. The others differ from it in the last places, by the order of sums and by
// exp, and are within tolerances that the tests state. BF16 is rounded in integers, so no
// entry depends on BF16 instructions, and nothing flushes subnormals.
func Table(path string) kernel.Table {
	isa := AVX512
	switch path {
	case "avx2":
		isa = AVX2
	case "avx512", "avx512-bf16", "amx-bf16":
	default:
		return kernel.Table{}
	}
	t := kernel.Table{
		Scratch: attentionScratch,
		SqNorm:  func(x unsafe.Pointer, n int) float64 { return sqNorm(x, n, isa) },
	}
	for dt := range t.Add {
		v := variant{int64(dt), isa} // F32 is 0, BF16 is 1
		t.RMSNorm[dt] = func(a *kernel.RMSNorm, lo, hi int) { rmsNorm(a, lo, hi, v) }
		t.RMSNormGrad[dt] = func(a *kernel.RMSNormGrad, lo, hi int, partial unsafe.Pointer) {
			rmsNormGrad(a, lo, hi, partial, v)
		}
		t.LayerNorm[dt] = func(a *kernel.LayerNorm, lo, hi int) { layerNorm(a, lo, hi, v) }
		t.LayerNormGrad[dt] = func(a *kernel.LayerNormGrad, lo, hi int, partial unsafe.Pointer) {
			layerNormGrad(a, lo, hi, partial, v)
		}
		t.Activate[dt] = func(y, x unsafe.Pointer, n int, act device.Act) { activate(y, x, n, act, v) }
		t.ActivateGrad[dt] = func(dx, dy, x unsafe.Pointer, n int, act device.Act) { activateGrad(dx, dy, x, n, act, v) }
		t.Rope[dt] = func(a *kernel.Rope, lo, hi int) { ropeRows(a, lo, hi, v) }
		t.GLU[dt] = func(a *kernel.GLU, lo, hi int) { gluRows(a, lo, hi, v) }
		t.GLUGrad[dt] = func(a *kernel.GLUGrad, lo, hi int) { gluGradRows(a, lo, hi, v) }
		t.Add[dt] = func(dst, a, b unsafe.Pointer, n int) { addRange(dst, a, b, n, v) }
		t.Cast[dt] = func(dst, src unsafe.Pointer, n int) { castRange(dst, src, n, v) }
		t.CrossEntropy[dt] = func(a *kernel.CrossEntropy, lo, hi int) { crossEntropy(a, lo, hi, v) }
		t.ColumnSum[dt] = func(a *kernel.ColumnSum, lo, hi int) { columnSum(a, lo, hi, v) }
		t.EmbedGrad[dt] = func(a *kernel.EmbedGrad, lo, hi int, _ unsafe.Pointer) { embedGrad(a, lo, hi, v) }
		t.AdamW[dt] = func(a *kernel.AdamW, lo, hi int) { adamW(a, lo, hi, v) }

		t.Attention[dt] = func(a *kernel.Attention, tile kernel.Tile, scratch unsafe.Pointer) {
			attention(a, tile, scratch, v)
		}
		t.AttentionDelta[dt] = func(a *kernel.AttentionGrad, lo, hi int) { attentionDelta(a, lo, hi, v) }
		t.AttentionGrad[dt] = func(a *kernel.AttentionGrad, p kernel.Pair, scratch unsafe.Pointer) {
			attentionGrad(a, p, scratch, v)
		}
		t.AttentionDecode[dt] = func(a *kernel.AttentionDecode, head int, scratch unsafe.Pointer) {
			attentionDecode(a, head, scratch, v)
		}
	}
	return t
}

// variant is one of the forms of an entry: its elements, 1 for BF16, and the instruction set.
type variant struct {
	bf16 int64
	isa  ISA
}

// callElements bounds the elements of one assembly call, which Go cannot preempt: about
// 0.1 ms where exp is computed, less elsewhere.
const callElements = 1 << 17

// rowsPerCall is how many rows of a width one call takes.
func rowsPerCall(cols int) int { return max(1, callElements/max(1, cols)) }

func elementAt(p unsafe.Pointer, i int, v variant) unsafe.Pointer {
	return unsafe.Add(p, i*(4-2*int(v.bf16)))
}

func rmsNorm(a *kernel.RMSNorm, lo, hi int, v variant) {
	for step := rowsPerCall(a.Cols); lo < hi; lo += step {
		RmsNorm(&RmsNormArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: v.bf16}, v.isa)
	}
}

func rmsNormGrad(a *kernel.RMSNormGrad, lo, hi int, partial unsafe.Pointer, v variant) {
	clear(unsafe.Slice((*float32)(partial), a.Cols))
	for step := rowsPerCall(a.Cols); lo < hi; lo += step {
		RmsNormGrad(&RmsNormGradArgs{
			Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Partial: partial, Bf16: v.bf16,
		}, v.isa)
	}
}

func layerNorm(a *kernel.LayerNorm, lo, hi int, v variant) {
	for step := rowsPerCall(a.Cols); lo < hi; lo += step {
		LayerNorm(&LayerNormArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: v.bf16}, v.isa)
	}
}

func layerNormGrad(a *kernel.LayerNormGrad, lo, hi int, partial unsafe.Pointer, v variant) {
	clear(unsafe.Slice((*float32)(partial), 2*a.Cols))
	for step := rowsPerCall(a.Cols); lo < hi; lo += step {
		LayerNormGrad(&LayerNormGradArgs{
			Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Partial: partial, Bf16: v.bf16,
		}, v.isa)
	}
}

// plain holds activations to those that the kernels know.
func plain(act device.Act) {
	if act != device.GELU && act != device.GELUTanh {
		panic("native: unknown activation function")
	}
}

func activate(y, x unsafe.Pointer, n int, act device.Act, v variant) {
	plain(act)
	for lo := 0; lo < n; lo += callElements {
		Activate(&ActivateArgs{X: elementAt(x, lo, v), Y: elementAt(y, lo, v),
			N: int64(min(n-lo, callElements)), Act: int64(act), Bf16: v.bf16}, v.isa)
	}
}

func activateGrad(dx, dy, x unsafe.Pointer, n int, act device.Act, v variant) {
	plain(act)
	for lo := 0; lo < n; lo += callElements {
		ActivateGrad(&ActivateGradArgs{X: elementAt(x, lo, v), Dy: elementAt(dy, lo, v), Dx: elementAt(dx, lo, v),
			N: int64(min(n-lo, callElements)), Act: int64(act), Bf16: v.bf16}, v.isa)
	}
}

func ropeRows(a *kernel.Rope, lo, hi int, v variant) {
	for step := rowsPerCall((a.Heads + a.KVHeads) * a.HeadDim); lo < hi; lo += step {
		Rope(&RopeArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: v.bf16}, v.isa)
	}
}

// silu is the only activation that the kernels know.
func silu(act int) {
	if device.Act(act) != device.SiLU {
		panic("native: unknown activation function")
	}
}

func gluRows(a *kernel.GLU, lo, hi int, v variant) {
	silu(a.Act)
	for step := rowsPerCall(a.F); lo < hi; lo += step {
		GLU(&GLUArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: v.bf16}, v.isa)
	}
}

func gluGradRows(a *kernel.GLUGrad, lo, hi int, v variant) {
	silu(a.Act)
	for step := rowsPerCall(a.F); lo < hi; lo += step {
		GLUGrad(&GLUGradArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: v.bf16}, v.isa)
	}
}

func addRange(dst, a, b unsafe.Pointer, n int, v variant) {
	for lo := 0; lo < n; lo += callElements {
		Add(&AddArgs{
			Dst: elementAt(dst, lo, v), A: elementAt(a, lo, v), B: elementAt(b, lo, v),
			N: int64(min(n-lo, callElements)), Bf16: v.bf16,
		}, v.isa)
	}
}

func castRange(dst, src unsafe.Pointer, n int, v variant) {
	for lo := 0; lo < n; lo += callElements {
		Cast(&CastArgs{
			Dst: elementAt(dst, lo, variant{1 - v.bf16, v.isa}), Src: elementAt(src, lo, v),
			N: int64(min(n-lo, callElements)), Bf16: v.bf16,
		}, v.isa)
	}
}

func crossEntropy(a *kernel.CrossEntropy, lo, hi int, v variant) {
	for step := rowsPerCall(a.Vocab); lo < hi; lo += step {
		CrossEntropy(&CrossEntropyArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+step)), Bf16: v.bf16}, v.isa)
	}
}

// columnSum adds up a block in one go for a few columns at a time.
func columnSum(a *kernel.ColumnSum, lo, hi int, v variant) {
	const step = callElements / device.BlockRows
	for seq := 0; seq < a.Rows; seq += a.Seq {
		for r := seq; r < seq+a.Seq; r += device.BlockRows {
			for c := lo; c < hi; c += step {
				SumRows(&SumRowsArgs{
					Dst: a.DB, Src: elementAt(a.DY, r*a.LdDY, v), LD: int64(a.LdDY),
					N: int64(min(device.BlockRows, seq+a.Seq-r)), From: int64(c), To: int64(min(hi, c+step)), Bf16: v.bf16,
				}, v.isa)
			}
		}
	}
}

func embedGrad(a *kernel.EmbedGrad, lo, hi int, v variant) {
	starts := unsafe.Slice((*int32)(a.Starts), hi+1)
	order := unsafe.Slice((*int32)(a.Order), starts[hi])
	for slot := lo; slot < hi; slot++ {
		tokens := order[starts[slot]:starts[slot+1]]
		for len(tokens) > 0 {
			n := sameBlock(tokens, a.Seq)
			SumRows(&SumRowsArgs{
				Dst: unsafe.Add(a.Rows, 4*slot*a.LdRows), Src: a.DX, Order: unsafe.Pointer(&tokens[0]),
				LD: int64(a.LdDX), N: int64(n), To: int64(a.Cols), Bf16: v.bf16,
			}, v.isa)
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

func adamW(a *kernel.AdamW, lo, hi int, v variant) {
	for ; lo < hi; lo += callElements {
		Adamw(&AdamwArgs{Args: unsafe.Pointer(a), Lo: int64(lo), Hi: int64(min(hi, lo+callElements)), Bf16: v.bf16}, v.isa)
	}
}

func sqNorm(x unsafe.Pointer, n int, isa ISA) float64 {
	var out float64
	SqNorm(&SqNormArgs{X: x, N: int64(n), Out: unsafe.Pointer(&out)}, isa)
	return out
}
