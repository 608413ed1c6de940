package model

import (
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/internal/exact"
)

// newRope fills the table of cosines and sines: angles are F32 as in PyTorch, their
// functions F64, the same bits on every machine, rounded once.
func (m *Model) newRope() error {
	if !m.cfg.Rotary() {
		return nil
	}
	inv, scale := m.cfg.InvFreq()
	d, half := m.cfg.HeadDim, m.cfg.HeadDim/2
	var err error
	if m.rope, err = m.mem.tensor(device.KindWeights, device.F32, m.opt.SeqLen, d); err != nil {
		return err
	}
	host := make([]float32, m.opt.SeqLen*d)
	for p := range m.opt.SeqLen {
		for j := range half {
			sin, cos := exact.Sincos(float64(float32(p) * inv[j]))
			host[p*d+j] = float32(cos) * scale
			host[p*d+half+j] = float32(sin) * scale
		}
	}
	s := m.dev.Stream(device.StreamCompute)
	m.dev.Upload(s, m.rope.Buf, device.HostBytes(host))
	return s.Record().Wait()
}
