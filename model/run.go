package model

import (
	"fmt"

	"github.com/skein-ml/skein/device"
)

// Train runs one micro-batch forward and backward. Gradients of the sum of token
// losses, times scale (a power of two), are added to g; the sum of losses itself, unscaled, to the
// device's loss cell, see [Model.Loss]. Hooks are called in forward and then in backward order.
func (m *Model) Train(s device.Stream, b Batch, g *Grads, scale float32, hooks Hooks) error {
	if m.opt.ForwardOnly {
		return fmt.Errorf("model: built for forward only")
	}
	if b.Targets == nil {
		return fmt.Errorf("model: a training batch needs targets")
	}
	v, err := m.load(s, b)
	if err != nil {
		return err
	}
	if err := m.forward(s, v, hooks); err != nil {
		return err
	}
	to := m.gradViews(g)
	if err := m.headBackward(s, v, to, scale, hooks); err != nil {
		return err
	}
	for i := m.cfg.Layers - 1; i >= 0; i-- {
		a := m.layerActs(i).rows(v.n)
		if err := hooks.NeedWeights(i + 1); err != nil {
			return err
		}
		switch m.opt.Checkpointing {
		case CheckpointNone:
		case CheckpointSelective:
			m.mlpInner(s, v, i, a)
		case CheckpointFull:
			m.layerForward(s, v, i, a, residual{in: m.input(i, v.n)})
		}
		m.layerBackward(s, v, i, a, m.input(i, v.n), &to.layers[i])
		if err := hooks.GradReady(i + 1); err != nil {
			return err
		}
	}
	if err := m.positionsBackward(s, v, to, hooks); err != nil {
		return err
	}
	m.embedBackward(s, v, g, b)
	if !m.cfg.Tied {
		return hooks.GradReady(0)
	}
	return nil
}

// forward runs the embedding and all layers.
func (m *Model) forward(s device.Stream, v batchView, hooks Hooks) error {
	if err := m.embed(s, v, hooks); err != nil {
		return err
	}
	for i := range m.cfg.Layers {
		if err := hooks.NeedWeights(i + 1); err != nil {
			return err
		}
		m.layerForward(s, v, i, m.layerActs(i).rows(v.n), residual{in: m.input(i, v.n), out: m.input(i+1, v.n)})
	}
	if err := hooks.NeedWeights(m.layout.norm); err != nil {
		return err
	}
	m.norm(s, m.scratch.c1.RowRange(0, v.n), m.acts.stats.RowRange(0, v.n), m.input(m.cfg.Layers, v.n), m.weights.norm)
	return nil
}

// headBackward computes the loss from the final norm's output and leaves the
// gradient at the last layer's output in scratch.dh.
func (m *Model) headBackward(s device.Stream, v batchView, g *gradViews, scale float32, hooks Hooks) error {
	x := m.scratch.rows(v.n)
	m.dev.HeadLoss(s, device.HeadLossArgs{
		X: x.c1, W: m.weights.head, Targets: v.targets, Seq: m.opt.SeqLen, Scale: scale,
		Loss: m.loss, DX: x.c2, DW: g.head,
	}, m.ws)
	if m.cfg.Tied {
		if err := hooks.GradReady(m.layout.head); err != nil {
			return err
		}
	}
	m.normGrad(s, x.dh, g.norm, x.c2, m.input(m.cfg.Layers, v.n),
		m.acts.stats.RowRange(0, v.n), m.weights.norm, device.Tensor{})
	return hooks.GradReady(m.layout.norm)
}

// embedBackward adds the gradient at the embedding's output to the sparse rows.
func (m *Model) embedBackward(s device.Stream, v batchView, g *Grads, b Batch) {
	order, starts := g.Slots.group(b.IDs)
	in := &m.inputs
	if len(starts) > in.starts.Cols {
		panic(fmt.Sprintf("model: %d slots, room for %d", len(starts)-1, in.starts.Cols-1))
	}
	m.dev.Upload(s, in.order.Buf.Slice(0, int64(len(order))*4), device.HostBytes(order))
	m.dev.Upload(s, in.starts.Buf.Slice(0, int64(len(starts))*4), device.HostBytes(starts))
	m.dev.EmbedGrad(s, g.Sparse.RowRange(0, len(g.Slots.IDs)), m.scratch.dh.RowRange(0, v.n),
		in.order.ColRange(0, len(order)), in.starts.ColRange(0, len(starts)), m.opt.SeqLen, m.ws)
}

// Evaluate adds the sum of a micro-batch's token losses to the loss cell and, unless
// nll is the zero Tensor, writes each row's loss to nll [1, N] F32.
func (m *Model) Evaluate(s device.Stream, b Batch, nll device.Tensor, hooks Hooks) error {
	v, err := m.load(s, b)
	if err != nil {
		return err
	}
	if err := m.forward(s, v, hooks); err != nil {
		return err
	}
	m.dev.HeadLoss(s, device.HeadLossArgs{
		X: m.scratch.c1.RowRange(0, v.n), W: m.weights.head, Targets: v.targets, Seq: m.opt.SeqLen,
		Loss: m.loss, NLL: nll,
	}, m.ws)
	return nil
}

// Logits runs a micro-batch forward and writes the logits of rows [lo, hi) to
// out [hi−lo, V] F32.
func (m *Model) Logits(s device.Stream, b Batch, lo, hi int, out device.Tensor, hooks Hooks) error {
	v, err := m.load(s, b)
	if err != nil {
		return err
	}
	if err := m.forward(s, v, hooks); err != nil {
		return err
	}
	m.dev.Linear(s, out, m.scratch.c1.RowRange(lo, hi), m.weights.head, device.Epilogue{}, m.ws)
	return nil
}

// ResetLoss sets the loss cell to zero.
func (m *Model) ResetLoss(s device.Stream) {
	m.dev.Upload(s, m.loss.Buf, zeroCell[:])
}

var zeroCell [8]byte

// Loss waits for the stream and returns the loss cell: the sum of token losses since ResetLoss.
func (m *Model) Loss(s device.Stream) (float64, error) {
	m.dev.Download(s, device.HostBytes(m.lossHost[:]), m.loss.Buf)
	err := s.Record().Wait()
	return m.lossHost[0], err
}

// layerActs are layer i's kept activations.
func (m *Model) layerActs(i int) layerActs {
	return m.acts.layers[i%len(m.acts.layers)]
}

// input is the residual stream before layer i, or after the last.
func (m *Model) input(i, n int) device.Tensor {
	if i == m.cfg.Layers {
		return m.acts.final.RowRange(0, n)
	}
	return m.acts.input[i].RowRange(0, n)
}
