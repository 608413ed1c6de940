// Package trainer takes optimizer steps: the step protocol of docs/ARCHITECTURE.md
// for the logical ranks that one worker hosts, all of a job's or some of them. Each
// rank has its own gradients; they are folded piece by piece in ring order, every
// rank votes, one decision record says what the step does, and the holder of a piece
// applies it.
//
// No bit depends on how ranks are placed: the order of addition, the cut into pieces,
// votes and decisions are the same on one worker, where ranks meet in memory
// (local.go), and on many, where they meet on the network (linked.go).
package trainer

import (
	"context"
	"fmt"
	"slices"
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

	// Placement says where ranks are hosted, and Worker which of its workers this is. The
	// zero Placement hosts all ranks here.
	// Mirror has every worker keep the previous one's optimizer state too. [Trainer.Place]
	// changes all three.
	Placement shard.Placement
	Worker    int
	Mirror    bool

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
	if n := c.Placement.WorldSize(); n > 0 && (n != c.WorldSize || c.Worker < 0 || c.Worker >= c.Placement.Workers()) {
		return fmt.Errorf("a placement of %d ranks on %d workers does not place worker %d of a world of %d", n, c.Placement.Workers(), c.Worker, c.WorldSize)
	}
	if err := c.Schedule.Validate(); err != nil {
		return err
	}
	if err := c.Order.Validate(); err != nil {
		return err
	}
	return c.Optimizer.Validate(c.Schedule.Peak)
}

// cutsGradients tells whether no rank has room for all its gradients. The only rank of a
// world of one owns all of them.
func (c Config) cutsGradients() bool { return c.Stage >= shard.StageGradients && c.WorldSize > 1 }

// cutsWeights tells whether no worker has room for all working weights.
func (c Config) cutsWeights() bool { return c.Stage >= shard.StageWeights && c.WorldSize > 1 }

// Samples gives a trainer its sequences; a [data.Dataset] is one.
type Samples interface {
	// Batch fills dst with the samples of the given indices, in their order. An index
	// below zero is a sequence without targets.
	Batch(ctx context.Context, indices []int64, dst *data.Batch) error
}

// Trainer holds the state of a job's ranks on one device.
type Trainer struct {
	cfg     Config
	dev     device.Device
	stream  device.Stream
	samples Samples
	table   shard.Table
	model   *model.Model
	ranks   []*rank // hosted here, ascending
	mirrors []shard.Rank
	twins   []shard.Rank // the previous worker's, if their state is kept here too: mirrors, or what all have
	turns   []int        // buckets that are compared with theirs in a step, see findTurns
	same    []int64      // by bucket and twin: the step after which they were found to be the same last, -1: none
	// segments is by rank; nil where another worker has it.
	segments []*segment
	peers    collective
	cells    cells
	order    []int // buckets, as their gradients are computed

	step    int64               // last step decided, applied and counted
	taken   int64               // steps that were not skipped: Adam's t
	last    *allreduce.Decision // of step; nil where the trainer began
	record  allreduce.Decision  // what last points to after a step
	pending *allreduce.Decision // of step+1, decided and not applied yet
	summed  int64               // step whose R(k) is complete in all segments that belong here
	filling []Move              // that the next step waits for
	staging []byte
	fresh   []bool
	coming  int             // bucket whose weights are on their way on demand, or -1
	inSlot  [layerSlots]int // the bucket whose weights stand there; 0: none
	held    <-chan struct{} // until it is closed, the state must not change; nil: it may
	asks    allreduce.Requests
	layer   string // of a step that is not finite, where rank 0 is hosted: where that began

	laggards laggards   // of the generation, where rank 0 is hosted
	slowest  *Straggler // in the last step

	// Of the step under way, for the model's hooks.
	ctx     context.Context
	result  Result
	now     *rank // whose gradients are computed
	closing bool  // its last micro-batch runs
	work    []model.Work
	votes   []allreduce.Vote
	rows    []allreduce.Rows
}

