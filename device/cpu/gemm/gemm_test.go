package gemm

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// shape is m rows of activations through a weight [n, k].
type shape struct{ m, n, k int }

// shapes have every tail: of panels, steps, slices (256 and 512), chunks (1024 and
// 2048) and pieces (264 and 256 rows, 24 panels).
func shapes() []shape {
	list := []shape{
		{1, 1, 1}, {1, 33, 31}, {2, 32, 32}, {3, 5, 7}, {12, 16, 64}, {13, 48, 33}, {31, 36, 17}, {4, 40, 600},
		{33, 31, 65}, {36, 36, 36}, {64, 64, 64}, {5, 100, 96}, {1, 576, 576},
		{5, 33, 511}, {2, 3, 512}, {7, 31, 513}, {3, 2, 2049}, {265, 3, 33}, {2, 800, 5}, {40, 3, 3100},
	}
	if quick() || testing.Short() {
		return list
	}
	return append(list, []shape{
		{33, 65, 511}, {33, 65, 512}, {40, 33, 513}, {511, 36, 100}, {512, 36, 36}, {513, 70, 257},
		{265, 800, 40}, {100, 33, 1025}, {70, 40, 2049}, {40, 70, 4100}, {300, 192, 576}, {530, 780, 300},
	}...)
}

var types = []device.DType{device.F32, device.BF16}

// eachCase runs f for every path, type and shape.
func eachCase(t *testing.T, f func(t *testing.T, path string, dt device.DType, s shape)) {
	for _, path := range testPaths(t) {
		for _, dt := range types {
			if high(path) && dt == device.BF16 {
				continue // as without -high
			}
			if quick() && dt == device.F32 && !high(path) {
				continue // no tiles in it
			}
			t.Run(fmt.Sprintf("%s/%v", path, dt), func(t *testing.T) {
				for _, s := range shapes() {
					f(t, path, dt, s)
					if t.Failed() {
						t.Fatalf("shape %+v", s)
					}
				}
			})
		}
	}
}

// check compares an output with Σ a(i,l)·b(l,j) in float64, plus extra: exactly if tol
// is zero, else relative to the sum of magnitudes.
func check(t *testing.T, what string, got mat, k int, a, b func(i, l int) float32, extra func(i, j int) float64, tol float64) {
	t.Helper()
	got.checkGuards(t, what)
	for _, i := range sample(got.Rows, k) {
		for _, j := range sample(got.Cols, k) {
			sum, size := 0.0, 0.0
			for l := range k {
				p := float64(a(i, l)) * float64(b(j, l))
				sum += p
				size += math.Abs(p)
			}
			want := sum
			if extra != nil {
				want += extra(i, j)
				size += math.Abs(extra(i, j))
			}
			x := float64(got.get(i, j))
			limit := tol * size
			if got.DT == device.BF16 {
				limit += math.Abs(want) / 256
			}
			if math.IsNaN(x) || math.Abs(x-want) > limit {
				t.Errorf("%s (%d, %d): got %v, want %v ± %.2g", what, i, j, x, want, limit)
				return
			}
		}
	}
}

// sample is indices of [0, n): all of them for short sums over few, else the edges of panels and
// pieces and some in between.
func sample(n, k int) (list []int) {
	if n*k <= 4096 {
		for i := range n {
			list = append(list, i)
		}
		return list
	}
	for _, i := range []int{0, 1, 11, 12, 31, 32, n / 3, 255, 256, 263, 264, n / 2, 2*n/3 + 1, 767, 768, n - 2, n - 1} {
		if i >= 0 && i < n {
			list = append(list, i)
		}
	}
	return list
}

func TestProductsOfSmallIntegersAreExact(t *testing.T) {
	eachCase(t, func(t *testing.T, path string, dt device.DType, s shape) {
		r := rand.New(rand.NewPCG(1, uint64(s.m*s.n*s.k)))
		h := newHost(t, path, 2)
		checkProducts(t, h, dt, device.F32, s, integers(r), 0)
	})
}

// highTol is what a product may be off at precision high, relative to its terms: lo·lo, which is left
// out, and the rounding of both lo make up to 2⁻¹⁶ of a term each.
const highTol = 4.6e-5

// Random data lie within what the length of the sum allows: f32 partial sums of 256 terms.
func TestProductsOfRandomDataAreClose(t *testing.T) {
	eachCase(t, func(t *testing.T, path string, dt device.DType, s shape) {
		r := rand.New(rand.NewPCG(2, uint64(s.m*s.n*s.k)))
		h := newHost(t, path, 3)
		for _, out := range []device.DType{device.F32, dt} {
			if quick() && out == device.F32 {
				continue
			}
			tol := 2e-6
			if high(path) {
				tol = highTol
			}
			checkProducts(t, h, dt, out, s, normals(r), tol)
		}
	})
}

