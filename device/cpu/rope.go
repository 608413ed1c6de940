package cpu

import (
	"fmt"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// Rope rotates the heads of q and k in place by their rows' positions.
func (d *Device) Rope(s device.Stream, q, k, table, pos device.Tensor, headDim int, inverse bool) {
	device.CheckRope(q, k, table, pos, headDim)
	d.apart("Rope", q, k, table, pos)
	a := kernel.Rope{Q: d.ptr(q), K: d.ptr(k), Table: d.ptr(table), Pos: d.ptr(pos),
		Heads: q.Cols / headDim, KVHeads: k.Cols / headDim, HeadDim: headDim,
		LdQ: q.Ld, LdK: k.Ld, LdTable: table.Ld}
	if inverse {
		a.Inverse = 1
	}
	if st := d.begin(s); st != nil {
		defer st.end()
		checkIndex("Rope: position", a.Pos, q.Rows, table.Rows)
		d.jobs.rope.a = a
		d.jobs.rope.run(d.pool, d.kernels.Rope[q.DT], q.Rows, q.Cols+k.Cols)
	}
}

// checkIndex demands 0 ≤ p[i] < limit: what is in memory is no fault of the
// caller's code, so it fails the stream and not the call.
func checkIndex(what string, p unsafe.Pointer, n, limit int) {
	for i, v := range i32s(p, n) {
		if v < 0 || int(v) >= limit {
			panic(fmt.Errorf("cpu: %s %d of row %d is outside [0, %d)", what, v, i, limit))
		}
	}
}

// rope turns the pair (x[j], x[j+D/2]) by the angle of its position; the backward is
// the rotation by the negative angle.
func rope(dt device.DType) func(a *kernel.Rope, lo, hi int) {
	return func(a *kernel.Rope, lo, hi int) {
		pos := i32s(a.Pos, hi)
		for r := lo; r < hi; r++ {
			angle := f32s(a.Table, int(pos[r])*a.LdTable, a.HeadDim)
			cos, sin := angle[:a.HeadDim/2], angle[a.HeadDim/2:]
			for h := range a.Heads {
				rotate(at(a.Q, dt, r*a.LdQ+h*a.HeadDim, a.HeadDim), cos, sin, a.Inverse != 0)
			}
			for h := range a.KVHeads {
				rotate(at(a.K, dt, r*a.LdK+h*a.HeadDim, a.HeadDim), cos, sin, a.Inverse != 0)
			}
		}
	}
}

func rotate(x vec, cos, sin []float32, inverse bool) {
	half := len(cos)
	for j, c := range cos {
		s := sin[j]
		if inverse {
			s = -s
		}
		u, v := x.get(j), x.get(j+half)
		x.set(j, float32(u*c)-float32(v*s))
		x.set(j+half, float32(v*c)+float32(u*s))
	}
}
