package native

import (
	"math"
	"testing"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

const eps = 1e-5

func rmsNormArgs(y, rstd, x, w *matrix) kernel.RMSNorm {
	return kernel.RMSNorm{Y: y.p(), Rstd: rstd.p(), X: x.p(), W: w.p(), Cols: x.cols, LdY: y.ld, LdX: x.ld, Eps: eps}
}

// Within 1e-6 of the definition in F64: the order of the sum is all that differs.
func TestRMSNormIsItsDefinition(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, cols := range widths {
			rng := newRand(uint64(cols))
			x, w := randomMatrix(t, rng, dt, 5, cols, 3, 2), randomMatrix(t, rng, dt, 1, cols, 0, 1)
			y, rstd := newMatrix(t, dt, 5, cols, 2), newMatrix(t, device.F32, 1, 5, 0)
			a := rmsNormArgs(y, rstd, x, w)
			table.RMSNorm[dt](&a, 0, 5)
			want := make([]float64, 5)
			for r := range want {
				ss := 0.0
				for c := range cols {
					ss += x.f64(r, c) * x.f64(r, c)
				}
				want[r] = 1 / math.Sqrt(ss/float64(cols)+eps)
			}
			expect(t, rstd, name("rstd ", cols), 1e-6, func(_, r int) float64 { return want[r] })
			expect(t, y, name("y ", cols), 1e-6, func(r, c int) float64 {
				return float64(roundTo(dt, float32(x.f64(r, c)*want[r]))) * w.f64(0, c)
			})
		}
	})
}

func TestRMSNormGradIsItsDefinition(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, cols := range widths {
			const rows = 7
			rng := newRand(uint64(cols))
			x, w, dy := randomMatrix(t, rng, dt, rows, cols, 1, 2), randomMatrix(t, rng, dt, 1, cols, 0, 1), randomMatrix(t, rng, dt, rows, cols, 4, 1)
			add, dx := randomMatrix(t, rng, dt, rows, cols, 0, 1), newMatrix(t, dt, rows, cols, 5)
			rstd, partial := newMatrix(t, device.F32, 1, rows, 0), newMatrix(t, device.F32, 1, cols, 0)
			for r := range rows {
				rstd.set(0, r, float32(0.3+rng.Float64()))
			}
			a := kernel.RMSNormGrad{DX: dx.p(), DY: dy.p(), X: x.p(), Rstd: rstd.p(), W: w.p(), Add: add.p(),
				Cols: cols, LdDX: dx.ld, LdDY: dy.ld, LdX: x.ld, LdAdd: add.ld}
			table.RMSNormGrad[dt](&a, 0, rows, partial.p())
			mean := make([]float64, rows)
			for r := range rows {
				for c := range cols {
					mean[r] += dy.f64(r, c) * w.f64(0, c) * x.f64(r, c) * rstd.f64(0, r) / float64(cols)
				}
			}
			expect(t, dx, name("dx ", cols), 1e-6, func(r, c int) float64 {
				hat := x.f64(r, c) * rstd.f64(0, r)
				return rstd.f64(0, r)*(dy.f64(r, c)*w.f64(0, c)-hat*mean[r]) + add.f64(r, c)
			})
			dw := make([]float64, cols)
			for r := range rows {
				for c := range dw {
					dw[c] += dy.f64(r, c) * float64(roundTo(dt, x.get(r, c)*rstd.get(0, r)))
				}
			}
			expect(t, partial, name("dw ", cols), 1e-6, func(_, c int) float64 { return dw[c] })
		}
	})
}

