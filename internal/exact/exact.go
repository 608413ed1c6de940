// Package exact has the elementary functions that decide bits of a training run: the angles of rotary embeddings, learning
// rates, the corrections of AdamW. Package math gives other last bits on other machines, where a function is assembly or where
// the compiler fuses a product and a sum. Here every product is rounded by itself (that is what the conversions to float64 are
// for: the language forbids to fuse across them), so all machines agree on every bit of a result.
//
// "Exact" means that agreement. Errors against the true value are a few units in the last place of float64, which leaves the
// nearest float32 what it is but in one case of many millions.
package exact

import "math"

// ln2 is split so that k·ln2Hi is exact for |k| < 2^21.
const (
	ln2Hi = 0x1.62e42feep-1
	ln2Lo = math.Ln2 - ln2Hi
)

// Log is the natural logarithm of a finite x > 0.
func Log(x float64) float64 {
	m, e := math.Frexp(x) // exact everywhere
	if m < math.Sqrt2/2 {
		m, e = 2*m, e-1
	}
	// x = m·2^e, √½ ≤ m < √2, and log m = 2·atanh(s) = 2s + s·z·(2/3 + 2/5·z + 2/7·z² + …).
	k, s := float64(e), (m-1)/(m+1)
	z := float64(s * s)
	tail := float64(float64(s*z)*poly(z, atanhTail[:])) + float64(k*ln2Lo)
	return float64(k*ln2Hi) + (2*s + tail) // doubling is exact, fused or not
}

// atanhTail ends where a term for z < 0.0295 is below 2^-56 of the first.
var atanhTail = [...]float64{2. / 3, 2. / 5, 2. / 7, 2. / 9, 2. / 11, 2. / 13, 2. / 15, 2. / 17, 2. / 19, 2. / 21, 2. / 23}

// Exp is e^x; too large a result is +Inf, too small a one 0.
func Exp(x float64) float64 {
	switch {
	case math.IsNaN(x):
		return x
	case x > 710:
		return math.Inf(1)
	case x < -746:
		return 0
	}
	k := math.Floor(float64(x*(1/math.Ln2)) + 0.5)
	r := x - float64(k*ln2Hi)
	r -= float64(k * ln2Lo)
	// |r| ≤ ln2/2, and e^r = 1 + (r + r²·(1/2! + r/3! + r²/4! + …)).
	return math.Ldexp(1+(r+float64(float64(r*r)*poly(r, expTail[:]))), int(k))
}

// expTail ends where a term for r < 0.35 is below 2^-57.
var expTail = [...]float64{1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880, 1. / 3628800,
	1. / 39916800, 1. / 479001600, 1. / 6227020800}

// Pow is x^y of a finite x > 0. Its relative error grows with the result's logarithm: 2^-52 for each unit of it.
func Pow(x, y float64) float64 { return Exp(float64(y * Log(x))) }

// PowInt is x^n of n ≥ 0, by squaring; x^0 is 1, and x^1 is x. Its relative error is n·2^-52.
func PowInt(x float64, n int64) float64 {
	y := 1.0
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			y = float64(y * x)
		}
		x = float64(x * x)
	}
	return y
}

// Sincos is the sine and cosine of 0 ≤ x < 2^20. Reduction by π/2 in three parts and the polynomials are those of fdlibm's
// k_sin and k_cos.
func Sincos(x float64) (sin, cos float64) {
	const (
		pio2a = 1.57079632673412561417e+00 // first 33 bits of π/2
		pio2b = 6.07710050630396597660e-11 // next 33
		pio2c = 2.02226624879595063154e-21 // the rest
	)
	k := math.Floor(float64(x*(2/math.Pi)) + 0.5)
	r := x - float64(k*pio2a)
	r -= float64(k * pio2b)
	r -= float64(k * pio2c)
	z := float64(r * r)
	s := r + float64(float64(r*z)*poly(z, sinTail[:]))
	c := 1 - float64(0.5*z) + float64(float64(z*z)*poly(z, cosTail[:]))
	switch int64(k) & 3 {
	case 0:
		return s, c
	case 1:
		return c, -s
	case 2:
		return -s, -c
	}
	return -c, s
}

var (
	sinTail = [...]float64{-1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
		2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10}
	cosTail = [...]float64{4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
		-2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11}
)

// poly is Σ c[i]·zⁱ by Horner's rule.
func poly(z float64, c []float64) float64 {
	sum := c[len(c)-1]
	for i := len(c) - 2; i >= 0; i-- {
		sum = c[i] + float64(z*sum)
	}
	return sum
}
