package model

import (
	"fmt"

	"github.com/skein-ml/skein/device"
)

// Work is one of the micro-batches that run together.
type Work struct {
	Batch Batch
	Grads *Grads // to which its gradients are added; micro-batches of one rank have one
	Cell  int    // the loss cell to which its loss is added, below the number of lanes
}

// Train runs one micro-batch forward and backward. Gradients of the sum of token
// losses, times scale (a power of two), are added to g; the sum of losses itself, unscaled, to
// loss cell 0, see [Model.Loss]. Hooks are called in forward and then in backward order.
func (m *Model) Train(s device.Stream, b Batch, g *Grads, scale float32, hooks Hooks) error {
	m.one[0] = Work{Batch: b, Grads: g}
	return m.TrainTogether(s, m.one[:], scale, hooks)
}

// TrainTogether is [Model.Train] for as many micro-batches as there are lanes, or fewer, layer by
// layer: each layer's weights are needed once in the forward and once in the backward, and
// all contributions to a bucket's gradients come one after the other. They come in the order of
// work, so the bits are those of one Train after the other.
func (m *Model) TrainTogether(s device.Stream, work []Work, scale float32, hooks Hooks) error {
	if m.opt.ForwardOnly {
		return fmt.Errorf("model: built for forward only")
	}
	if len(work) > len(m.lanes) {
		return fmt.Errorf("model: %d micro-batches, room for %d", len(work), len(m.lanes))
	}
	for i, w := range work {
		if w.Batch.Targets == nil {
			return fmt.Errorf("model: a training batch needs targets")
		}
		if err := m.load(s, i, w.Batch); err != nil {
			return err
		}
	}
	if err := m.forward(s, len(work), hooks); err != nil {
		return err
	}
	if err := m.headBackward(s, work, scale, hooks); err != nil {
		return err
	}
	for i := m.cfg.Layers - 1; i >= 0; i-- {
		if err := m.needBoth(i+1, m.before(i), hooks); err != nil {
			return err
		}
		for at, w := range work {
			m.enter(at)
			m.backward(s, i, &m.gradViews(w.Grads).layers[i])
			if err := hooks.GradReady(i+1, at); err != nil {
				return err
			}
		}
	}
	return m.inputBackward(s, work, hooks)
}

// needBoth asks for a bucket's weights and gradients.
func (m *Model) needBoth(bucket, next int, hooks Hooks) error {
	if err := hooks.NeedWeights(bucket, next); err != nil {
		return err
	}
	return hooks.NeedGrad(bucket)
}

// after and before are the buckets whose weights are needed next, after layer i's forward or
// backward.
func (m *Model) after(i int) int {
	if i == m.cfg.Layers-1 {
		return m.layout.norm
	}
	return i + 2
}

func (m *Model) before(i int) int {
	if i == 0 {
		return -1
	}
	return i
}

// forward runs the embedding and all layers, of the first n lanes.
func (m *Model) forward(s device.Stream, n int, hooks Hooks) error {
	for at := range n {
		m.enter(at)
		if err := m.embed(s, m.now.view, hooks); err != nil {
			return err
		}
	}
	for i := range m.cfg.Layers {
		if err := hooks.NeedWeights(i+1, m.after(i)); err != nil {
			return err
		}
		for at := range n {
			m.enter(at)
			rows := m.now.view.n
			m.layerForward(s, m.now.view, i, m.layerActs(i).rows(rows), residual{in: m.input(i, rows), out: m.input(i+1, rows)})
		}
	}
	return hooks.NeedWeights(m.layout.norm, -1)
}

// finalNorm is the norm of the last layer's output, in scratch.
func (m *Model) finalNorm(s device.Stream) device.Tensor {
	n := m.now.view.n
	x := m.scratch.c1.RowRange(0, n)
	m.norm(s, x, m.now.acts.stats.RowRange(0, n), m.input(m.cfg.Layers, n), m.weights.norm)
	return x
}

// headBackward computes the losses and leaves the gradients at the last layer's output in dh.
func (m *Model) headBackward(s device.Stream, work []Work, scale float32, hooks Hooks) error {
	if m.cfg.Tied {
		if err := hooks.NeedGrad(m.layout.head); err != nil {
			return err
		}
	}
	if err := hooks.NeedGrad(m.layout.norm); err != nil {
		return err
	}
	for at, w := range work {
		m.enter(at)
		v, g := m.now.view, m.gradViews(w.Grads)
		x := m.scratch.rows(v.n)
		m.dev.HeadLoss(s, device.HeadLossArgs{
			X: m.finalNorm(s), W: m.weights.head, Targets: v.targets, Seq: m.opt.SeqLen, Scale: scale,
			Loss: m.lanes[w.Cell].loss, DX: x.c2, DW: g.head,
		}, m.ws)
		if m.cfg.Tied {
			if err := hooks.GradReady(m.layout.head, at); err != nil {
				return err
			}
		}
		m.normGrad(s, x.dh, g.norm, x.c2, m.input(m.cfg.Layers, v.n),
			m.now.acts.stats.RowRange(0, v.n), m.weights.norm, device.Tensor{})
		if err := hooks.GradReady(m.layout.norm, at); err != nil {
			return err
		}
	}
	return nil
}

