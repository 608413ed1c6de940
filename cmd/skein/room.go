package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/fleet"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/machine"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/model/hf"
	"github.com/skein-ml/skein/worker"
	"github.com/skein-ml/skein/worker/agent"
)

// room is the engine of the real program: this process and this machine.
type room struct{}

func newEngine() engine { return room{} }

// env opens the device and says what a run finds around it. Close the device.
func (room) env(class string, threads int, cache string, emit func(console.Event)) (worker.Env, *cpu.Device, error) {
	m := machine.Look(".")
	if threads == 0 {
		threads = m.Threads()
	}
	dev, err := cpu.New(cpu.Options{Path: class, Threads: threads})
	if err != nil {
		return worker.Env{}, nil, err
	}
	return worker.Env{FS: vfs.OS, Device: dev, Program: version, CacheDir: cache, MemoryFree: m.MemoryFree, Emit: emit}, dev, nil
}

// jobEnv is env for a job.
func (r room) jobEnv(job *jobspec.Job, cache string, emit func(console.Event)) (worker.Env, *cpu.Device, error) {
	return r.env(job.Train.Kernels(), job.Resources.Threads, cache, emit)
}

// Train implements engine.
func (r room) Train(ctx context.Context, c trainConfig, emit func(console.Event)) error {
	if c.Workers > 0 {
		return r.trainApart(ctx, c, emit)
	}
	env, dev, err := r.jobEnv(c.Job, c.Cache, emit)
	if err != nil {
		return err
	}
	defer dev.Close()
	_, err = worker.Train(ctx, env, c.Job)
	return err
}

// trainApart runs the job on worker processes of this machine.
func (room) trainApart(ctx context.Context, c trainConfig, emit func(console.Event)) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	m := machine.Look(".")
	threads := c.Job.Resources.Threads
	if threads == 0 {
		threads = max(1, m.Threads()/c.Workers)
	}
	return fleet.Run(ctx, fleet.Config{
		Job: c.Job, Workers: c.Workers, Program: []string{self}, Build: version, Threads: threads,
		Memory: m.MemoryFree / int64(c.Workers), Emit: emit,
	})
}

// Plan implements engine. A job that does not fit is reported with its error.
func (r room) Plan(ctx context.Context, c planConfig, emit func(console.Event)) (*planReport, error) {
	env, dev, err := r.jobEnv(c.Job, c.Cache, emit)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	adm, err := worker.Admit(ctx, env, c.Job)
	if adm == nil {
		return nil, err
	}
	defer adm.Close()
	report := planned(adm)
	disk := machine.Look(c.Job.Path(c.Job.Checkpoint.Store))
	if report.DiskFree = disk.DiskFree; report.DiskFree > 0 && report.DiskBytes > report.DiskFree {
		report.Notes = append(report.Notes, "the disk will be full before the job ends; lower checkpoint.keep, or choose a checkpoint.store elsewhere")
	}
	if err != nil {
		return report, err
	}
	if c.Calibrate {
		took, err := worker.Calibrate(ctx, env, adm)
		if err != nil {
			return report, err
		}
		report.StepSeconds = took.Seconds()
	}
	return report, nil
}

// planned turns an admitted job into its report.
func planned(adm *worker.Admitted) *planReport {
	job, data, prepared := &adm.Spec.Job, adm.Data.TrainManifest.Report, adm.Prepared()
	r := &planReport{
		Name: job.Name, Parameters: prepared.Parameters, Architecture: prepared.Architecture, NumericClass: prepared.NumericClass,
		Examples: data.Examples, Sequences: data.Packs, Tokens: data.Tokens, Targets: data.Targets, Padding: data.PaddingShare(),
		Steps: adm.Steps, StepTokens: int64(job.Train.GlobalBatch) * int64(job.Data.SequenceLength),
		Epochs:    float64(adm.Steps) * float64(job.Train.GlobalBatch) / float64(data.Packs),
		WorldSize: job.Cluster.WorldSize, MicroBatch: int(job.Train.MicroBatch),
		MemoryTotal: adm.Memory.Total(), MemoryBudget: adm.Budget,
	}
	for _, p := range adm.Memory.Parts() {
		r.Memory = append(r.Memory, planPart{p.Name, p.Bytes})
	}
	// A checkpoint holds fp32 weights and two moments. While one is written, one more than the kept ones is there.
	exportBytes := int64(2)
	if job.Output.DType == jobspec.DTypeFP32 {
		exportBytes = 4
	}
	r.DiskBytes = r.Parameters * (12*int64(job.Checkpoint.Keep+1) + exportBytes)
	return r
}