// The products round by themselves, so the bits are those of plain Go.
func TestRopeGivesTheBitsOfPlainGo(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, d := range []int{2, 8, 30, 32, 64, 66, 128, 256} {
			const rows, heads, kvHeads = 4, 3, 2
			rng := newRand(uint64(d))
			q, k := randomMatrix(t, rng, dt, rows, heads*d, 5, 1), randomMatrix(t, rng, dt, rows, kvHeads*d, 3, 1)
			table64 := randomMatrix(t, rng, device.F32, 9, d, 1, 1)
			pos := []int32{8, 0, 3, 3}
			wantQ, wantK := q.clone(), k.clone()
			for inverse := range 2 {
				a := kernel.Rope{Q: q.p(), K: k.p(), Table: table64.p(), Pos: unsafe.Pointer(&pos[0]), Heads: heads, KVHeads: kvHeads,
					HeadDim: d, LdQ: q.ld, LdK: k.ld, LdTable: table64.ld, Inverse: inverse}
				table.Rope[dt](&a, 0, 1) // in two parts, as pieces may be
				table.Rope[dt](&a, 1, rows)
				ropePlain(wantQ, table64, pos, d, inverse)
				ropePlain(wantK, table64, pos, d, inverse)
				if !equalBits(q, wantQ) || !equalBits(k, wantK) {
					t.Fatalf("head dimension %d, inverse %d: other bits", d, inverse)
				}
			}
			q.checkGaps(t, "q")
			k.checkGaps(t, "k")
		}
	})
}

func ropePlain(x, table *matrix, pos []int32, d, inverse int) {
	for r := range x.rows {
		for h := 0; h < x.cols; h += d {
			for j := range d / 2 {
				c, s := table.get(int(pos[r]), j), table.get(int(pos[r]), j+d/2)
				if inverse == 1 {
					s = -s
				}
				a, b := x.get(r, h+j), x.get(r, h+j+d/2)
				x.set(r, h+j, float32(a*c)-float32(b*s))
				x.set(r, h+j+d/2, float32(b*c)+float32(a*s))
			}
		}
	}
}

func TestGLUAndItsGradientAreTheirDefinitions(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, f := range widths {
			const rows = 3
			rng := newRand(uint64(f))
			x, dy := randomMatrix(t, rng, dt, rows, 2*f, 3, 4), randomMatrix(t, rng, dt, rows, f, 1, 1)
			y, dx := newMatrix(t, dt, rows, f, 2), newMatrix(t, dt, rows, 2*f, 0)
			a := kernel.GLU{Y: y.p(), GateUp: x.p(), F: f, LdY: y.ld, LdG: x.ld}
			table.GLU[dt](&a, 0, rows)
			g := kernel.GLUGrad{DGateUp: dx.p(), DY: dy.p(), GateUp: x.p(), F: f, LdDG: dx.ld, LdDY: dy.ld, LdG: x.ld}
			table.GLUGrad[dt](&g, 0, rows)
			sigmoid := func(r, c int) float64 { return 1 / (1 + math.Exp(-x.f64(r, c))) }
			expect(t, y, name("y ", f), 5e-7, func(r, c int) float64 {
				return x.f64(r, c) * sigmoid(r, c) * x.f64(r, f+c)
			})
			expect(t, dx, name("dx ", f), 1e-6, func(r, c int) float64 {
				if c >= f {
					return dy.f64(r, c-f) * x.f64(r, c-f) * sigmoid(r, c-f)
				}
				s := sigmoid(r, c)
				return dy.f64(r, c) * x.f64(r, f+c) * s * (1 + x.f64(r, c)*(1-s))
			})
			inPlace := x.clone()
			g.DGateUp, g.GateUp, g.LdDG = inPlace.p(), inPlace.p(), inPlace.ld
			table.GLUGrad[dt](&g, 0, rows)
			if !equalBits(inPlace, dx) {
				t.Fatal("in place gives other bits")
			}
		}
	})
}

