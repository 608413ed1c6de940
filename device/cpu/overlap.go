package cpu

import (
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/internal/invariant"
)

// apart checks that out shares no element with any of the others, when invariants are on.
func (d *Device) apart(op string, out device.Tensor, others ...device.Tensor) {
	if !invariant.Enabled || out.IsZero() {
		return
	}
	for _, t := range others {
		if !t.IsZero() && d.overlap(out, t) { // first, so that what holds costs no allocation
			invariant.Check(false, "%s: %v and %v overlap", op, out, t)
		}
	}
}

// sameOrApart checks that out is in itself or shares no element with it.
func (d *Device) sameOrApart(op string, out, in device.Tensor) {
	if !invariant.Enabled || in.IsZero() || (d.ptr(out) == d.ptr(in) && out.Ld == in.Ld && out.DT == in.DT) {
		return
	}
	d.apart(op, out, in)
}

// overlap tells whether two views share memory. Columns of one matrix beside each
// other do not.
func (d *Device) overlap(a, b device.Tensor) bool {
	if a.Rows == 0 || b.Rows == 0 || a.Cols == 0 || b.Cols == 0 {
		return false
	}
	first, second := int64(uintptr(d.ptr(a))), int64(uintptr(d.ptr(b)))
	if first > second {
		a, b, first, second = b, a, second, first
	}
	size := a.DT.Size()
	shift := (second - first) / size
	if shift >= int64(a.Rows-1)*int64(a.Ld)+int64(a.Cols) {
		return false
	}
	if a.Ld != b.Ld || size != b.DT.Size() || a.Rows == 1 {
		return true
	}
	column := int(shift % int64(a.Ld)) // of b's first element, in a's rows
	return column < a.Cols || column+b.Cols > a.Ld
}
