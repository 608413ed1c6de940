package gemm

import (
	"unsafe"

	"github.com/skein-ml/skein/device/cpu/kernel"
	"github.com/skein-ml/skein/device/cpu/native"
)

// task is one product, out [m, n] = left [m, k] · right [k, n], cut into pieces.
type task struct {
	engine engine
	cut    cut

	left       kernel.Matrix
	transposed bool           // left is stored [k, m]
	right      unsafe.Pointer // packed weight, or what rightTask made
	wide       bool           // the latter
	rightLd    int            // not 0: right is a weight's rows with this stride, read as they are
	rightRows  bool           // and they are the columns of the right operand
	out        kernel.Matrix
	bias, add  kernel.Matrix

	k       int
	seq     int  // with blocked, rows of a sequence
	blocked bool // k is cut into blocks, each added to out

	scratch unsafe.Pointer
}

// piece is the state of one piece on its worker.
type piece struct {
	*task
	g            geometry
	r0, rows     int // of out
	j0, j1       int // panels of out
	k0, k1       int // block of k
	right        unsafe.Pointer
	rightK       int            // padded k of a panel of right
	a, b, s      unsafe.Pointer // scratch
	length       int            // of slices
	chunk        int
	sumPerPanel  bool
	rightElement int // bytes
}

// Piece computes piece i. Pieces of the same columns follow each other, so that they
// find the weights in the shared cache.
func (t *task) Piece(i, worker int) {
	c := &t.cut
	p := piece{task: t, g: t.engine.geometry()}
	p.r0 = i % c.groups * c.groupRows
	p.rows = min(c.groupRows, c.m-p.r0)
	p.j0 = i / c.groups * c.blockPanels
	p.j1 = min(p.j0+c.blockPanels, panels(c.n))
	p.a = unsafe.Add(t.scratch, worker*c.workerBytes())
	p.b = unsafe.Add(p.a, c.leftBytes)
	p.s = unsafe.Add(p.b, c.rightBytes)
	p.rightElement = t.engine.rightSize()
	if t.wide {
		p.rightElement = t.engine.wideSize()
	}
	if !t.blocked {
		p.block(0, t.k, t.right)
		return
	}
	for first, off := 0, 0; first < t.k; {
		end := blockEnd(first, t.seq)
		p.block(first, end, unsafe.Add(t.right, off))
		off += panels(c.n) * 32 * roundUp(end-first, p.g.kUnit) * p.rightElement
		first = end
	}
}

// block computes the sum over k in [k0, k1) and stores it. Its right operand begins
// at right.
func (p *piece) block(k0, k1 int, right unsafe.Pointer) {
	k := k1 - k0
	p.k0, p.k1, p.right = k0, k1, right
	p.rightK = roundUp(k, p.g.kUnit)
	p.length = p.g.slices(k)
	p.chunk = p.g.kChunk / p.length * p.length
	p.sumPerPanel = p.chunk < k
	for first := 0; first < k; first += p.chunk {
		end := min(first+p.chunk, k)
		p.packLeft(first, end)
		for j := p.j0; j < p.j1; j++ {
			s := p.panel(j, first, end)
			if end == k {
				p.store(j, s)
			}
		}
	}
}

// packLeft packs the rows of the piece, terms [first, end) of the block, slice by slice.
func (p *piece) packLeft(first, end int) {
	size := int(p.left.DT.Size())
	for k := first; k < end; k += p.length {
		row, col := p.r0, p.k0+k
		if p.transposed {
			row, col = col, row
		}
		src := unsafe.Add(p.left.P, (row*p.left.Ld+col)*size)
		p.engine.packLeft(p.packed(k-first), src, p.left.Ld, p.rows, min(p.length, end-k), p.transposed)
	}
}

// packed is where the slice that begins k terms into the chunk is packed.
func (p *piece) packed(k int) unsafe.Pointer {
	return unsafe.Add(p.a, roundUp(p.rows, p.g.mr)*k*p.engine.leftSize())
}

// panel adds terms [first, end) of the block to the sums of panel j, and returns them.
func (p *piece) panel(j, first, end int) unsafe.Pointer {
	s := p.s
	if p.sumPerPanel {
		s = unsafe.Add(s, (j-p.j0)*p.cut.sumBytes/p.cut.blockPanels)
	}
	for k := first; k < end; k += p.length {
		n := roundUp(min(p.length, end-k), p.g.kUnit)
		m := product{a: p.packed(k - first), s: s, k: n, rows: p.rows, acc: k > 0}
		if p.k0+end == p.k1 && k+p.length >= end {
			size := int(p.out.DT.Size())
			m.out, m.outStride = uintptr(p.out.P)+uintptr((p.r0*p.out.Ld+j*32)*size), p.out.Ld*size
		}
		p.slice(&m, j, k)
		p.engine.multiply(m)
	}
	return s
}

