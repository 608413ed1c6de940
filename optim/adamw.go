package optim

import (
	"errors"
	"fmt"
	"math"

	"github.com/skein-ml/skein/internal/exact"
)

// AdamW are the constants of the optimizer (Loshchilov and Hutter,
// arXiv:1711.05101).
type AdamW struct {
	Beta1, Beta2 float64
	Epsilon      float64
	WeightDecay  float64 // decoupled, multiplied by the learning rate
	Clip         float64 // largest norm of the whole gradient; 0: no clipping
}

// Validate names everything that is wrong, given the peak learning rate.
func (a AdamW) Validate(peak float64) error {
	var faults []error
	bad := func(when bool, format string, args ...any) {
		if when {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	if err := checkRate(peak); err != nil {
		faults = append(faults, err)
	}
	for i, beta := range []float64{a.Beta1, a.Beta2} {
		// In fp32, because a beta that rounds to 1 would never let a gradient in.
		bad(!(beta >= 0 && float32(beta) < 1), "beta%d %v: must be at least 0 and below 1", i+1, beta)
	}
	bad(!(float32(a.Epsilon) > 0) || math.IsInf(float64(float32(a.Epsilon)), 0),
		"epsilon %v: must be above 0 in fp32, or weights without gradient become NaN; use 1e-8", a.Epsilon)
	bad(!(a.WeightDecay >= 0) || math.IsInf(a.WeightDecay, 0), "weight decay %v: must be 0 or a positive number", a.WeightDecay)
	bad(a.WeightDecay*peak >= 1, "weight decay %v × learning rate %v is 1 or more: every step would erase the weights", a.WeightDecay, peak)
	bad(!(a.Clip >= 0) || math.IsInf(a.Clip, 0), "clip %v: must be a positive number, or 0 for no clipping", a.Clip)
	return errors.Join(faults...)
}

// Hyper are the factors of one step of AdamW, in fp32. Everybody who applies the
// step has the same ones, because they follow from the decision record.
type Hyper struct {
	GradScale    float32 // α: multiplied into the gradient first
	LR           float32
	Beta1, Beta2 float32
	Epsilon      float32
	Decay        float32 // 0 for tensors without weight decay
	Correction1  float32 // 1 − β1^t
	Correction2  float32 // √(1 − β2^t)
}

// Hyper gives the factors of a step. rateBits and scaleBits are fp32 bits from the
// decision record. t is Adam's own count, from 1: it counts the steps taken, this
// one included, and not the skipped ones.
//
// The betas are rounded to fp32 first and the corrections follow from the rounded
// ones. Otherwise β2 = 0.999 would err by 1e-5 against its own correction, since
// 1 − 0.999 keeps only 14 good bits of fp32.
func (a AdamW) Hyper(rateBits, scaleBits uint32, t int64) Hyper {
	b1, b2 := float32(a.Beta1), float32(a.Beta2)
	return Hyper{
		GradScale: math.Float32frombits(scaleBits), LR: math.Float32frombits(rateBits),
		Beta1: b1, Beta2: b2, Epsilon: float32(a.Epsilon), Decay: float32(a.WeightDecay),
		Correction1: float32(1 - exact.PowInt(float64(b1), t)),
		Correction2: float32(math.Sqrt(1 - exact.PowInt(float64(b2), t))),
	}
}

// For gives the factors for a range of weights with or without decay.
func (h Hyper) For(decay bool) Hyper {
	if !decay {
		h.Decay = 0
	}
	return h
}

// AdamWRef applies one step to master weights and moments, element by element. All
// slices have the same length. It is the specification of the device operation:
// each product is rounded to fp32 by itself (the conversions keep the compiler from
// fusing it with the sum that follows), so every machine gets the same bits.
func AdamWRef(master, m, v, grad []float32, h Hyper) {
	decay, rate := h.LR*h.Decay, h.LR/h.Correction1
	in1, in2 := 1-h.Beta1, 1-h.Beta2
	for i, p := range master {
		g := float32(grad[i] * h.GradScale)
		p -= float32(p * decay)
		m[i] += float32((g - m[i]) * in1)
		v[i] = float32(v[i]*h.Beta2) + float32(float32(g*g)*in2)
		denom := float32(math.Sqrt(float64(v[i])))/h.Correction2 + h.Epsilon
		master[i] = p - float32(rate*(m[i]/denom))
	}
}
