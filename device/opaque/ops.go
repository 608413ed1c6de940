package opaque

import (
	"bytes"
	"errors"

	"github.com/skein-ml/skein/device"
)

// poison is what a Download's host memory holds until it is filled.
const poison = 0xdb

// Upload captures host in the call and copies it in later.
func (d *Device) Upload(s device.Stream, dst device.Buf, host []byte) {
	device.CheckCopy("Upload", dst.Bytes(), int64(len(host)))
	c := d.begin(s)
	to, from := c.buf(dst), bytes.Clone(host)
	c.run(func() { d.inner.Upload(c.s.inner, to, from) })
}

// Download poisons host in the call and fills it later.
func (d *Device) Download(s device.Stream, host []byte, src device.Buf) {
	device.CheckCopy("Download", int64(len(host)), src.Bytes())
	c := d.begin(s)
	from := c.buf(src)
	for i := range host {
		host[i] = poison
	}
	c.run(func() {
		for _, b := range host {
			if b != poison {
				c.s.fail(errors.New("opaque: host memory of a Download was written before its event"))
				return
			}
		}
		d.inner.Download(c.s.inner, host, from)
	})
}

// Copy moves bytes within the device.
func (d *Device) Copy(s device.Stream, dst, src device.Buf) {
	device.CheckCopy("Copy", dst.Bytes(), src.Bytes())
	c := d.begin(s)
	to, from := c.buf(dst), c.buf(src)
	c.run(func() { d.inner.Copy(c.s.inner, to, from) })
}

// Pack is the operation of package device.
func (d *Device) Pack(s device.Stream, w device.Weight, lo, hi int) {
	device.CheckPack(w, lo, hi)
	c := d.begin(s)
	to := c.weight(w)
	c.run(func() { d.inner.Pack(c.s.inner, to, lo, hi) })
}

// Linear is the operation of package device.
func (d *Device) Linear(s device.Stream, y, x device.Tensor, w device.Weight, e device.Epilogue, ws device.Buf) {
	device.CheckLinear(y, x, w, e)
	out, in := w.Shape()
	c := d.begin(s)
	y, x, e = c.tensor(y), c.tensor(x), c.epilogue(e)
	ws = c.workspace(ws, d.Need(device.OpLinear, device.Shape{Rows: x.Rows, Seq: x.Rows, In: in, Out: out, DT: x.DT}))
	inner := c.weight(w)
	c.run(func() { d.inner.Linear(c.s.inner, y, x, inner, e, ws) })
}

// LinearDX is the operation of package device.
func (d *Device) LinearDX(s device.Stream, dx, dy device.Tensor, w device.Weight, e device.Epilogue, ws device.Buf) {
	device.CheckLinearDX(dx, dy, w, e)
	out, in := w.Shape()
	c := d.begin(s)
	dx, dy, e = c.tensor(dx), c.tensor(dy), c.epilogue(e)
	ws = c.workspace(ws, d.Need(device.OpLinearDX, device.Shape{Rows: dy.Rows, Seq: dy.Rows, In: in, Out: out, DT: dy.DT}))
	inner := c.weight(w)
	c.run(func() { d.inner.LinearDX(c.s.inner, dx, dy, inner, e, ws) })
}

// LinearDW is the operation of package device.
func (d *Device) LinearDW(s device.Stream, dw, db, dy, x device.Tensor, seq int, ws device.Buf) {
	device.CheckLinearDW(dw, db, dy, x, seq)
	c := d.begin(s)
	dw, db, dy, x = c.tensor(dw), c.tensor(db), c.tensor(dy), c.tensor(x)
	ws = c.workspace(ws, d.Need(device.OpLinearDW, device.Shape{Rows: x.Rows, Seq: seq, In: x.Cols, Out: dy.Cols, DT: x.DT}))
	c.run(func() { d.inner.LinearDW(c.s.inner, dw, db, dy, x, seq, ws) })
}

// RMSNorm is the operation of package device.
func (d *Device) RMSNorm(s device.Stream, y, rstd, x, w device.Tensor, eps float32) {
	device.CheckRMSNorm(y, rstd, x, w)
	c := d.begin(s)
	y, rstd, x, w = c.tensor(y), c.tensor(rstd), c.tensor(x), c.tensor(w)
	c.run(func() { d.inner.RMSNorm(c.s.inner, y, rstd, x, w, eps) })
}

// RMSNormGrad is the operation of package device.
func (d *Device) RMSNormGrad(s device.Stream, dx, dw, dy, x, rstd, w, add device.Tensor, seq int, ws device.Buf) {
	device.CheckRMSNormGrad(dx, dw, dy, x, rstd, w, add, seq)
	c := d.begin(s)
	dx, dw, dy, x, rstd, w, add = c.tensor(dx), c.tensor(dw), c.tensor(dy), c.tensor(x), c.tensor(rstd), c.tensor(w), c.tensor(add)
	ws = c.workspace(ws, d.Need(device.OpNormGrad, device.Shape{Rows: x.Rows, Seq: seq, In: x.Cols, DT: x.DT}))
	c.run(func() { d.inner.RMSNormGrad(c.s.inner, dx, dw, dy, x, rstd, w, add, seq, ws) })
}

