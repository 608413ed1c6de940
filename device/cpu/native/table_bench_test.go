package native

import (
	"math"
	"testing"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// Sizes are those of SmolLM2-135M with 2,048 tokens: width 576, MLP 1,536, 9 heads of 64, 3 of
// keys. One thread. Bytes are what is read and written.
const benchRows = 2048

func benchType(b *testing.B, f func(b *testing.B, dt device.DType)) {
	for _, dt := range floatTypes {
		b.Run(dt.String(), func(b *testing.B) { f(b, dt) })
	}
}

func BenchmarkRMSNorm(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		x, w := randomMatrix(b, newRand(1), dt, benchRows, 576, 0, 1), randomMatrix(b, newRand(2), dt, 1, 576, 0, 1)
		y, rstd := newMatrix(b, dt, benchRows, 576, 0), newMatrix(b, device.F32, 1, benchRows, 0)
		a := rmsNormArgs(y, rstd, x, w)
		b.SetBytes(2 * benchRows * 576 * dt.Size())
		for b.Loop() {
			table.RMSNorm[dt](&a, 0, benchRows)
		}
	})
}

func BenchmarkRMSNormGrad(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		x, w := randomMatrix(b, newRand(1), dt, benchRows, 576, 0, 1), randomMatrix(b, newRand(2), dt, 1, 576, 0, 1)
		dx, rstd, partial := newMatrix(b, dt, benchRows, 576, 0), randomMatrix(b, newRand(2), device.F32, 1, benchRows, 0, 1), newMatrix(b, device.F32, 1, 576, 0)
		a := kernel.RMSNormGrad{DX: dx.p(), DY: x.p(), X: x.p(), Rstd: rstd.p(), W: w.p(), Cols: 576, LdDX: 576, LdDY: 576, LdX: 576}
		b.SetBytes(3 * benchRows * 576 * dt.Size())
		for b.Loop() {
			for r := 0; r < benchRows; r += kernel.NormChunk {
				table.RMSNormGrad[dt](&a, r, r+kernel.NormChunk, partial.p())
			}
		}
	})
}

func BenchmarkRope(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		q, k := randomMatrix(b, newRand(1), dt, benchRows, 576, 0, 1), randomMatrix(b, newRand(1), dt, benchRows, 192, 0, 1)
		angles, pos := newMatrix(b, device.F32, 512, 64, 0), make([]int32, benchRows)
		for r := range 512 { // rotations, or values would soon be subnormal and slow
			for j := range 32 {
				sin, cos := math.Sincos(float64(r) / float64(j+1))
				angles.set(r, j, float32(cos))
				angles.set(r, j+32, float32(sin))
			}
		}
		for i := range pos {
			pos[i] = int32(i % 512)
		}
		a := kernel.Rope{Q: q.p(), K: k.p(), Table: angles.p(), Pos: unsafe.Pointer(&pos[0]), Heads: 9, KVHeads: 3, HeadDim: 64, LdQ: 576, LdK: 192, LdTable: 64}
		b.SetBytes(2 * benchRows * 768 * dt.Size())
		for b.Loop() {
			a.Inverse ^= 1
			table.Rope[dt](&a, 0, benchRows)
		}
	})
}

func BenchmarkGLU(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		x, y := randomMatrix(b, newRand(1), dt, benchRows, 2*1536, 0, 1), newMatrix(b, dt, benchRows, 1536, 0)
		a := kernel.GLU{Y: y.p(), GateUp: x.p(), F: 1536, LdY: 1536, LdG: 3072}
		b.SetBytes(3 * benchRows * 1536 * dt.Size())
		for b.Loop() {
			table.GLU[dt](&a, 0, benchRows)
		}
	})
}

func BenchmarkGLUGrad(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		x, y := randomMatrix(b, newRand(1), dt, benchRows, 2*1536, 0, 1), randomMatrix(b, newRand(1), dt, benchRows, 1536, 0, 1)
		dx := newMatrix(b, dt, benchRows, 2*1536, 0)
		a := kernel.GLUGrad{DGateUp: dx.p(), DY: y.p(), GateUp: x.p(), F: 1536, LdDG: 3072, LdDY: 1536, LdG: 3072}
		b.SetBytes(5 * benchRows * 1536 * dt.Size())
		for b.Loop() {
			table.GLUGrad[dt](&a, 0, benchRows)
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		x, y := randomMatrix(b, newRand(1), dt, benchRows, 576, 0, 1), newMatrix(b, dt, benchRows, 576, 0)
		b.SetBytes(3 * benchRows * 576 * dt.Size())
		for b.Loop() {
			table.Add[dt](y.p(), x.p(), x.p(), benchRows*576)
		}
	})
}

func BenchmarkCast(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		x, y := randomMatrix(b, newRand(1), dt, benchRows, 576, 0, 1), newMatrix(b, device.F32, benchRows, 576, 0)
		b.SetBytes(6 * benchRows * 576)
		for b.Loop() {
			table.Cast[dt](y.p(), x.p(), benchRows*576)
		}
	})
}

