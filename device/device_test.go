package device

import (
	"strings"
	"testing"
)

// sized is memory that only knows its length.
type sized int64

func (n sized) Bytes() int64 { return int64(n) }

// span is where a view is.
type span struct{ off, n int64 }

func where(b Buf) span {
	_, off := b.Memory()
	return span{off, b.Bytes()}
}

func TestViewsCoverTheirElementsAndNoMore(t *testing.T) {
	x := Make(Whole(sized(4*6*10)), F32, 6, 10)
	for _, c := range []struct {
		name string
		view Tensor
		want span
		rows int
		cols int
	}{
		{"rows", x.RowRange(2, 5), span{4 * 20, 4 * 30}, 3, 10},
		{"columns", x.ColRange(3, 7), span{4 * 3, 4 * (5*10 + 4)}, 6, 4},
		{"columns of rows", x.RowRange(4, 6).ColRange(8, 10), span{4 * 48, 4 * (10 + 2)}, 2, 2},
		{"the last element", x.RowRange(5, 6).ColRange(9, 10), span{4 * 59, 4}, 1, 1},
		{"no rows", x.RowRange(6, 6), span{0, 0}, 0, 10},
	} {
		if got := where(c.view.Buf); got != c.want || c.view.Rows != c.rows || c.view.Cols != c.cols || c.view.Ld != 10 {
			t.Errorf("%s: %v at %+v, want %+v", c.name, c.view, got, c.want)
		}
	}
}

func expectPanic(t *testing.T, want string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if v, _ := recover().(string); !strings.Contains(v, want) {
			t.Errorf("panic %q, want %q", v, want)
		}
	}()
	f()
}

func TestViewsOutsideOfATensorPanic(t *testing.T) {
	x := Make(Whole(sized(400)), F32, 10, 10)
	expectPanic(t, "rows [4, 11) of 10", func() { x.RowRange(4, 11) })
	expectPanic(t, "columns [-1, 2) of 10", func() { x.ColRange(-1, 2) })
	expectPanic(t, "[10, 10] f64 needs 800 bytes, the buffer has 400", func() { Make(x.Buf, F64, 10, 10) })
}

func TestASliceThatLeavesItsBufferPanics(t *testing.T) {
	b := Whole(sized(64)).Slice(32, 32)
	for _, c := range [][2]int64{{-1, 4}, {0, 33}, {30, 8}, {4, -1}} {
		expectPanic(t, "of a buffer of 32", func() { b.Slice(c[0], c[1]) })
	}
	if got := where(b.Slice(32, 0)); got != (span{64, 0}) {
		t.Errorf("an empty slice at the end is %+v", got)
	}
}

func TestChecksNameOperationOperandAndBothShapes(t *testing.T) {
	x, y := Make(Whole(sized(400)), F32, 10, 10), Make(Whole(sized(400)), BF16, 20, 10)
	expectPanic(t, "device: Add: a is bf16[20, 10; ld 10], want [10, 10]", func() { CheckAdd(x, y, x) })
	expectPanic(t, "device: SqNorm: x is f32[10, 10; ld 10], want [1, 10]", func() { CheckSqNorm(Make(Whole(sized(8)), F64, 1, 1), x) })
	expectPanic(t, "device: GLU: gateUp is missing, want [10, 20]", func() { CheckGLU(x, Tensor{}, SiLU) })
	wide := x
	wide.Rows, wide.Ld = 4, 40
	expectPanic(t, "needs 520 bytes, its buffer has 400", func() { CheckAdd(wide, x.RowRange(0, 4), x.RowRange(0, 4)) })
}

func TestCheckedDocumentsCoverEveryRow(t *testing.T) {
	q, cu := Make(Whole(sized(160)), F32, 10, 4), func(n int) Tensor { return Make(Whole(sized(int64(4*n))), I32, 1, n) }
	a := AttnShape{Heads: 1, KVHeads: 1, HeadDim: 4}
	for _, c := range []struct {
		host []int32
		want string
	}{
		{nil, "do not cover rows [0, 10)"},
		{[]int32{0, 9}, "do not cover rows [0, 10)"},
		{[]int32{1, 10}, "do not cover rows [0, 10)"},
		{[]int32{0, 6, 4, 10}, "document 1 ends at 4, before its start at 6"},
	} {
		expectPanic(t, c.want, func() { CheckAttention(q, Tensor{}, q, q, q, Docs{cu(len(c.host)), c.host}, a) })
	}
	CheckAttention(q, Tensor{}, q, q, q, Docs{cu(4), []int32{0, 4, 4, 10}}, a)
}

func TestEveryKindAndTypeHasAName(t *testing.T) {
	for _, k := range Kinds() {
		if k.String() == "unknown" {
			t.Errorf("kind %d has no name", k)
		}
	}
	for _, d := range []DType{F32, BF16, I32, F64} {
		if strings.HasPrefix(d.String(), "dtype") || d.Size() == 0 {
			t.Errorf("type %d is %v of %d bytes", d, d, d.Size())
		}
	}
}
