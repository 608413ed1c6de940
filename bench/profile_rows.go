package bench

import "github.com/skein-ml/skein/device"

// The operations that are bound by memory, not by arithmetic.

// RMSNorm implements [device.Norms].
func (p *Profiler) RMSNorm(s device.Stream, y, rstd, x, w device.Tensor, eps float32) {
	defer p.watch(s, "RMSNorm", "", 0, size(y, x))()
	p.Device.RMSNorm(s, y, rstd, x, w, eps)
}

// RMSNormGrad implements [device.Norms].
func (p *Profiler) RMSNormGrad(s device.Stream, dx, dw, dy, x, rstd, w, add device.Tensor, seq int, ws device.Buf) {
	defer p.watch(s, "RMSNormGrad", "", 0, size(dx, dy, x, add))()
	p.Device.RMSNormGrad(s, dx, dw, dy, x, rstd, w, add, seq, ws)
}

// LayerNorm implements [device.Norms].
func (p *Profiler) LayerNorm(s device.Stream, y, stats, x, w, b device.Tensor, eps float32) {
	defer p.watch(s, "LayerNorm", "", 0, size(y, x))()
	p.Device.LayerNorm(s, y, stats, x, w, b, eps)
}

// LayerNormGrad implements [device.Norms].
func (p *Profiler) LayerNormGrad(s device.Stream, dx, dw, db, dy, x, stats, w, add device.Tensor, seq int, ws device.Buf) {
	defer p.watch(s, "LayerNormGrad", "", 0, size(dx, dy, x, add))()
	p.Device.LayerNormGrad(s, dx, dw, db, dy, x, stats, w, add, seq, ws)
}

// Rope implements [device.Norms].
func (p *Profiler) Rope(s device.Stream, q, k, table, pos device.Tensor, headDim int, inverse bool) {
	defer p.watch(s, "Rope", "", 0, 2*size(q, k))()
	p.Device.Rope(s, q, k, table, pos, headDim, inverse)
}

// GLU implements [device.Norms].
func (p *Profiler) GLU(s device.Stream, y, gateUp device.Tensor, act device.Act) {
	defer p.watch(s, "GLU", "", 0, size(y, gateUp))()
	p.Device.GLU(s, y, gateUp, act)
}

// GLUGrad implements [device.Norms].
func (p *Profiler) GLUGrad(s device.Stream, dGateUp, dy, gateUp device.Tensor, act device.Act) {
	defer p.watch(s, "GLUGrad", "", 0, size(dGateUp, dy, gateUp))()
	p.Device.GLUGrad(s, dGateUp, dy, gateUp, act)
}

// Activate implements [device.Norms].
func (p *Profiler) Activate(s device.Stream, y, x device.Tensor, act device.Act) {
	defer p.watch(s, "Activate", "", 0, size(y, x))()
	p.Device.Activate(s, y, x, act)
}

// ActivateGrad implements [device.Norms].
func (p *Profiler) ActivateGrad(s device.Stream, dx, dy, x device.Tensor, act device.Act) {
	defer p.watch(s, "ActivateGrad", "", 0, size(dx, dy, x))()
	p.Device.ActivateGrad(s, dx, dy, x, act)
}

// Add implements [device.Norms].
func (p *Profiler) Add(s device.Stream, dst, a, b device.Tensor) {
	defer p.watch(s, "Add", "", 0, size(dst, a, b))()
	p.Device.Add(s, dst, a, b)
}

// Fill implements [device.Norms].
func (p *Profiler) Fill(s device.Stream, dst device.Tensor, v float32) {
	defer p.watch(s, "Fill", "", 0, size(dst))()
	p.Device.Fill(s, dst, v)
}

// Cast implements [device.Norms].
func (p *Profiler) Cast(s device.Stream, dst, src device.Tensor) {
	defer p.watch(s, "Cast", "", 0, size(dst, src))()
	p.Device.Cast(s, dst, src)
}

// Copy implements [device.Device].
func (p *Profiler) Copy(s device.Stream, dst, src device.Buf) {
	defer p.watch(s, "Copy", "", 0, float64(dst.Bytes()+src.Bytes()))()
	p.Device.Copy(s, dst, src)
}

// Upload implements [device.Device].
func (p *Profiler) Upload(s device.Stream, dst device.Buf, host []byte) {
	defer p.watch(s, "Upload", "", 0, 2*float64(len(host)))()
	p.Device.Upload(s, dst, host)
}

// Download implements [device.Device].
func (p *Profiler) Download(s device.Stream, host []byte, src device.Buf) {
	defer p.watch(s, "Download", "", 0, 2*float64(len(host)))()
	p.Device.Download(s, host, src)
}

// AttentionDecode implements [device.Attentions].
func (p *Profiler) AttentionDecode(s device.Stream, o, q, keys, values device.Tensor, n int, a device.AttnShape) {
	seen := device.Tensor{Buf: keys.Buf, DT: keys.DT, Rows: n, Cols: keys.Cols}
	defer p.watch(s, "AttentionDecode", heads(a), 0, size(o, q)+2*size(seen))()
	p.Device.AttentionDecode(s, o, q, keys, values, n, a)
}

// Embed implements [device.Tokens].
func (p *Profiler) Embed(s device.Stream, y, table, ids device.Tensor) {
	defer p.watch(s, "Embed", "", 0, 2*size(y))()
	p.Device.Embed(s, y, table, ids)
}

// EmbedGrad implements [device.Tokens].
func (p *Profiler) EmbedGrad(s device.Stream, rows, dx, order, starts device.Tensor, seq int, ws device.Buf) {
	defer p.watch(s, "EmbedGrad", "", 0, 2*size(rows)+size(dx))()
	p.Device.EmbedGrad(s, rows, dx, order, starts, seq, ws)
}

// SqNorm implements [device.Updates].
func (p *Profiler) SqNorm(s device.Stream, out, x device.Tensor) {
	defer p.watch(s, "SqNorm", "", 0, size(x))()
	p.Device.SqNorm(s, out, x)
}

// AdamW implements [device.Updates].
func (p *Profiler) AdamW(s device.Stream, a device.AdamWArgs) {
	defer p.watch(s, "AdamW", "", 0, 2*size(a.Master, a.M, a.V)+size(a.Grad, a.Work))()
	p.Device.AdamW(s, a)
}

// AddRows implements [device.Updates].
func (p *Profiler) AddRows(s device.Stream, dst device.Tensor, lo int64, ids, rows device.Tensor) {
	defer p.watch(s, "AddRows", "", 0, 3*size(rows))()
	p.Device.AddRows(s, dst, lo, ids, rows)
}