// Rows of 49,152 logits with gradients.
func BenchmarkCrossEntropy(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		const rows, vocab = 64, 49152
		logits, nll := randomMatrix(b, newRand(1), device.F32, rows, vocab, 0, 1), newMatrix(b, device.F32, 1, rows, 0)
		a := crossEntropyArgs(logits, nll, make([]int32, rows), 1)
		b.SetBytes(rows * vocab * (4 + dt.Size()))
		for b.Loop() {
			table.CrossEntropy[dt](&a, 0, rows)
		}
	})
}

func BenchmarkColumnSum(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		dy, db := randomMatrix(b, newRand(1), dt, benchRows, 576, 0, 1), randomMatrix(b, newRand(1), device.F32, 1, 576, 0, 1)
		a := kernel.ColumnSum{DB: db.p(), DY: dy.p(), Rows: benchRows, LdDY: 576, Seq: 512, Columns: 576}
		b.SetBytes(benchRows * 576 * dt.Size())
		for b.Loop() {
			table.ColumnSum[dt](&a, 0, 576)
		}
	})
}

// One token to a slot, as most are.
func BenchmarkEmbedGrad(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		dx, rows := randomMatrix(b, newRand(1), dt, benchRows, 576, 0, 1), newMatrix(b, device.F32, benchRows, 576, 0)
		order := make([]int32, benchRows+1)
		for i := range order {
			order[i] = int32(i)
		}
		a := kernel.EmbedGrad{Rows: rows.p(), DX: dx.p(), Order: unsafe.Pointer(&order[0]), Starts: unsafe.Pointer(&order[0]),
			Cols: 576, LdRows: 576, LdDX: 576, Seq: 512}
		b.SetBytes(benchRows * 576 * (8 + dt.Size()))
		for b.Loop() {
			table.EmbedGrad[dt](&a, 0, benchRows, nil)
		}
	})
}

func BenchmarkAdamW(b *testing.B) {
	table := avx512(b)
	benchType(b, func(b *testing.B, dt device.DType) {
		const n = 1 << 22 // beyond every cache
		rng := newRand(1)
		state := [4]*matrix{}
		for i := range state {
			state[i] = newMatrix(b, device.F32, 1, n, 0)
			for c := range n {
				state[i].set(0, c, rng.Float32())
			}
		}
		work := newMatrix(b, dt, 1, n, 0)
		a := kernel.AdamW{Master: state[0].p(), M: state[1].p(), V: state[2].p(), Grad: state[3].p(), Work: work.p(),
			GradScale: 1, DecayStep: 1e-5, Beta1Rest: 0.1, Beta2: 0.95, Beta2Rest: 0.05, Step: 1e-6, Correction2: 1, Eps: 1e-8}
		b.SetBytes(n * (28 + dt.Size()))
		for b.Loop() {
			table.AdamW[dt](&a, 0, n)
		}
	})
}

func BenchmarkSqNorm(b *testing.B) {
	table := avx512(b)
	x := randomMatrix(b, newRand(1), device.F32, 256, 4096, 0, 1)
	b.SetBytes(256 * 4096 * 4)
	for b.Loop() {
		for r := range 256 {
			table.SqNorm(x.at(r, 0), 4096)
		}
	}
}

// One sequence of 512, 9 heads over 3; flops are those of the triangle. The sum over all
// scores and lanes is 2 products forward and 5 backward, of which our two passes do 7.
func benchAttention(b *testing.B, products int, f func(c *attnCase)) {
	benchType(b, func(b *testing.B, dt device.DType) {
		const tokens = 512
		c := newAttnCase(b, newRand(1), dt, []int{0, tokens}, 9, 3, 64, 0)
		c.run()
		c.runGrad()
		for b.Loop() {
			f(c)
		}
		flops := float64(products) * 9 * tokens * (tokens + 1) / 2 * 64 * 2
		b.ReportMetric(flops*float64(b.N)/b.Elapsed().Seconds()/1e9, "GF/s")
	})
}

func BenchmarkAttention(b *testing.B) { benchAttention(b, 2, (*attnCase).run) }

func BenchmarkAttentionGrad(b *testing.B) { benchAttention(b, 5, (*attnCase).runGrad) }

func BenchmarkAttentionDecode(b *testing.B) {
	benchType(b, func(b *testing.B, dt device.DType) {
		c := newAttnCase(b, newRand(1), dt, []int{0, 1024}, 9, 3, 64, 0)
		a := kernel.AttentionDecode{O: c.o.p(), Q: c.q.p(), Keys: c.k.p(), Values: c.v.p(), N: 1024, LdK: c.k.ld, LdV: c.v.ld,
			Heads: 9, KVHeads: 3, HeadDim: 64, Scale: 0.125}
		for b.Loop() {
			for h := range 9 {
				c.table.AttentionDecode[dt](&a, h, c.scratch)
			}
		}
	})
}
