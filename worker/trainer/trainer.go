// Package trainer takes optimizer steps: the step protocol of docs/ARCHITECTURE.md
// with all logical ranks of a job on one worker. Each rank has its own gradients;
// they are folded piece by piece in ring order, every rank votes, one decision
// record says what the step does, and the holder of a piece applies it.
//
// Nothing here depends on how ranks are placed: the order of addition, the cut
// into pieces, votes and decisions are those of the cluster, so the weights come
// out with the same bits.
package trainer

import (
	"context"
	"fmt"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/model/config"
	"github.com/skein-ml/skein/optim"
	"github.com/skein-ml/skein/shard"
)

// Config is everything that fixes a job's arithmetic, and the choices that don't.
type Config struct {
	Model     config.Config
	WorldSize int
	Batch     Batching
	Precision device.DType // of working weights and activations
	Stage     shard.Stage
	Wire      allreduce.Wire
	Optimizer optim.AdamW
	Schedule  optim.Schedule
	Order     shard.Order

	// Checkpointing never changes a bit.
	Checkpointing model.Checkpointing
}

// Batching is how samples become micro-batches.
type Batching struct {
	Global int // sequences of a step, a multiple of the world size
	Micro  int // sequences of one forward and backward; divides the rank's share; never changes a bit
	SeqLen int // tokens of a sequence
}

// Validate names every conflict.
func (c Config) Validate() error {
	if err := shard.CheckWorldSize(c.WorldSize); err != nil {
		return err
	}
	if err := shard.CheckGlobalBatch(c.Batch.Global, c.WorldSize); err != nil {
		return err
	}
	if share := c.Batch.Global / c.WorldSize; c.Batch.Micro < 1 || share%c.Batch.Micro != 0 {
		return fmt.Errorf("micro-batch %d does not divide the %d sequences that a rank reads in a step", c.Batch.Micro, share)
	}
	if err := shard.CheckStage(c.Stage); err != nil {
		return err
	}
	if err := c.Schedule.Validate(); err != nil {
		return err
	}
	if err := c.Order.Validate(); err != nil {
		return err
	}
	return c.Optimizer.Validate(c.Schedule.Peak)
}

// Samples gives a trainer its sequences; a [data.Dataset] is one.
type Samples interface {
	// Batch fills dst with the samples of the given indices, in their order. An index
	// below zero is a sequence without targets.
	Batch(ctx context.Context, indices []int64, dst *data.Batch) error
}

// Trainer holds one job's state on one device.
type Trainer struct {
	cfg     Config
	dev     device.Device
	stream  device.Stream
	samples Samples
	table   shard.Table
	model   *model.Model
	ranks   []*rank
	state   state
	ring    ring
	cells   cells
	batch   rankBatch

	step  int64 // last step decided, applied and counted
	taken int64 // steps that were not skipped: Adam's t
	fresh []bool
}

// Result is what a step did, and how long its phases took.
type Result struct {
	Decision allreduce.Decision
	Tokens   int64 // tokens computed, padding left out
	Timing   Timing
}

// Timing is the wall time of a step's phases.
type Timing struct {
	Data, Compute, Reduce, Apply time.Duration
}

// Total is the wall time of the step.
func (t Timing) Total() time.Duration { return t.Data + t.Compute + t.Reduce + t.Apply }

// New allocates a trainer. Its weights are undefined until [Trainer.Import] or [Trainer.Restore].
func New(dev device.Device, cfg Config, samples Samples) (_ *Trainer, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	table, err := NewTable(cfg.Model, cfg.WorldSize)
	if err != nil {
		return nil, err
	}
	t := &Trainer{cfg: cfg, dev: dev, stream: dev.Stream(device.StreamCompute), samples: samples, table: table}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	share := cfg.Batch.Global / cfg.WorldSize
	if t.model, err = model.New(dev, cfg.Model, model.Options{
		DType: cfg.Precision, SeqLen: cfg.Batch.SeqLen, Sequences: cfg.Batch.Micro,
		Checkpointing: cfg.Checkpointing, SlotsMax: min(share*cfg.Batch.SeqLen, cfg.Model.Vocab),
	}); err != nil {
		return nil, err
	}
	t.fresh = make([]bool, table.Buckets())
	for _, build := range []func() error{t.newState, t.newRanks, t.newRing, t.newCells} {
		if err := build(); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// NewTable is the bucket table of a model at a world size.
func NewTable(c config.Config, worldSize int) (shard.Table, error) {
	var groups []shard.Group
	for _, g := range c.Groups() {
		group := shard.Group{Name: g.Name}
		for _, x := range g.Tensors {
			group.Tensors = append(group.Tensors, shard.Tensor{Name: x.Name, Elems: x.Elements(), Decay: x.Decay})
		}
		groups = append(groups, group)
	}
	return shard.NewTable(groups, worldSize)
}

// Close gives back all memory.
func (t *Trainer) Close() {
	for _, r := range t.ranks {
		r.mem.free()
	}
	t.state.mem.free()
	t.ring.mem.free()
	t.cells.mem.free()
	if t.model != nil {
		t.model.Close()
	}
}

// StepsDone is the last step that was decided and applied.
func (t *Trainer) StepsDone() int64 { return t.step }

// Table is the bucket table.
func (t *Trainer) Table() shard.Table { return t.table }

// Model is the trainer's model with current weights packed, for evaluation between steps.
func (t *Trainer) Model() (*model.Model, device.Stream) {
	for b := range t.fresh {
		t.NeedWeights(b)
	}
	return t.model, t.stream
}

// Step takes the next step. After an error other than from ctx the trainer is only good for Close.
func (t *Trainer) Step(ctx context.Context) (Result, error) {
	k := t.step + 1
	var res Result
	clock := stopwatch{last: time.Now()}
	for _, r := range t.ranks {
		if err := t.compute(ctx, k, r, &clock, &res); err != nil {
			return res, fmt.Errorf("step %d, rank %d: %w", k, r.id, err)
		}
	}
	if err := t.reduce(k); err != nil {
		return res, fmt.Errorf("step %d: %w", k, err)
	}
	votes, err := t.vote(k)
	if err != nil {
		return res, fmt.Errorf("step %d: %w", k, err)
	}
	res.Timing.Reduce += clock.lap()
	if res.Decision, err = t.decide(k, votes); err != nil {
		return res, fmt.Errorf("step %d: %w", k, err)
	}
	if err := t.apply(res.Decision); err != nil {
		return res, fmt.Errorf("step %d: %w", k, err)
	}
	res.Timing.Apply += clock.lap()
	return res, nil
}

// stopwatch measures phases one after the other.
type stopwatch struct{ last time.Time }

func (s *stopwatch) lap() time.Duration {
	now := time.Now()
	d := now.Sub(s.last)
	s.last = now
	return d
}
