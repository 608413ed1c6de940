package native

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
	"github.com/skein-ml/skein/internal/invariant"
)

// attnCase is attention over rows of packed documents, with everything it reads and writes.
type attnCase struct {
	dt                      device.DType
	cu                      []int
	heads, kvHeads, headDim int
	window                  int

	q, k, v, do   *matrix
	o, lse, delta *matrix
	sums          unsafe.Pointer
	slots         int // key tiles held at once by runGrad
	dq, dk, dv    *matrix
	table         kernel.Table
	scratch       unsafe.Pointer
	forward       kernel.Attention
	backward      kernel.AttentionGrad
}

func newAttnCase(t testing.TB, rng *rand.Rand, dt device.DType, cu []int, heads, kvHeads, headDim, window int) *attnCase {
	c := &attnCase{dt: dt, cu: cu, heads: heads, kvHeads: kvHeads, headDim: headDim, window: window, table: avx512(t), slots: 1}
	rows, q, kv := cu[len(cu)-1], heads*headDim, kvHeads*headDim
	c.q, c.k = randomMatrix(t, rng, dt, rows, q, 3, 1), randomMatrix(t, rng, dt, rows, kv, 5, 1)
	c.v, c.do = randomMatrix(t, rng, dt, rows, kv, 1, 1), randomMatrix(t, rng, dt, rows, q, 2, 1)
	c.o, c.dq = newMatrix(t, dt, rows, q, 4), newMatrix(t, dt, rows, q, 0)
	c.dk, c.dv = newMatrix(t, dt, rows, kv, 3), newMatrix(t, dt, rows, kv, 1)
	c.lse, c.delta = newMatrix(t, device.F32, heads, rows, 7), newMatrix(t, device.F32, heads, rows, 2)
	c.sums = garbage(t, heads*c.delta.ld*((headDim+15)&^15))
	c.scratch = newScratch(t, c.table)
	return c
}

func (c *attnCase) scale() float32 { return float32(1 / math.Sqrt(float64(c.headDim))) }

// tiles calls f for every tile of every document, one by one, or several heads or rows at once.
func (c *attnCase) tiles(heads, rows int, f func(kernel.Tile)) {
	for i := range len(c.cu) - 1 {
		for lo := c.cu[i]; lo < c.cu[i+1]; lo += rows * kernel.TileRows {
			for h := 0; h < c.heads; h += heads {
				f(kernel.Tile{Doc: c.cu[i], End: c.cu[i+1], Lo: lo, Hi: min(lo+rows*kernel.TileRows, c.cu[i+1]), Head: h, Heads: heads})
			}
		}
	}
}

// pairs calls f for every pair of tiles of every document that see each other, with slots keys held at once.
func (c *attnCase) pairs(slots int, f func(kernel.Pair)) {
	sees := func(q, k, doc int) bool { // whether any of q's tile may see any of k's
		return k <= q && (c.window == 0 || q-c.window+1 < k+kernel.TileRows)
	}
	group := c.heads / c.kvHeads
	for i := range len(c.cu) - 1 {
		doc, end := c.cu[i], c.cu[i+1]
		for lo := doc; lo < end; lo += slots * kernel.TileRows {
			for h := range c.heads {
				for q := lo; q < end; q += kernel.TileRows {
					fresh := true
					for k := lo; k < min(lo+slots*kernel.TileRows, q+1); k += kernel.TileRows {
						if !sees(q, k, doc) {
							continue
						}
						next := q + kernel.TileRows
						f(kernel.Pair{KeyLo: k, KeyHi: min(k+kernel.TileRows, end), QueryLo: q, QueryHi: min(next, end),
							KVHead: h / group, Head: h, Slot: (k - lo) / kernel.TileRows, NewQueries: fresh,
							FirstOfKeys: h%group == 0 && q == k, LastOfKeys: h%group == group-1 && (next >= end || !sees(next, k, doc)),
							FirstOfQueries: k == doc || !sees(q, k-kernel.TileRows, doc), LastOfQueries: k == q})
						fresh = false
					}
				}
			}
		}
	}
}

