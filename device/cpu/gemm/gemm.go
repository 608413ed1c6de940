// Package gemm computes matrix products with the kernels of package native: f32 on
// AVX2 or AVX-512, to the same bits, and bf16 on AMX tiles or by VDPBF16PS where path and operands allow.
//
// Bits: an element of a result depends on its row of the left operand, its column of
// the right one and the length of the sum, never on the other sizes, its position,
// the cut into pieces or the number of threads. Two facts make that so. A sum over k
// is cut by its length alone (see slices); and edges are padded with zeros in both
// operands, so that every element comes out of the same instructions.
//
// The loop nest, for one piece of the output (at most rowsMax rows and
// panelsMax panels of 32 columns), runs on one worker without any barrier:
//
//	for each block of k                    // one, or the 512-row blocks of LinearDW
//	  for each chunk of it                 // what of the left operand fits in L2
//	    pack the left operand              // 1-4% of the time; converts bf16 to f32 where needed
//	    for each panel                     // 32 columns
//	      for each slice of the chunk      // what of the panel fits in L1
//	        multiply into scratch          // f32, in L2
//	      store after the last chunk       // bias, add, conversion
//
// Packing the left operand once for all workers and waiting for it was rejected: it
// takes a barrier and workspace that grows with the shape, and saves less than it costs.
package gemm

import (
	"fmt"
	"strings"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
	"github.com/skein-ml/skein/device/cpu/native"
)

// Products are the products of one path, see [kernel.Products].
type Products struct {
	f32, bf16 engine // by the type of the left operand

	task  task // of the running call; here so that calls allocate nothing
	right rightTask
	pack  packTask
}

// Paths that end with HighSuffix make f32 products of three bf16 products.
const HighSuffix = "-high"

// engines are those of each path, by the type of the left operand.
var engines = []struct {
	path      string
	has       func(native.Set) bool
	f32, bf16 engine
}{
	{"avx2", func(s native.Set) bool { return s.AVX2 }, vector{set: native.AVX2}, vector{bf16: true, set: native.AVX2}},
	{"avx512", func(s native.Set) bool { return s.AVX512 }, vector{}, vector{bf16: true}},
	{"avx512-bf16", func(s native.Set) bool { return s.AVX512BF16 }, vector{}, dots{}},
	{"avx512-bf16-high", func(s native.Set) bool { return s.AVX512BF16 }, dots{tiles{halves{high: true}}}, dots{}},
	{"amx-bf16", func(s native.Set) bool { return s.AMXBF16 }, vector{}, tiles{}},
	{"amx-bf16-high", func(s native.Set) bool { return s.AMXBF16 }, tiles{halves{high: true}}, tiles{}},
}

// New makes the products of a path. It fails where there is no such path or the machine
// lacks it.
func New(path string) (*Products, error) {
	have := native.Features()
	for _, e := range engines {
		switch {
		case e.path != path:
		case e.has(have):
			return &Products{f32: e.f32, bf16: e.bf16}, nil
		case have.AMXRefused != "" && strings.HasPrefix(path, "amx"):
			return nil, fmt.Errorf("gemm: path %s cannot run: %s", path, have.AMXRefused)
		default:
			return nil, fmt.Errorf("gemm: path %s cannot run: this machine has %s", path, have)
		}
	}
	return nil, fmt.Errorf("gemm: no products for path %q", path)
}

func (g *Products) engine(dt device.DType) engine {
	if dt == device.BF16 {
		return g.bf16
	}
	return g.f32
}

// formBytes is the length of a packed operand of n columns and k terms.
func formBytes(e engine, n, k int) int64 {
	return int64(panels(n)) * 32 * int64(roundUp(k, e.geometry().kUnit)) * int64(e.rightSize())
}

// PackedBytes is the length of a packed weight.
func (g *Products) PackedBytes(out, in int, dt device.DType, forms device.Forms) (n int64) {
	e := g.engine(dt)
	if e.readsRows() {
		return 0
	}
	if forms&device.FormForward != 0 {
		n += formBytes(e, out, in)
	}
	if forms&device.FormDX != 0 {
		n += formBytes(e, in, out)
	}
	return n
}

// operand is what a product reads of a weight: its rows, with their stride, or a packed form.
func (g *Products) operand(w *kernel.Weight, f device.Forms) (p unsafe.Pointer, ld int) {
	if g.engine(w.DT).readsRows() {
		return w.Src.P, w.Src.Ld
	}
	return g.form(w, f), 0
}

