package cpu_test

import (
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
)

// BenchmarkPack repacks gate and up of SmolLM2-135M, both forms, as each optimizer step does.
// Bytes are the weight's own; a path that keeps no packed form has nothing to do.
func BenchmarkPack(b *testing.B) {
	const out, in = 2 * 1536, 576
	for _, p := range cpu.Paths() {
		for _, dt := range []device.DType{device.F32, device.BF16} {
			b.Run(p.Name+"/"+dt.String(), func(b *testing.B) {
				if !p.Available {
					b.Skipf("SKIPPED: this machine lacks %s", p.Why)
				}
				d, err := cpu.New(cpu.Options{Path: p.Name})
				if err != nil {
					b.Fatal(err)
				}
				defer d.Close()
				src, err := d.Alloc(out*in*dt.Size(), device.KindWeights)
				if err != nil {
					b.Fatal(err)
				}
				w, err := d.NewWeight(device.Make(src, dt, out, in), device.FormForward|device.FormDX)
				if err != nil {
					b.Fatal(err)
				}
				s := d.Stream(device.StreamCompute)
				b.SetBytes(out * in * dt.Size())
				for b.Loop() {
					d.Pack(s, w, 0, out)
				}
				if err := s.Record().Wait(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
