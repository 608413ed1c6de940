package device

import "fmt"

// DType is the type of a tensor's elements.
type DType uint8

// The element types. BF16 is the upper half of an F32.
const (
	F32 DType = iota
	BF16
	I32
	F64
)

// Size is the number of bytes of one element.
func (d DType) Size() int64 {
	switch d {
	case BF16:
		return 2
	case F32, I32:
		return 4
	case F64:
		return 8
	}
	panic(fmt.Sprintf("device: unknown type %d", d))
}

func (d DType) String() string {
	names := [...]string{"f32", "bf16", "i32", "f64"}
	if int(d) < len(names) {
		return names[d]
	}
	return fmt.Sprintf("dtype(%d)", uint8(d))
}

// Tensor is a row-major view of a buffer: element (r, c) stands at r·Ld + c. The
// zero Tensor means "none".
type Tensor struct {
	Buf            Buf
	DT             DType
	Rows, Cols, Ld int
}

// Make views the start of b as a dense [rows, cols].
func Make(b Buf, dt DType, rows, cols int) Tensor {
	if need := int64(rows) * int64(cols) * dt.Size(); b.Bytes() < need {
		panic(fmt.Sprintf("device: [%d, %d] %v needs %d bytes, the buffer has %d", rows, cols, dt, need, b.Bytes()))
	}
	return Tensor{Buf: b, DT: dt, Rows: rows, Cols: cols, Ld: cols}
}

// IsZero tells whether t is the zero Tensor, "none".
func (t Tensor) IsZero() bool { return t.Buf.IsZero() }

// RowRange is rows [lo, hi) of t.
func (t Tensor) RowRange(lo, hi int) Tensor {
	if lo < 0 || hi < lo || hi > t.Rows {
		panic(fmt.Sprintf("device: rows [%d, %d) of %d", lo, hi, t.Rows))
	}
	return t.view(lo, 0, hi-lo, t.Cols)
}

// ColRange is columns [lo, hi) of t; the leading dimension stays.
func (t Tensor) ColRange(lo, hi int) Tensor {
	if lo < 0 || hi < lo || hi > t.Cols {
		panic(fmt.Sprintf("device: columns [%d, %d) of %d", lo, hi, t.Cols))
	}
	return t.view(0, lo, t.Rows, hi-lo)
}

func (t Tensor) view(row, col, rows, cols int) Tensor {
	size := t.DT.Size()
	off := (int64(row)*int64(t.Ld) + int64(col)) * size
	var n int64
	if rows > 0 {
		n = (int64(rows-1)*int64(t.Ld) + int64(cols)) * size
	} else {
		off = 0
	}
	return Tensor{Buf: t.Buf.Slice(off, n), DT: t.DT, Rows: rows, Cols: cols, Ld: t.Ld}
}

func (t Tensor) String() string {
	if t.IsZero() {
		return "none"
	}
	return fmt.Sprintf("%v[%d, %d; ld %d]", t.DT, t.Rows, t.Cols, t.Ld)
}
