package gemm

import (
	"unsafe"

	"github.com/skein-ml/skein/device/cpu/native"
)

// dots is the engine of bf16 products by VDPBF16PS. Its right operands are those of the
// tiles; where a path of tiles would be slower than this one, there are no tiles.
//
// A slice is summed from zero, pairs of k ascending, and slices are added in order, of each slice the
// products of halves one after the other. Slices are as long as those of f32: 512 terms
// would halve the additions to scratch, but with the left operand's panel they do not fit into
// the 32 KB of L1 that AMD's processors have.
type dots struct{ tiles }

func (dots) geometry() geometry {
	return geometry{mr: 12, kUnit: 32, kStep: 32, kSlice: 256, kChunk: 1024, rowsMax: 264}
}

func (d dots) packLeft(dst, src unsafe.Pointer, ld, rows, k int, transposed bool) {
	d.each(dotStep, func(part, stride int64, offset int) {
		native.DotPackLeft(&native.DotPackLeftArgs{Src: src, Dst: unsafe.Add(dst, offset), LD: int64(ld), Rows: int64(rows),
			K: int64(k), Transposed: flag(transposed), Part: part, Step: stride})
	})
}

func (d dots) multiply(m product) {
	scale := d.size() / 2
	for i, part := range d.products() {
		a := native.GemmDotArgs{A: unsafe.Add(m.a, part[0]*dotStep), B: unsafe.Add(m.b, part[1]*tileStep), S: m.s,
			Steps: int64(m.k / 32), Panels: int64((m.rows + 11) / 12), Acc: flag(m.acc || i > 0),
			AStep: int64(scale * dotStep), BStep: int64(scale * tileStep)}
		if i == 0 {
			a.Next, a.NextBytes = uint64(m.next), int64(m.nextBytes)
		}
		if i == len(d.products())-1 {
			a.Out, a.OutStride = uint64(m.out), int64(m.outStride)
		}
		native.GemmDot(&a)
	}
}
