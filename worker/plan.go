package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker/trainer"
)

// DoesNotFitError says that a job needs more memory than it may use, and what would help.
type DoesNotFitError struct{ Err error }

func (e *DoesNotFitError) Error() string { return "resources.memory: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *DoesNotFitError) Unwrap() error { return e.Err }

// memoryInput is what a job's memory depends on, with its ranks on as few as so many workers
// that compute as the device does.
func memoryInput(dev device.Info, c modelConfig, job *jobspec.Job, table shard.Table, workers, micro int) shard.MemoryInput {
	share := job.Train.GlobalBatch / job.Cluster.WorldSize
	in := shard.MemoryInput{
		Table: table, GradOrder: model.GradOrder(c),
		Shape: shard.Shape{Family: shard.FamilyLlama, Layers: c.Layers, Hidden: c.Hidden, MLP: c.MLP,
			Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim, Vocab: c.Vocab},
		Precision: shard.FP32, Stage: shard.Stage(*job.Cluster.Zero), WorkersMin: workers, WorkersMax: workers,
		MicroBatch: micro, MicroBatches: share / micro, SequenceTokens: job.Data.SequenceLength,
		HeadChunk: min(device.BlockRows, job.Data.SequenceLength), WeightForms: 1 + dev.PackedCopies[device.F32],
		SparseRows: min(share*job.Data.SequenceLength, c.Vocab), WireBF16: job.Cluster.Wire == jobspec.WireBF16,
		Mirror: job.Cluster.Protect == jobspec.ProtectMirror,
	}
	if !c.Tied {
		in.FlatOnly = int64(c.Vocab) * int64(c.Hidden)
	}
	if !c.Gated() {
		in.Shape.Family = shard.FamilyGPT2
	}
	if !c.Rotary() {
		in.FlatOnly += int64(c.MaxPositions) * int64(c.Hidden)
	}
	if job.Train.Precision == jobspec.PrecisionBF16 {
		in.Precision, in.WeightForms = shard.BF16, 1+dev.PackedCopies[device.BF16]
	}
	in.Checkpointing = map[jobspec.ActivationCheckpointing]shard.Checkpointing{
		jobspec.ActivationCheckpointingSelective: shard.KeepSome, jobspec.ActivationCheckpointingFull: shard.KeepInputs,
	}[job.Train.ActivationCheckpointing]
	return in
}

// microBatch decides how many sequences one forward takes: what the job says, or
// the most that fit the budget. Which it is never changes a bit.
func microBatch(dev device.Info, c modelConfig, job *jobspec.Job, table shard.Table, workers int, budget int64) (int, shard.Memory) {
	share := job.Train.GlobalBatch / job.Cluster.WorldSize
	fixed := int(job.Train.MicroBatch)
	for n := share; n >= 1; n-- {
		if share%n != 0 || fixed > 0 && n != fixed {
			continue
		}
		m := shard.MemoryOn(memoryInput(dev, c, job, table, workers, n), workers)
		if fixed > 0 || n == 1 || budget == 0 || m.Total() <= budget {
			return n, m
		}
	}
	return 1, shard.MemoryOn(memoryInput(dev, c, job, table, workers, 1), workers)
}

// workers is the least number of workers that a job runs on.
func (e Env) workers(job *jobspec.Job) int {
	if e.Cluster {
		return job.Cluster.Workers.Min
	}
	return 1
}

// fit refuses a job that needs more memory than it may use.
func (a *Admitted) fit(env Env) error {
	if a.Budget == 0 {
		return nil
	}
	job := &a.Spec.Job
	in := memoryInput(env.Device.Info(), a.Config.Model, job, a.Table, env.workers(job), int(job.Train.MicroBatch))
	if err := shard.CheckMemory(in, a.Budget); err != nil {
		return &DoesNotFitError{err}
	}
	return nil
}

// calibrationLong is how long a first step may take and still be followed by a second one.
const calibrationLong = 15 * time.Second

// Calibrate takes one or two real steps of the job, throws them away, and returns how long
// the faster took.
func Calibrate(ctx context.Context, env Env, a *Admitted) (time.Duration, error) {
	tr, err := trainer.New(env.Device, a.Config, a.Train)
	if err != nil {
		return 0, err
	}
	defer tr.Close()
	if err := tr.Import(a.Base); err != nil {
		return 0, err
	}
	var best time.Duration
	for range 2 {
		res, err := tr.Step(ctx)
		if err != nil {
			return 0, err
		}
		if took := res.Timing.Total(); best == 0 || took < best {
			best = took
		}
		if best > calibrationLong {
			break
		}
	}
	return best, nil
}

// Prepared is the event that says what was admitted.
func (a *Admitted) Prepared() console.Prepared {
	r := a.Data.TrainManifest.Report
	size := int64(4)
	if a.Config.Precision == device.BF16 {
		size = 2
	}
	return console.Prepared{
		Parameters: a.Table.Params(), Architecture: a.Config.Model.Family, ModelBytes: a.Table.Params() * size,
		Examples: r.Examples, Sequences: r.Packs, Padding: r.PaddingShare(),
		NumericClass: a.Spec.Job.Train.NumericClass, DataHash: a.Spec.DataHash,
	}
}

// IsTooBig tells whether an error says that a job does not fit.
func IsTooBig(err error) bool {
	var big *DoesNotFitError
	return errors.As(err, &big)
}

// budget is the memory that a job may use: what it says, else what is free.
func budget(env Env, job *jobspec.Job) (int64, error) {
	free := env.MemoryFree
	asked := int64(job.Resources.Memory)
	if asked > 0 && free > 0 && asked > free {
		return 0, &DoesNotFitError{fmt.Errorf("%s is asked for and %s is free on this machine; lower it, or free some", console.Bytes(asked), console.Bytes(free))}
	}
	if asked > 0 {
		return asked, nil
	}
	return free, nil
}