// LayerNorm is the operation of package device.
func (d *Device) LayerNorm(s device.Stream, y, stats, x, w, b device.Tensor, eps float32) {
	device.CheckLayerNorm(y, stats, x, w, b)
	c := d.begin(s)
	y, stats, x, w, b = c.tensor(y), c.tensor(stats), c.tensor(x), c.tensor(w), c.tensor(b)
	c.run(func() { d.inner.LayerNorm(c.s.inner, y, stats, x, w, b, eps) })
}

// LayerNormGrad is the operation of package device.
func (d *Device) LayerNormGrad(s device.Stream, dx, dw, db, dy, x, stats, w, add device.Tensor, seq int, ws device.Buf) {
	device.CheckLayerNormGrad(dx, dw, db, dy, x, stats, w, add, seq)
	c := d.begin(s)
	dx, dw, db, dy = c.tensor(dx), c.tensor(dw), c.tensor(db), c.tensor(dy)
	x, stats, w, add = c.tensor(x), c.tensor(stats), c.tensor(w), c.tensor(add)
	ws = c.workspace(ws, d.Need(device.OpLayerNormGrad, device.Shape{Rows: x.Rows, Seq: seq, In: x.Cols, DT: x.DT}))
	c.run(func() { d.inner.LayerNormGrad(c.s.inner, dx, dw, db, dy, x, stats, w, add, seq, ws) })
}

// Rope is the operation of package device.
func (d *Device) Rope(s device.Stream, q, k, table, pos device.Tensor, headDim int, inverse bool) {
	device.CheckRope(q, k, table, pos, headDim)
	c := d.begin(s)
	q, k, table, pos = c.tensor(q), c.tensor(k), c.tensor(table), c.tensor(pos)
	c.run(func() { d.inner.Rope(c.s.inner, q, k, table, pos, headDim, inverse) })
}

// GLU is the operation of package device.
func (d *Device) GLU(s device.Stream, y, gateUp device.Tensor, act device.Act) {
	device.CheckGLU(y, gateUp, act)
	c := d.begin(s)
	y, gateUp = c.tensor(y), c.tensor(gateUp)
	c.run(func() { d.inner.GLU(c.s.inner, y, gateUp, act) })
}

// GLUGrad is the operation of package device.
func (d *Device) GLUGrad(s device.Stream, dGateUp, dy, gateUp device.Tensor, act device.Act) {
	device.CheckGLUGrad(dGateUp, dy, gateUp, act)
	c := d.begin(s)
	dGateUp, dy, gateUp = c.tensor(dGateUp), c.tensor(dy), c.tensor(gateUp)
	c.run(func() { d.inner.GLUGrad(c.s.inner, dGateUp, dy, gateUp, act) })
}

// Activate is the operation of package device.
func (d *Device) Activate(s device.Stream, y, x device.Tensor, act device.Act) {
	device.CheckActivate(y, x, act)
	c := d.begin(s)
	y, x = c.tensor(y), c.tensor(x)
	c.run(func() { d.inner.Activate(c.s.inner, y, x, act) })
}

// ActivateGrad is the operation of package device.
func (d *Device) ActivateGrad(s device.Stream, dx, dy, x device.Tensor, act device.Act) {
	device.CheckActivateGrad(dx, dy, x, act)
	c := d.begin(s)
	dx, dy, x = c.tensor(dx), c.tensor(dy), c.tensor(x)
	c.run(func() { d.inner.ActivateGrad(c.s.inner, dx, dy, x, act) })
}

// Add is the operation of package device.
func (d *Device) Add(s device.Stream, dst, a, b device.Tensor) {
	device.CheckAdd(dst, a, b)
	c := d.begin(s)
	dst, a, b = c.tensor(dst), c.tensor(a), c.tensor(b)
	c.run(func() { d.inner.Add(c.s.inner, dst, a, b) })
}

// Fill is the operation of package device.
func (d *Device) Fill(s device.Stream, dst device.Tensor, v float32) {
	device.CheckFill(dst)
	c := d.begin(s)
	dst = c.tensor(dst)
	c.run(func() { d.inner.Fill(c.s.inner, dst, v) })
}

// Cast is the operation of package device.
func (d *Device) Cast(s device.Stream, dst, src device.Tensor) {
	device.CheckCast(dst, src)
	c := d.begin(s)
	dst, src = c.tensor(dst), c.tensor(src)
	c.run(func() { d.inner.Cast(c.s.inner, dst, src) })
}

// attentionShape is what the workspace of attention depends on.
func attentionShape(q device.Tensor, docs device.Docs, a device.AttnShape) device.Shape {
	sh := device.Shape{Rows: q.Rows, Seq: q.Rows, DT: q.DT, Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim}
	for i := range len(docs.Host) - 1 {
		sh.DocTokensMax = max(sh.DocTokensMax, int(docs.Host[i+1]-docs.Host[i]))
	}
	return sh
}

