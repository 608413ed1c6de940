package native

import (
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

func BenchmarkLayerNorm(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		x, w := randomMatrix(b, newRand(1), dt, benchRows, 768, 0, 1), randomMatrix(b, newRand(2), dt, 1, 768, 0, 1)
		y, stats := newMatrix(b, dt, benchRows, 768, 0), newMatrix(b, device.F32, benchRows, 2, 0)
		a := kernel.LayerNorm{Y: y.p(), Stats: stats.p(), X: x.p(), W: w.p(), B: w.p(), Cols: 768, LdY: y.ld, LdX: x.ld, Eps: eps}
		b.SetBytes(2 * benchRows * 768 * dt.Size())
		for b.Loop() {
			table.LayerNorm[dt](&a, 0, benchRows)
		}
	})
}

func BenchmarkLayerNormGrad(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		x, w := randomMatrix(b, newRand(1), dt, benchRows, 768, 0, 1), randomMatrix(b, newRand(2), dt, 1, 768, 0, 1)
		dx, stats, partial := newMatrix(b, dt, benchRows, 768, 0), randomMatrix(b, newRand(2), device.F32, benchRows, 2, 0, 1), newMatrix(b, device.F32, 2, 768, 0)
		a := kernel.LayerNormGrad{DX: dx.p(), DY: x.p(), X: x.p(), Stats: stats.p(), W: w.p(), Cols: 768, LdDX: 768, LdDY: 768, LdX: 768}
		b.SetBytes(3 * benchRows * 768 * dt.Size())
		for b.Loop() {
			for r := 0; r < benchRows; r += kernel.NormChunk {
				table.LayerNormGrad[dt](&a, r, r+kernel.NormChunk, partial.p())
			}
		}
	})
}

func BenchmarkActivate(b *testing.B) {
	table := avx512(b)
	for act, name := range map[device.Act]string{device.GELU: "erf", device.GELUTanh: "tanh"} {
		const n = benchRows * 3072
		run := func(pass string, bytes int64, f func(dt device.DType, y, x *matrix)) {
			b.Run(name+" "+pass, func(b *testing.B) {
				benchType(b, func(b *testing.B, dt device.DType) {
					x, y := randomMatrix(b, newRand(1), dt, 1, n, 0, 2), newMatrix(b, dt, 1, n, 0)
					b.SetBytes(bytes * n * dt.Size())
					for b.Loop() {
						f(dt, y, x)
					}
				})
			})
		}
		run("forward", 2, func(dt device.DType, y, x *matrix) { table.Activate[dt](y.p(), x.p(), n, act) })
		run("backward", 3, func(dt device.DType, y, x *matrix) { table.ActivateGrad[dt](y.p(), x.p(), x.p(), n, act) })
	}
}
