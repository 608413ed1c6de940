// Package optim is the optimizer seen from one step: which learning rate the step
// has, which factors AdamW needs at its step count, and what AdamW does to a slice
// of numbers. The pieces it works on are flat; what a tensor is does not matter
// here, only whether weight decay applies.
//
// The arithmetic on a device is the device's own; AdamWRef is its specification.
package optim

import (
	"fmt"
	"math"

	"github.com/skein-ml/skein/internal/exact"
)

// Kind is the shape of a schedule after the warm-up.
type Kind string

// The kinds of schedule.
const (
	Constant Kind = "constant"
	Linear   Kind = "linear"
	Cosine   Kind = "cosine"
)

// Schedule gives the learning rate of every step. Steps count from 1 and include
// skipped ones: a skipped step advances the schedule.
type Schedule struct {
	Kind        Kind
	Peak        float64 // learning rate after the warm-up
	WarmupSteps int64   // step k of w has k/w of the peak; 0: none
	Steps       int64   // last step of the job; Linear and Cosine end there
	Floor       float64 // share of the peak at the last step of Linear and Cosine
}

// Validate names what is wrong with the schedule.
func (s Schedule) Validate() error {
	switch s.Kind {
	case Constant, Linear, Cosine:
	default:
		return fmt.Errorf("schedule kind %q: must be constant, linear or cosine", s.Kind)
	}
	if err := checkRate(s.Peak); err != nil {
		return err
	}
	switch {
	case s.WarmupSteps < 0:
		return fmt.Errorf("%d warm-up steps: must not be negative", s.WarmupSteps)
	case s.Kind != Constant && s.Steps < 1:
		return fmt.Errorf("schedule %s: needs the number of steps of the job, which is %d", s.Kind, s.Steps)
	case s.Kind != Constant && s.WarmupSteps > s.Steps:
		return fmt.Errorf("%d warm-up steps of %d: nothing is left for the %s part", s.WarmupSteps, s.Steps, s.Kind)
	case !(s.Floor >= 0 && s.Floor <= 1):
		return fmt.Errorf("schedule floor %v: is a share of the learning rate, between 0 and 1", s.Floor)
	}
	return nil
}

// Rate is the learning rate of a step ≥ 1: a linear rise to the peak at step
// WarmupSteps, then down to Floor·Peak at step Steps, and on at that rate.
func (s Schedule) Rate(step int64) float64 {
	if step < s.WarmupSteps {
		return s.Peak * (float64(step) / float64(s.WarmupSteps))
	}
	top := max(s.WarmupSteps, 1)
	if s.Kind == Constant || step <= top {
		return s.Peak
	}
	x := min(1, float64(step-top)/float64(s.Steps-top))
	share := 1 - x
	if s.Kind == Cosine {
		_, cos := exact.Sincos(float64(math.Pi * x))
		share = 0.5 * (1 + cos)
	}
	// The conversions keep the compiler from fusing product and sum on some machines.
	return s.Peak * (s.Floor + float64((1-s.Floor)*share))
}

// Bits is the learning rate of a step as every holder of weights uses it: rounded
// to fp32, in the form that a decision record carries.
func (s Schedule) Bits(step int64) uint32 { return math.Float32bits(float32(s.Rate(step))) }

// checkRate refuses a learning rate that would train nothing, or destroy everything.
func checkRate(rate float64) error {
	switch {
	case math.IsNaN(rate):
		return fmt.Errorf("learning rate is not a number: give a value such as 3e-4")
	case rate == 0:
		return fmt.Errorf("learning rate is 0: nothing would be learnt; give a value such as 3e-4")
	case rate < 0:
		return fmt.Errorf("learning rate %v is negative: the loss would rise; give a value such as 3e-4", rate)
	case math.IsInf(float64(float32(rate)), 0):
		return fmt.Errorf("learning rate %v is too large for fp32; give a value such as 3e-4", rate)
	case float32(rate) == 0:
		return fmt.Errorf("learning rate %v is 0 in fp32: nothing would be learnt; give a value such as 3e-4", rate)
	}
	return nil
}
