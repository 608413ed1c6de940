package native

import (
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// anyBits is a float of random bits: subnormals, infinities and NaN among them.
func anyBits(rng *rand.Rand) float32 {
	u := rng.Uint32()
	switch rng.IntN(4) {
	case 0:
		u &= 0x807fffff // subnormal
	case 1:
		u |= 0x7f800000
	}
	return math.Float32frombits(u)
}

func sameFloat(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

func TestAddGivesTheBitsOfPlainGo(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		rng := newRand(3)
		for _, n := range append(widths, callElements+5) {
			a, b, dst := newMatrix(t, dt, 1, n, 0), newMatrix(t, dt, 1, n, 0), newMatrix(t, dt, 1, n, 0)
			for c := range n {
				a.set(0, c, anyBits(rng))
				b.set(0, c, anyBits(rng))
			}
			table.Add[dt](dst.p(), a.p(), b.p(), n)
			for c := range n {
				if want := roundTo(dt, a.get(0, c)+b.get(0, c)); !sameFloat(dst.get(0, c), want) {
					t.Fatalf("%v + %v = %v, want %v", a.get(0, c), b.get(0, c), dst.get(0, c), want)
				}
			}
			dst.checkGaps(t, "dst")
		}
	})
}

func TestCastGivesTheBitsOfPlainGo(t *testing.T) {
	table := avx512(t)
	rng := newRand(4)
	for _, n := range append(widths, 1<<16, callElements+9) {
		wide, narrow, back := newMatrix(t, device.F32, 1, n, 0), newMatrix(t, device.BF16, 1, n, 0), newMatrix(t, device.F32, 1, n, 0)
		for c := range n {
			wide.set(0, c, anyBits(rng))
			if c < 4 { // ties and overflow
				wide.set(0, c, math.Float32frombits([]uint32{0x3f808000, 0x3f818000, 0x7f7fffff, 0x7f800001}[c]))
			}
		}
		table.Cast[device.F32](narrow.p(), wide.p(), n)
		table.Cast[device.BF16](back.p(), narrow.p(), n)
		for c := range n {
			got, want := *(*uint16)(narrow.at(0, c)), roundBF16(wide.get(0, c))
			if got != want {
				t.Fatalf("%08x rounds to %04x, want %04x", math.Float32bits(wide.get(0, c)), got, want)
			}
			if math.Float32bits(back.get(0, c)) != uint32(want)<<16 {
				t.Fatalf("%04x widens to %08x", want, math.Float32bits(back.get(0, c)))
			}
		}
		narrow.checkGaps(t, "bf16")
		back.checkGaps(t, "f32")
	}
}

// Each row of sums is checked bit for bit: zero, plus rows in order, then onto what is there.
func TestColumnSumGivesTheBitsOfPlainGo(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, seq := range []int{1, 40, 512, 700} {
			const columns = 333
			rows := 2 * seq
			dy := randomMatrix(t, newRand(5), dt, rows, columns, 3, 1)
			db := randomMatrix(t, newRand(6), device.F32, 1, columns, 0, 1)
			want := db.clone()
			for first := 0; first < rows; first += seq {
				for lo := first; lo < first+seq; lo += device.BlockRows {
					for c := range columns {
						var sum float32
						for r := lo; r < min(lo+device.BlockRows, first+seq); r++ {
							sum += dy.get(r, c)
						}
						want.set(0, c, want.get(0, c)+sum)
					}
				}
			}
			a := kernel.ColumnSum{DB: db.p(), DY: dy.p(), Rows: rows, LdDY: dy.ld, Seq: seq, Columns: columns}
			table.ColumnSum[dt](&a, 0, 10)
			table.ColumnSum[dt](&a, 10, 11)
			table.ColumnSum[dt](&a, 11, columns)
			if !equalBits(db, want) {
				t.Fatalf("sequences of %d: other bits", seq)
			}
			db.checkGaps(t, "db")
		}
	})
}

func TestEmbedGradGivesTheBitsOfPlainGo(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		const seq, tokens, slots, cols = 700, 2100, 11, 97
		rng := newRand(7)
		dx := randomMatrix(t, rng, dt, tokens, cols, 2, 1)
		bySlot := make([][]int32, slots)
		for token := range tokens {
			slot := rng.IntN(slots - 1) // the last one stays empty
			bySlot[slot] = append(bySlot[slot], int32(token))
		}
		order, starts := []int32(nil), []int32{0}
		for _, list := range bySlot {
			order = append(order, list...)
			starts = append(starts, int32(len(order)))
		}
		rows := randomMatrix(t, rng, device.F32, slots, cols, 3, 1)
		want := rows.clone()
		for slot, list := range bySlot {
			for i := 0; i < len(list); {
				block := func(i int) int { return int(list[i])/seq*1000 + int(list[i])%seq/device.BlockRows }
				end := i
				for end < len(list) && block(end) == block(i) {
					end++
				}
				for c := range cols {
					var sum float32
					for _, token := range list[i:end] {
						sum += dx.get(int(token), c)
					}
					want.set(slot, c, want.get(slot, c)+sum)
				}
				i = end
			}
		}
		a := kernel.EmbedGrad{Rows: rows.p(), DX: dx.p(), Order: unsafe.Pointer(&order[0]), Starts: unsafe.Pointer(&starts[0]),
			Cols: cols, LdRows: rows.ld, LdDX: dx.ld, Seq: seq}
		table.EmbedGrad[dt](&a, 0, 4, nil)
		table.EmbedGrad[dt](&a, 4, slots, nil)
		if !equalBits(rows, want) {
			t.Fatal("other bits")
		}
		rows.checkGaps(t, "rows")
	})
}

