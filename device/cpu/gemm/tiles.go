package gemm

import (
	"unsafe"

	"github.com/skein-ml/skein/device/cpu/kernel"
	"github.com/skein-ml/skein/device/cpu/native"
)

// Bytes of a step of 32 terms in a packed panel: of 32 rows or columns on tiles, of
// 12 rows for pairs.
const (
	tileStep = 2048
	dotStep  = 768
)

// halves are the two bf16 that stand for an f32 at precision high, x ≈ hi + lo, packed step by step
// in turn; of bf16 there is one. See src/split.h.
type halves struct{ high bool }

// size is the bytes of an element.
func (h halves) size() int {
	if h.high {
		return 4
	}
	return 2
}

// each calls f for each half, with its number for the kernels, the distance of its steps,
// and where it begins.
func (h halves) each(step int, f func(part, stride int64, offset int)) {
	if !h.high {
		f(0, int64(step), 0)
		return
	}
	f(1, int64(2*step), 0)
	f(2, int64(2*step), step)
}

// products are the parts of the left and the right operand that are multiplied, in the order in
// which they are added. The fourth, lo·lo, is less than the rounding of the others.
func (h halves) products() [][2]int {
	if h.high {
		return highProducts
	}
	return oneProduct
}

var (
	oneProduct   = [][2]int{{0, 0}}
	highProducts = [][2]int{{0, 0}, {0, 1}, {1, 0}} // hi·hi, hi·lo, lo·hi
)

// tiles is the engine of bf16 products on AMX, and of f32 products at precision high. The kernels
// continue sums across slices, so that only the step of 32 terms, which the hardware fixes,
// orders them; the products of halves take turns slice by slice.
type tiles struct{ halves }

func (t tiles) geometry() geometry {
	g := geometry{mr: 32, kUnit: 32, kStep: 32, kSlice: 512, kChunk: 2048, rowsMax: 256}
	if t.high {
		g.kSlice, g.kChunk = 256, 1024
	}
	return g
}

func (tiles) isa() native.ISA { return native.AVX512 }

func (t tiles) leftSize() int  { return t.size() }
func (t tiles) rightSize() int { return t.size() }
func (t tiles) wideSize() int  { return t.size() }

// A multiply is too short here to hide the interleaving of rows.
func (tiles) readsRows() bool { return false }

func (t tiles) packLeft(dst, src unsafe.Pointer, ld, rows, k int, transposed bool) {
	t.each(tileStep, func(part, stride int64, offset int) {
		native.AMXPackLeft(&native.AMXPackLeftArgs{Src: src, Dst: unsafe.Add(dst, offset), LD: int64(ld), Rows: int64(rows),
			K: int64(k), Transposed: flag(transposed), Part: part, Step: stride})
	})
}

func (t tiles) packRight(dst, src unsafe.Pointer, ld, cols, k int) {
	t.each(tileStep, func(part, stride int64, offset int) {
		native.AMXPackRight(&native.AMXPackRightArgs{Src: src, Dst: unsafe.Add(dst, offset), LD: int64(ld), Cols: int64(cols),
			K: int64(k), Part: part, Step: stride})
	})
}

func (tiles) packRightRows(_, _ unsafe.Pointer, _, _, _ int) {
	panic("gemm: tiles read packed weights")
}

func (t tiles) multiply(m product) {
	stride := int64(tileStep * t.size() / 2)
	for i, part := range t.products() {
		a := native.GemmAMXArgs{A: unsafe.Add(m.a, part[0]*tileStep), B: unsafe.Add(m.b, part[1]*tileStep), S: m.s,
			Steps: int64(m.k / 32), Panels: int64((m.rows + 31) / 32), Acc: flag(m.acc || i > 0), Step: stride}
		if i == 0 {
			a.Next, a.NextBytes = uint64(m.next), int64(m.nextBytes)
		}
		native.GemmAMX(&a)
	}
}

func (t tiles) packForward(dst unsafe.Pointer, src kernel.Matrix, col, k int) {
	t.each(tileStep, func(part, stride int64, offset int) {
		native.AMXPackForward(&native.AMXPackForwardArgs{Src: src.P, Dst: unsafe.Add(dst, offset), LD: int64(src.Ld),
			Rows: int64(src.Rows), K: int64(k), Col: int64(col), Part: part, Step: stride})
	})
}

func (t tiles) packBackward(dst unsafe.Pointer, src kernel.Matrix, row, out int) {
	t.each(tileStep, func(part, stride int64, offset int) {
		native.AMXPackBackward(&native.AMXPackBackwardArgs{Src: src.P, Dst: unsafe.Add(dst, offset), LD: int64(src.Ld),
			Rows: int64(src.Rows), Cols: int64(src.Cols), Row: int64(row), Out: int64(out), Part: part, Step: stride})
	})
}
