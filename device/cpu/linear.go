package cpu

import (
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// Pack makes rows of w those of its source.
func (d *Device) Pack(s device.Stream, w device.Weight, lo, hi int) {
	device.CheckPack(w, lo, hi)
	k := d.operand(w)
	if lo == hi {
		return
	}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.products.Pack(d.pool, k, lo, hi)
	}
}

// Linear: y = x·Wᵀ, then e.
func (d *Device) Linear(s device.Stream, y, x device.Tensor, w device.Weight, e device.Epilogue, ws device.Buf) {
	device.CheckLinear(y, x, w, e)
	d.apart("Linear", y, x, e.Bias)
	d.sameOrApart("Linear", y, e.Add)
	k := d.operand(w)
	to, from, bias, add := d.matrix(y), d.matrix(x), d.matrix(e.Bias), d.matrix(e.Add)
	mem := d.workspace("Linear", ws, d.Need(device.OpLinear, device.Shape{Rows: x.Rows, Seq: x.Rows, In: k.In, Out: k.Out, DT: k.DT}))
	if x.Rows == 0 {
		return
	}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.products.Linear(d.pool, to, from, k, bias, add, mem)
	}
}

// LinearDX: dx = dy·W, then e.Add.
func (d *Device) LinearDX(s device.Stream, dx, dy device.Tensor, w device.Weight, e device.Epilogue, ws device.Buf) {
	device.CheckLinearDX(dx, dy, w, e)
	d.apart("LinearDX", dx, dy)
	d.sameOrApart("LinearDX", dx, e.Add)
	k := d.operand(w)
	to, from, add := d.matrix(dx), d.matrix(dy), d.matrix(e.Add)
	mem := d.workspace("LinearDX", ws, d.Need(device.OpLinearDX, device.Shape{Rows: dy.Rows, Seq: dy.Rows, In: k.In, Out: k.Out, DT: k.DT}))
	if dy.Rows == 0 {
		return
	}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.products.LinearDX(d.pool, to, from, k, add, mem)
	}
}

// LinearDW: dw += dyᵀ·x, db += column sums of dy, by blocks.
func (d *Device) LinearDW(s device.Stream, dw, db, dy, x device.Tensor, seq int, ws device.Buf) {
	device.CheckLinearDW(dw, db, dy, x, seq)
	d.apart("LinearDW", dw, db, dy, x)
	d.apart("LinearDW", db, dy, x)
	to, left, right, bias := d.matrix(dw), d.matrix(dy), d.matrix(x), d.ptr(db)
	mem := d.workspace("LinearDW", ws, d.Need(device.OpLinearDW, device.Shape{Rows: x.Rows, Seq: seq, In: x.Cols, Out: dy.Cols, DT: x.DT}))
	if x.Rows == 0 {
		return
	}
	st := d.begin(s)
	if st == nil {
		return
	}
	defer st.end()
	d.products.LinearDW(d.pool, to, left, right, seq, mem)
	if bias != nil {
		job := &d.jobs.columnSum
		job.a = kernel.ColumnSum{DB: bias, DY: left.P, Rows: dy.Rows, LdDY: dy.Ld, Seq: seq, Columns: dy.Cols}
		job.run(d.pool, d.kernels.ColumnSum[dy.DT], dy.Cols, dy.Rows)
	}
}

// columnSum adds each column of a block from zero, top to bottom.
func columnSum(dt device.DType) func(a *kernel.ColumnSum, lo, hi int) {
	return func(a *kernel.ColumnSum, lo, hi int) {
		db := f32s(a.DB, 0, a.Columns)
		for c := lo; c < hi; c += 64 {
			columnBlocks(a, dt, db[c:min(c+64, hi)], c)
		}
	}
}

// columnBlocks is columnSum for the columns of db, at most 64, which begin at column c.
func columnBlocks(a *kernel.ColumnSum, dt device.DType, db []float32, c int) {
	var sum [64]float32
	for first := 0; first < a.Rows; {
		end := blockEnd(first, a.Seq)
		clear(sum[:])
		for r := first; r < end; r++ {
			dy := at(a.DY, dt, r*a.LdDY+c, len(db))
			for i := range db {
				sum[i] += dy.get(i)
			}
		}
		for i := range db {
			db[i] += sum[i]
		}
		first = end
	}
}

// blockEnd is the end of the block that begins at row first, in sequences of seq rows.
func blockEnd(first, seq int) int {
	return min(first+device.BlockRows, (first/seq+1)*seq)
}

// The generic products are one routine, C[m,n] = Σ A[m,k]·B[k,n] with any strides. An
// element is summed over k in slices of kSlice, each from zero in ascending order,
// and the slices are added in order. Panels are copied as F32 into the order in
// which the inner loop reads them; edges are padded with zeros that are never stored.
const (
	kSlice = 256 // terms of one partial sum
	tileM  = 128 // rows and columns of C in one piece
	tileN  = 64
	microM = 2 // rows and columns that the inner loop keeps in registers
	microN = 4
)

// operand is a matrix read with strides: element (i, k) at i·stride + k·step.
type operand struct {
	p            unsafe.Pointer
	dt           device.DType
	stride, step int
}

// product is the task of one product.
type product struct {
	m, n, k int
	a, b    operand // b's first index is the column
	blocks  int     // rows of a sequence to cut k by; 0: k is one block
	out     kernel.Matrix
	bias    kernel.Matrix
	add     kernel.Matrix
	sum     bool // out += by blocks
	panels  []panel
}

// panel is the memory of one worker.
type panel struct {
	a [kSlice * microM]float32
	b [kSlice * tileN]float32
	c [tileM * tileN]float32
}

// genericProducts read weights as they are, row by row, and keep no copies.
type genericProducts struct{ task product }

