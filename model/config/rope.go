package config

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/skein-ml/skein/internal/exact"
)

// ropeKinds lists the rotary scalings that InvFreq computes.
var ropeKinds = []string{"default", "dynamic", "linear", "llama3", "yarn"}

func (r RopeScaling) validate() error {
	if !slices.Contains(ropeKinds, r.Kind) {
		return fmt.Errorf("%w: rope_type %q is not computed here; choose a model with rope_type %s",
			ErrUnsupported, r.Kind, strings.Join(ropeKinds, ", "))
	}
	if r.Kind == "default" {
		return nil
	}
	if !(r.Factor >= 1) || r.Factor > 1<<20 {
		return fmt.Errorf("rope factor is %g; rope_type %s needs a number from 1 to %d", r.Factor, r.Kind, 1<<20)
	}
	if r.Kind == "llama3" && (!(r.LowFreqFactor > 0) || !(r.HighFreqFactor > r.LowFreqFactor) || math.IsInf(r.HighFreqFactor, 0)) {
		return fmt.Errorf("rope low_freq_factor (%g) must be above 0 and high_freq_factor (%g) greater still",
			r.LowFreqFactor, r.HighFreqFactor)
	}
	if (r.Kind == "llama3" || r.Kind == "yarn") && (r.OriginalMaxPositions < 1 || r.OriginalMaxPositions > positionsMax) {
		return fmt.Errorf("rope original_max_position_embeddings is %d; rope_type %s needs it from 1 to %d",
			r.OriginalMaxPositions, r.Kind, positionsMax)
	}
	if r.Kind == "yarn" {
		return r.validateYarn()
	}
	return nil
}

func (r RopeScaling) validateYarn() error {
	if !(r.BetaSlow > 0) || !(r.BetaFast >= r.BetaSlow) || r.BetaFast > 1<<20 {
		return fmt.Errorf("rope beta_slow (%g) must be above 0 and beta_fast (%g) not smaller", r.BetaSlow, r.BetaFast)
	}
	for _, f := range []struct {
		key   string
		value float64
	}{{"attention_factor", r.AttentionFactor}, {"mscale", r.MScale}, {"mscale_all_dim", r.MScaleAllDim}} {
		if !(f.value >= 0) || f.value > 1<<20 {
			return fmt.Errorf("rope %s is %g; it must not be negative", f.key, f.value)
		}
	}
	return nil
}

// InvFreq returns the HeadDim/2 angular frequencies of the rotary embedding, and the
// factor that cos and sin are multiplied by (1 for every kind but yarn). Element j
// rotates the pair (j, j+HeadDim/2) by position·freq[j]. Each operation rounds to
// fp32 in the order in which transformers does it, so that angles at far positions
// agree; only the power differs by at most one unit in the last place. Powers and
// logarithms are those of package exact, so all machines have the same frequencies.
func (c Config) InvFreq() (freq []float32, attention float32) {
	freq = make([]float32, c.HeadDim/2)
	for j := range freq {
		freq[j] = 1 / c.period(j)
	}
	r := c.Rope
	switch r.Kind {
	case "linear":
		for j := range freq {
			freq[j] /= float32(r.Factor)
		}
	case "llama3":
		for j := range freq {
			freq[j] = r.llama3(freq[j])
		}
	case "yarn":
		c.yarn(freq)
		return freq, float32(r.yarnAttention())
	}
	// "dynamic" stretches only past MaxPositions, where no sequence may go.
	return freq, 1
}

// period is θ^(2j/D) in fp32, 2π times fewer than the positions of one turn.
func (c Config) period(j int) float32 {
	exponent := float32(2*j) / float32(c.HeadDim)
	return float32(exact.Pow(float64(float32(c.RopeTheta)), float64(exponent)))
}

// llama3 keeps fast frequencies, divides slow ones by Factor, and interpolates
// linearly in the number of turns between the two.
func (r RopeScaling) llama3(freq float32) float32 {
	original := float64(r.OriginalMaxPositions)
	low, high := float32(r.LowFreqFactor), float32(r.HighFreqFactor-r.LowFreqFactor)
	wavelength := float32(2*math.Pi) / freq
	switch {
	case wavelength > float32(original/r.LowFreqFactor):
		return freq / float32(r.Factor)
	case wavelength < float32(original/r.HighFreqFactor):
		return freq
	}
	turns := float32(original) / wavelength
	smooth := float32(turns-low) / high
	slow := float32(float32(1-smooth)*freq) / float32(r.Factor)
	return slow + float32(smooth*freq)
}

// yarn blends stretched and unstretched frequencies along a ramp over j (Peng et
// al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023).
func (c Config) yarn(freq []float32) {
	r := c.Rope
	bound := func(turns float64) float64 { // the j whose frequency makes so many turns over the original length
		return float64(c.HeadDim) * exact.Log(float64(r.OriginalMaxPositions)/(turns*2*math.Pi)) / (2 * exact.Log(c.RopeTheta))
	}
	low, high := bound(r.BetaFast), bound(r.BetaSlow)
	if !r.ExactCorrectionBounds {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, float64(c.HeadDim-1))
	if low == high {
		high += 0.001
	}
	for j := range freq {
		ramp := float32(float32(j)-float32(low)) / float32(high-low)
		keep := 1 - min(max(ramp, 0), 1)
		stretched := 1 / float32(float32(r.Factor)*c.period(j))
		freq[j] = float32(stretched*float32(1-keep)) + float32(freq[j]*keep)
	}
}

// yarnAttention is the factor on cos and sin that keeps the entropy of attention.
func (r RopeScaling) yarnAttention() float64 {
	if r.AttentionFactor > 0 {
		return r.AttentionFactor
	}
	scale := func(m float64) float64 {
		if r.Factor <= 1 {
			return 1
		}
		return float64(0.1*m*exact.Log(r.Factor)) + 1 // rounded, so that no compiler fuses it
	}
	if r.MScale > 0 && r.MScaleAllDim > 0 {
		return scale(r.MScale) / scale(r.MScaleAllDim)
	}
	return scale(1)
}