// checkProducts checks the three products, with bias and add where they exist.
func checkProducts(t *testing.T, h host, dt, out device.DType, s shape, data func(int, int) float32, tol float64) {
	x, dy := newMat(t, dt, s.m, s.k, data), newMat(t, dt, s.m, s.n, data)
	src := newMat(t, dt, s.n, s.k, data)
	w := h.weight(src, device.FormForward|device.FormDX)
	bias := newMat(t, device.F32, 1, s.n, data)
	if out == device.BF16 && s.m%2 == 0 {
		bias = newMat(t, device.BF16, 1, s.n, data)
	}
	add, addX := newMat(t, out, s.m, s.n, data), newMat(t, out, s.m, s.k, data)

	y := newMat(t, out, s.m, s.n, zeros)
	h.linear(y, x, w, kernel.Matrix{}, kernel.Matrix{})
	check(t, "Linear", y, s.k, x.get, src.get, nil, tol)
	h.linear(y, x, w, bias.Matrix, add.Matrix)
	extra := func(i, j int) float64 { return float64(bias.get(0, j)) + float64(add.get(i, j)) }
	check(t, "Linear with bias and add", y, s.k, x.get, src.get, extra, tol)

	dx := newMat(t, out, s.m, s.k, addX.get)
	h.linearDX(dx, dy, w, dx.Matrix) // in place
	column := func(j, l int) float32 { return src.get(l, j) }
	check(t, "LinearDX", dx, s.n, dy.get, column, func(i, j int) float64 { return float64(addX.get(i, j)) }, tol)

	start := newMat(t, device.F32, s.n, s.k, data)
	dw := newMat(t, device.F32, s.n, s.k, start.get)
	h.linearDW(dw, dy, x, s.m)
	check(t, "LinearDW", dw, s.m, func(i, l int) float32 { return dy.get(l, i) }, func(j, l int) float32 { return x.get(l, j) },
		func(i, j int) float64 { return float64(start.get(i, j)) }, tol)
}

func TestRowsDoNotKnowTheirIndexOrNumber(t *testing.T) {
	eachCase(t, func(t *testing.T, path string, dt device.DType, s shape) {
		if s.m < 3 {
			return
		}
		r := rand.New(rand.NewPCG(3, uint64(s.m*s.n*s.k)))
		h := newHost(t, path, 2)
		x, dy := newMat(t, dt, s.m, s.k, normals(r)), newMat(t, dt, s.m, s.n, normals(r))
		w := h.weight(newMat(t, dt, s.n, s.k, normals(r)), device.FormForward|device.FormDX)
		y, dx := newMat(t, dt, s.m, s.n, zeros), newMat(t, dt, s.m, s.k, zeros)
		h.linear(y, x, w, kernel.Matrix{}, kernel.Matrix{})
		h.linearDX(dx, dy, w, kernel.Matrix{})
		lo := 1 + r.IntN(s.m-2)
		hi := lo + 1 + r.IntN(s.m-lo)
		part := func(m mat) func(int, int) float32 { return func(i, j int) float32 { return m.get(lo+i, j) } }
		y2, dx2 := newMat(t, dt, hi-lo, s.n, zeros), newMat(t, dt, hi-lo, s.k, zeros)
		h.linear(y2, newMat(t, dt, hi-lo, s.k, part(x)), w, kernel.Matrix{}, kernel.Matrix{})
		h.linearDX(dx2, newMat(t, dt, hi-lo, s.n, part(dy)), w, kernel.Matrix{})
		if err := y2.equalBits(newMat(t, dt, hi-lo, s.n, part(y))); err != nil {
			t.Errorf("Linear of rows [%d, %d): %v", lo, hi, err)
		}
		if err := dx2.equalBits(newMat(t, dt, hi-lo, s.k, part(dx))); err != nil {
			t.Errorf("LinearDX of rows [%d, %d): %v", lo, hi, err)
		}
	})
}

