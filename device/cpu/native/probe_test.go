package native

import (
	"testing"
	"time"
)

func TestThisProcessorsPairsRoundAsDescribed(t *testing.T) {
	if !Features().AVX512BF16 {
		t.Skip("SKIPPED: this machine lacks AVX-512 with BF16")
	}
	if !PairsRound() {
		t.Error("VDPBF16PS does not give the bits of its description: path avx512-bf16 is out of question here")
	}
}

func TestRatesAreOfWhatTheMachineHas(t *testing.T) {
	have, r := Features(), Measure(10*time.Millisecond)
	t.Logf("%+v; pairs lose: %v", r, have.AVX512BF16 && PairsLose())
	for _, c := range []struct {
		name string
		has  bool
		rate float64
	}{
		{"avx2", have.AVX2, r.AVX2},
		{"avx512", have.AVX512, r.AVX512},
		{"avx512-bf16", have.AVX512BF16, r.AVX512BF16},
		{"amx-bf16", have.AMXBF16 && !have.AMXEmulated, r.AMXBF16},
	} {
		if c.has != (c.rate > 0) {
			t.Errorf("%s: here %v, rate %v", c.name, c.has, c.rate)
		}
	}
}

// A rate of AVX2 stands at half of AVX-512's, as on processors with two ports of 512 bits.
func looks(rates ...[2]float64) func() Rates {
	return func() Rates {
		r := rates[0]
		if len(rates) > 1 {
			rates = rates[1:]
		}
		return Rates{AVX2: 50, AVX512: r[0], AVX512BF16: r[1]}
	}
}

func TestABusyMachineGetsTheVerdictOfAQuietOne(t *testing.T) {
	for _, c := range []struct {
		name string
		look func() Rates
		win  bool
	}{
		{"half the rate, quiet", looks([2]float64{100, 50}), false},
		{"twice the rate, quiet", looks([2]float64{100, 200}), true},
		{"f32 disturbed in the first look", looks([2]float64{25, 50}, [2]float64{100, 50}), false},
		{"f32 disturbed for long", looks([2]float64{25, 50}, [2]float64{24, 50}, [2]float64{26, 49}, [2]float64{25, 50}, [2]float64{100, 50}), false},
		{"pairs disturbed in the first look", looks([2]float64{100, 60}, [2]float64{100, 200}), true},
		{"pairs disturbed to the rate of f32 for long", looks([2]float64{100, 100}, [2]float64{100, 101}, [2]float64{100, 99}, [2]float64{100, 200}), true},
		{"both rise slowly", looks([2]float64{60, 150}, [2]float64{80, 150}, [2]float64{90, 150}, [2]float64{99, 50}, [2]float64{100, 180}, [2]float64{100, 200}), true},
		{"never told apart", looks([2]float64{100, 110}), false},
		{"no pairs", looks([2]float64{100, 0}), false},
	} {
		if got := settle(c.look); got.pairsWin != c.win {
			t.Errorf("%s: pairs win: %v, rates %+v", c.name, got.pairsWin, got.rates)
		}
	}
}

func TestLooksEnd(t *testing.T) {
	n := 0
	rising := func() Rates {
		n++
		return Rates{AVX512: float64(n * n), AVX512BF16: float64(2 * n * n)}
	}
	if v := settle(rising); n != looksMax+1 || v.rates.AVX512 != float64(n*n) {
		t.Errorf("%d looks, rates %+v", n, v.rates)
	}
}
