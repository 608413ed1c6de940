package cpu

import (
	"math"
	"testing"
)

// floats steps through all F32 bit patterns.
func floats(step uint32, f func(x float32)) {
	for u, n := uint32(0), uint64(0); n <= math.MaxUint32; n += uint64(step) {
		f(math.Float32frombits(u))
		u += step
	}
}

// ulps is the distance of a and b in F32 numbers.
func ulps(a, b float32) int64 {
	order := func(x float32) int64 {
		i := int64(int32(math.Float32bits(x)))
		if i < 0 {
			return math.MinInt32 - i
		}
		return i
	}
	d := order(a) - order(b)
	return max(d, -d)
}

func TestExpAndLogErrByOneUnitAtMost(t *testing.T) {
	floats(9973, func(x float32) {
		if got, want := expf(x), float32(math.Exp(float64(x))); !(got != got && want != want) && ulps(got, want) > 1 {
			t.Fatalf("exp(%g) = %g, want %g", x, got, want)
		}
		if got, want := logf(x), float32(math.Log(float64(x))); !(got != got && want != want) && ulps(got, want) > 1 {
			t.Fatalf("log(%g) = %g, want %g", x, got, want)
		}
	})
}

func TestTheNormalDistributionErrsByTwoUnitsAtMost(t *testing.T) {
	floats(9973, func(x float32) {
		if x != x || math.Abs(float64(x)) > 13 { // beyond, values are subnormal
			return
		}
		cdf, density := normal(x)
		v := float64(x)
		if got, want := float32(cdf), float32(math.Erfc(-v/math.Sqrt2)/2); ulps(got, want) > 2 {
			t.Fatalf("Φ(%g) = %g, want %g", x, got, want)
		}
		if got, want := float32(density), float32(math.Exp(-v*v/2)/math.Sqrt(2*math.Pi)); ulps(got, want) > 2 {
			t.Fatalf("φ(%g) = %g, want %g", x, got, want)
		}
	})
	for x, want := range map[float32]float64{0: 0.5, float32(math.Inf(1)): 1, float32(math.Inf(-1)): 0, 40: 1, -40: 0} {
		if cdf, _ := normal(x); math.Abs(cdf-want) > 1e-9 {
			t.Errorf("Φ(%g) = %g, want %g", x, cdf, want)
		}
	}
}

func TestExpAndLogHaveTheirLimits(t *testing.T) {
	inf := float32(math.Inf(1))
	for _, c := range []struct{ got, want float32 }{
		{expf(0), 1}, {expf(inf), inf}, {expf(-inf), 0}, {expf(88.8), inf}, {expf(-103.98), 0},
		{logf(1), 0}, {logf(0), -inf}, {logf(inf), inf}, {logf(1e-45), -103.27893},
	} {
		if c.got != c.want {
			t.Errorf("%g, want %g", c.got, c.want)
		}
	}
	if v := logf(-1); v == v {
		t.Errorf("log(-1) = %g, want NaN", v)
	}
}

// The nearest BF16 is found by comparing distances, which integers can not get wrong.
func TestBF16RoundsToNearestEven(t *testing.T) {
	floats(7919, func(x float32) {
		got := bf16(x)
		if x != x {
			if v := unbf16(got); v == v {
				t.Fatalf("NaN %#x became %g", math.Float32bits(x), v)
			}
			return
		}
		down := uint16(math.Float32bits(x) >> 16)
		up := down + 1
		lo, hi := float64(unbf16(down)), float64(unbf16(up))
		if math.IsInf(hi, 0) {
			hi = math.Copysign(math.Ldexp(1, 128), hi)
		}
		want := down
		switch a, b := math.Abs(float64(x)-lo), math.Abs(hi-float64(x)); {
		case math.IsInf(float64(x), 0) || a < b:
		case b < a, down&1 == 1:
			want = up
		}
		if got != want {
			t.Fatalf("bf16(%g) = %#x, want %#x", x, got, want)
		}
	})
}
