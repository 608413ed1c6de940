package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/optim"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker/trainer"
)

// Admitted is a job of which nothing is open any more: model and data are there,
// and every "auto" is decided. Close it when done.
type Admitted struct {
	Spec     *jobspec.Resolved
	Base     *Base
	Language *Language
	Data     *data.Prepared
	Config   trainer.Config
	Steps    int64
	Table    shard.Table
	Memory   shard.Memory
	Budget   int64 // bytes that the job may use, 0: no limit is known

	Train      *data.Dataset
	Validation *data.Dataset // nil: none
	dataSpec   data.Spec
}

// Close closes the model and the data sets.
func (a *Admitted) Close() error {
	var errs []error
	for _, set := range []*data.Dataset{a.Train, a.Validation} {
		if set != nil {
			errs = append(errs, set.Close())
		}
	}
	if a.Base != nil {
		errs = append(errs, a.Base.Close())
	}
	return errors.Join(errs...)
}

// Admit opens a valid job's model, prepares its data, and resolves its spec. A job that
// does not fit is returned with a [DoesNotFitError].
func Admit(ctx context.Context, env Env, job *jobspec.Job) (admitted *Admitted, err error) {
	a := &Admitted{}
	defer func() {
		if admitted == nil {
			err = errors.Join(err, a.Close())
		}
	}()
	if a.Base, err = OpenBase(job.Path(job.Model.Base)); err != nil {
		return nil, err
	}
	for _, n := range a.Base.Notices {
		env.note("%s", n)
	}
	c := a.Base.Config()
	if err := model.Supported(c); err != nil {
		return nil, fmt.Errorf("%s: %w", job.Model.Base, err)
	}
	if job.Data.SequenceLength > c.MaxPositions {
		return nil, fmt.Errorf("data.sequenceLength: %d is beyond the model's %d positions; lower it", job.Data.SequenceLength, c.MaxPositions)
	}
	if a.Language, err = a.Base.Language(); err != nil {
		return nil, err
	}
	if err := a.prepare(ctx, env, job); err != nil {
		return nil, err
	}
	if err := a.resolve(env, job); err != nil {
		return nil, err
	}
	env.emit(a.Prepared())
	return a, a.fit(env)
}

// prepare makes or finds the data sets, and opens them.
func (a *Admitted) prepare(ctx context.Context, env Env, job *jobspec.Job) (err error) {
	a.dataSpec = DataSpec(job, env.CacheDir)
	if a.Data, err = data.Prepare(ctx, env.FS, a.dataSpec, a.Language.Encoder); err != nil {
		return adviseOnSpace(err)
	}
	a.report(env)
	if err := a.Data.TrainManifest.Report.CheckGlobalBatch(int64(job.Train.GlobalBatch)); err != nil {
		return err
	}
	if a.Train, err = data.Open(env.FS, a.Data.Train); err != nil {
		return err
	}
	if a.Data.Validation != "" {
		a.Validation, err = data.Open(env.FS, a.Data.Validation)
	}
	return err
}

// report tells of examples that did not go into the data sets whole, and of skipped lines.
func (a *Admitted) report(env Env) {
	for _, m := range []*data.Manifest{a.Data.TrainManifest, a.Data.ValidationManifest} {
		if m == nil {
			continue
		}
		r := m.Report
		if r.Split+r.Truncated+r.Dropped+r.WithoutTarget+r.BadLines > 0 {
			env.note("data.%s: %s", m.Split, r)
		}
		for _, line := range r.BadLineErrors {
			env.note("skipped %s", line)
		}
	}
}

// DataSpec is what a job's data is prepared from, with a folder for the result.
func DataSpec(job *jobspec.Job, cacheDir string) data.Spec {
	d := job.Data
	spec := data.Spec{
		ValidationShare: d.Validation.Share, SequenceLength: d.SequenceLength, Packing: *d.Packing,
		TooLong: data.TooLong(d.TooLong), MaxBadLines: d.MaxBadLines, CacheDir: cacheDir, Threads: job.Resources.Threads,
	}
	for _, p := range d.Train {
		spec.Train = append(spec.Train, job.Path(p))
	}
	for _, p := range d.Validation.Paths {
		spec.Validation = append(spec.Validation, job.Path(p))
	}
	return spec
}

// resolve settles what the job left open and derives the trainer's configuration.
func (a *Admitted) resolve(env Env, job *jobspec.Job) error {
	c := a.Base.Config()
	var err error
	if a.Table, err = trainer.NewTable(c, job.Cluster.WorldSize); err != nil {
		return err
	}
	modelHash, err := hashWeights(a.Table, a.Base)
	if err != nil {
		return err
	}
	if a.Budget, err = budget(env, job); err != nil {
		return err
	}
	if in := env.Device.Info(); strings.HasSuffix(in.Path, "-high") != (job.Train.Precision == jobspec.PrecisionHigh) {
		return fmt.Errorf("train.precision: is %s, and the kernels %s that were asked for are not for it; leave the choice of kernels to train.numericClass: auto", job.Train.Precision, in.Path)
	}
	var micro int
	micro, a.Memory = microBatch(env.Device.Info(), c, job, a.Table, env.workers(job), a.Budget)
	a.Spec, err = job.Resolve(jobspec.Facts{
		ModelHash: modelHash.String(), DataHash: a.Data.TrainManifest.ContentHash, Sequences: a.Train.Len(),
		NumericClass: env.Device.Info().Class, MicroBatch: micro,
	})
	if err != nil {
		return err
	}
	a.Steps = int64(a.Spec.Job.Train.Steps)
	a.Config = trainerConfig(c, a.Spec)
	return a.Config.Validate()
}

// trainerConfig is the numeric part of a resolved spec.
func trainerConfig(c modelConfig, spec *jobspec.Resolved) trainer.Config {
	j := &spec.Job
	t, o := j.Train, j.Train.Optimizer
	cfg := trainer.Config{
		Model: c, WorldSize: j.Cluster.WorldSize, Stage: shard.Stage(*j.Cluster.Zero),
		Batch:     trainer.Batching{Global: t.GlobalBatch, Micro: int(t.MicroBatch), SeqLen: j.Data.SequenceLength},
		Optimizer: optim.AdamW{Beta1: *o.Beta1, Beta2: *o.Beta2, Epsilon: *o.Epsilon, WeightDecay: *o.WeightDecay, Clip: *o.Clip},
		Schedule: optim.Schedule{Kind: optim.Kind(t.Schedule.Kind), Peak: o.LearningRate, WarmupSteps: int64(t.Schedule.WarmupSteps),
			Steps: int64(t.Steps), Floor: t.Schedule.Floor},
		Order: shard.Order{Seed: t.Seed, Samples: spec.Sequences, GlobalBatch: int64(t.GlobalBatch), Sequential: !*j.Data.Shuffle, Total: spec.Samples()},
	}
	if t.Precision == jobspec.PrecisionBF16 {
		cfg.Precision = device.BF16
	}
	if j.Cluster.Wire == jobspec.WireBF16 {
		cfg.Wire = allreduce.WireBF16
	}
	cfg.Checkpointing = map[jobspec.ActivationCheckpointing]model.Checkpointing{
		jobspec.ActivationCheckpointingSelective: model.CheckpointSelective, jobspec.ActivationCheckpointingFull: model.CheckpointFull,
	}[t.ActivationCheckpointing]
	return cfg
}
