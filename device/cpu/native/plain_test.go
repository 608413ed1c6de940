package native

import (
	"math"
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// Within 1e-6 of the definition in F64, for rows whose mean is far from zero too.
func TestLayerNormIsItsDefinition(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, cols := range widths {
			rng := newRand(uint64(cols))
			x, w, b := randomMatrix(t, rng, dt, 5, cols, 3, 2), randomMatrix(t, rng, dt, 1, cols, 0, 1), randomMatrix(t, rng, dt, 1, cols, 0, 1)
			for c := range cols {
				x.set(4, c, x.get(4, c)+30)
			}
			y, stats := newMatrix(t, dt, 5, cols, 2), newMatrix(t, device.F32, 5, 2, 0)
			a := kernel.LayerNorm{Y: y.p(), Stats: stats.p(), X: x.p(), W: w.p(), B: b.p(), Cols: cols, LdY: y.ld, LdX: x.ld, Eps: eps}
			table.LayerNorm[dt](&a, 0, 5)
			var mean, rstd [5]float64
			for r := range mean {
				variance := 0.0
				for c := range cols {
					mean[r] += x.f64(r, c) / float64(cols)
				}
				for c := range cols {
					variance += (x.f64(r, c) - mean[r]) * (x.f64(r, c) - mean[r]) / float64(cols)
				}
				rstd[r] = 1 / math.Sqrt(variance+eps)
			}
			if cols == 1 { // the only element is the mean
				continue
			}
			expect(t, stats, name("stats ", cols), 1e-6, func(r, c int) float64 { return [2]float64{mean[r], rstd[r]}[c] })
			expect(t, y, name("y ", cols), 4e-6, func(r, c int) float64 {
				return (x.f64(r, c)-mean[r])*rstd[r]*w.f64(0, c) + b.f64(0, c)
			})
		}
	})
}

func TestLayerNormGradIsItsDefinition(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, cols := range widths {
			const rows = 7
			rng := newRand(uint64(cols))
			x, w, dy := randomMatrix(t, rng, dt, rows, cols, 1, 2), randomMatrix(t, rng, dt, 1, cols, 0, 1), randomMatrix(t, rng, dt, rows, cols, 4, 1)
			add, dx := randomMatrix(t, rng, dt, rows, cols, 0, 1), newMatrix(t, dt, rows, cols, 5)
			stats, partial := newMatrix(t, device.F32, rows, 2, 0), newMatrix(t, device.F32, 2, cols, 0)
			for r := range rows {
				stats.set(r, 0, float32(rng.NormFloat64()))
				stats.set(r, 1, float32(0.3+rng.Float64()))
			}
			a := kernel.LayerNormGrad{DX: dx.p(), DY: dy.p(), X: x.p(), Stats: stats.p(), W: w.p(), Add: add.p(),
				Cols: cols, LdDX: dx.ld, LdDY: dy.ld, LdX: x.ld, LdAdd: add.ld}
			table.LayerNormGrad[dt](&a, 0, rows, partial.p())
			hat := func(r, c int) float64 { return (x.f64(r, c) - stats.f64(r, 0)) * stats.f64(r, 1) }
			var mean, dot [rows]float64
			sums := newMatrix(t, device.F32, 2, cols, 0)
			for r := range rows {
				for c := range cols {
					g := dy.f64(r, c) * w.f64(0, c) / float64(cols)
					mean[r] += g
					dot[r] += g * hat(r, c)
				}
			}
			expect(t, dx, name("dx ", cols), 2e-6, func(r, c int) float64 {
				return stats.f64(r, 1)*(dy.f64(r, c)*w.f64(0, c)-mean[r]-hat(r, c)*dot[r]) + add.f64(r, c)
			})
			for c := range cols {
				var dw, db float64
				for r := range rows {
					dw += dy.f64(r, c) * hat(r, c)
					db += dy.f64(r, c)
				}
				sums.set(0, c, float32(dw))
				sums.set(1, c, float32(db))
			}
			expect(t, partial, name("dw, db ", cols), 2e-6, sums.f64)
		}
	})
}