// Attention is the operation of package device.
func (d *Device) Attention(s device.Stream, o, lse, q, k, v device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	device.CheckAttention(o, lse, q, k, v, docs, a)
	c := d.begin(s)
	o, lse, q, k, v = c.tensor(o), c.tensor(lse), c.tensor(q), c.tensor(k), c.tensor(v)
	ws = c.workspace(ws, d.Need(device.OpAttention, attentionShape(q, docs, a)))
	docs = c.documents(docs)
	c.run(func() { d.inner.Attention(c.s.inner, o, lse, q, k, v, docs, a, ws) })
}

// AttentionGrad is the operation of package device.
func (d *Device) AttentionGrad(s device.Stream, dq, dk, dv, do, q, k, v, o, lse device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	device.CheckAttentionGrad(dq, dk, dv, do, q, k, v, o, lse, docs, a)
	c := d.begin(s)
	dq, dk, dv, do = c.tensor(dq), c.tensor(dk), c.tensor(dv), c.tensor(do)
	q, k, v, o, lse = c.tensor(q), c.tensor(k), c.tensor(v), c.tensor(o), c.tensor(lse)
	ws = c.workspace(ws, d.Need(device.OpAttentionGrad, attentionShape(q, docs, a)))
	docs = c.documents(docs)
	c.run(func() { d.inner.AttentionGrad(c.s.inner, dq, dk, dv, do, q, k, v, o, lse, docs, a, ws) })
}

// AttentionDecode is the operation of package device.
func (d *Device) AttentionDecode(s device.Stream, o, q, keys, values device.Tensor, n int, a device.AttnShape) {
	device.CheckAttentionDecode(o, q, keys, values, n, a)
	c := d.begin(s)
	o, q, keys, values = c.tensor(o), c.tensor(q), c.tensor(keys), c.tensor(values)
	c.run(func() { d.inner.AttentionDecode(c.s.inner, o, q, keys, values, n, a) })
}

// Embed is the operation of package device.
func (d *Device) Embed(s device.Stream, y, table, ids device.Tensor) {
	device.CheckEmbed(y, table, ids)
	c := d.begin(s)
	y, table, ids = c.tensor(y), c.tensor(table), c.tensor(ids)
	c.run(func() { d.inner.Embed(c.s.inner, y, table, ids) })
}

// EmbedGrad is the operation of package device.
func (d *Device) EmbedGrad(s device.Stream, rows, dx, order, starts device.Tensor, seq int, ws device.Buf) {
	device.CheckEmbedGrad(rows, dx, order, starts, seq)
	c := d.begin(s)
	rows, dx, order, starts = c.tensor(rows), c.tensor(dx), c.tensor(order), c.tensor(starts)
	ws = c.workspace(ws, d.Need(device.OpEmbedGrad, device.Shape{Rows: dx.Rows, Seq: seq, In: dx.Cols, DT: dx.DT}))
	c.run(func() { d.inner.EmbedGrad(c.s.inner, rows, dx, order, starts, seq, ws) })
}

// HeadLoss is the operation of package device.
func (d *Device) HeadLoss(s device.Stream, h device.HeadLossArgs, ws device.Buf) {
	device.CheckHeadLoss(h)
	out, in := h.W.Shape()
	c := d.begin(s)
	ws = c.workspace(ws, d.Need(device.OpHeadLoss, device.Shape{Rows: h.X.Rows, Seq: h.Seq, In: in, Out: out, DT: h.X.DT}))
	h.W = c.weight(h.W)
	for _, t := range []*device.Tensor{&h.X, &h.Targets, &h.Loss, &h.NLL, &h.DX, &h.DW} {
		*t = c.tensor(*t)
	}
	c.run(func() { d.inner.HeadLoss(c.s.inner, h, ws) })
}

// SqNorm is the operation of package device.
func (d *Device) SqNorm(s device.Stream, out, x device.Tensor) {
	device.CheckSqNorm(out, x)
	c := d.begin(s)
	out, x = c.tensor(out), c.tensor(x)
	c.run(func() { d.inner.SqNorm(c.s.inner, out, x) })
}

// AdamW is the operation of package device.
func (d *Device) AdamW(s device.Stream, a device.AdamWArgs) {
	device.CheckAdamW(a)
	c := d.begin(s)
	for _, t := range []*device.Tensor{&a.Master, &a.M, &a.V, &a.Grad, &a.Work} {
		*t = c.tensor(*t)
	}
	c.run(func() { d.inner.AdamW(c.s.inner, a) })
}

// AddRows is the operation of package device.
func (d *Device) AddRows(s device.Stream, dst device.Tensor, lo int64, ids, rows device.Tensor) {
	device.CheckAddRows(dst, lo, ids, rows)
	c := d.begin(s)
	dst, ids, rows = c.tensor(dst), c.tensor(ids), c.tensor(rows)
	c.run(func() { d.inner.AddRows(c.s.inner, dst, lo, ids, rows) })
}
