package model

import (
	"fmt"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/config"
)

// stagingElems is how many elements are read and converted at a time.
const stagingElems = 1 << 20

// LoadWeights fills and packs all weights from src, whose configuration must be the
// model's own. Only a small stretch is ever on the host.
func (m *Model) LoadWeights(s device.Stream, src config.Weights) error {
	stage, err := m.dev.Alloc(stagingElems*4, device.KindStaging)
	if err != nil {
		return fmt.Errorf("model: %w", err)
	}
	defer m.dev.Free(stage)
	host := make([]float32, stagingElems)
	for b, g := range m.cfg.Groups() {
		for _, t := range g.Tensors {
			if err := m.loadTensor(s, src, t, stage, host); err != nil {
				return err
			}
		}
		m.Repack(s, b)
	}
	return s.Record().Wait()
}

func (m *Model) loadTensor(s device.Stream, src config.Weights, t config.Tensor, stage device.Buf, host []float32) error {
	p := m.layout.places[t.Name]
	flat := m.weights.flat[p.bucket]
	for off, n := int64(0), t.Elements(); off < n; off += stagingElems {
		part := host[:min(stagingElems, n-off)]
		if err := src.ReadRange(t.Name, off, part); err != nil {
			return fmt.Errorf("reading %s: %w", t.Name, err)
		}
		// The stage is reused at once, so its last use has to be over.
		if err := s.Record().Wait(); err != nil {
			return err
		}
		m.dev.Upload(s, stage.Slice(0, int64(len(part))*4), device.HostBytes(part))
		to := int(p.off + off)
		m.dev.Cast(s, flat.ColRange(to, to+len(part)), device.Make(stage, device.F32, 1, len(part)))
	}
	return nil
}
