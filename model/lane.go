package model

import "github.com/skein-ml/skein/device"

// lane is what one micro-batch has of its own while several run together, layer by layer:
// its inputs, what its forward leaves for its backward, and the gradient of its residual
// stream. Weights, scratch and workspace are shared, and what checkpointing computes again
// is there for one lane at a time.
type lane struct {
	mem    arena
	inputs inputs
	view   batchView
	acts   activations
	dh     device.Tensor // [N, C] gradient of the residual stream
	loss   device.Tensor // [1, 1] F64
	host   [1]float64    // where Loss reads it
}

// SetLanes makes room for n micro-batches that run together, see [Model.TrainTogether]. A new
// model has room for one. Nothing of the model may run meanwhile.
func (m *Model) SetLanes(n int) error {
	for len(m.lanes) > max(n, 1) {
		last := len(m.lanes) - 1
		m.lanes[last].mem.free()
		m.lanes = m.lanes[:last]
	}
	for len(m.lanes) < n {
		l := &lane{mem: arena{dev: m.dev}}
		m.lanes = append(m.lanes, l)
		if err := m.newInputs(l); err != nil {
			return err
		}
		if err := m.newActivations(l); err != nil {
			return err
		}
	}
	m.enter(0)
	return nil
}

// enter makes a lane the one at work.
func (m *Model) enter(at int) {
	m.now = m.lanes[at]
	m.scratch.dh = m.now.dh
}

// newActivations allocates what a lane keeps. What is computed again is lane 0's.
func (m *Model) newActivations(l *lane) error {
	c, n, dt := m.cfg, m.rows(), m.opt.DType
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	a, first := &l.acts, &m.lanes[0].acts
	a.layers = make([]layerActs, m.kept())
	a.input = make([]device.Tensor, c.Layers)
	list := []tensorSpec{{&a.stats, device.F32, n, m.statsCols()}, {&l.loss, device.F64, 1, 1}, {&l.dh, dt, n, c.Hidden}}
	if m.opt.Checkpointing == CheckpointFull && a != first {
		copy(a.layers, first.layers)
	} else {
		for i := range a.layers {
			x := &a.layers[i]
			if m.opt.Checkpointing != CheckpointSelective || a == first && i == 0 {
				list = append(list, tensorSpec{&x.inner, dt, n, m.innerCols()})
			}
			list = append(list,
				tensorSpec{&x.qkv, dt, n, q + 2*kv}, tensorSpec{&x.o, dt, n, q}, tensorSpec{&x.lse, device.F32, c.Heads, n},
				tensorSpec{&x.mid, dt, n, c.Hidden},
				tensorSpec{&x.stats1, device.F32, n, m.statsCols()}, tensorSpec{&x.stats2, device.F32, n, m.statsCols()})
		}
	}
	if !m.opt.ForwardOnly {
		list = append(list, tensorSpec{&a.final, dt, n, c.Hidden})
		for i := range a.input {
			list = append(list, tensorSpec{&a.input[i], dt, n, c.Hidden})
		}
	}
	if err := l.mem.tensors(device.KindActivations, list); err != nil {
		return err
	}
	for i := range a.layers {
		if a.layers[i].inner.IsZero() {
			a.layers[i].inner = first.layers[0].inner
		}
	}
	if m.opt.ForwardOnly { // nothing is kept, so the residual stream runs through two buffers in turn
		for i := range a.input {
			a.input[i] = []device.Tensor{m.scratch.c2, l.dh}[i%2]
		}
		a.final = []device.Tensor{m.scratch.c2, l.dh}[c.Layers%2]
	}
	return nil
}

// ResetLoss sets the loss cells to zero.
func (m *Model) ResetLoss(s device.Stream) {
	for _, l := range m.lanes {
		m.dev.Upload(s, l.loss.Buf, zeroCell[:])
	}
}

var zeroCell [8]byte

// Loss waits for the stream and returns a loss cell: the sum of token losses since ResetLoss
// of the micro-batches that were given this cell.
func (m *Model) Loss(s device.Stream, cell int) (float64, error) {
	l := m.lanes[cell]
	m.dev.Download(s, device.HostBytes(l.host[:]), l.loss.Buf)
	err := s.Record().Wait()
	return l.host[0], err
}
