// Package eval measures a model: its loss on held-out data, and what it answers.
package eval

import (
	"context"
	"fmt"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model"
)

// Resident are hooks for a model whose weights are all packed and current.
type Resident struct{}

// NeedWeights does nothing: the weights are there.
func (Resident) NeedWeights(int, int) error { return nil }

// NeedGrad does nothing: memory for gradients is there.
func (Resident) NeedGrad(int) error { return nil }

// GradReady does nothing: nobody waits for gradients.
func (Resident) GradReady(int, int) error { return nil }

// Result is a loss over held-out tokens.
type Result struct {
	Loss    float64 `json:"loss"`    // mean negative log-likelihood of a target token, in nats
	Targets int64   `json:"targets"` // how many tokens that is over
}

// Loss runs micro-batches until next returns false and returns the mean loss of all
// their targets. A batch without targets counts for nothing.
func Loss(ctx context.Context, m *model.Model, s device.Stream, hooks model.Hooks, next func() (model.Batch, bool, error)) (Result, error) {
	m.ResetLoss(s)
	var r Result
	for {
		if err := ctx.Err(); err != nil {
			return Result{}, err
		}
		b, ok, err := next()
		if err != nil {
			return Result{}, err
		}
		if !ok {
			break
		}
		if err := m.Evaluate(s, b, device.Tensor{}, hooks); err != nil {
			return Result{}, err
		}
		for _, t := range b.Targets {
			if t >= 0 {
				r.Targets++
			}
		}
		// The batch's memory may be reused by next.
		if err := s.Record().Wait(); err != nil {
			return Result{}, err
		}
	}
	sum, err := m.Loss(s, 0)
	if err != nil {
		return Result{}, err
	}
	if r.Targets == 0 {
		return Result{}, fmt.Errorf("held-out data has no target tokens: nothing to measure")
	}
	r.Loss = sum / float64(r.Targets)
	return r, nil
}
