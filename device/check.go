package device

import "fmt"

// The Check functions panic, naming operation, operand and both shapes, when operands break
// the contract. Every implementation calls them first, so that a mistake is
// found where it was made and is the same one on every device.

// check is one operation whose operands are looked at.
type check struct{ op string }

func (c check) fail(format string, args ...any) {
	panic(fmt.Sprintf("device: %s: %s", c.op, fmt.Sprintf(format, args...)))
}

// shape demands rows and cols of t, and that its buffer holds it.
func (c check) shape(name string, t Tensor, rows, cols int) {
	if t.IsZero() {
		c.fail("%s is missing, want [%d, %d]", name, rows, cols)
	}
	if t.Rows != rows || t.Cols != cols {
		c.fail("%s is %v, want [%d, %d]", name, t, rows, cols)
	}
	if t.Rows < 0 || t.Cols < 0 || (t.Rows > 1 && t.Ld < t.Cols) {
		c.fail("%s is %v: rows overlap", name, t)
	}
	if n := t.extent(); t.Buf.Bytes() < n {
		c.fail("%s is %v and needs %d bytes, its buffer has %d", name, t, n, t.Buf.Bytes())
	}
}

// tensor demands a shape and a type.
func (c check) tensor(name string, t Tensor, dt DType, rows, cols int) {
	c.shape(name, t, rows, cols)
	if t.DT != dt {
		c.fail("%s is %v, want %v", name, t, dt)
	}
}

// float demands a shape and F32 or BF16.
func (c check) float(name string, t Tensor, rows, cols int) {
	c.shape(name, t, rows, cols)
	if t.DT != F32 && t.DT != BF16 {
		c.fail("%s is %v, want f32 or bf16", name, t)
	}
}

func (c check) seq(rows, seq int) {
	if seq <= 0 || rows%seq != 0 {
		c.fail("%d rows are not whole sequences of %d", rows, seq)
	}
}

func (c check) weight(w Weight, form Forms) (out, in int, dt DType) {
	if w == nil {
		c.fail("weight is missing")
	}
	out, in = w.Shape()
	if w.Forms()&form != form {
		c.fail("weight [%d, %d] has forms %b, want %b", out, in, w.Forms(), form)
	}
	return out, in, w.DType()
}

// extent is the bytes from t's first element to the end of its last.
func (t Tensor) extent() int64 {
	if t.Rows == 0 || t.Cols == 0 {
		return 0
	}
	return (int64(t.Rows-1)*int64(t.Ld) + int64(t.Cols)) * t.DT.Size()
}

// CheckPack checks the operands of Pack.
func CheckPack(w Weight, lo, hi int) {
	c := check{"Pack"}
	if out, in, _ := c.weight(w, 0); lo < 0 || hi < lo || hi > out {
		c.fail("rows [%d, %d) of weight [%d, %d]", lo, hi, out, in)
	}
}

// CheckNewWeight checks the operands of NewWeight.
func CheckNewWeight(src Tensor, forms Forms) {
	c := check{"NewWeight"}
	c.float("src", src, src.Rows, src.Cols)
	if src.Rows < 1 || src.Cols < 1 || forms == 0 || forms&^(FormForward|FormDX) != 0 {
		c.fail("src is %v, forms %b", src, forms)
	}
}

// CheckLinear checks the operands of Linear.
func CheckLinear(y, x Tensor, w Weight, e Epilogue) {
	c := check{"Linear"}
	out, in, dt := c.weight(w, FormForward)
	c.tensor("x", x, dt, x.Rows, in)
	c.float("y", y, x.Rows, out)
	if !e.Bias.IsZero() {
		c.float("bias", e.Bias, 1, out)
		if e.Bias.DT != F32 && e.Bias.DT != y.DT {
			c.fail("bias is %v, y %v", e.Bias, y)
		}
	}
	if !e.Add.IsZero() {
		c.tensor("add", e.Add, y.DT, x.Rows, out)
	}
}

// CheckLinearDX checks the operands of LinearDX.
func CheckLinearDX(dx, dy Tensor, w Weight, e Epilogue) {
	c := check{"LinearDX"}
	out, in, dt := c.weight(w, FormDX)
	c.tensor("dy", dy, dt, dy.Rows, out)
	c.float("dx", dx, dy.Rows, in)
	if !e.Bias.IsZero() {
		c.fail("a bias has no place in a gradient")
	}
	if !e.Add.IsZero() {
		c.tensor("add", e.Add, dx.DT, dy.Rows, in)
	}
}

// CheckLinearDW checks the operands of LinearDW.
func CheckLinearDW(dw, db, dy, x Tensor, seq int) {
	c := check{"LinearDW"}
	c.float("x", x, x.Rows, x.Cols)
	c.tensor("dy", dy, x.DT, x.Rows, dy.Cols)
	c.tensor("dw", dw, F32, dy.Cols, x.Cols)
	if !db.IsZero() {
		c.tensor("db", db, F32, 1, dy.Cols)
	}
	c.seq(x.Rows, seq)
}

// CheckRMSNorm checks the operands of RMSNorm.
func CheckRMSNorm(y, rstd, x, w Tensor) {
	c := check{"RMSNorm"}
	c.float("x", x, x.Rows, x.Cols)
	c.tensor("y", y, x.DT, x.Rows, x.Cols)
	c.tensor("w", w, y.DT, 1, x.Cols)
	if !rstd.IsZero() {
		c.rstd(rstd, x.Rows)
	}
}

func (c check) rstd(t Tensor, rows int) {
	c.tensor("rstd", t, F32, rows, 1)
	if t.Ld != 1 && rows > 1 {
		c.fail("rstd is %v, want it dense", t)
	}
}

