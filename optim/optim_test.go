package optim

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// golden is one case of testdata/adamw.json, made by scripts/oracle/optim_golden.py.
type golden struct {
	Name              string
	Beta1, Beta2, Eps float64
	Decay             float64
	Start             []float32
	Steps             []struct {
		LR            float32
		Grad, P, M, V []float32
	}
}

// far is the distance of got from want as a share of want, or of floor if that is larger.
func far(got, want float32, floor float64) float64 {
	return math.Abs(float64(got)-float64(want)) / max(math.Abs(float64(want)), floor)
}

func TestAdamWFollowsPyTorch(t *testing.T) {
	text, err := os.ReadFile("testdata/adamw.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []golden
	if err := json.Unmarshal(text, &cases); err != nil || len(cases) < 3 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, c := range cases {
		a := AdamW{Beta1: c.Beta1, Beta2: c.Beta2, Epsilon: c.Eps, WeightDecay: c.Decay}
		p, m, v := c.Start, make([]float32, len(c.Start)), make([]float32, len(c.Start))
		gradMax := make([]float64, len(c.Start))
		for k, s := range c.Steps {
			h := a.Hyper(math.Float32bits(s.LR), math.Float32bits(1), int64(k+1))
			AdamWRef(p, m, v, s.Grad, h)
			// PyTorch's moments belong to betas that are not rounded to fp32, ours to
			// rounded ones; what the update sees is each moment over its correction.
			toV := (1 - math.Pow(c.Beta2, float64(k+1))) / (1 - math.Pow(float64(h.Beta2), float64(k+1)))
			toM := (1 - math.Pow(c.Beta1, float64(k+1))) / (1 - math.Pow(float64(h.Beta1), float64(k+1)))
			for i := range p {
				gradMax[i] = max(gradMax[i], math.Abs(float64(s.Grad[i])))
				gotM, gotV := float32(float64(m[i])*toM), float32(float64(v[i])*toV)
				// 1e-6 is eight fp32 roundings; the floors admit cancellation in p and m.
				if far(p[i], s.P[i], 0.1) > 1e-6 || far(gotM, s.M[i], max(gradMax[i]/10, 1e-30)) > 1e-6 || far(gotV, s.V[i], 1e-30) > 1e-6 {
					t.Errorf("%s, step %d, element %d: p %v m %v v %v, PyTorch %v %v %v",
						c.Name, k+1, i, p[i], gotM, gotV, s.P[i], s.M[i], s.V[i])
				}
			}
		}
	}
}

// TestAdamWNoticesMistakes shows that the comparison above is sharp: with the
// usual mistakes the weights leave its tolerance.
func TestAdamWNoticesMistakes(t *testing.T) {
	right := AdamW{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1}
	one := math.Float32bits(1)
	rate := math.Float32bits(1e-3)
	run := func(mutate func(*Hyper)) float32 {
		p, m, v := []float32{0.7}, []float32{0.01}, []float32{0.002}
		h := right.Hyper(rate, one, 3)
		mutate(&h)
		AdamWRef(p, m, v, []float32{0.3}, h)
		return p[0]
	}
	base := run(func(*Hyper) {})
	for name, mutate := range map[string]func(*Hyper){
		"no decay":        func(h *Hyper) { h.Decay = 0 },
		"t off by one":    func(h *Hyper) { *h = right.Hyper(rate, one, 4) },
		"no correction":   func(h *Hyper) { h.Correction1, h.Correction2 = 1, 1 },
		"no square root":  func(h *Hyper) { h.Correction2 *= h.Correction2 },
		"gradient scaled": func(h *Hyper) { h.GradScale = 0.5 },
		"betas exchanged": func(h *Hyper) { h.Beta1, h.Beta2 = h.Beta2, h.Beta1 },
	} {
		if far(run(mutate), base, 0.1) < 2e-6 {
			t.Errorf("%s: the weight hardly moved from %v", name, base)
		}
	}
}

func TestAdamWOnAPieceEqualsThePieceOfAdamW(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() []float32 {
		x := make([]float32, 1000)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		return x
	}
	p, m, v, g := random(), random(), random(), random()
	for i := range v {
		v[i] *= v[i]
	}
	h := AdamW{Beta1: 0.9, Beta2: 0.999, Epsilon: 1e-8, WeightDecay: 0.1}.Hyper(math.Float32bits(1e-3), math.Float32bits(0.37), 7)
	clone := func(x []float32) []float32 { return append([]float32(nil), x...) }
	wp, wm, wv := clone(p), clone(m), clone(v)
	AdamWRef(wp, wm, wv, g, h)
	for lo := 0; lo < len(p); {
		hi := min(len(p), lo+1+r.IntN(200))
		AdamWRef(p[lo:hi], m[lo:hi], v[lo:hi], g[lo:hi], h)
		lo = hi
	}
	for i := range p {
		if p[i] != wp[i] || m[i] != wm[i] || v[i] != wv[i] {
			t.Fatalf("element %d differs when the slice is cut", i)
		}
	}
}

func TestRangesWithoutDecayKeepWeightsThatSeeNoGradient(t *testing.T) {
	h := AdamW{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1}.Hyper(math.Float32bits(0.5), math.Float32bits(1), 1)
	p, m, v, g := []float32{2, 2}, make([]float32, 2), make([]float32, 2), make([]float32, 2)
	AdamWRef(p[:1], m[:1], v[:1], g[:1], h.For(true))
	AdamWRef(p[1:], m[1:], v[1:], g[1:], h.For(false))
	if p[0] != 1.9 || p[1] != 2 {
		t.Errorf("weights %v after a decay of 0.5·0.1 on the first", p)
	}
}

func TestAdamWAllocatesNothing(t *testing.T) {
	p, m, v, g := make([]float32, 64), make([]float32, 64), make([]float32, 64), make([]float32, 64)
	h := AdamW{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8}.Hyper(math.Float32bits(1e-3), math.Float32bits(1), 1)
	if n := testing.AllocsPerRun(10, func() { AdamWRef(p, m, v, g, h) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestScheduleGivesTheRecipesRates(t *testing.T) {
	s := Schedule{Kind: Constant, Peak: 3e-4, WarmupSteps: 5, Steps: 24}
	for step := int64(1); step <= 24; step++ {
		want := 3e-4 * min(1, float64(step)/5)
		if got := s.Rate(step); math.Abs(got-want) > 1e-19 {
			t.Errorf("step %d: rate %v, want %v", step, got, want)
		}
	}
	if s.Bits(24) != math.Float32bits(3e-4) {
		t.Errorf("bits of the last step are %x", s.Bits(24))
	}
}

func TestLinearAndCosineEndAtTheFloor(t *testing.T) {
	for _, kind := range []Kind{Linear, Cosine} {
		for _, warmup := range []int64{0, 1, 10} {
			s := Schedule{Kind: kind, Peak: 2, WarmupSteps: warmup, Steps: 110, Floor: 0.1}
			if err := s.Validate(); err != nil {
				t.Fatal(err)
			}
			if top := s.Rate(max(warmup, 1)); top != 2 {
				t.Errorf("%s, warm-up %d: peak is %v", kind, warmup, top)
			}
			for step := max(warmup, 1) + 1; step <= 110; step++ {
				if s.Rate(step) >= s.Rate(step-1) {
					t.Errorf("%s, warm-up %d: rate does not fall at step %d", kind, warmup, step)
				}
			}
			if end := s.Rate(110); math.Abs(end-0.2) > 1e-15 || s.Rate(500) != end {
				t.Errorf("%s, warm-up %d: ends at %v, goes on at %v", kind, warmup, end, s.Rate(500))
			}
		}
	}
	// Half way down, the cosine and the line meet at the mean of peak and floor.
	for _, kind := range []Kind{Linear, Cosine} {
		s := Schedule{Kind: kind, Peak: 2, WarmupSteps: 10, Steps: 110, Floor: 0.1}
		if got := s.Rate(60); math.Abs(got-1.1) > 1e-15 {
			t.Errorf("%s: half way %v, want 1.1", kind, got)
		}
	}
	if s := (Schedule{Kind: Cosine, Peak: 1, WarmupSteps: 5, Steps: 5}); s.Rate(5) != 1 {
		t.Errorf("a job that is all warm-up ends at %v", s.Rate(5))
	}
}

func TestSettingsThatCannotTrainAreRefusedWithTheReason(t *testing.T) {
	good := AdamW{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, Clip: 1}
	if err := good.Validate(3e-4); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		peak   float64
		change func(*AdamW)
		want   string
	}{
		{0, func(*AdamW) {}, "nothing would be learnt"},
		{math.NaN(), func(*AdamW) {}, "not a number"},
		{-1e-3, func(*AdamW) {}, "negative"},
		{math.Inf(1), func(*AdamW) {}, "too large"},
		{1e-60, func(*AdamW) {}, "0 in fp32"},
		{1e-3, func(a *AdamW) { a.Beta1 = 1 }, "beta1"},
		{1e-3, func(a *AdamW) { a.Beta1 = math.NaN() }, "beta1"},
		{1e-3, func(a *AdamW) { a.Beta2 = 1 - 1e-12 }, "beta2"},
		{1e-3, func(a *AdamW) { a.Beta2 = -0.1 }, "beta2"},
		{1e-3, func(a *AdamW) { a.Epsilon = 0 }, "epsilon"},
		{1e-3, func(a *AdamW) { a.Epsilon = 1e-60 }, "epsilon"},
		{1e-3, func(a *AdamW) { a.WeightDecay = -1 }, "weight decay"},
		{0.5, func(a *AdamW) { a.WeightDecay = 2 }, "erase the weights"},
		{1e-3, func(a *AdamW) { a.Clip = math.NaN() }, "clip"},
		{1e-3, func(a *AdamW) { a.Clip = -1 }, "clip"},
	} {
		a := good
		c.change(&a)
		if err := a.Validate(c.peak); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v at %v: error %v, want %q", a, c.peak, err, c.want)
		}
	}
	several := AdamW{Beta1: 2, Beta2: 0.9, Epsilon: 0}
	if err := several.Validate(0); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("three faults are reported as %v", err)
	}
}

func TestSchedulesThatMakeNoSenseAreRefused(t *testing.T) {
	for _, c := range []struct {
		s    Schedule
		want string
	}{
		{Schedule{Kind: "step", Peak: 1}, "constant, linear or cosine"},
		{Schedule{Kind: Constant}, "learning rate is 0"},
		{Schedule{Kind: Constant, Peak: 1, WarmupSteps: -1}, "negative"},
		{Schedule{Kind: Linear, Peak: 1}, "number of steps"},
		{Schedule{Kind: Cosine, Peak: 1, Steps: 5, WarmupSteps: 6}, "nothing is left"},
		{Schedule{Kind: Cosine, Peak: 1, Steps: 5, Floor: 1.5}, "between 0 and 1"},
		{Schedule{Kind: Cosine, Peak: 1, Steps: 5, Floor: math.NaN()}, "between 0 and 1"},
	} {
		if err := c.s.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want %q", c.s, err, c.want)
		}
	}
}