// SiLU over the whole range of exponents: within 4 units in the last place of the value
// in F64, which bounds exp itself; subnormals are kept and the ends are exact.
func TestSiLUIsAccurateEverywhere(t *testing.T) {
	table := avx512(t)
	const n = 4096
	x, y := newMatrix(t, device.F32, 1, 2*n, 0), newMatrix(t, device.F32, 1, n, 0)
	worst := 0.0
	for block := range 64 {
		rng := newRand(uint64(block))
		for c := range n {
			v := float32((rng.Float64()*2 - 1) * math.Exp2(float64(rng.IntN(40)-32)))
			x.set(0, c, min(max(v, -87), 100))
			x.set(0, n+c, 1)
		}
		a := kernel.GLU{Y: y.p(), GateUp: x.p(), F: n, LdY: n, LdG: 2 * n}
		table.GLU[device.F32](&a, 0, 1)
		for c := range n {
			want := x.f64(0, c) / (1 + math.Exp(-x.f64(0, c)))
			worst = max(worst, math.Abs(y.f64(0, c)-want)/math.Abs(want))
		}
	}
	if worst > 4*math.Exp2(-24) {
		t.Errorf("relative error %.3g", worst)
	}
	for c, v := range []float32{0, float32(math.Inf(1)), float32(math.NaN()), 1e-40, -1e-40} {
		x.set(0, c, v)
		x.set(0, n+c, 1)
	}
	a := kernel.GLU{Y: y.p(), GateUp: x.p(), F: n, LdY: n, LdG: 2 * n}
	table.GLU[device.F32](&a, 0, 1)
	if y.get(0, 0) != 0 || !math.IsInf(y.f64(0, 1), 1) || y.get(0, 2) == y.get(0, 2) {
		t.Errorf("silu(0, Inf, NaN) = %v, %v, %v", y.get(0, 0), y.get(0, 1), y.get(0, 2))
	}
	if y.get(0, 3) == 0 || y.get(0, 3) != -y.get(0, 4) {
		t.Errorf("silu(±1e-40) = %v, %v: subnormals are lost", y.get(0, 3), y.get(0, 4))
	}
}

// Any range of rows gives the bits that the rows have in one call.
func TestRowsDoNotKnowTheirNeighbours(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		const rows, cols = 9, 77
		rng := newRand(1)
		x, w, dy := randomMatrix(t, rng, dt, rows, 2*cols, 0, 2), randomMatrix(t, rng, dt, 1, cols, 0, 1), randomMatrix(t, rng, dt, rows, cols, 0, 1)
		run := func(cuts ...int) [4]*matrix {
			out := [4]*matrix{newMatrix(t, dt, rows, cols, 0), newMatrix(t, dt, rows, cols, 0), newMatrix(t, dt, rows, cols, 0), newMatrix(t, dt, rows, 2*cols, 0)}
			rstd, partial := newMatrix(t, device.F32, 1, rows, 0), newMatrix(t, device.F32, 1, cols, 0)
			norm := kernel.RMSNorm{Y: out[0].p(), Rstd: rstd.p(), X: x.p(), W: w.p(), Cols: cols, LdY: cols, LdX: x.ld, Eps: eps}
			grad := kernel.RMSNormGrad{DX: out[1].p(), DY: dy.p(), X: x.p(), Rstd: rstd.p(), W: w.p(), Cols: cols, LdDX: cols, LdDY: cols, LdX: x.ld}
			glu := kernel.GLU{Y: out[2].p(), GateUp: x.p(), F: cols, LdY: cols, LdG: x.ld}
			gluGrad := kernel.GLUGrad{DGateUp: out[3].p(), DY: dy.p(), GateUp: x.p(), F: cols, LdDG: 2 * cols, LdDY: cols, LdG: x.ld}
			for i := range len(cuts) - 1 {
				lo, hi := cuts[i], cuts[i+1]
				table.RMSNorm[dt](&norm, lo, hi)
				table.RMSNormGrad[dt](&grad, lo, hi, partial.p())
				table.GLU[dt](&glu, lo, hi)
				table.GLUGrad[dt](&gluGrad, lo, hi)
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

func TestNormsPassNaNOn(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		x, w := randomMatrix(t, newRand(1), dt, 3, 100, 0, 1), randomMatrix(t, newRand(2), dt, 1, 100, 0, 1)
		x.set(1, 99, float32(math.NaN()))
		y, rstd := newMatrix(t, dt, 3, 100, 0), newMatrix(t, device.F32, 1, 3, 0)
		a := rmsNormArgs(y, rstd, x, w)
		table.RMSNorm[dt](&a, 0, 3)
		for r := range 3 {
			for c := range 100 {
				if isNaN := y.get(r, c) != y.get(r, c); isNaN != (r == 1) {
					t.Fatalf("[%d, %d] is %v", r, c, y.get(r, c))
				}
			}
		}
	})
}
