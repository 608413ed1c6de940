package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/optim"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker/trainer"
)

// Choices are what changes the time of a step and never its bits.
type Choices struct {
	Micro         int // sequences of a micro-batch; 0: one, the fastest where it was measured, and the smallest
	Checkpointing model.Checkpointing
}

// Stepper takes training steps of a workload.
type Stepper struct {
	Workload
	dev device.Device
	tr  *trainer.Trainer
}

// Round is one step taken.
type Round struct {
	Seconds float64
	Loss    float64 // mean over the step's targets
	Timing  trainer.Timing
}

// NewStepper allocates a trainer of one rank and gives it random weights.
func NewStepper(dev device.Device, w Workload, c Choices) (*Stepper, error) {
	if c.Micro == 0 {
		c.Micro = 1
	}
	tr, err := trainer.New(dev, trainer.Config{
		Model: w.Model, WorldSize: 1, Precision: w.Precision, Stage: shard.StageOptimizer,
		Batch:         trainer.Batching{Global: w.Batch, Micro: c.Micro, SeqLen: w.SeqLen},
		Optimizer:     optim.AdamW{Beta1: 0.9, Beta2: 0.999, Epsilon: 1e-8, WeightDecay: 0.01, Clip: 1},
		Schedule:      optim.Schedule{Kind: optim.Constant, Peak: 1e-4},
		Order:         shard.Order{Samples: 1 << 20, GlobalBatch: int64(w.Batch)},
		Checkpointing: c.Checkpointing,
	}, samples{w.SeqLen, w.Model.Vocab})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.Name, err)
	}
	if err := tr.Import(weights{w.Model}); err != nil {
		tr.Close()
		return nil, fmt.Errorf("%s: %w", w.Name, err)
	}
	return &Stepper{Workload: w, dev: dev, tr: tr}, nil
}

// Close gives back the trainer's memory.
func (s *Stepper) Close() { s.tr.Close() }

// Step takes one step, until its weights are there.
func (s *Stepper) Step(ctx context.Context) (Round, error) {
	began := time.Now()
	res, err := s.tr.Step(ctx)
	if err != nil {
		return Round{}, fmt.Errorf("%s: %w", s.Name, err)
	}
	return Round{Seconds: time.Since(began).Seconds(), Loss: res.Decision.Loss, Timing: res.Timing}, nil
}
