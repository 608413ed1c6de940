package half

import (
	"math"
	"testing"
)

func TestEveryNumberHasItsValue(t *testing.T) {
	for bits := range 1 << 16 {
		sign, exp, frac := 1.0, bits>>10&31, float64(bits&1023)
		if bits>>15 == 1 {
			sign = -1
		}
		want := sign * math.Ldexp(1024+frac, exp-25)
		switch {
		case exp == 0:
			want = sign * math.Ldexp(frac, -24)
		case exp == 31 && frac == 0:
			want = math.Inf(int(sign))
		case exp == 31:
			want = math.NaN()
		}
		got := float64(Float32(uint16(bits)))
		if got != want && !(math.IsNaN(got) && math.IsNaN(want)) || math.Signbit(got) != math.Signbit(sign) {
			t.Fatalf("Float32(%#04x) = %v, want %v", bits, got, want)
		}
	}
}