// collective is how ranks meet: it adds their gradients, makes the decision, and
// brings new weights to where they are needed.
type collective interface {
	// ready says that a hosted rank's gradient of a bucket is complete.
	ready(r *rank, bucket int) error
	// rowsReady says that its sparse rows are complete too.
	rowsReady(r *rank) error
	// spent waits until the hosted ranks' gradients of a bucket are not read any more.
	spent(ctx context.Context, bucket int) error
	// reduce waits until the sums of all segments that belong here are complete.
	reduce(ctx context.Context) error
	// decide makes or learns the decision from the votes of the hosted ranks.
	decide(ctx context.Context, votes []allreduce.Vote) (allreduce.Decision, error)
	// changed says that new working weights of pieces held here are there, bucket by
	// bucket after begin.
	begin(step int64) error
	changed(bucket int) error
	// gather brings a bucket's working weights on demand, of which those of the hosted ranks are there; written
	// waits until nothing of it is on its way to others.
	gather(bucket int) error
	written(ctx context.Context, bucket int) error
	// gathered waits until all of a bucket's working weights are here.
	gathered(ctx context.Context, bucket int) error
}

// Result is what a step did, and how long its phases took.
type Result struct {
	Decision allreduce.Decision
	Tokens   int64 // tokens computed, padding left out
	Timing   Timing
	// Layer is where NaN or infinity began, of a step that is skipped for it; known where
	// rank 0 is hosted, and "" if all gradients are finite and only their norm or a loss is not.
	Layer string
	// NotFinite says of the ranks hosted here which have made it so, and where.
	NotFinite []NotFinite
	// Straggler is the rank that all others wait for, nil if there is none; known where rank 0
	// is hosted.
	Straggler *Straggler
}

// Timing is the wall time of a step's phases. What the network does behind the
// computation is in none of them.
type Timing struct {
	Data    time.Duration // waiting for samples
	Compute time.Duration
	Gather  time.Duration // waiting for weights
	Reduce  time.Duration // waiting for sums and the decision after the backward, and before for room for gradients
	Hold    time.Duration // waiting for a checkpoint to have read the state
	Apply   time.Duration
}

// waited is what a computation has waited for.
func (t Timing) waited() time.Duration { return t.Gather + t.Reduce }

// Total is the wall time of the step.
func (t Timing) Total() time.Duration {
	return t.Data + t.Compute + t.Gather + t.Reduce + t.Hold + t.Apply
}

