// Package worker runs a job on one machine, from its spec to a Hugging Face folder:
// it opens the base model, prepares data, settles what the spec left open, takes
// the steps, publishes checkpoints, evaluates, and exports. A job that was
// interrupted, however, goes on from its last published checkpoint to the same bits.
package worker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/model/hf"
	"github.com/skein-ml/skein/worker/trainer"
)

// Env is what a run finds around it.
type Env struct {
	FS         vfs.FS
	Device     device.Device
	CacheDir   string              // prepared data sets
	Program    string              // version of this program, for the lineage
	MemoryFree int64               // bytes that the machine has to give, 0: unknown
	Emit       func(console.Event) // nil: nobody listens

	// Cluster says that other workers share a job's ranks. Its memory is then that of the
	// fullest of as few workers as it may have.
	Cluster bool
	// OpenDevice opens a device for a job of a cluster, which closes it; "" is the best there
	// is, else a numeric class. Device is nil then.
	OpenDevice func(class string) (device.Device, error)
}

func (e Env) emit(ev console.Event) {
	if e.Emit != nil {
		e.Emit(ev)
	}
}

func (e Env) note(format string, args ...any) {
	e.emit(console.Note{Text: fmt.Sprintf(format, args...)})
}

// Outcome is what a finished job has to show.
type Outcome struct {
	console.Done
	Dir string
}

// Train runs a valid job to its end. Interrupting ctx stops it after the step under
// way; what was published stays, and Train goes on from there when called again.
func Train(ctx context.Context, env Env, job *jobspec.Job) (Outcome, error) {
	r := &run{Env: env, export: job.Path(job.Output.Export), dir: job.Path(job.Checkpoint.Store)}
	if err := r.checkFolders(); err != nil {
		return Outcome{}, err
	}
	var err error
	if r.Admitted, err = Admit(ctx, env, job); r.Admitted != nil { // it is there even if it does not fit
		defer r.Admitted.Close()
	}
	if err != nil {
		return Outcome{}, r.stopped(ctx, err)
	}
	return r.train(ctx)
}

// checkFolders refuses, before anything is computed, what would fail at the end.
func (r *run) checkFolders() error {
	there, err := vfs.Exists(r.FS, r.export)
	if err != nil {
		return fmt.Errorf("output.export: %w", err)
	}
	if there {
		return fmt.Errorf("output.export: %s exists already; choose another folder or remove it", r.export)
	}
	if inside, err := filepath.Rel(r.export, r.dir); err == nil && filepath.IsLocal(inside) {
		return fmt.Errorf("checkpoint.store: %s lies inside output.export %s, which must not exist before the end; choose a folder beside it", r.dir, r.export)
	}
	return nil
}

// Interrupted is the error of a job that was asked to stop and can go on.
type Interrupted struct {
	Step, Steps int64  // decided steps, of how many
	Store       string // where the last of them is published; "": nothing is
	Err         error  // wraps the context's
}

func (e *Interrupted) Error() string {
	if e.Store == "" {
		return "interrupted before it took a step; the same command starts again"
	}
	return fmt.Sprintf("interrupted after step %d of %d, which is published in %s; the same command goes on from there", e.Step, e.Steps, e.Store)
}

// Unwrap gives the context's error.
func (e *Interrupted) Unwrap() error { return e.Err }

// stopped words the error of a run that ctx ended, and publishes the steps that it has
// taken since the last checkpoint. Other errors stay what they are.
func (r *run) stopped(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
		return err
	}
	if !r.ready || r.tr.StepsDone() == 0 {
		return &Interrupted{Err: err}
	}
	step := r.tr.StepsDone()
	if r.store.published() < step {
		if failed := r.store.publish(context.WithoutCancel(ctx)); failed != nil {
			return failed
		}
	}
	return &Interrupted{step, r.Steps, r.dir, err}
}

// run is a job between its first and its last step.
type run struct {
	Env
	*Admitted
	export string // folder to write
	dir    string // store
	tr     *trainer.Trainer
	store  *store
	ready  bool // the trainer's state is that of a step
	clock  time.Time
	tokens int64
	pace   pace
	mute   bool // another worker tells what is measured
}

func (r *run) train(ctx context.Context) (Outcome, error) {
	tr, err := trainer.New(r.Device, r.Config, r.Admitted.Train)
	if err != nil {
		return Outcome{}, err
	}
	defer tr.Close()
	r.tr, r.clock = tr, time.Now()
	if r.store, err = openStore(r.Env, r.Admitted, tr, r.dir); err != nil {
		return Outcome{}, err
	}
	defer r.store.close()
	out, err := r.toTheEnd(ctx)
	return out, r.stopped(ctx, err)
}

// toTheEnd takes the steps that are left and hands over the result.
func (r *run) toTheEnd(ctx context.Context) (Outcome, error) {
	if err := r.start(ctx); err != nil {
		return Outcome{}, err
	}
	for r.tr.StepsDone() < r.Steps {
		if err := r.step(ctx); err != nil {
			return Outcome{}, err
		}
	}
	return r.finish(ctx)
}

