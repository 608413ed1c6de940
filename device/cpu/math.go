package cpu

import (
	"math"
	"unsafe"

	"github.com/skein-ml/skein/device"
)

// bf16 rounds to nearest even; a NaN stays one.
func bf16(x float32) uint16 {
	u := math.Float32bits(x)
	if u&0x7fffffff > 0x7f800000 {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

func unbf16(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

const (
	log2E  = 1.44269504088896340736
	ln2    = 0.69314718055994530942
	expMax = 89   // e^89 overflows F32
	expMin = -104 // e^-104 rounds to zero
)

// expf is e^x rounded to F32. It works in F64, every product rounded by itself, so that
// all machines give the same bits; math.Exp is assembly on some.
func expf(x float32) float32 {
	if x != x {
		return x
	}
	return float32(expd(float64(min(max(x, expMin), expMax))))
}

// expd is e^v in F64 for v in [expMin, expMax].
func expd(v float64) float64 {
	n := float64(v * log2E)
	k := int64(n + 0.5)
	if n < 0 {
		k = int64(n - 0.5)
	}
	r := v - float64(float64(k)*ln2) // |r| ≤ 0.347: Taylor to r⁹ errs by 7e-12
	p := float64(r*(1.0/362880)) + 1.0/40320
	p = float64(p*r) + 1.0/5040
	p = float64(p*r) + 1.0/720
	p = float64(p*r) + 1.0/120
	p = float64(p*r) + 1.0/24
	p = float64(p*r) + 1.0/6
	p = float64(p*r) + 0.5
	p = float64(p*r) + 1
	p = float64(p*r) + 1
	return p * math.Float64frombits(uint64(k+1023)<<52)
}

// normal is Φ(x), the standard normal distribution function, and φ(x), its density, in F64
// as expf. Φ(−a) = e^(−a²/2)·m(a), where m falls smoothly from 1/2 and is t·q(t) in
// t = 1/(1+a/4), with q of degree 11 through the Chebyshev nodes (relative error 2e-9).
func normal(x float32) (cdf, density float64) {
	if x != x {
		return math.NaN(), math.NaN()
	}
	a := math.Abs(float64(x))
	e := 0.0
	if half := float64(a*a) / 2; half <= -expMin { // beyond, all is zero in F32
		e = expd(-half)
	}
	t := 1 / (1 + float64(a*0.25))
	q := normalTail[len(normalTail)-1]
	for i := len(normalTail) - 2; i >= 0; i-- {
		q = float64(q*t) + normalTail[i]
	}
	cdf = float64(float64(q*t) * e)
	if x > 0 {
		cdf = 1 - cdf
	}
	return cdf, float64(e * (1 / sqrt2Pi))
}

const sqrt2Pi = 2.50662827463100050242

// normalTail are q's coefficients, the constant first; they add up to 1/2.
var normalTail = [...]float64{0.099735570279, 0.099735509186, 0.093505514887, 0.08096057596, 0.064338567538, 0.037767623062,
	0.045950918899, -0.052965693118, 0.10076870592, -0.11752549607, 0.058427636086, -0.010699432639}

// logf is the natural logarithm of x ≥ 0 rounded to F32, in F64 as expf.
func logf(x float32) float32 {
	switch {
	case x != x || x < 0:
		return float32(math.NaN())
	case x == 0:
		return float32(math.Inf(-1))
	case x > math.MaxFloat32:
		return x
	}
	u := math.Float64bits(float64(x)) // normal in F64, even where x is subnormal
	k := int64(u>>52) - 1023
	m := math.Float64frombits(u&(1<<52-1) | 1023<<52)
	if m > math.Sqrt2 {
		m, k = m/2, k+1
	}
	// log m = 2·atanh(s), s = (m−1)/(m+1), |s| ≤ 0.172: to s¹³ errs by 4e-13
	s := (m - 1) / (m + 1)
	z := float64(s * s)
	p := float64(z*(1.0/13)) + 1.0/11
	p = float64(p*z) + 1.0/9
	p = float64(p*z) + 1.0/7
	p = float64(p*z) + 1.0/5
	p = float64(p*z) + 1.0/3
	p = float64(p*z) + 1
	return float32(float64(float64(k)*ln2) + float64(float64(2*s)*p))
}

// sqrtf is correctly rounded: F64 has more than twice the bits of F32.
func sqrtf(x float32) float32 { return float32(math.Sqrt(float64(x))) }

// vec is a run of F32 or BF16 elements, read as F32 and rounded when stored.
type vec struct {
	f []float32
	b []uint16
}

// at is n elements from element off of p.
func at(p unsafe.Pointer, dt device.DType, off, n int) vec {
	if dt == device.BF16 {
		return vec{b: unsafe.Slice((*uint16)(unsafe.Add(p, off*2)), n)}
	}
	return vec{f: unsafe.Slice((*float32)(unsafe.Add(p, off*4)), n)}
}

func (v vec) get(i int) float32 {
	if v.b != nil {
		return unbf16(v.b[i])
	}
	return v.f[i]
}

func (v vec) set(i int, x float32) {
	if v.b != nil {
		v.b[i] = bf16(x)
		return
	}
	v.f[i] = x
}

// load fills dst with the first len(dst) elements.
func (v vec) load(dst []float32) {
	if v.b == nil {
		copy(dst, v.f)
		return
	}
	for i, h := range v.b[:len(dst)] {
		dst[i] = unbf16(h)
	}
}

// round is x as dt would store it.
func round(x float32, dt device.DType) float32 {
	if dt == device.BF16 {
		return unbf16(bf16(x))
	}
	return x
}

func f32s(p unsafe.Pointer, off, n int) []float32 {
	return unsafe.Slice((*float32)(unsafe.Add(p, off*4)), n)
}

func i32s(p unsafe.Pointer, n int) []int32 { return unsafe.Slice((*int32)(p), n) }

// dot sums in the order of the elements.
func dot(a, b []float32) float32 {
	var s float32
	for i, x := range a[:len(b)] {
		s += float32(x * b[i])
	}
	return s
}
