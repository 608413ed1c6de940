package model

import "github.com/skein-ml/skein/device"

// activations are what a forward leaves for its backward.
type activations struct {
	final  device.Tensor // [N, C] the last layer's output
	stats  device.Tensor // [N, S] of the final norm
	layers []layerActs   // one per layer, or one that all share; selective checkpointing shares inner only
	input  []device.Tensor
}

// layerActs are one layer's kept activations, besides its input.
type layerActs struct {
	qkv            device.Tensor // [N, Q+2K] after rotation
	o              device.Tensor // [N, Q] attention's output
	lse            device.Tensor // [H, N]
	mid            device.Tensor // [N, C] after attention's residual
	inner          device.Tensor // [N, U] before the activation
	stats1, stats2 device.Tensor // [N, S]
}

// scratch is what one layer needs and no other sees.
type scratch struct {
	c1, c2 device.Tensor // [N, C]
	f      device.Tensor // [N, F]
	q      device.Tensor // [N, Q]
	dqkv   device.Tensor // [N, Q+2K]
	dh     device.Tensor // [N, C] gradient of the residual stream
}

// kept is the number of layers whose activations are held at once.
func (m *Model) kept() int {
	if m.opt.ForwardOnly || m.opt.Checkpointing == CheckpointFull {
		return 1
	}
	return m.cfg.Layers
}

func (m *Model) newScratch() error {
	c, n, dt := m.cfg, m.rows(), m.opt.DType
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	x := &m.scratch
	list := []tensorSpec{{&x.c1, dt, n, c.Hidden}, {&x.c2, dt, n, c.Hidden}, {&x.f, dt, n, c.MLP}}
	if !m.opt.ForwardOnly {
		list = append(list, tensorSpec{&x.q, dt, n, q}, tensorSpec{&x.dqkv, dt, n, q + 2*kv})
	}
	return m.mem.tensors(device.KindActivations, list)
}

// newWorkspace sizes the one workspace that operations share, each in its turn.
func (m *Model) newWorkspace() error {
	c, dt := m.cfg, m.opt.DType
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	base := device.Shape{
		Rows: m.rows(), Seq: m.opt.SeqLen, DT: dt,
		Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim, DocTokensMax: m.opt.SeqLen,
	}
	var need int64
	ask := func(op device.Op, in, out int) {
		sh := base
		sh.In, sh.Out = in, out
		need = max(need, m.dev.Need(op, sh))
	}
	products := [][2]int{{c.Hidden, q + 2*kv}, {q, c.Hidden}, {c.Hidden, m.innerCols()}, {c.MLP, c.Hidden}, {c.Hidden, c.Vocab}}
	for _, p := range products {
		ask(device.OpLinear, p[0], p[1])
		if !m.opt.ForwardOnly {
			ask(device.OpLinearDX, p[0], p[1])
			ask(device.OpLinearDW, p[0], p[1])
		}
	}
	ask(device.OpAttention, q, q)
	ask(device.OpHeadLoss, c.Hidden, c.Vocab)
	if !m.opt.ForwardOnly {
		ask(device.OpAttentionGrad, q, q)
		ask(m.normGradOp(), c.Hidden, c.Hidden)
		ask(device.OpEmbedGrad, c.Hidden, c.Vocab)
	}
	t, err := m.mem.tensor(device.KindWorkspace, device.F32, 1, int(need/4)+16)
	m.ws = t.Buf
	return err
}