// dtype is the device's word for a precision.
func dtype(p jobspec.Precision) device.DType {
	if p == jobspec.PrecisionBF16 {
		return device.BF16
	}
	return device.F32
}

// Eval implements engine.
func (r room) Eval(ctx context.Context, c evalConfig, emit func(console.Event)) error {
	env, dev, err := r.env(c.NumericClass, c.Threads, c.Cache, emit)
	if err != nil {
		return err
	}
	defer dev.Close()
	return worker.Eval(ctx, env, worker.EvalConfig{
		Model: c.Model, Data: c.Data, SequenceLength: c.SequenceLength, Precision: dtype(c.Precision),
		ExactMatch: c.ExactMatch, Show: c.Show, MaxNewTokens: c.MaxNewTokens, Limit: c.Limit,
	})
}

// Generate implements engine.
func (r room) Generate(ctx context.Context, c generateConfig, write func(string)) error {
	env, dev, err := r.env(c.NumericClass, c.Threads, "", nil)
	if err != nil {
		return err
	}
	defer dev.Close()
	return worker.Generate(ctx, env, worker.GenerateConfig{
		Model: c.Model, Prompts: c.Prompts, System: c.System, Raw: c.Raw, Precision: dtype(c.Precision), MaxNewTokens: c.MaxNewTokens,
		Temperature: c.Temperature, TopK: c.TopK, TopP: c.TopP, Seed: c.Seed,
	}, write)
}

// Export implements engine.
func (room) Export(ctx context.Context, c exportConfig) (int64, error) {
	options := hf.Options{DType: hf.BF16, ShardBytesMax: int64(c.MaxShard)}
	if c.DType == jobspec.DTypeFP32 {
		options.DType = hf.F32
	}
	return worker.ExportCheckpoint(ctx, vfs.OS, c.Store, c.Step, c.Dir, options)
}

// classes are the numeric classes that a worker offers, the best first: all that this
// machine can run, or the one that is asked for.
func classes(want string) ([]string, error) {
	if want == jobspec.Auto || want == "" {
		want = os.Getenv(cpu.PathVariable)
	}
	var offered []string
	for _, p := range append(cpu.Paths(), cpu.HighPaths()...) {
		switch {
		case want != "" && want != p.Name && want != p.Class:
		case want == "" && p.High && p.Behind != "": // fp32 is faster and better
		case p.Available:
			offered = append(offered, p.Class)
		case want != "":
			return nil, fmt.Errorf("numeric class %s cannot run here: this machine lacks %s; see skein doctor", want, p.Why)
		}
	}
	if len(offered) == 0 {
		return nil, fmt.Errorf("there is no numeric class %q; skein doctor lists those of this machine", want)
	}
	return offered, nil
}

// newTasks is what a worker of a cluster does when it is ordered to.
func newTasks(dir string, memory int64, threads int) agent.Tasks {
	return agent.Bind(worker.Env{
		FS: vfs.OS, Program: version, CacheDir: filepath.Join(dir, "data"), MemoryFree: memory, Cluster: true,
		OpenDevice: func(class string) (device.Device, error) {
			path, _, _ := strings.Cut(class, " ") // "avx512 r1" is revision 1 of the path avx512
			dev, err := cpu.New(cpu.Options{Path: path, Threads: threads})
			if err != nil {
				return nil, err
			}
			if got := dev.Info().Class; strings.Contains(class, " ") && got != class {
				return nil, errors.Join(fmt.Errorf("the job is pinned to the numeric class %s, and this program has %s; install the version that has it", class, got), dev.Close())
			}
			return dev, nil
		},
	})
}