// Rows and columns of a weight gradient, too, are independent of how many there are.
func TestNeitherThreadsNorWidthChangeBits(t *testing.T) {
	eachCase(t, func(t *testing.T, path string, dt device.DType, s shape) {
		r := rand.New(rand.NewPCG(4, uint64(s.m*s.n*s.k)))
		x, dy, src := newMat(t, dt, s.m, s.k, normals(r)), newMat(t, dt, s.m, s.n, normals(r)), newMat(t, dt, s.n, s.k, normals(r))
		var first [4]mat
		for _, workers := range []int{1, 2, 4} {
			if quick() && workers == 2 {
				continue
			}
			h := newHost(t, path, workers)
			w := h.weight(src, device.FormForward|device.FormDX)
			got := [4]mat{newMat(t, device.F32, s.m, s.n, zeros), newMat(t, device.F32, s.m, s.k, zeros), newMat(t, device.F32, s.n, s.k, zeros)}
			h.linear(got[0], x, w, kernel.Matrix{}, kernel.Matrix{})
			h.linearDX(got[1], dy, w, kernel.Matrix{})
			h.linearDW(got[2], dy, x, s.m)
			// The transposed gradient has the same products in other places.
			back := newMat(t, device.F32, s.k, s.n, zeros)
			h.linearDW(back, x, dy, s.m)
			got[3] = newMat(t, device.F32, s.n, s.k, func(i, j int) float32 { return back.get(j, i) })
			if workers == 1 {
				first = got
			}
			for i, name := range []string{"Linear", "LinearDX", "LinearDW", "transposed LinearDW"} {
				if i == 3 && high(path) {
					continue // hi·lo and lo·hi are added in the other order
				}
				want := first[min(i, 2)]
				if i < 2 {
					want = first[i]
				}
				if err := got[i].equalBits(want); err != nil {
					t.Errorf("%s with %d workers: %v", name, workers, err)
				}
			}
		}
	})
}

func TestGradientsOfBlocksAddInOrder(t *testing.T) {
	for _, path := range testPaths(t) {
		for _, dt := range types {
			for _, c := range []struct{ seqs, seq int }{{1, 600}, {3, 1100}, {4, 300}, {2, 1024}, {5, 1}, {2, 33}} {
				r := rand.New(rand.NewPCG(5, uint64(c.seq)))
				h := newHost(t, path, 2)
				rows := c.seqs * c.seq
				x, dy := newMat(t, dt, rows, 40, normals(r)), newMat(t, dt, rows, 37, normals(r))
				whole, blocks := newMat(t, device.F32, 37, 40, zeros), newMat(t, device.F32, 37, 40, zeros)
				h.linearDW(whole, dy, x, c.seq)
				for first := 0; first < rows; {
					end := blockEnd(first, c.seq)
					sum := newMat(t, device.F32, 37, 40, zeros)
					part := func(m mat) mat {
						return newMat(t, dt, end-first, m.Cols, func(i, j int) float32 { return m.get(first+i, j) })
					}
					h.linearDW(sum, part(dy), part(x), end-first)
					for i := range 37 {
						for j := range 40 {
							blocks.set(i, j, blocks.get(i, j)+sum.get(i, j))
						}
					}
					first = end
				}
				if err := whole.equalBits(blocks); err != nil {
					t.Errorf("%s %v, %d sequences of %d: %v", path, dt, c.seqs, c.seq, err)
				}
			}
		}
	}
}

func TestWeightsPackedInAnyPiecesAreTheSame(t *testing.T) {
	for _, path := range testPaths(t) {
		for _, dt := range types {
			r := rand.New(rand.NewPCG(6, 6))
			h := newHost(t, path, 3)
			for _, s := range []shape{{0, 1, 1}, {0, 70, 35}, {0, 200, 64}, {0, 36, 300}} {
				src := newMat(t, dt, s.n, s.k, normals(r))
				for _, forms := range []device.Forms{device.FormForward, device.FormDX, device.FormForward | device.FormDX} {
					whole := h.weight(src, forms)
					for range 5 {
						a, b := r.IntN(s.n+1), r.IntN(s.n+1)
						cut := h.weight(src, forms, min(a, b), max(a, b))
						if string(whole.Mem) != string(cut.Mem) {
							t.Errorf("%s %v [%d, %d] forms %d, cut at %d and %d: other bytes", path, dt, s.n, s.k, forms, a, b)
						}
					}
				}
			}
		}
	}
}

