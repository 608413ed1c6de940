package model_test

import (
	"math"
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/model/modeltest"
)

// highTol is relative to the largest element, as logitTol: ten times what one product
// of three is off by, for it passes three layers of loud weights and back.
const highTol = 1e-4

func TestHighStaysCloseToPyTorch(t *testing.T) {
	for _, p := range cpu.HighPaths() {
		t.Run(p.Name, func(t *testing.T) {
			if !p.Available {
				t.Skipf("SKIPPED: path %s: %s", p.Name, p.Why)
			}
			dev, err := cpu.New(cpu.Options{Path: p.Name, Threads: 2})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { dev.Close() })
			for _, name := range modeltest.Names(t) {
				g := modeltest.Load(t, name)
				got := runGolden(t, dev, g, g.Config, modeltest.Weights{Model: g.Config}, model.Options{DType: device.F32})
				worst := distance(got.logits, g.Logits)
				if worst > highTol {
					t.Errorf("%s: logits differ by %.2g of the largest, allowed %.2g", name, worst, highTol)
				}
				if d := math.Abs(got.loss - g.Losses[0]); d > 1e-4*g.Losses[0] {
					t.Errorf("%s: loss %.6f, PyTorch %.6f", name, got.loss, g.Losses[0])
				}
				for _, x := range g.Config.Tensors() {
					d := distance(got.grads[x.Name], g.Grad(t, x.Name))
					if worst = max(worst, d); d > highTol {
						t.Errorf("%s: gradient of %s differs by %.2g of its largest, allowed %.2g", name, x.Name, d, highTol)
					}
				}
				t.Logf("%s: logits and gradients within %.2g of the largest", name, worst)
			}
		})
	}
}