// TestRatesAndCorrectionsAreTheSameBitsOnAllMachines holds them against what was
// written down once. Package math would give other bits where it is assembly, or where
// the compiler fuses product and sum, as with GOAMD64=v3.
func TestRatesAndCorrectionsAreTheSameBitsOnAllMachines(t *testing.T) {
	h := sha256.New()
	for _, kind := range []Kind{Constant, Linear, Cosine} {
		s := Schedule{Kind: kind, Peak: 3e-4, WarmupSteps: 7, Steps: 3001, Floor: 0.1}
		for step := int64(1); step <= s.Steps; step++ {
			h.Write(binary.LittleEndian.AppendUint64(nil, math.Float64bits(s.Rate(step))))
		}
	}
	a := AdamW{Beta1: 0.9, Beta2: 0.999, Epsilon: 1e-8}
	for t := int64(1); t <= 20_000; t++ {
		f := a.Hyper(0, 0, t)
		h.Write(binary.LittleEndian.AppendUint32(nil, math.Float32bits(f.Correction1)))
		h.Write(binary.LittleEndian.AppendUint32(nil, math.Float32bits(f.Correction2)))
	}
	if got := fmt.Sprintf("%x", h.Sum(nil)[:8]); got != "56c34154b8b0d3dc" {
		t.Errorf("the bits hash to %s", got)
	}
}