func newGenericProducts() *genericProducts { return &genericProducts{} }

func (*genericProducts) PackedBytes(int, int, device.DType, device.Forms) int64 { return 0 }

func (*genericProducts) Need(device.Op, device.Shape, int) int64 { return 0 }

func (*genericProducts) Pack(kernel.Pool, *kernel.Weight, int, int) {}

func (g *genericProducts) run(p kernel.Pool, t product) {
	t.panels = g.task.panels
	if len(t.panels) < p.Workers() {
		t.panels = make([]panel, p.Workers())
	}
	g.task = t
	p.Run(pieces(t.m, tileM)*pieces(t.n, tileN), &g.task)
}

func (g *genericProducts) Linear(p kernel.Pool, y, x kernel.Matrix, w *kernel.Weight, bias, add kernel.Matrix, _ []byte) {
	g.run(p, product{m: y.Rows, n: w.Out, k: w.In, out: y, bias: bias, add: add,
		a: operand{x.P, x.DT, x.Ld, 1},
		b: operand{w.Src.P, w.DT, w.Src.Ld, 1}})
}

func (g *genericProducts) LinearDX(p kernel.Pool, dx, dy kernel.Matrix, w *kernel.Weight, add kernel.Matrix, _ []byte) {
	g.run(p, product{m: dx.Rows, n: w.In, k: w.Out, out: dx, add: add,
		a: operand{dy.P, dy.DT, dy.Ld, 1},
		b: operand{w.Src.P, w.DT, 1, w.Src.Ld}})
}

func (g *genericProducts) LinearDW(p kernel.Pool, dw, dy, x kernel.Matrix, seq int, _ []byte) {
	g.run(p, product{m: dw.Rows, n: dw.Cols, k: x.Rows, out: dw, sum: true, blocks: seq,
		a: operand{dy.P, dy.DT, 1, dy.Ld},
		b: operand{x.P, x.DT, 1, x.Ld}})
}

// Piece computes one tile of C.
func (t *product) Piece(i, worker int) {
	w := &t.panels[worker]
	across := pieces(t.n, tileN)
	m0, n0 := i/across*tileM, i%across*tileN
	rows, cols := min(tileM, t.m-m0), min(tileN, t.n-n0)
	for first := 0; first < t.k; {
		end := t.k
		if t.blocks > 0 {
			end = blockEnd(first, t.blocks)
		}
		clear(w.c[:rows*tileN])
		for k := first; k < end; k += kSlice {
			t.slice(w, m0, n0, rows, cols, k, min(kSlice, end-k))
		}
		t.store(w, m0, n0, rows, cols)
		first = end
	}
}

// slice adds the sum over n terms from k to the tile.
func (t *product) slice(w *panel, m0, n0, rows, cols, k, n int) {
	for c := 0; c < cols; c += microN {
		t.b.pack(w.b[c*kSlice:][:n*microN], n0+c, min(microN, cols-c), microN, k)
	}
	for r := 0; r < rows; r += microM {
		a := w.a[:n*microM]
		t.a.pack(a, m0+r, min(microM, rows-r), microM, k)
		for c := 0; c < cols; c += microN {
			micro(a, w.b[c*kSlice:][:n*microN], w.c[r*tileN+c:])
		}
	}
}

// pack copies rows [first, first+rows) of o from k on as columns of width, the rest zero.
func (o *operand) pack(dst []float32, first, rows, width, k int) {
	n := len(dst) / width
	for i := range width {
		if i >= rows {
			for j := range n {
				dst[j*width+i] = 0
			}
			continue
		}
		off := (first+i)*o.stride + k*o.step
		src := at(o.p, o.dt, off, (n-1)*o.step+1)
		if src.b != nil {
			for j := range n {
				dst[j*width+i] = unbf16(src.b[j*o.step])
			}
			continue
		}
		for j := range n {
			dst[j*width+i] = src.f[j*o.step]
		}
	}
}

// micro adds the product of a column pair and four columns to c.
func micro(a, b, c []float32) {
	var c00, c01, c02, c03, c10, c11, c12, c13 float32
	for len(a) >= microM && len(b) >= microN {
		a0, a1 := a[0], a[1]
		b0, b1, b2, b3 := b[0], b[1], b[2], b[3]
		c00 += float32(a0 * b0)
		c01 += float32(a0 * b1)
		c02 += float32(a0 * b2)
		c03 += float32(a0 * b3)
		c10 += float32(a1 * b0)
		c11 += float32(a1 * b1)
		c12 += float32(a1 * b2)
		c13 += float32(a1 * b3)
		a, b = a[microM:], b[microN:]
	}
	r0, r1 := c[:4], c[tileN:][:4]
	r0[0] += c00
	r0[1] += c01
	r0[2] += c02
	r0[3] += c03
	r1[0] += c10
	r1[1] += c11
	r1[2] += c12
	r1[3] += c13
}

// store writes the tile: added to out, or with bias and add and rounded once.
func (t *product) store(w *panel, m0, n0, rows, cols int) {
	for r := range rows {
		sum := w.c[r*tileN:][:cols]
		out := at(t.out.P, t.out.DT, (m0+r)*t.out.Ld+n0, cols)
		if t.sum {
			for i, s := range sum {
				out.f[i] += s
			}
			continue
		}
		if t.bias.P != nil {
			bias := at(t.bias.P, t.bias.DT, n0, cols)
			for i := range sum {
				sum[i] += bias.get(i)
			}
		}
		if t.add.P != nil {
			add := at(t.add.P, t.add.DT, (m0+r)*t.add.Ld+n0, cols)
			for i := range sum {
				sum[i] += add.get(i)
			}
		}
		for i, s := range sum {
			out.set(i, s)
		}
	}
}
