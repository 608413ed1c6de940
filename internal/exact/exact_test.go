package exact

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// ulps is the distance in units of the last place of want.
func ulps(got, want float64) float64 {
	if got == want {
		return 0
	}
	return math.Abs(got-want) / (math.Nextafter(math.Abs(want), math.Inf(1)) - math.Abs(want))
}

func TestFunctionsAreThoseOfMath(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var worst [4]float64
	note := func(which int, x, got, want, allowed float64) {
		d := ulps(got, want)
		worst[which] = max(worst[which], d)
		if !(d <= allowed) {
			t.Errorf("function %d of %v: %v, want %v: %.1f ulp", which, x, got, want, d)
		}
	}
	for range 200_000 {
		x := math.Exp(r.Float64()*1400 - 700)
		note(0, x, Log(x), math.Log(x), 4)
		near := 0.5 + r.Float64()
		note(0, near, Log(near), math.Log(near), 4)
		x = r.Float64()*1400 - 700
		note(1, x, Exp(x), math.Exp(x), 4)
		x = r.Float64() * 2 * math.Pi
		s, c := Sincos(x)
		note(2, x, 1+s/4, 1+math.Sin(x)/4, 2) // the absolute error counts
		note(2, x, 1+c/4, 1+math.Cos(x)/4, 2)
		theta, y := math.Exp(r.Float64()*16), r.Float64()
		note(3, theta, Pow(theta, y), math.Pow(theta, y), 8+4*y*math.Log(theta))
	}
	t.Logf("at most %.1f (log), %.1f (exp), %.1f (sine, cosine), %.1f (power) ulp from package math", worst[0], worst[1], worst[2], worst[3])
}

func TestEdges(t *testing.T) {
	for _, x := range []struct {
		what      string
		got, want float64
	}{
		{"log 1", Log(1), 0}, {"log 2", Log(2), math.Ln2}, {"log of the least", Log(5e-324), -744.4400719213812},
		{"exp 0", Exp(0), 1}, {"exp 1000", Exp(1000), math.Inf(1)}, {"exp -1000", Exp(-1000), 0}, {"exp of infinity", Exp(math.Inf(1)), math.Inf(1)},
		{"exp of minus infinity", Exp(math.Inf(-1)), 0}, {"10000^0", Pow(10_000, 0), 1}, {"1^0.3", Pow(1, 0.3), 1},
		{"0^0", PowInt(0, 0), 1}, {"0^5", PowInt(0, 5), 0}, {"0.9^1", PowInt(0.9, 1), 0.9}, {"3^33", PowInt(3, 33), 5559060566555523},
		{"0.999^(2^62)", PowInt(0.999, 1<<62), 0},
	} {
		if x.got != x.want {
			t.Errorf("%s is %v, want %v", x.what, x.got, x.want)
		}
	}
	if s, c := Sincos(0); s != 0 || c != 1 {
		t.Errorf("at 0: %v, %v", s, c)
	}
	if _, c := Sincos(math.Pi); c != -1 {
		t.Errorf("the cosine of π is %v", c)
	}
	if !math.IsNaN(Exp(math.NaN())) {
		t.Error("exp of NaN is a number")
	}
}

// TestPowersRoundToTheRightFloat32 takes the powers that rotary embeddings are made of: roots of θ whose 2^k-th power
// can be held against θ in arithmetic of any precision.
func TestPowersRoundToTheRightFloat32(t *testing.T) {
	const precision = 400
	for _, theta := range []float64{10_000, 50_000, 100_000, 500_000, 1e6, 5e6, 1e7} {
		const dim = 128 // the exponents are multiples of 1/64
		root := new(big.Float).SetPrec(precision).SetFloat64(theta)
		for n := dim / 2; n > 1; n /= 2 {
			root.Sqrt(root)
		}
		want := big.NewFloat(1).SetPrec(precision)
		for j := range dim / 2 {
			right, _ := want.Float32()
			if got := float32(Pow(theta, float64(2*j)/dim)); got != right {
				t.Errorf("%v^(%d/%d) is %v, want %v", theta, 2*j, dim, got, right)
			}
			want.Mul(want, root)
		}
	}
}

func TestCorrectionsOfAdamWRoundToTheRightFloat32(t *testing.T) {
	for _, beta := range []float32{0.9, 0.95, 0.98, 0.99, 0.999, 0.9999} {
		power, b := big.NewFloat(1).SetPrec(200), new(big.Float).SetFloat64(float64(beta))
		for n := int64(1); n <= 3000; n++ {
			power.Mul(power, b)
			want, _ := new(big.Float).Sub(big.NewFloat(1), power).Float32()
			if got := float32(1 - PowInt(float64(beta), n)); got != want {
				t.Errorf("1 − %v^%d is %v, want %v", beta, n, got, want)
			}
		}
	}
}

// TestBitsAreTheSameOnAllMachines compares the bits of many results with those that were written down on one machine. It is
// to be run with GOAMD64=v3 and on other architectures too: there the compiler fuses whatever it may.
func TestBitsAreTheSameOnAllMachines(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	sums := map[string]hash.Hash{"log": sha256.New(), "exp": sha256.New(), "sin": sha256.New(), "cos": sha256.New(), "pow": sha256.New(), "powint": sha256.New()}
	note := func(which string, x float64) { must(t, binary.Write(sums[which], binary.LittleEndian, x)) }
	for range 20_000 {
		x := r.Float64()
		note("log", Log(float64(x*1e6)))
		note("exp", Exp(float64(x*100)-50))
		s, c := Sincos(float64(x * 8192))
		note("sin", s)
		note("cos", c)
		note("pow", Pow(1+float64(r.Float64()*1e6), x))
		note("powint", PowInt(x, r.Int64N(1000)))
	}
	for which, want := range map[string]string{
		"log": "e1557d6852978088", "exp": "341ffe7d5a4a25d5", "sin": "93ae7adcbbc4765b", "cos": "504313be2d996bbb", "pow": "097a04f8f24fa103", "powint": "bf98df81b793d6b0",
	} {
		if got := fmt.Sprintf("%x", sums[which].Sum(nil)[:8]); got != want {
			t.Errorf("%s: bits hash to %s, want %s", which, got, want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