// New allocates a trainer in its place. One of several workers is connected to the others by
// [Trainer.Join]. The weights are undefined until [Trainer.Import] or [Trainer.Restore].
func New(dev device.Device, cfg Config, samples Samples) (*Trainer, error) {
	t, err := NewIdle(dev, cfg, samples)
	if err != nil {
		return nil, err
	}
	if err := t.Place(cfg.Placement, cfg.Worker, cfg.Mirror); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// NewIdle allocates what a trainer needs in any place. [Trainer.Place] gives it one.
func NewIdle(dev device.Device, cfg Config, samples Samples) (_ *Trainer, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	table, err := NewTable(cfg.Model, cfg.WorldSize)
	if err != nil {
		return nil, err
	}
	t := &Trainer{cfg: cfg, dev: dev, stream: dev.Stream(device.StreamCompute), samples: samples, table: table, order: model.GradOrder(cfg.Model),
		segments: make([]*segment, cfg.WorldSize), peers: unlinked{}}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	share := cfg.Batch.Global / cfg.WorldSize
	slots := 0
	if t.onDemand() {
		slots = layerSlots
	}
	if t.model, err = model.New(dev, cfg.Model, model.Options{
		DType: cfg.Precision, SeqLen: cfg.Batch.SeqLen, Sequences: cfg.Batch.Micro,
		Checkpointing: cfg.Checkpointing, SlotsMax: min(share*cfg.Batch.SeqLen, cfg.Model.Vocab),
		BucketAlign: cfg.WorldSize * shard.Align, LayerSlots: slots,
	}); err != nil {
		return nil, err
	}
	t.fresh = make([]bool, table.Buckets())
	if err := t.newCells(); err != nil {
		return nil, err
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
	_ = t.stream.Record().Wait() // nothing that is freed is in use
	for _, r := range t.ranks {
		r.mem.free()
	}
	for _, s := range t.segments {
		if s != nil {
			s.mem.free()
		}
	}
	t.unlink()
	t.cells.mem.free()
	if t.model != nil {
		t.model.Close()
	}
}

// StepsDone is the last step that was decided and applied.
func (t *Trainer) StepsDone() int64 { return t.step }

// Table is the bucket table.
func (t *Trainer) Table() shard.Table { return t.table }

// Alone tells whether all ranks are hosted here.
func (t *Trainer) Alone() bool { return len(t.ranks) == t.cfg.WorldSize }

// Model is the trainer's model with current weights packed, for evaluation between steps. Where weights
// come on demand, all workers of the job run it, and on the same batches.
// Its runs are to be given the hooks.
func (t *Trainer) Model(ctx context.Context) (*model.Model, device.Stream, model.Hooks, error) {
	t.ctx = ctx
	if t.onDemand() {
		return t.model, t.stream, t, nil
	}
	for b := range t.fresh {
		if err := t.NeedWeights(b, -1); err != nil {
			return nil, nil, nil, err
		}
	}
	return t.model, t.stream, t, nil
}

// Request puts a request into this worker's next votes. The decision record of that step
// brings it to all workers.
func (t *Trainer) Request(r allreduce.Requests) { t.asks |= r }

// Hold keeps the state as it is until done is closed: the next step waits before it is
// applied. So a checkpoint is written while the step is computed.
func (t *Trainer) Hold(done <-chan struct{}) { t.held = done }

// Step takes the next step. After an error the trainer is only good for [Trainer.Seal] and
// Close; the step may have been taken all the same.
func (t *Trainer) Step(ctx context.Context) (Result, error) {
	t.ctx, t.result = ctx, Result{}
	if s, ok := t.samples.(interface{ Step(int64) }); ok {
		s.Step(t.step + 1)
	}
	if err := t.take(ctx, t.step+1, &t.result); err != nil {
		return t.result, fmt.Errorf("step %d: %w", t.step+1, err)
	}
	return t.result, nil
}

// take takes step k: compute, reduce, vote, decide, apply.
func (t *Trainer) take(ctx context.Context, k int64, res *Result) (err error) {
	clock := stopwatch{last: time.Now()}
	ranks := t.ranks
	if t.together() {
		ranks = nil
		if err := t.computeTogether(ctx, k, &clock, res); err != nil {
			return err
		}
	}
	for _, r := range ranks {
		if began := time.Now(); r.done == k { // before a failure
			err = t.again(r)
		} else if err = t.compute(ctx, k, r, &clock, res); err == nil {
			r.done, r.took = k, time.Since(began)
		}
		if err != nil {
			return fmt.Errorf("rank %d: %w", r.id, err)
		}
	}
	if err := t.peers.reduce(ctx); err != nil {
		return err
	}
	t.summed = k
	votes, err := t.vote(k)
	if err != nil {
		return err
	}
	if res.Decision, err = t.peers.decide(ctx, votes); err != nil {
		return err
	}
	t.pending, res.Layer, res.Straggler = &res.Decision, t.layer, t.slowest
	res.Timing.Reduce += clock.lap()
	if err := t.wait(ctx); err != nil {
		return err
	}
	res.Timing.Hold += clock.lap()
	if err = t.apply(res.Decision); err == nil && res.Decision.Cause == allreduce.CauseNotFinite {
		res.NotFinite, err = t.locate()
	}
	res.Timing.Apply += clock.lap()
	return err
}

// again sends a rank's gradients on their way that are complete already.
func (t *Trainer) again(r *rank) error {
	t.result.Tokens += r.read
	for b := range t.fresh {
		if err := t.NeedWeights(b, -1); err != nil {
			return err
		}
	}
	for b := range slices.Backward(t.fresh) {
		if err := t.peers.ready(r, b); err != nil {
			return err
		}
	}
	return t.peers.rowsReady(r)
}

// wait waits until nobody holds the state.
func (t *Trainer) wait(ctx context.Context) error {
	if t.held == nil {
		return nil
	}
	select {
	case <-t.held:
		t.held = nil
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stopwatch measures phases one after the other.
type stopwatch struct{ last time.Time }

func (s *stopwatch) lap() time.Duration {
	now := time.Now()
	d := now.Sub(s.last)
	s.last = now
	return d
}
