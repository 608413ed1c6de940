package model

import "github.com/skein-ml/skein/device"

// Residual is the residual stream [N, C] before a layer, or after the last, of micro-batch at of those that ran
// together last. A model that is built for forward only keeps none but the last two.
func (m *Model) Residual(layer, at int) device.Tensor {
	m.enter(at)
	defer m.enter(0)
	return m.input(layer, m.now.view.n)
}
