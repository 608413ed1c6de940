package tile

import "math"

// minNormal is the least normal F32.
const minNormal = 0x1p-126

// product adds the dot products of BF16 pairs to dst, [rows][n] F32: for each row and column,
// one sum runs over the lower halves of the pairs and one over the upper halves, both from
// zero, k ascending, by fused multiply-adds; the two are added, and then dst. Every
// operation rounds to nearest even, takes subnormals as zero and gives zero for them.
//
// a has rows of k pairs, b has k rows of n pairs.
func product(dst, a, b *Tile, rows, n, k int) {
	var wideB [16][32]float64
	for l := range k {
		for j := range 2 * n {
			wideB[l][j] = bf16(b, l, j)
		}
	}
	for i := range rows {
		var even, odd [16]float32
		for l := range k {
			x, y := bf16(a, i, 2*l), bf16(a, i, 2*l+1)
			row := &wideB[l]
			for j := range n {
				even[j&15] = fma(x, row[2*j&31], even[j&15])
				odd[j&15] = fma(y, row[(2*j+1)&31], odd[j&15])
			}
		}
		for j := range n {
			pair := add(even[j], odd[j])
			dst.setFloat(i, j, add(daz(dst.float(i, j)), pair))
		}
	}
}

// bf16 widens an element, subnormals as zero.
func bf16(t *Tile, row, i int) float64 {
	x := math.Float32frombits(uint32(t[row][2*i])<<16 | uint32(t[row][2*i+1])<<24)
	return float64(daz(x))
}

func daz(x float32) float32 {
	if x > -minNormal && x < minNormal {
		return float32(math.Copysign(0, float64(x)))
	}
	return x
}

func add(a, b float32) float32 { return fma(float64(a), 1, b) }

// fma is a·b + c with one rounding. The product of two BF16, or of an F32 and 1, is exact in
// F64. The common case is small enough to be inlined.
func fma(a, b float64, c float32) float32 {
	s := a*b + float64(c)
	u := math.Float64bits(s)
	if u&(1<<29-1) == 1<<28 || u<<1 < tinyBits {
		return rareFMA(a*b, float64(c), s)
	}
	return float32(s)
}

// tinyBits is twice the least normal F32, as bits of an F64 without its sign.
const tinyBits = (1023 - 125) << 53

// rareFMA rounds s = p + q where it is halfway between two F32, or tiny. Halfway, the
// rounding of s to F64 could decide wrongly.
func rareFMA(p, q, s float64) float32 {
	if math.Float64bits(s)&(1<<29-1) == 1<<28 {
		s = breakTie(s, p, q)
	}
	if s < 2*minNormal && s > -2*minNormal && s != 0 {
		// Tiny is what lies below the least normal after rounding as if exponents had no end.
		if r := float32(s * 0x1p64); r < 0x1p-62 && r > -0x1p-62 {
			return float32(math.Copysign(0, s))
		}
	}
	return float32(s)
}

// breakTie moves s, the rounded p + q, by one bit towards what was lost in rounding.
func breakTie(s, p, q float64) float64 {
	v := s - p
	lost := (p - (s - v)) + (q - v) // exact (Knuth)
	bits := math.Float64bits(s)
	switch {
	case lost == 0:
	case (lost > 0) == (s > 0):
		bits++
	default:
		bits--
	}
	return math.Float64frombits(bits)
}
