package device

// attention checks what Attention and AttentionGrad share.
func (c check) attention(q, k, v Tensor, a AttnShape, rows int) {
	c.heads(a)
	c.float("q", q, q.Rows, a.Heads*a.HeadDim)
	c.tensor("k", k, q.DT, rows, a.KVHeads*a.HeadDim)
	c.tensor("v", v, q.DT, rows, a.KVHeads*a.HeadDim)
}

func (c check) heads(a AttnShape) {
	if a.Heads <= 0 || a.KVHeads <= 0 || a.Heads%a.KVHeads != 0 || a.HeadDim <= 0 || a.Window < 0 {
		c.fail("%d heads on %d key heads of dimension %d, window %d", a.Heads, a.KVHeads, a.HeadDim, a.Window)
	}
}

// docs demands an ascending cover of [0, rows), empty documents allowed.
func (c check) docs(d Docs, rows int) {
	n := len(d.Host)
	if n == 0 || d.Host[0] != 0 || int(d.Host[n-1]) != rows {
		c.fail("documents do not cover rows [0, %d)", rows)
	}
	for i := 1; i < n; i++ {
		if d.Host[i] < d.Host[i-1] {
			c.fail("document %d ends at %d, before its start at %d", i-1, d.Host[i], d.Host[i-1])
		}
	}
	c.tensor("docs.Cu", d.Cu, I32, 1, n)
}

// CheckAttention checks the operands of Attention.
func CheckAttention(o, lse, q, k, v Tensor, docs Docs, a AttnShape) {
	c := check{"Attention"}
	c.attention(q, k, v, a, q.Rows)
	c.tensor("o", o, q.DT, q.Rows, q.Cols)
	if !lse.IsZero() {
		c.tensor("lse", lse, F32, a.Heads, q.Rows)
	}
	c.docs(docs, q.Rows)
}

// CheckAttentionGrad checks the operands of AttentionGrad.
func CheckAttentionGrad(dq, dk, dv, do, q, k, v, o, lse Tensor, docs Docs, a AttnShape) {
	c := check{"AttentionGrad"}
	c.attention(q, k, v, a, q.Rows)
	c.tensor("do", do, q.DT, q.Rows, q.Cols)
	c.tensor("o", o, q.DT, q.Rows, q.Cols)
	c.tensor("dq", dq, q.DT, q.Rows, q.Cols)
	c.tensor("dk", dk, q.DT, k.Rows, k.Cols)
	c.tensor("dv", dv, q.DT, v.Rows, v.Cols)
	c.tensor("lse", lse, F32, a.Heads, q.Rows)
	c.docs(docs, q.Rows)
}

// CheckAttentionDecode checks the operands of AttentionDecode.
func CheckAttentionDecode(o, q, keys, values Tensor, n int, a AttnShape) {
	c := check{"AttentionDecode"}
	c.attention(q, keys, values, a, keys.Rows)
	c.tensor("o", o, q.DT, 1, q.Cols)
	c.tensor("q", q, q.DT, 1, q.Cols)
	if n < 1 || n > keys.Rows {
		c.fail("%d rows of a cache of %d", n, keys.Rows)
	}
}

// CheckEmbed checks the operands of Embed.
func CheckEmbed(y, table, ids Tensor) {
	c := check{"Embed"}
	c.float("table", table, table.Rows, table.Cols)
	c.tensor("y", y, table.DT, y.Rows, table.Cols)
	c.tensor("ids", ids, I32, 1, y.Rows)
}

// CheckEmbedGrad checks the operands of EmbedGrad.
func CheckEmbedGrad(rows, dx, order, starts Tensor, seq int) {
	c := check{"EmbedGrad"}
	c.float("dx", dx, dx.Rows, dx.Cols)
	c.tensor("rows", rows, F32, rows.Rows, dx.Cols)
	c.tensor("order", order, I32, 1, dx.Rows)
	c.tensor("starts", starts, I32, 1, rows.Rows+1)
	c.seq(dx.Rows, seq)
}

// CheckHeadLoss checks the operands of HeadLoss.
func CheckHeadLoss(h HeadLossArgs) {
	c := check{"HeadLoss"}
	form := FormForward
	if !h.DX.IsZero() {
		form |= FormDX
	}
	vocab, d, dt := c.weight(h.W, form)
	rows := h.X.Rows
	c.tensor("X", h.X, dt, rows, d)
	c.tensor("Targets", h.Targets, I32, 1, rows)
	c.tensor("Loss", h.Loss, F64, 1, 1)
	c.seq(rows, h.Seq)
	if !h.NLL.IsZero() {
		c.tensor("NLL", h.NLL, F32, 1, rows)
	}
	if h.DX.IsZero() != h.DW.IsZero() {
		c.fail("DX is %v and DW %v: both or none", h.DX, h.DW)
	}
	if !h.DX.IsZero() {
		c.tensor("DX", h.DX, dt, rows, d)
		c.tensor("DW", h.DW, F32, vocab, d)
	}
}

// CheckSqNorm checks the operands of SqNorm.
func CheckSqNorm(out, x Tensor) {
	c := check{"SqNorm"}
	c.tensor("out", out, F64, 1, 1)
	c.tensor("x", x, F32, 1, x.Cols)
}

// CheckAdamW checks the operands of AdamW.
func CheckAdamW(a AdamWArgs) {
	c := check{"AdamW"}
	n := a.Master.Cols
	c.tensor("Master", a.Master, F32, 1, n)
	c.tensor("M", a.M, F32, 1, n)
	c.tensor("V", a.V, F32, 1, n)
	c.tensor("Grad", a.Grad, F32, 1, n)
	if !a.Work.IsZero() {
		c.float("Work", a.Work, 1, n)
	}
}

// CheckAddRows checks the operands of AddRows.
func CheckAddRows(dst Tensor, lo int64, ids, rows Tensor) {
	c := check{"AddRows"}
	c.tensor("rows", rows, F32, rows.Rows, rows.Cols)
	c.tensor("ids", ids, I32, 1, rows.Rows)
	c.tensor("dst", dst, F32, 1, dst.Cols)
	if lo < 0 {
		c.fail("dst begins at element %d", lo)
	}
}

// CheckCopy checks the operands of Copy, and of Upload and Download with the host's length.
func CheckCopy(op string, dst, src int64) {
	if dst != src {
		check{op}.fail("%d bytes to %d bytes", src, dst)
	}
}
