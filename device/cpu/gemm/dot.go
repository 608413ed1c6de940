package gemm

import (
	"unsafe"

	"github.com/skein-ml/skein/device/cpu/native"
)

// dots is the engine of bf16 products by VDPBF16PS. Its right operands are those of the
// tiles; where a path of tiles would be slower than this one, there are no tiles.
//
// A slice is summed from zero, pairs of k ascending, and slices are added in order. Slices are
// as long as those of f32: 512 terms would halve the additions to scratch, but with
// the left operand's panel they do not fit into the 32 KB of L1 that AMD's processors have.
type dots struct{ tiles }

func (dots) geometry() geometry {
	return geometry{mr: 12, kUnit: 32, kStep: 32, kSlice: 256, kChunk: 1024, rowsMax: 264}
}

func (dots) packLeft(dst, src unsafe.Pointer, ld, rows, k int, transposed bool) {
	native.DotPackLeft(&native.DotPackLeftArgs{Src: src, Dst: dst, LD: int64(ld), Rows: int64(rows), K: int64(k), Transposed: flag(transposed)})
}

func (dots) multiply(m product) {
	native.GemmDot(&native.GemmDotArgs{A: m.a, B: m.b, S: m.s, Next: uint64(m.next), NextBytes: int64(m.nextBytes),
		Out: uint64(m.out), OutStride: int64(m.outStride), Steps: int64(m.k / 32), Panels: int64((m.rows + 11) / 12), Acc: flag(m.acc)})
}