// CheckRMSNormGrad checks the operands of RMSNormGrad.
func CheckRMSNormGrad(dx, dw, dy, x, rstd, w, add Tensor, seq int) {
	c := check{"RMSNormGrad"}
	c.float("x", x, x.Rows, x.Cols)
	c.tensor("dx", dx, x.DT, x.Rows, x.Cols)
	c.tensor("dy", dy, x.DT, x.Rows, x.Cols)
	c.tensor("w", w, x.DT, 1, x.Cols)
	c.tensor("dw", dw, F32, 1, x.Cols)
	c.rstd(rstd, x.Rows)
	if !add.IsZero() {
		c.tensor("add", add, x.DT, x.Rows, x.Cols)
	}
	c.seq(x.Rows, seq)
}

// CheckLayerNorm checks the operands of LayerNorm.
func CheckLayerNorm(y, stats, x, w, b Tensor) {
	c := check{"LayerNorm"}
	c.float("x", x, x.Rows, x.Cols)
	c.tensor("y", y, x.DT, x.Rows, x.Cols)
	c.tensor("w", w, x.DT, 1, x.Cols)
	c.tensor("b", b, x.DT, 1, x.Cols)
	if !stats.IsZero() {
		c.stats(stats, x.Rows)
	}
}

func (c check) stats(t Tensor, rows int) {
	c.tensor("stats", t, F32, rows, 2)
	if t.Ld != 2 && rows > 1 {
		c.fail("stats is %v, want it dense", t)
	}
}

// CheckLayerNormGrad checks the operands of LayerNormGrad.
func CheckLayerNormGrad(dx, dw, db, dy, x, stats, w, add Tensor, seq int) {
	c := check{"LayerNormGrad"}
	c.float("x", x, x.Rows, x.Cols)
	c.tensor("dx", dx, x.DT, x.Rows, x.Cols)
	c.tensor("dy", dy, x.DT, x.Rows, x.Cols)
	c.tensor("w", w, x.DT, 1, x.Cols)
	c.tensor("dw", dw, F32, 1, x.Cols)
	c.tensor("db", db, F32, 1, x.Cols)
	c.stats(stats, x.Rows)
	if !add.IsZero() {
		c.tensor("add", add, x.DT, x.Rows, x.Cols)
	}
	c.seq(x.Rows, seq)
}

// CheckRope checks the operands of Rope.
func CheckRope(q, k, table, pos Tensor, headDim int) {
	c := check{"Rope"}
	if headDim <= 0 || headDim%2 != 0 || q.Cols%headDim != 0 || k.Cols%headDim != 0 {
		c.fail("q %v, k %v: not whole heads of even dimension %d", q, k, headDim)
	}
	c.float("q", q, q.Rows, q.Cols)
	if !k.IsZero() {
		c.tensor("k", k, q.DT, q.Rows, k.Cols)
	}
	c.tensor("table", table, F32, table.Rows, headDim)
	c.tensor("pos", pos, I32, 1, q.Rows)
}

// CheckGLU checks the operands of GLU.
func CheckGLU(y, gateUp Tensor, act Act) {
	c := check{"GLU"}
	c.act(act == SiLU, act)
	c.float("y", y, y.Rows, y.Cols)
	c.tensor("gateUp", gateUp, y.DT, y.Rows, 2*y.Cols)
}

// CheckGLUGrad checks the operands of GLUGrad.
func CheckGLUGrad(dGateUp, dy, gateUp Tensor, act Act) {
	c := check{"GLUGrad"}
	c.act(act == SiLU, act)
	c.float("dy", dy, dy.Rows, dy.Cols)
	c.tensor("gateUp", gateUp, dy.DT, dy.Rows, 2*dy.Cols)
	c.tensor("dGateUp", dGateUp, dy.DT, dy.Rows, 2*dy.Cols)
}

// CheckActivate checks the operands of Activate.
func CheckActivate(y, x Tensor, act Act) {
	c := check{"Activate"}
	c.act(act == GELU || act == GELUTanh, act)
	c.float("x", x, x.Rows, x.Cols)
	c.tensor("y", y, x.DT, x.Rows, x.Cols)
}

// CheckActivateGrad checks the operands of ActivateGrad.
func CheckActivateGrad(dx, dy, x Tensor, act Act) {
	c := check{"ActivateGrad"}
	c.act(act == GELU || act == GELUTanh, act)
	c.float("x", x, x.Rows, x.Cols)
	c.tensor("dy", dy, x.DT, x.Rows, x.Cols)
	c.tensor("dx", dx, x.DT, x.Rows, x.Cols)
}

// act demands an activation that the operation has.
func (c check) act(has bool, act Act) {
	if !has {
		c.fail("activation %d is not one of this operation", act)
	}
}

// CheckAdd checks the operands of Add.
func CheckAdd(dst, a, b Tensor) {
	c := check{"Add"}
	c.float("dst", dst, dst.Rows, dst.Cols)
	c.tensor("a", a, dst.DT, dst.Rows, dst.Cols)
	c.tensor("b", b, dst.DT, dst.Rows, dst.Cols)
}

// CheckFill checks the operand of Fill.
func CheckFill(dst Tensor) {
	c := check{"Fill"}
	if dst.DT == F64 {
		c.shape("dst", dst, dst.Rows, dst.Cols)
		return
	}
	c.float("dst", dst, dst.Rows, dst.Cols)
}

// CheckCast checks the operands of Cast.
func CheckCast(dst, src Tensor) {
	c := check{"Cast"}
	c.float("dst", dst, dst.Rows, dst.Cols)
	c.float("src", src, dst.Rows, dst.Cols)
}
