package config

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"
)

// TestInvFreqIsThatOfTransformers compares with testdata/rope.json, which
// scripts/oracle/formats_rope.py writes. One unit in the last place is allowed,
// because PyTorch's vectorized power is not correctly rounded everywhere.
func TestInvFreqIsThatOfTransformers(t *testing.T) {
	raw, err := os.ReadFile("testdata/rope.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Config    json.RawMessage
		Attention float64
		Freq      []uint32
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	equal, total := 0, 0
	for _, tc := range cases {
		c, _, err := Parse(tc.Config)
		if err != nil {
			t.Fatal(err)
		}
		freq, attention := c.InvFreq()
		if len(freq) != len(tc.Freq) {
			t.Fatalf("%+v: %d frequencies, want %d", c.Rope, len(freq), len(tc.Freq))
		}
		if attention != float32(tc.Attention) {
			t.Errorf("%+v: attention factor %v, want %v", c.Rope, attention, tc.Attention)
		}
		for j, f := range freq {
			apart := int64(math.Float32bits(f)) - int64(tc.Freq[j])
			if apart < -1 || apart > 1 {
				t.Errorf("%+v: frequency %d is %v, want %v (%d ulp)", c.Rope, j, f, math.Float32frombits(tc.Freq[j]), apart)
			}
			if apart == 0 {
				equal++
			}
			total++
		}
	}
	if equal < total*95/100 {
		t.Errorf("only %d of %d frequencies are equal to the bit", equal, total)
	}
	t.Logf("%d of %d frequencies equal to the bit", equal, total)
}

// TestInvFreqIsTheSameBitsOnAllMachines holds frequencies of many shapes against what
// was written down once; GOAMD64=v3 lets the compiler fuse what it may.
func TestInvFreqIsTheSameBitsOnAllMachines(t *testing.T) {
	scalings := []RopeScaling{
		{Kind: "default"}, {Kind: "linear", Factor: 3}, {Kind: "dynamic", Factor: 2},
		{Kind: "llama3", Factor: 8, LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPositions: 8192},
		{Kind: "yarn", Factor: 7, BetaFast: 32, BetaSlow: 1, OriginalMaxPositions: 4096},
		{Kind: "yarn", Factor: 7, BetaFast: 32, BetaSlow: 1, OriginalMaxPositions: 4096, MScale: 0.7, MScaleAllDim: 1.3, ExactCorrectionBounds: true},
	}
	h := sha256.New()
	for _, scaling := range scalings {
		for theta := 500.0; theta < 1e8; theta = math.Floor(theta * 1.03) {
			for _, dim := range []int{32, 64, 80, 96, 128} {
				freq, attention := Config{HeadDim: dim, RopeTheta: theta, Rope: scaling}.InvFreq()
				for _, f := range append(freq, attention) {
					h.Write(binary.LittleEndian.AppendUint32(nil, math.Float32bits(f)))
				}
			}
		}
	}
	if got := fmt.Sprintf("%x", h.Sum(nil)[:8]); got != "6526dd532c352002" {
		t.Errorf("the bits hash to %s", got)
	}
}