// form finds one form of a packed weight: the forward form, if any, comes first.
func (g *Products) form(w *kernel.Weight, f device.Forms) unsafe.Pointer {
	if w.Forms&f == 0 {
		panic(fmt.Sprintf("gemm: weight [%d, %d] was not packed for this product", w.Out, w.In))
	}
	off := int64(0)
	if f == device.FormDX && w.Forms&device.FormForward != 0 {
		off = formBytes(g.engine(w.DT), w.Out, w.In)
	}
	return unsafe.Pointer(&w.Mem[off])
}

// Need is the workspace of op.
func (g *Products) Need(op device.Op, sh device.Shape, workers int) int64 {
	e := g.engine(sh.DT)
	switch op {
	case device.OpLinear:
		return 64 + scratchBound(e, sh.Rows, sh.Out, sh.In, workers)
	case device.OpLinearDX:
		return 64 + scratchBound(e, sh.Rows, sh.In, sh.Out, workers)
	case device.OpLinearDW:
		return 64 + scratchBound(e, sh.Out, sh.In, min(sh.Seq, device.BlockRows), workers) + rightBytes(e, sh.Rows, sh.Seq, sh.In)
	}
	return 0
}

// Linear computes y = x·Wᵀ + bias + add.
func (g *Products) Linear(p kernel.Pool, y, x kernel.Matrix, w *kernel.Weight, bias, add kernel.Matrix, ws []byte) {
	if y.Rows == 0 {
		return
	}
	g.task = task{
		engine: g.engine(w.DT), cut: newCut(g.engine(w.DT), y.Rows, w.Out, w.In, p.Workers()),
		left: x, rightRows: true,
		out: y, bias: bias, add: add, seq: w.In, k: w.In,
	}
	g.task.right, g.task.rightLd = g.operand(w, device.FormForward)
	g.run(p, ws)
}

// LinearDX computes dx = dy·W + add.
func (g *Products) LinearDX(p kernel.Pool, dx, dy kernel.Matrix, w *kernel.Weight, add kernel.Matrix, ws []byte) {
	if dx.Rows == 0 {
		return
	}
	g.task = task{
		engine: g.engine(w.DT), cut: newCut(g.engine(w.DT), dx.Rows, w.In, w.Out, p.Workers()),
		left: dy, out: dx, add: add, seq: w.Out, k: w.Out,
	}
	g.task.right, g.task.rightLd = g.operand(w, device.FormDX)
	g.run(p, ws)
}

// LinearDW adds dyᵀ·x to dw by blocks.
func (g *Products) LinearDW(p kernel.Pool, dw, dy, x kernel.Matrix, seq int, ws []byte) {
	if x.Rows == 0 {
		return
	}
	e := g.engine(x.DT)
	ws = kernel.Aligned(ws) // Need counts what that drops
	n := rightBytes(e, x.Rows, seq, x.Cols)
	g.right = rightTask{engine: e, x: x, seq: seq, dst: unsafe.Pointer(&ws[0])}
	p.Run(g.right.pieces(), &g.right)
	g.task = task{
		engine: e, cut: newCut(e, dw.Rows, dw.Cols, min(seq, device.BlockRows), p.Workers()),
		left: dy, transposed: true, right: unsafe.Pointer(&ws[0]), wide: true,
		out: dw, add: dw, seq: seq, k: x.Rows, blocked: true,
	}
	g.run(p, ws[n:])
}

func (g *Products) run(p kernel.Pool, ws []byte) {
	t := &g.task
	ws = kernel.Aligned(ws)
	if need := t.cut.bytes(p.Workers()); int64(len(ws)) < need {
		panic(fmt.Sprintf("gemm: workspace of %d bytes, %d are needed", len(ws), need))
	}
	t.scratch = unsafe.Pointer(&ws[0])
	p.Run(t.cut.pieces(), t)
}

// Pack makes rows of every packed form of a weight those of its source.
func (g *Products) Pack(p kernel.Pool, w *kernel.Weight, lo, hi int) {
	if lo == hi || g.engine(w.DT).readsRows() {
		return
	}
	g.pack = packTask{engine: g.engine(w.DT), w: w, src: rowsOf(w.Src, lo, hi, 0), row: lo}
	if w.Forms&device.FormForward != 0 {
		g.pack.forward = g.form(w, device.FormForward)
	}
	if w.Forms&device.FormDX != 0 {
		g.pack.backward = g.form(w, device.FormDX)
	}
	p.Run(g.pack.pieces(), &g.pack)
}