// slice makes terms [k, k+m.k) of panel j the right operand of m.
func (p *piece) slice(m *product, j, k int) {
	if p.rightLd == 0 {
		m.b = unsafe.Add(p.right, (j*p.rightK+k)*32*p.rightElement)
		m.nextBytes = m.k * 32 * p.rightElement
		m.next = uintptr(m.b) + uintptr(m.nextBytes)
		return
	}
	m.b = p.b
	cols := min(32, p.cut.n-j*32)
	if p.rightRows {
		p.engine.packRightRows(p.b, unsafe.Add(p.right, (j*32*p.rightLd+k)*p.rightElement), p.rightLd, cols, m.k)
		return
	}
	p.engine.packRight(p.b, unsafe.Add(p.right, (k*p.rightLd+j*32)*p.rightElement), p.rightLd, cols, m.k)
}

// store writes the columns of panel j.
func (p *piece) store(j int, s unsafe.Pointer) {
	col := j * 32
	a := native.GemmStoreArgs{S: s, Rows: int64(p.rows), Cols: int64(min(32, p.cut.n-col)), Bf16: isBF16(p.out.DT),
		Out: rowsOf(p.out, p.r0, p.out.Rows, col).P, LDOut: int64(p.out.Ld)}
	if p.add.P != nil {
		a.Add, a.LDAdd = rowsOf(p.add, p.r0, p.add.Rows, col).P, int64(p.add.Ld)
	}
	if p.bias.P != nil {
		a.Bias, a.BiasBf16 = rowsOf(p.bias, 0, 1, col).P, isBF16(p.bias.DT)
	}
	native.GemmStore(&a, p.engine.isa())
}

// rightTask packs x [rows, n], block by block, as the right operand of LinearDW.
type rightTask struct {
	engine engine
	x      kernel.Matrix
	seq    int
	dst    unsafe.Pointer
}

// rightBytes is the length of what rightTask makes.
func rightBytes(e engine, rows, seq, n int) int64 {
	unit := e.geometry().kUnit
	perSeq := 0
	for first := 0; first < seq; {
		end := blockEnd(first, seq)
		perSeq += roundUp(end-first, unit)
		first = end
	}
	return int64((rows+seq-1)/seq) * int64(perSeq) * int64(panels(n)) * 32 * int64(e.wideSize())
}

// pieces: one for each block and eight panels.
func (t *rightTask) pieces() int {
	return t.blocks() * ((panels(t.x.Cols) + 7) / 8)
}

func (t *rightTask) blocks() (n int) {
	for first := 0; first < t.x.Rows; first = blockEnd(first, t.seq) {
		n++
	}
	return n
}

// Piece packs eight panels of one block.
func (t *rightTask) Piece(i, _ int) {
	np, size := panels(t.x.Cols), t.engine.wideSize()
	across := (np + 7) / 8
	first, dst := 0, t.dst
	unit := t.engine.geometry().kUnit
	for range i / across {
		end := blockEnd(first, t.seq)
		dst = unsafe.Add(dst, np*32*roundUp(end-first, unit)*size)
		first = end
	}
	k := blockEnd(first, t.seq) - first
	for j := i % across * 8; j < min(np, i%across*8+8); j++ {
		src := rowsOf(t.x, first, first+k, j*32)
		t.engine.packRight(unsafe.Add(dst, j*32*roundUp(k, unit)*size), src.P, src.Ld, min(32, src.Cols), k)
	}
}

// packTask packs rows of a weight.
type packTask struct {
	engine            engine
	w                 *kernel.Weight
	src               kernel.Matrix
	row               int
	forward, backward unsafe.Pointer
}

// rows is how many make a piece: a multiple of 16, so that no two pieces share a pair of
// the tile forms, and few enough to bound the time of a call.
func (t *packTask) rows() int {
	if t.w.In > 8192 {
		return 16
	}
	return 64
}

func (t *packTask) pieces() int {
	n := t.rows()
	return (t.row+t.src.Rows-1)/n - t.row/n + 1
}

// Piece packs rows of the weight that begin at a multiple of rows, or with src.
func (t *packTask) Piece(i, _ int) {
	n := t.rows()
	lo := max(t.row, (t.row/n+i)*n)
	hi := min(t.row+t.src.Rows, (t.row/n+i+1)*n)
	src := rowsOf(t.src, lo-t.row, hi-t.row, 0)
	if t.forward != nil {
		t.engine.packForward(t.forward, src, lo, t.w.In)
	}
	if t.backward != nil {
		t.engine.packBackward(t.backward, src, lo, t.w.Out)
	}
}