// backward computes again what checkpointing has not kept of layer i, and runs it backward.
func (m *Model) backward(s device.Stream, i int, g *layerGrads) {
	v := m.now.view
	a, in := m.layerActs(i).rows(v.n), m.input(i, v.n)
	switch m.opt.Checkpointing {
	case CheckpointNone:
	case CheckpointSelective:
		m.mlpInner(s, v, i, a)
	case CheckpointFull:
		m.layerForward(s, v, i, a, residual{in: in})
	}
	m.layerBackward(s, v, i, a, in, g)
}

// inputBackward adds the gradients at the first layer's input to those of the embedding's sparse rows,
// and of a learned table of positions.
func (m *Model) inputBackward(s device.Stream, work []Work, hooks Hooks) error {
	if !m.cfg.Rotary() {
		if err := hooks.NeedGrad(m.layout.positions); err != nil {
			return err
		}
		for at, w := range work {
			m.enter(at)
			m.positionsBackward(s, m.now.view, m.gradViews(w.Grads))
			if err := hooks.GradReady(m.layout.positions, at); err != nil {
				return err
			}
		}
	}
	for at, w := range work {
		m.enter(at)
		m.embedBackward(s, w)
	}
	if m.cfg.Tied {
		return nil
	}
	if err := hooks.NeedGrad(0); err != nil {
		return err
	}
	for at := range work {
		if err := hooks.GradReady(0, at); err != nil {
			return err
		}
	}
	return nil
}

// embedBackward adds the gradient at the embedding's output to the sparse rows.
func (m *Model) embedBackward(s device.Stream, w Work) {
	g, in := w.Grads, &m.now.inputs
	order, starts := g.Slots.group(w.Batch.IDs)
	if len(starts) > in.starts.Cols {
		panic(fmt.Sprintf("model: %d slots, room for %d", len(starts)-1, in.starts.Cols-1))
	}
	m.dev.Upload(s, in.order.Buf.Slice(0, int64(len(order))*4), device.HostBytes(order))
	m.dev.Upload(s, in.starts.Buf.Slice(0, int64(len(starts))*4), device.HostBytes(starts))
	m.dev.EmbedGrad(s, g.Sparse.RowRange(0, len(g.Slots.IDs)), m.scratch.dh.RowRange(0, m.now.view.n),
		in.order.ColRange(0, len(order)), in.starts.ColRange(0, len(starts)), m.opt.SeqLen, m.ws)
}

// Evaluate adds the sum of a micro-batch's token losses to loss cell 0 and, unless
// nll is the zero Tensor, writes each row's loss to nll [1, N] F32.
func (m *Model) Evaluate(s device.Stream, b Batch, nll device.Tensor, hooks Hooks) error {
	if err := m.load(s, 0, b); err != nil {
		return err
	}
	if err := m.forward(s, 1, hooks); err != nil {
		return err
	}
	m.dev.HeadLoss(s, device.HeadLossArgs{
		X: m.finalNorm(s), W: m.weights.head, Targets: m.now.view.targets, Seq: m.opt.SeqLen,
		Loss: m.now.loss, NLL: nll,
	}, m.ws)
	return nil
}

// Logits runs a micro-batch forward and writes the logits of rows [lo, hi) to
// out [hi−lo, V] F32.
func (m *Model) Logits(s device.Stream, b Batch, lo, hi int, out device.Tensor, hooks Hooks) error {
	if err := m.load(s, 0, b); err != nil {
		return err
	}
	if err := m.forward(s, 1, hooks); err != nil {
		return err
	}
	m.dev.Linear(s, out, m.finalNorm(s).RowRange(lo, hi), m.weights.head, device.Epilogue{}, m.ws)
	return nil
}

// layerActs are layer i's kept activations.
func (m *Model) layerActs(i int) layerActs {
	return m.now.acts.layers[i%len(m.now.acts.layers)]
}

// input is the residual stream before layer i, or after the last.
func (m *Model) input(i, n int) device.Tensor {
	if i == m.cfg.Layers {
		return m.now.acts.final.RowRange(0, n)
	}
	return m.now.acts.input[i].RowRange(0, n)
}
