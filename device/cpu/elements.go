package cpu

import (
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// elements is the task of Add, Cast, Activate and ActivateGrad, of which it has one
// function. Dense operands are cut into runs of pieceElements, others into rows.
type elements struct {
	add       func(dst, a, b unsafe.Pointer, n int)
	cast      func(dst, src unsafe.Pointer, n int)
	activate  func(y, x unsafe.Pointer, n int, act device.Act)
	grad      func(dx, dy, x unsafe.Pointer, n int, act device.Act)
	act       device.Act
	dst, a, b kernel.Matrix
	dense     bool
	step      int // elements or rows of a piece
}

// Add: dst = a + b.
func (d *Device) Add(s device.Stream, dst, a, b device.Tensor) {
	device.CheckAdd(dst, a, b)
	d.sameOrApart("Add", dst, a)
	d.sameOrApart("Add", dst, b)
	t := elements{add: d.kernels.Add[dst.DT], dst: d.matrix(dst), a: d.matrix(a), b: d.matrix(b)}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.elementwise(t)
	}
}

// Cast: dst = src in dst's type.
func (d *Device) Cast(s device.Stream, dst, src device.Tensor) {
	device.CheckCast(dst, src)
	d.apart("Cast", dst, src)
	t := elements{dst: d.matrix(dst), a: d.matrix(src)}
	switch {
	case dst.DT != src.DT:
		t.cast = d.kernels.Cast[src.DT]
	case dst.DT == device.BF16:
		t.cast = copyElements[uint16]
	default:
		t.cast = copyElements[float32]
	}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.elementwise(t)
	}
}

func copyElements[E uint16 | float32](dst, src unsafe.Pointer, n int) {
	copy(unsafe.Slice((*E)(dst), n), unsafe.Slice((*E)(src), n))
}

func (d *Device) elementwise(t elements) {
	n := t.dst.Rows
	t.dense = isDense(t.dst) && isDense(t.a) && isDense(t.b)
	if t.dense {
		n, t.step = n*t.dst.Cols, pieceElements
	} else {
		t.step = max(1, pieceElements/max(1, t.dst.Cols))
	}
	d.jobs.elements = t
	d.pool.Run(pieces(n, t.step), &d.jobs.elements)
}

func isDense(m kernel.Matrix) bool { return m.P == nil || m.Rows <= 1 || m.Ld == m.Cols }

func (t *elements) Piece(i, _ int) {
	lo := i * t.step
	if t.dense {
		t.run(0, lo, min(t.step, t.dst.Rows*t.dst.Cols-lo))
		return
	}
	for r := lo; r < min(lo+t.step, t.dst.Rows); r++ {
		t.run(r, 0, t.dst.Cols)
	}
}

// run computes n elements from column c of row r.
func (t *elements) run(r, c, n int) {
	dst, a := element(t.dst, r, c), element(t.a, r, c)
	switch {
	case t.cast != nil:
		t.cast(dst, a, n)
	case t.activate != nil:
		t.activate(dst, a, n, t.act)
	case t.grad != nil:
		t.grad(dst, a, element(t.b, r, c), n, t.act)
	default:
		t.add(dst, a, element(t.b, r, c), n)
	}
}

func element(m kernel.Matrix, r, c int) unsafe.Pointer {
	return unsafe.Add(m.P, (r*m.Ld+c)*int(m.DT.Size()))
}

func addElements(dt device.DType) func(dst, a, b unsafe.Pointer, n int) {
	return func(dst, a, b unsafe.Pointer, n int) {
		to, x, y := at(dst, dt, 0, n), at(a, dt, 0, n), at(b, dt, 0, n)
		for i := range n {
			to.set(i, x.get(i)+y.get(i))
		}
	}
}

// castElements converts elements of type from to the other type.
func castElements(from device.DType) func(dst, src unsafe.Pointer, n int) {
	to := device.F32
	if from == device.F32 {
		to = device.BF16
	}
	return func(dst, src unsafe.Pointer, n int) {
		x, y := at(src, from, 0, n), at(dst, to, 0, n)
		for i := range n {
			y.set(i, x.get(i))
		}
	}
}

// fill is the task of Fill.
type fill struct {
	dst  kernel.Matrix
	v    float32
	step int // rows of a piece
}

// Fill sets every element to v.
func (d *Device) Fill(s device.Stream, dst device.Tensor, v float32) {
	device.CheckFill(dst)
	t := fill{dst: d.matrix(dst), v: v}
	if st := d.begin(s); st != nil {
		defer st.end()
		if isDense(t.dst) && t.dst.Rows*t.dst.Cols > 0 { // runs instead of rows, the last one short
			t.step = 0
			d.jobs.fill = t
			d.pool.Run(pieces(t.dst.Rows*t.dst.Cols, pieceElements), &d.jobs.fill)
			return
		}
		t.step = max(1, pieceElements/max(1, t.dst.Cols))
		d.jobs.fill = t
		d.pool.Run(pieces(t.dst.Rows, t.step), &d.jobs.fill)
	}
}

func (t *fill) Piece(i, _ int) {
	if t.step == 0 {
		lo := i * pieceElements
		t.run(0, lo, min(pieceElements, t.dst.Rows*t.dst.Cols-lo))
		return
	}
	for r := i * t.step; r < min((i+1)*t.step, t.dst.Rows); r++ {
		t.run(r, 0, t.dst.Cols)
	}
}

func (t *fill) run(r, c, n int) {
	p := element(t.dst, r, c)
	switch t.dst.DT {
	case device.BF16:
		set(unsafe.Slice((*uint16)(p), n), bf16(t.v))
	case device.F32:
		set(unsafe.Slice((*float32)(p), n), t.v)
	case device.F64:
		set(unsafe.Slice((*float64)(p), n), float64(t.v))
	}
}

// set doubles what is already set: a loop of stores in Go costs three times a copy.
func set[E any](dst []E, v E) {
	if len(dst) == 0 {
		return
	}
	dst[0] = v
	for n := 1; n < len(dst); n *= 2 {
		copy(dst[n:], dst[:n])
	}
}