// Eight lanes, added in order: the bits of plain Go, as squares are exact in F64.
func TestSqNormGivesTheBitsOfPlainGo(t *testing.T) {
	table := avx512(t)
	for _, n := range append(widths, 4095, 4096) {
		x := randomMatrix(t, newRand(uint64(n)), device.F32, 1, n, 0, 1e-3)
		var lanes [8]float64
		for c := range n {
			lanes[c%8] += x.f64(0, c) * x.f64(0, c)
		}
		want := 0.0
		for _, v := range lanes {
			want += v
		}
		if got := table.SqNorm(x.p(), n); got != want {
			t.Errorf("%d elements: %v, want %v", n, got, want)
		}
		x.set(0, n-1, float32(math.Inf(-1)))
		if got := table.SqNorm(x.p(), n); !math.IsInf(got, 1) {
			t.Errorf("with an infinity: %v", got)
		}
		x.set(0, 0, float32(math.NaN()))
		if got := table.SqNorm(x.p(), n); got == got {
			t.Errorf("with a NaN: %v", got)
		}
	}
	if got := table.SqNorm(nil, 0); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func adamwPlain(a kernel.AdamW, p, m, v, g float32) (float32, float32, float32) {
	g = float32(g * a.GradScale)
	p -= float32(p * a.DecayStep)
	m += float32((g - m) * a.Beta1Rest)
	v = float32(v*a.Beta2) + float32(float32(g*g)*a.Beta2Rest)
	root := float32(math.Sqrt(float64(v)))
	p -= float32(a.Step * (m / (root/a.Correction2 + a.Eps)))
	return p, m, v
}

// AdamW decides the weights of every class alike: its bits are those of plain Go.
func TestAdamWGivesTheBitsOfPlainGo(t *testing.T) {
	table := avx512(t)
	eachType(t, func(t *testing.T, dt device.DType) {
		for _, n := range append(widths, callElements+3) {
			rng := newRand(uint64(n))
			master, m := randomMatrix(t, rng, device.F32, 1, n, 0, 1), randomMatrix(t, rng, device.F32, 1, n, 0, 1e-3)
			v, g := randomMatrix(t, rng, device.F32, 1, n, 0, 1e-6), randomMatrix(t, rng, device.F32, 1, n, 0, 300)
			for c := range n {
				v.set(0, c, float32(math.Abs(v.f64(0, c))))
			}
			g.set(0, n-1, 1e-42) // subnormal after the scale
			if n > 20 {
				g.set(0, 7, float32(math.NaN()))
				g.set(0, 8, float32(math.Inf(1)))
				g.set(0, 9, 0)
				v.set(0, 9, 0)
				m.set(0, 9, 0)
			}
			work := newMatrix(t, dt, 1, n, 0)
			a := kernel.AdamW{GradScale: 0.0173, DecayStep: 1e-4, Beta1Rest: 0.1, Beta2: 0.95, Beta2Rest: 0.05,
				Step: 3e-3, Correction2: 0.31, Eps: 1e-8,
				Master: master.p(), M: m.p(), V: v.p(), Grad: g.p(), Work: work.p()}
			before := [3]*matrix{master.clone(), m.clone(), v.clone()}
			cut := n / 3
			table.AdamW[dt](&a, 0, cut)
			table.AdamW[dt](&a, cut, n)
			for c := range n {
				wp, wm, wv := adamwPlain(a, before[0].get(0, c), before[1].get(0, c), before[2].get(0, c), g.get(0, c))
				if !sameFloat(master.get(0, c), wp) || !sameFloat(m.get(0, c), wm) || !sameFloat(v.get(0, c), wv) ||
					!sameFloat(work.get(0, c), roundTo(dt, wp)) {
					t.Fatalf("%d of %d: %v %v %v %v, want %v %v %v", c, n, master.get(0, c), m.get(0, c), v.get(0, c), work.get(0, c), wp, wm, wv)
				}
			}
			for _, x := range []*matrix{master, m, v, work} {
				x.checkGaps(t, "state")
			}
		}
	})
}
