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