func (c *attnCase) run() {
	c.forward = kernel.Attention{O: c.o.p(), LSE: c.lse.p(), Q: c.q.p(), K: c.k.p(), V: c.v.p(),
		LdO: c.o.ld, LdLSE: c.lse.ld, LdQ: c.q.ld, LdK: c.k.ld, LdV: c.v.ld,
		Heads: c.heads, KVHeads: c.kvHeads, HeadDim: c.headDim, Window: c.window, Scale: c.scale()}
	c.tiles(1, 1, func(t kernel.Tile) { c.table.Attention[c.dt](&c.forward, t, c.scratch) })
}

func (c *attnCase) runGrad() {
	c.backward = kernel.AttentionGrad{DQ: c.dq.p(), DK: c.dk.p(), DV: c.dv.p(), DO: c.do.p(),
		Q: c.q.p(), K: c.k.p(), V: c.v.p(), O: c.o.p(), LSE: c.lse.p(), Delta: c.delta.p(), Sums: c.sums,
		LdDQ: c.dq.ld, LdDK: c.dk.ld, LdDV: c.dv.ld, LdDO: c.do.ld,
		LdQ: c.q.ld, LdK: c.k.ld, LdV: c.v.ld, LdO: c.o.ld, LdLSE: c.lse.ld, LdDelta: c.delta.ld,
		Heads: c.heads, KVHeads: c.kvHeads, HeadDim: c.headDim, Window: c.window, Scale: c.scale()}
	rows := c.q.rows
	c.table.AttentionDelta[c.dt](&c.backward, 0, rows/2)
	c.table.AttentionDelta[c.dt](&c.backward, rows/2, rows)
	c.pairs(c.slots, func(p kernel.Pair) { c.table.AttentionGrad[c.dt](&c.backward, p, c.scratch) })
}

// attnReference is attention and its gradients by their definitions, in F64, indexed by row and column.
type attnReference struct{ o, lse, dq, dk, dv [][]float64 }

func grid(rows, cols int) [][]float64 {
	g := make([][]float64, rows)
	for i := range g {
		g[i] = make([]float64, cols)
	}
	return g
}

// References are long loops on memory of one goroutine: the race detector would make them ten
// times slower and find nothing.

//go:norace
func (m *matrix) wide() [][]float64 {
	g := grid(m.rows, m.cols)
	for r := range m.rows {
		for c := range m.cols {
			g[r][c] = m.f64(r, c)
		}
	}
	return g
}

//go:norace
func dot(a, b []float64) (sum float64) {
	for i, x := range a {
		sum += x * b[i]
	}
	return sum
}

//go:norace
func addScaled(dst []float64, by float64, x []float64) {
	for i, v := range x {
		dst[i] += by * v
	}
}

func (c *attnCase) define() attnReference {
	rows, d, scale := c.q.rows, c.headDim, float64(c.scale())
	q, k, v, do := c.q.wide(), c.k.wide(), c.v.wide(), c.do.wide()
	ref := attnReference{o: grid(rows, c.q.cols), lse: grid(c.heads, rows), dq: grid(rows, c.q.cols), dk: grid(rows, c.k.cols), dv: grid(rows, c.k.cols)}
	for i := range len(c.cu) - 1 {
		for h := range c.heads {
			qc, kc := h*d, h*c.kvHeads/c.heads*d
			for r := c.cu[i]; r < c.cu[i+1]; r++ {
				lo := c.cu[i]
				if c.window > 0 {
					lo = max(lo, r-c.window+1)
				}
				own, grad := q[r][qc:qc+d], do[r][qc:qc+d]
				p, dp, total, delta := make([]float64, r+1), make([]float64, r+1), 0.0, 0.0
				for j := lo; j <= r; j++ {
					p[j] = math.Exp(dot(own, k[j][kc:kc+d]) * scale)
					total += p[j]
				}
				ref.lse[h][r] = math.Log(total)
				for j := lo; j <= r; j++ {
					p[j] /= total
					dp[j] = dot(grad, v[j][kc:kc+d])
					delta += p[j] * dp[j]
				}
				for j := lo; j <= r; j++ {
					ds := p[j] * (dp[j] - delta) * scale
					addScaled(ref.o[r][qc:qc+d], p[j], v[j][kc:kc+d])
					addScaled(ref.dq[r][qc:qc+d], ds, k[j][kc:kc+d])
					addScaled(ref.dk[j][kc:kc+d], ds, own)
					addScaled(ref.dv[j][kc:kc+d], p[j], grad)
				}
			}
		}
	}
	return ref
}

