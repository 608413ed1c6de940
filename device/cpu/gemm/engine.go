package gemm

import (
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
	"github.com/skein-ml/skein/device/cpu/native"
)

// engine is one family of kernels. The right operand is panels of 32 columns, [k][32] in
// some order within steps of kUnit, so that column panel j and term k of a form stand
// at (j·K + k)·32 elements, K being k padded to kUnit.
type engine interface {
	geometry() geometry
	isa() native.ISA
	leftSize() int  // bytes of a packed element of the left operand
	rightSize() int // of a packed weight
	// packLeft packs rows × k of the left operand, from [k][rows] if transposed.
	packLeft(dst, src unsafe.Pointer, ld, rows, k int, transposed bool)
	// packRight packs k × cols ≤ 32 of a right operand that is not a weight, in its wide
	// type, which wideSize gives.
	packRight(dst, src unsafe.Pointer, ld, cols, k int)
	wideSize() int
	// readsRows tells that weights need no packed form: k × cols ≤ 32 of a weight's own rows, or
	// of its columns, are packed whenever a panel enters L1. That saves copies of the weights,
	// see docs/adr/0017.
	readsRows() bool
	// packRightRows is packRight from [cols][k], for engines that read rows.
	packRightRows(dst, src unsafe.Pointer, ld, cols, k int)
	multiply(a product)
	packForward(dst unsafe.Pointer, src kernel.Matrix, col, k int)
	packBackward(dst unsafe.Pointer, src kernel.Matrix, row, out int)
}

// product is one call of a kernel: packed rows times a slice of one panel.
type product struct {
	a, b, s   unsafe.Pointer
	k         int // padded to kUnit
	rows      int
	acc       bool
	next      uintptr // what comes after b; perhaps beyond the end of its memory
	nextBytes int
	out       uintptr // where the sums will be stored if this call completes them, else 0
	outStride int     // bytes from row to row
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// vector is the engine of f32 multiply-adds, of AVX-512 or AVX2. It reads bf16 operands too: they are
// converted, exactly, when the left one is packed and when a panel enters L1. (On Intel
// vdpbf16ps has half the rate of f32 multiply-adds, so it would not help.)
//
// A slice is summed from zero, k ascending, and slices are added in order.
type vector struct {
	bf16 bool
	set  native.ISA
}

func (v vector) geometry() geometry {
	return geometry{mr: 12, kUnit: 1, kStep: 16, kSlice: 256, kChunk: 1024, rowsMax: 264}
}

func (v vector) isa() native.ISA { return v.set }

func (v vector) leftSize() int { return 4 }
func (v vector) wideSize() int { return 4 }

// BF16 has to be converted when a panel enters L1, F32 has not.
func (v vector) readsRows() bool { return v.bf16 }

func (v vector) rightSize() int {
	if v.bf16 {
		return 2 // its rows
	}
	return 4
}

func (v vector) packLeft(dst, src unsafe.Pointer, ld, rows, k int, transposed bool) {
	native.F32PackLeft(&native.F32PackLeftArgs{Src: src, Dst: dst, LD: int64(ld), Rows: int64(rows), K: int64(k),
		Transposed: flag(transposed), Bf16: flag(v.bf16)}, v.set)
}

func (v vector) packRight(dst, src unsafe.Pointer, ld, cols, k int) {
	native.F32PackRight(&native.F32PackRightArgs{Src: src, Dst: dst, LD: int64(ld), Cols: int64(cols), K: int64(k), Bf16: flag(v.bf16)}, v.set)
}

func (v vector) packRightRows(dst, src unsafe.Pointer, ld, cols, k int) {
	native.F32PackRight(&native.F32PackRightArgs{Src: src, Dst: dst, LD: int64(ld), Cols: int64(cols), K: int64(k), Transposed: 1}, v.set)
}

func (v vector) multiply(m product) {
	native.GemmF32(&native.GemmF32Args{A: m.a, B: m.b, S: m.s, Next: uint64(m.next), NextBytes: int64(m.nextBytes),
		Out: uint64(m.out), OutStride: int64(m.outStride), K: int64(m.k), Panels: int64((m.rows + 11) / 12), Rows: int64(m.rows), Acc: flag(m.acc)}, v.set)
}

func (v vector) packForward(dst unsafe.Pointer, src kernel.Matrix, col, k int) {
	native.F32PackForward(&native.F32PackForwardArgs{Src: src.P, Dst: dst, LD: int64(src.Ld), Rows: int64(src.Rows),
		K: int64(k), Col: int64(col)}, v.set)
}

func (v vector) packBackward(dst unsafe.Pointer, src kernel.Matrix, row, out int) {
	native.F32PackBackward(&native.F32PackBackwardArgs{Src: src.P, Dst: dst, LD: int64(src.Ld), Rows: int64(src.Rows),
		Cols: int64(src.Cols), Row: int64(row), Out: int64(out)}, v.set)
}

// isBF16 is how kernels are told of a type.
func isBF16(dt device.DType) int64 { return flag(dt == device.BF16) }

// rowsOf views rows [lo, hi) of m from column col on.
func rowsOf(m kernel.Matrix, lo, hi, col int) kernel.Matrix {
	m.P = unsafe.Add(m.P, (lo*m.Ld+col)*int(m.DT.Size()))
	m.Rows, m.Cols = hi-lo, m.Cols-col
	return m
}