// start makes the trainer's state that of the last checkpoint, or of the base model.
func (r *run) start(ctx context.Context) error {
	from, resumed, err := r.store.resume()
	if err != nil {
		return err
	}
	if from > r.Steps {
		return fmt.Errorf("train.steps: is %d, but %s holds step %d of this job; ask for more steps, choose another checkpoint.store, or use `skein export --step`", r.Steps, r.dir, from)
	}
	if resumed {
		err = r.store.prune() // what the run before was killed in; the next checkpoint may need the room
	} else if err = r.tr.Import(r.Base); err != nil {
		err = fmt.Errorf("%s: %w", r.Spec.Job.Model.Base, err)
	}
	if err != nil {
		return err
	}
	r.ready = true
	r.emit(console.Started{
		Steps: r.Steps, From: from, WorldSize: r.Config.WorldSize, Workers: 1,
		Threads: r.Device.Info().Threads, SpecHash: r.Spec.Hash(),
	})
	// A run that was killed may have published a step and not what it measured there.
	if from == 0 || r.evaluationDue(from) {
		if _, measured := r.store.at(from, lossName); !measured {
			if err := r.evaluate(ctx, from == 0); err != nil {
				return err
			}
		}
	}
	if resumed {
		return nil
	}
	return r.store.publish(ctx)
}

// evaluationDue tells whether held-out loss is measured between two steps.
func (r *run) evaluationDue(step int64) bool {
	return due(step, int64(r.Spec.Job.Eval.Every)) && step < r.Steps
}

// step takes one step and does what is due after it.
func (r *run) step(ctx context.Context) error {
	res, err := r.tr.Step(ctx)
	if err != nil {
		return err
	}
	d := res.Decision
	r.tokens += res.Tokens
	r.pace.add(res.Timing.Total(), res.Tokens)
	r.store.decided(d)
	r.emit(r.stepped(res, res.Tokens))
	if r.evaluationDue(d.Step) {
		if err := r.evaluate(ctx, false); err != nil {
			return err
		}
	}
	if due(d.Step, int64(r.Spec.Job.Checkpoint.Every)) || d.Step == r.Steps {
		return r.store.publish(ctx)
	}
	return ctx.Err()
}

// stepped is the event of a step in which so many tokens were computed.
func (r *run) stepped(res trainer.Result, tokens int64) console.Step {
	d := res.Decision
	ev := console.Step{
		Step: d.Step, Steps: r.Steps, Loss: d.Loss, LearningRate: r.Config.Schedule.Rate(d.Step), GradientNorm: d.GradNorm,
		Targets: d.Tokens, Tokens: tokens, TokensPerSecond: r.pace.tokensPerSecond(),
		Seconds: res.Timing.Total().Seconds(), ETASeconds: r.pace.eta(r.Steps - d.Step).Seconds(),
	}
	if d.Action == allreduce.Skip {
		ev.Skipped = d.String()
		ev.Skipped += whereNotFinite(res)
	}
	return ev
}

func due(step, every int64) bool { return every > 0 && step%every == 0 }

// finish evaluates, closes the lineage and exports: the export is the last thing to
// appear, so where it is, everything is.
func (r *run) finish(ctx context.Context) (Outcome, error) {
	if err := r.evaluate(ctx, true); err != nil {
		return Outcome{}, err
	}
	if err := r.store.writeLineage(); err != nil {
		return Outcome{}, err
	}
	opt := exportOptions(&r.Spec.Job)
	opt.SideFiles, opt.FS = r.Base.Side, r.FS
	if err := hf.Export(r.export, r.tr.Weights(), opt); err != nil {
		return Outcome{}, adviseOnSpace(err) // the last step is published: the next run exports it
	}
	done := r.summary()
	r.emit(done)
	return Outcome{Done: done, Dir: r.export}, nil
}

// exportOptions are what a job says of its export.
func exportOptions(job *jobspec.Job) hf.Options {
	opt := hf.Options{DType: hf.BF16, ShardBytesMax: int64(job.Output.MaxShard)}
	if job.Output.DType == jobspec.DTypeFP32 {
		opt.DType = hf.F32
	}
	return opt
}

// summary is the last line of a job.
func (r *run) summary() console.Done {
	chain := r.store.state.Chain
	done := console.Done{
		Steps: r.Steps, Tokens: r.tokens, Seconds: time.Since(r.clock).Seconds(), Exported: r.export,
		WeightsHash: chain[len(chain)-1].Weights.String(), Lineage: r.store.lineagePath(),
	}
	for _, s := range r.store.state.History {
		done.Targets += s.Tokens
	}
	if v, ok := r.store.value(lossName, false); ok {
		done.LossBefore = &v
	}
	if v, ok := r.store.value(lossName, true); ok {
		done.LossAfter = &v
	}
	return done
}

// pace is how fast the job has been going lately.
type pace struct {
	seconds, tokens, steps float64
}

// add takes in a step. Old steps fade, so that the estimate follows a change.
func (p *pace) add(d time.Duration, tokens int64) {
	const keep = 0.8
	p.seconds = p.seconds*keep + d.Seconds()
	p.tokens = p.tokens*keep + float64(tokens)
	p.steps = p.steps*keep + 1
}

func (p *pace) tokensPerSecond() float64 { return p.tokens / p.seconds }

func (p *pace) eta(steps int64) time.Duration {
	return time.Duration(p.seconds / p.steps * float64(steps) * float64(time.Second))
}