// Documents shorter, longer and exactly as long as tiles and blocks; every kind of head
// dimension; grouped heads; windows within a tile, at its edge and across several.
var attnShapes = []struct {
	cu                      []int
	heads, kvHeads, headDim int
	window                  int
}{
	{[]int{0, 1}, 1, 1, 8, 0},
	{[]int{0, 1, 3, 10, 74}, 2, 1, 16, 0},
	{[]int{0, 64, 128}, 2, 2, 64, 0},
	{[]int{0, 65, 192, 333}, 3, 1, 64, 0},
	{[]int{0, 130, 137}, 4, 2, 24, 0},
	{[]int{0, 150}, 2, 2, 80, 0},
	{[]int{0, 71, 140}, 2, 1, 128, 0},
	{[]int{0, 330}, 1, 1, 256, 0}, // several assembly calls a tile
	{[]int{0, 90}, 1, 1, 40, 2},
	{[]int{0, 200, 333}, 2, 1, 32, 17},
	{[]int{0, 200, 333}, 2, 1, 32, 64},
	{[]int{0, 200}, 2, 1, 48, 65},
	{[]int{0, 260}, 2, 2, 16, 150},
	{[]int{0, 400}, 1, 1, 200, 390},
}

// F32 within 2e-6 of the largest element; BF16 within the rounding of its result
// and, for gradients, of the o that delta is made of.
func TestAttentionAndItsGradientsAreTheirDefinitions(t *testing.T) {
	eachType(t, func(t *testing.T, dt device.DType) {
		for i, s := range attnShapes {
			name := fmt.Sprintf("%v heads %d/%d of %d window %d", s.cu, s.heads, s.kvHeads, s.headDim, s.window)
			c := newAttnCase(t, newRand(uint64(i)), dt, s.cu, s.heads, s.kvHeads, s.headDim, s.window)
			c.run()
			c.runGrad()
			ref := c.define()
			tolerance := 2e-6
			if dt == device.BF16 {
				tolerance = 2e-3
			}
			at := func(g [][]float64) func(r, c int) float64 { return func(r, c int) float64 { return g[r][c] } }
			expect(t, c.lse, name+" lse", 1e-6, at(ref.lse))
			expect(t, c.o, name+" o", 2e-6, at(ref.o))
			expect(t, c.dq, name+" dq", tolerance, at(ref.dq))
			expect(t, c.dk, name+" dk", tolerance, at(ref.dk))
			expect(t, c.dv, name+" dv", tolerance, at(ref.dv))
		}
	})
}

// A query that sees only its own key has weight 1 whatever its score, so q and k get no gradient
// at all: not a rounding error, zero.
func TestAQueryOfOneKeyHasNoGradient(t *testing.T) {
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, headDim := range []int{8, 64, 72, 200} {
			c := newAttnCase(t, newRand(5), dt, []int{0, 1, 70, 71}, 4, 2, headDim, 1)
			c.run()
			c.runGrad()
			for _, m := range []*matrix{c.dq, c.dk} {
				for r := range m.rows {
					for col := range m.cols {
						if m.get(r, col) != 0 {
							t.Fatalf("head dimension %d: gradient %v", headDim, m.get(r, col))
						}
					}
				}
			}
		}
	})
}

// copyRows makes rows of dst from rows of src.
func copyRows(dst *matrix, at int, src *matrix, from, n int) {
	for r := range n {
		for c := range src.cols {
			dst.set(at+r, c, src.get(from+r, c))
		}
	}
}

func sameRows(a *matrix, from int, b *matrix, at, n int) bool {
	for r := range n {
		for c := range a.cols {
			if math.Float32bits(a.get(from+r, c)) != math.Float32bits(b.get(at+r, c)) {
				return false
			}
		}
	}
	return true
}

