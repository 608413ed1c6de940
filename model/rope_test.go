package model

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestSincosAgreesWithPackageMath(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 200_000 {
		x := rng.Float64() * math.Ldexp(1, i%21)
		sin, cos := sincos(x)
		if d := max(math.Abs(sin-math.Sin(x)), math.Abs(cos-math.Cos(x))); d > 4e-16 {
			t.Fatalf("sincos(%v) is off by %g", x, d)
		}
	}
}