// Over the whole range of exponents, values and slopes err by less than 5e-7 of |x| and
// of 1: about 8 units in the last place at 1.
func TestActivationsAreAccurateEverywhere(t *testing.T) {
	table := avx512(t)
	const n = 4093 // with a tail
	sqrt := math.Sqrt(2 / math.Pi)
	for act, f := range map[device.Act]func(x float64) (value, slope float64){
		device.GELU: func(x float64) (value, slope float64) {
			cdf := math.Erfc(-x/math.Sqrt2) / 2
			return x * cdf, cdf + x*math.Exp(-x*x/2)/math.Sqrt(2*math.Pi)
		},
		device.GELUTanh: func(x float64) (value, slope float64) {
			th := math.Tanh(sqrt * (x + 0.044715*x*x*x))
			return x / 2 * (1 + th), (1+th)/2 + x/2*(1-th*th)*sqrt*(1+3*0.044715*x*x)
		},
	} {
		eachType(t, func(t *testing.T, dt device.DType) {
			x, ones, y, dx := newMatrix(t, dt, 1, n, 0), newMatrix(t, dt, 1, n, 0), newMatrix(t, dt, 1, n, 0), newMatrix(t, dt, 1, n, 0)
			for block := range 32 {
				rng := newRand(uint64(block))
				for c := range n {
					x.set(0, c, float32((rng.Float64()*2-1)*math.Exp2(float64(rng.IntN(40)-32))))
					ones.set(0, c, 1)
				}
				table.Activate[dt](y.p(), x.p(), n, act)
				table.ActivateGrad[dt](dx.p(), ones.p(), x.p(), n, act)
				for c := range n {
					v := x.f64(0, c)
					value, slope := f(v)
					if !near(dt, y.get(0, c), value, math.Abs(v), 5e-7) || !near(dt, dx.get(0, c), slope, 1, 1e-6) {
						t.Fatalf("activation %d at %g: %g with slope %g, want %g with %g", act, v, y.get(0, c), dx.get(0, c), value, slope)
					}
				}
				y.checkGaps(t, "y")
				dx.checkGaps(t, "dx")
			}
			inPlace := x.clone()
			table.ActivateGrad[dt](inPlace.p(), ones.p(), inPlace.p(), n, act)
			if !equalBits(inPlace, dx) {
				t.Error("in place gives other bits")
			}
		})
	}
}

// Any range of rows, and any of elements, gives the bits that they have in one call.
func TestPlainLayersDoNotKnowTheirNeighbours(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		const rows, cols = 9, 77
		rng := newRand(1)
		x, w, dy := randomMatrix(t, rng, dt, rows, cols, 0, 2), randomMatrix(t, rng, dt, 1, cols, 0, 1), randomMatrix(t, rng, dt, rows, cols, 0, 1)
		run := func(cuts ...int) [4]*matrix {
			out := [4]*matrix{newMatrix(t, dt, rows, cols, 0), newMatrix(t, dt, rows, cols, 0), newMatrix(t, dt, rows, cols, 0), newMatrix(t, dt, rows, cols, 0)}
			stats, partial := newMatrix(t, device.F32, rows, 2, 0), newMatrix(t, device.F32, 2, cols, 0)
			norm := kernel.LayerNorm{Y: out[0].p(), Stats: stats.p(), X: x.p(), W: w.p(), B: w.p(), Cols: cols, LdY: cols, LdX: x.ld, Eps: eps}
			grad := kernel.LayerNormGrad{DX: out[1].p(), DY: dy.p(), X: x.p(), Stats: stats.p(), W: w.p(), Cols: cols, LdDX: cols, LdDY: cols, LdX: x.ld}
			for i := range len(cuts) - 1 {
				lo, hi := cuts[i], cuts[i+1]
				table.LayerNorm[dt](&norm, lo, hi)
				table.LayerNormGrad[dt](&grad, lo, hi, partial.p())
				for _, act := range []device.Act{device.GELU, device.GELUTanh} {
					table.Activate[dt](out[2].at(lo, 0), x.at(lo, 0), (hi-lo)*cols, act)
					table.ActivateGrad[dt](out[3].at(lo, 0), dy.at(lo, 0), x.at(lo, 0), (hi-lo)*cols, act)
				}
			}
			return out
		}
		whole, cut := run(0, rows), run(0, 1, 4, 4, 7, rows)
		for i := range whole {
			if !equalBits(whole[i], cut[i]) {
				t.Errorf("output %d has other bits", i)
			}
		}
	})
}