// A document gives the same bits wherever it is packed and whatever is beside it, here NaN; and
// its first rows give the same bits however long it is.
func TestADocumentKnowsNothingOfOthers(t *testing.T) {
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, window := range []int{0, 70} {
			const n = 203
			alone := newAttnCase(t, newRand(1), dt, []int{0, n}, 4, 2, 64, window)
			alone.run()
			alone.runGrad()
			packed := newAttnCase(t, newRand(2), dt, []int{0, 77, 77 + n, 77 + n + 19}, 4, 2, 64, window)
			for _, m := range []*matrix{packed.q, packed.k, packed.v, packed.do} {
				for r := range m.rows {
					for c := range m.cols {
						m.set(r, c, float32(math.NaN()))
					}
				}
			}
			pairs := [][2]*matrix{{packed.q, alone.q}, {packed.k, alone.k}, {packed.v, alone.v}, {packed.do, alone.do}}
			for _, p := range pairs {
				copyRows(p[0], 77, p[1], 0, n)
			}
			packed.run()
			packed.runGrad()
			for i, p := range [][2]*matrix{{packed.o, alone.o}, {packed.dq, alone.dq}, {packed.dk, alone.dk}, {packed.dv, alone.dv}} {
				if !sameRows(p[1], 0, p[0], 77, n) {
					t.Errorf("window %d: output %d changes with the pack", window, i)
				}
			}
			for _, short := range []int{1, 63, 64, 100, 130} {
				prefix := newAttnCase(t, newRand(3), dt, []int{0, short}, 4, 2, 64, window)
				for _, p := range [][2]*matrix{{prefix.q, alone.q}, {prefix.k, alone.k}, {prefix.v, alone.v}} {
					copyRows(p[0], 0, p[1], 0, short)
				}
				prefix.run()
				if !sameRows(prefix.o, 0, alone.o, 0, short) {
					t.Errorf("window %d: the first %d rows change with the length of the document", window, short)
				}
			}
		}
	})
}

// What is not finite in a row reaches that row and later ones, never earlier ones.
func TestAttentionPassesNaNOnlyForward(t *testing.T) {
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, bad := range []int{0, 5, 64, 77, 129} {
			for _, value := range []float64{math.NaN(), math.Inf(1)} {
				for operand := range 3 {
					c := newAttnCase(t, newRand(4), dt, []int{0, 130}, 1, 1, 64, 0)
					[]*matrix{c.q, c.k, c.v}[operand].set(bad, 3, float32(value))
					c.run()
					for r := range 130 {
						finite := true
						for e := range 64 {
							finite = finite && !math.IsNaN(c.o.f64(r, e)) && !math.IsInf(c.o.f64(r, e), 0)
						}
						reached := r == bad || r > bad && operand > 0
						if reached && operand == 1 && !math.IsNaN(value) {
							continue // an infinite score may as well be −Inf, which is a weight of zero
						}
						if finite == reached {
							t.Fatalf("operand %d, %v in row %d: row %d finite: %v", operand, value, bad, r, finite)
						}
					}
				}
			}
		}
	})
}

// A NaN gradient of one query reaches keys that the query sees, and no others.
func TestAttentionGradPassesNaNOnlyBackward(t *testing.T) {
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, bad := range []int{0, 5, 64, 77, 129} {
			c := newAttnCase(t, newRand(4), dt, []int{0, 130}, 1, 1, 64, 0)
			c.run()
			c.do.set(bad, 3, float32(math.NaN()))
			c.runGrad()
			for r := range 130 {
				if isNaN := math.IsNaN(c.dv.f64(r, 3)); isNaN != (r <= bad) {
					t.Fatalf("row %d: dv[%d] is NaN: %v", bad, r, isNaN)
				}
				if isNaN := math.IsNaN(c.dk.f64(r, 0)); isNaN != (r <= bad) {
					t.Fatalf("row %d: dk[%d] is NaN: %v", bad, r, isNaN)
				}
				if isNaN := math.IsNaN(c.dq.f64(r, 0)); isNaN != (r == bad) {
					t.Fatalf("row %d: dq[%d] is NaN: %v", bad, r, isNaN)
				}
			}
		}
	})
}