// Inf or NaN in one row must stay there: padding must neither read beyond the
// operands nor multiply what it read.
func TestInfinitiesAndNaNsStayInTheirRow(t *testing.T) {
	inf := float32(math.Inf(1))
	eachCase(t, func(t *testing.T, path string, dt device.DType, s shape) {
		if s.m < 3 {
			return
		}
		ones := func(int, int) float32 { return 1 }
		h := newHost(t, path, 2)
		x := newMat(t, dt, s.m, s.k, func(r, c int) float32 {
			switch {
			case r == 0 && c == s.k-1:
				return inf
			case r == 1 && c == 0:
				return float32(math.NaN())
			}
			return 1
		})
		w := h.weight(newMat(t, dt, s.n, s.k, ones), device.FormForward)
		y := newMat(t, dt, s.m, s.n, zeros)
		x.fillGuards(inf)
		h.linear(y, x, w, kernel.Matrix{}, kernel.Matrix{})
		for c := range s.n {
			// At precision high an Inf also meets the low half of its factor, which may be zero.
			if got := y.get(0, c); got != inf && !(high(path) && got != got) {
				t.Fatalf("row with Inf: got %v", got)
			}
			if got := y.get(1, c); got == got {
				t.Fatalf("row with NaN: got %v", got)
			}
			for r := 2; r < s.m; r++ {
				if got, want := y.get(r, c), fromTo(dt, float32(s.k)); got != want {
					t.Fatalf("row %d: got %v, want %v", r, got, want)
				}
			}
		}
		dy := newMat(t, dt, s.m, s.n, ones)
		dy.fillGuards(inf)
		clean := newMat(t, dt, s.m, s.k, ones)
		clean.fillGuards(inf)
		dw := newMat(t, device.F32, s.n, s.k, zeros)
		h.linearDW(dw, dy, clean, s.m)
		for i := range s.n {
			for j := range s.k {
				if got := dw.get(i, j); got != float32(s.m) {
					t.Fatalf("gradient (%d, %d): got %v, want %v", i, j, got, s.m)
				}
			}
		}
	})
}

func fromTo(dt device.DType, x float32) float32 {
	if dt == device.BF16 {
		return fromBF16(toBF16(x))
	}
	return x
}

// The f32 kernels keep subnormals; bf16 dot products, on tiles and by VDPBF16PS, flush them.
func TestSubnormalsFollowTheClass(t *testing.T) {
	tiny := math.Float32frombits(0x00010000) // also a bf16
	for _, path := range testPaths(t) {
		for _, dt := range types {
			h := newHost(t, path, 1)
			x := newMat(t, dt, 1, 1, func(int, int) float32 { return tiny })
			w := h.weight(newMat(t, dt, 1, 1, func(int, int) float32 { return 1 }), device.FormForward)
			y := newMat(t, dt, 1, 1, zeros)
			h.linear(y, x, w, kernel.Matrix{}, kernel.Matrix{})
			want := tiny
			if high(path) || strings.HasSuffix(path, "bf16") && dt == device.BF16 {
				want = 0
			}
			if got := y.get(0, 0); got != want {
				t.Errorf("%s %v: got %v, want %v", path, dt, got, want)
			}
		}
	}
}

func TestSteadyProductsAllocateNothing(t *testing.T) {
	for _, path := range testPaths(t) {
		h := newHost(t, path, 1)
		r := rand.New(rand.NewPCG(7, 7))
		x, dy := newMat(t, device.BF16, 40, 64, normals(r)), newMat(t, device.BF16, 40, 96, normals(r))
		w := h.weight(newMat(t, device.BF16, 96, 64, normals(r)), device.FormForward|device.FormDX)
		y, dx, dw := newMat(t, device.BF16, 40, 96, zeros), newMat(t, device.BF16, 40, 64, zeros), newMat(t, device.F32, 96, 64, zeros)
		sh := device.Shape{Rows: 40, Seq: 40, In: 64, Out: 96, DT: device.BF16}
		ws := guarded(t, int(max(h.g.Need(device.OpLinear, sh, 1), h.g.Need(device.OpLinearDX, sh, 1), h.g.Need(device.OpLinearDW, sh, 1))))
		p := &serialPool{}
		if n := testing.AllocsPerRun(10, func() {
			h.g.Linear(p, y.Matrix, x.Matrix, w, kernel.Matrix{}, kernel.Matrix{}, ws)
			h.g.LinearDX(p, dx.Matrix, dy.Matrix, w, kernel.Matrix{}, ws)
			h.g.LinearDW(p, dw.Matrix, dy.Matrix, x.Matrix, 40, ws)
			h.g.Pack(p, w, 0, 8)
		}); n != 0 {
			t.Errorf("%s: %v allocations", path, n)
		}
	}
}

// serialPool runs pieces on the caller.
type serialPool struct{}

func (*serialPool) Workers() int { return 1 }
func (*serialPool) Run(n int, t kernel.Task) {
	for i := range n {
		t.Piece(i, 0)
	}
}

func TestUnknownPathsAreRefused(t *testing.T) {
	if _, err := New("avx1024"); err == nil {
		t.Error("no error for a path that does not exist")
	}
}