func TestAttentionDecodeIsTheLastRowOfAttention(t *testing.T) {
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, n := range []int{1, 16, 17, 300, 1024, 1100} {
			for _, window := range []int{0, 1, 200} {
				for _, d := range []int{8, 72} {
					const heads, kvHeads = 2, 1
					rng := newRand(uint64(n))
					c := newAttnCase(t, rng, dt, []int{0, n}, heads, kvHeads, d, window)
					lo := 0
					if window > 0 {
						lo = max(0, n-window)
					}
					o := newMatrix(t, dt, 1, heads*d, 0)
					a := kernel.AttentionDecode{O: o.p(), Q: c.q.at(n-1, 0), Keys: c.k.p(), Values: c.v.p(), N: n, LdK: c.k.ld, LdV: c.v.ld,
						Heads: heads, KVHeads: kvHeads, HeadDim: d, Window: window, Scale: c.scale()}
					want, q, k, v := make([]float64, heads*d), c.q.wide(), c.k.wide(), c.v.wide()
					for h := range heads {
						c.table.AttentionDecode[dt](&a, h, c.scratch)
						total, own, kc := 0.0, want[h*d:h*d+d], h*kvHeads/heads*d
						for j := lo; j < n; j++ {
							p := math.Exp(dot(q[n-1][h*d:h*d+d], k[j][kc:kc+d]) * float64(c.scale()))
							total += p
							addScaled(own, p, v[j][kc:kc+d])
						}
						for e := range own {
							own[e] /= total
						}
					}
					expect(t, o, fmt.Sprintf("n %d window %d d %d", n, window, d), 2e-6, func(_, c int) float64 { return want[c] })
				}
			}
		}
	})
}

// How many tiles a call takes, or a worker holds, is a matter of speed.
func TestTilesThatStayTogetherKnowNothingOfEachOther(t *testing.T) {
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, window := range []int{0, 2, 64, 65, 100} {
			c := newAttnCase(t, newRand(6), dt, []int{0, 130, 137, 560}, 6, 2, 40, window)
			c.run()
			c.runGrad()
			outputs := []*matrix{c.o, c.lse, c.dq, c.dk, c.dv}
			var want []*matrix
			for _, m := range outputs {
				own := newMatrix(t, m.dt, m.rows, m.cols, 0)
				copyRows(own, 0, m, 0, m.rows)
				want = append(want, own)
			}
			for _, together := range [][2]int{{3, 1}, {1, 4}, {1, 3}} {
				c.tiles(together[0], together[1], func(t kernel.Tile) { c.table.Attention[dt](&c.forward, t, c.scratch) })
				c.slots = kernel.KeySlots
				c.runGrad()
				for i, m := range outputs {
					if !sameRows(m, 0, want[i], 0, m.rows) {
						t.Errorf("window %d: output %d changes with %d heads and %d tiles of rows together", window, i, together[0], together[1])
					}
				}
			}
		}
	})
}

func TestATileOffItsDocumentsGridIsRefused(t *testing.T) {
	if !invariant.Enabled {
		t.Skip("SKIPPED: needs -tags invariants")
	}
	refused := func(name any, f func()) {
		defer func() {
			if recover() == nil {
				t.Errorf("%+v is taken", name)
			}
		}()
		f()
	}
	for _, tile := range []kernel.Tile{
		{Doc: 0, End: 200, Lo: 1, Hi: 65, Heads: 1},
		{Doc: 0, End: 200, Lo: 64, Hi: 100, Heads: 1},
		{Doc: 0, End: 50, Lo: 0, Hi: 64, Heads: 1},
		{Doc: 0, End: 64, Lo: 0, Hi: 64, Head: 2, Heads: 1},
		{Doc: 0, End: 64, Lo: 0, Hi: 64, Heads: 2}, // of two key heads
		{Doc: 0, End: 400, Lo: 0, Hi: 320, Heads: 1},
	} {
		refused(tile, func() { checkTile(tile, 2, 2, 64) })
	}
	for _, pair := range []kernel.Pair{
		{KeyLo: 64, KeyHi: 128, QueryLo: 0, QueryHi: 64},
		{KeyLo: 0, KeyHi: 60, QueryLo: 64, QueryHi: 128},
		{KeyLo: 0, KeyHi: 64, QueryLo: 0, QueryHi: 65},
		{KeyLo: 0, KeyHi: 64, QueryLo: 0, QueryHi: 64, KVHead: 1},
		{KeyLo: 0, KeyHi: 64, QueryLo: 0, QueryHi: 64, Slot: kernel.KeySlots},
	} {
		refused(pair, func() { checkPair(pair, 2, 2, 64) })
	}
}
