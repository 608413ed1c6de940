package worker

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker/trainer"
)

// The files of a job's store, beside its checkpoints.
const (
	lineageName = "lineage.json"
	lockName    = "lock" // empty; the process that trains into the store holds it
)

// store is a job's checkpoints and its lineage.
type store struct {
	env     Env
	dir     string
	adm     *Admitted
	tr      *trainer.Trainer
	state   checkpoint.State   // what the next checkpoint will say, but for its step
	lineage checkpoint.Lineage // what is written beside the checkpoints
	held    io.Closer          // the lock
}

// openStore is newStore for a run that has the store to itself, and keeps other runs out
// of it until close.
func openStore(env Env, a *Admitted, tr *trainer.Trainer, dir string) (*store, error) {
	s, err := newStore(env, a, tr.Table().Fingerprint(), dir)
	if err != nil {
		return nil, err
	}
	s.tr = tr
	return s, s.hold()
}

// newStore describes the job.
func newStore(env Env, a *Admitted, fingerprint shard.Digest, dir string) (*store, error) {
	job := &a.Spec.Job
	spec, err := digest(a.Spec.ArithmeticHash())
	if err != nil {
		return nil, err
	}
	content, err := digest(a.Spec.DataHash)
	if err != nil {
		return nil, err
	}
	name := filepath.Base(job.Model.Base)
	s := &store{
		env: env, dir: dir, adm: a,
		state: checkpoint.State{
			Job: job.Name, Model: name, Spec: spec, Data: content, NumericClass: job.Train.NumericClass,
			Seeds: map[string]uint64{"order": job.Train.Seed},
		},
		lineage: checkpoint.Lineage{
			Job: job.Name, Program: env.Program, Model: name, Fingerprint: fingerprint, DataHash: content,
			SpecHash: spec, Spec: a.Spec.Canonical(), NumericClass: job.Train.NumericClass, WorldSize: job.Cluster.WorldSize,
		},
	}
	return s, nil
}

// hold takes the store for this run. Two at a time would remove each other's unfinished
// checkpoints.
func (s *store) hold() error {
	if err := s.env.FS.MkdirAll(s.dir); err != nil {
		return fmt.Errorf("checkpoint.store: %w", err)
	}
	f, err := s.env.FS.Create(filepath.Join(s.dir, lockName))
	if err != nil {
		return fmt.Errorf("checkpoint.store: %w", adviseOnSpace(err))
	}
	if file, ok := f.(interface{ Fd() uintptr }); ok && !lock(file.Fd()) {
		f.Close()
		return fmt.Errorf("checkpoint.store: another run trains into %s; wait for it, end it, or choose another folder", s.dir)
	}
	s.held = f
	return nil
}

// close lets other runs in.
func (s *store) close() {
	if s.held != nil {
		s.held.Close()
	}
}

func digest(hexa string) (shard.Digest, error) {
	b, err := hex.DecodeString(hexa)
	if err != nil || len(b) != len(shard.Digest{}) {
		return shard.Digest{}, fmt.Errorf("%q is not a SHA-256 in hex", hexa)
	}
	return shard.Digest(b), nil
}

// resume restores the newest checkpoint and returns its step; ok is false if the store has none.
func (s *store) resume() (step int64, ok bool, err error) {
	ck, notices, err := checkpoint.Latest(s.env.FS, s.dir, true) // an older one leads to the same bits
	for _, n := range notices {
		s.env.note("%s", n)
	}
	if errors.Is(err, checkpoint.ErrNone) {
		return 0, false, s.describe()
	}
	if err != nil {
		return 0, false, fmt.Errorf("checkpoint.store: %w", err)
	}
	defer ck.Close()
	step = ck.Manifest.Step
	if err := s.recall(step); err != nil {
		return 0, false, err
	}
	return step, true, s.restore(ck)
}

// recall takes from the lineage what was measured up to a step, and notes that the job goes
// on from there.
func (s *store) recall(step int64) error {
	was, err := s.readLineage()
	if err != nil {
		return err
	}
	s.lineage.Results = resultsUntil(was.Results, step)
	s.lineage.ResumedAt = append(was.ResumedAt, step)
	return nil
}

// restore makes the trainer's state and the store's that of a checkpoint.
func (s *store) restore(ck *checkpoint.Checkpoint) error {
	m := ck.Manifest
	want := checkpoint.Want{Job: s.state.Job, Model: s.state.Model, Fingerprint: s.lineage.Fingerprint, Spec: s.state.Spec, Data: s.state.Data}
	if err := ck.Check(want); err != nil {
		return err
	}
	if err := s.tr.Restore(ck, m.Step, m.Taken); err != nil {
		return err
	}
	s.state.History, s.state.Chain = m.History, m.Chain
	return nil
}

// readLineage reads what the job has written beside its checkpoints, and refuses that of
// another job by naming each setting that differs. A checkpoint says all that training needs,
// so a lineage that is lost or damaged costs measurements and no more.
func (s *store) readLineage() (checkpoint.Lineage, error) {
	was, err := checkpoint.ReadLineage(s.env.FS, s.lineagePath())
	if errors.Is(err, checkpoint.ErrVersion) {
		return checkpoint.Lineage{}, err
	}
	if _, unreadable := errors.AsType[*fs.PathError](err); unreadable && !errors.Is(err, fs.ErrNotExist) {
		return checkpoint.Lineage{}, err
	}
	if err != nil {
		s.env.note("%v: it is written anew from the checkpoint, without what was measured before", err)
		return checkpoint.Lineage{}, nil
	}
	saved, err := jobspec.ParseResolved(was.Spec)
	if err != nil {
		return checkpoint.Lineage{}, fmt.Errorf("%s: %w", s.lineagePath(), err)
	}
	if err := s.adm.Spec.MayContinue(saved); err != nil {
		return checkpoint.Lineage{}, fmt.Errorf("%s: %w", s.dir, err)
	}
	return was, nil
}

// resultsUntil keeps what was measured up to a step; the rest will be measured again.
func resultsUntil(results []checkpoint.Result, step int64) []checkpoint.Result {
	var keep []checkpoint.Result
	for _, r := range results {
		if r.Step <= step {
			keep = append(keep, r)
		}
	}
	return keep
}

// decided notes a step's decision record.
func (s *store) decided(d allreduce.Decision) {
	s.state.History = append(s.state.History, checkpoint.StepRecord{
		Step: d.Step, Loss: checkpoint.Number(d.Loss), GradNorm: checkpoint.Number(d.GradNorm), Tokens: d.Tokens,
		Skipped: d.Action == allreduce.Skip,
	})
}

// lossName is the measurement of held-out loss.
const lossName = "validation_loss"

// result notes a measurement; one made again replaces the one before.
func (s *store) result(step int64, name string, value float64) {
	r := checkpoint.Result{Step: step, Name: name, Value: checkpoint.Number(value)}
	if i, ok := s.at(step, name); ok {
		s.lineage.Results[i] = r
		return
	}
	s.lineage.Results = append(s.lineage.Results, r)
}

// at finds the measurement of a name at a step.
func (s *store) at(step int64, name string) (index int, ok bool) {
	index = slices.IndexFunc(s.lineage.Results, func(r checkpoint.Result) bool { return r.Step == step && r.Name == name })
	return index, index >= 0
}

// published is the step of the last checkpoint, -1 before the first.
func (s *store) published() int64 {
	if n := len(s.state.Chain); n > 0 {
		return s.state.Chain[n-1].Step
	}
	return -1
}

// value is the first or last measurement of a name; ok is false if there is none.
func (s *store) value(name string, last bool) (value float64, ok bool) {
	for _, r := range s.lineage.Results {
		if r.Name != name {
			continue
		}
		if value, ok = float64(r.Value), true; !last {
			break
		}
	}
	return value, ok
}

// publish saves the trainer's state as a checkpoint and removes old ones.
func (s *store) publish(ctx context.Context) error {
	start := time.Now()
	s.state.Step, s.state.Taken = s.tr.StepsDone(), s.tr.StepsTaken()
	m, err := checkpoint.Save(ctx, s.env.FS, s.dir, s.tr.Table(), s.state, s.tr)
	if err != nil {
		return err
	}
	s.state.Chain = m.Chain
	if err := s.writeLineage(); err != nil {
		return err
	}
	var bytes int64
	for _, o := range m.Objects {
		bytes += o.Bytes
	}
	took := time.Since(start).Seconds()
	s.env.emit(console.Published{
		Step: m.Step, Bytes: bytes, Seconds: took, BlockedSeconds: took, WeightsHash: m.Weights.String(), Path: s.dir,
	})
	return s.prune()
}

// describe writes what a store has to say before its first checkpoint.
func (s *store) describe() error {
	if err := s.writeLineage(); err != nil {
		return err
	}
	return s.describeModel()
}

// describeModel writes what an export needs besides weights.
func (s *store) describeModel() error {
	if err := writeDescription(s.env.FS, filepath.Join(s.dir, descriptionName), s.adm.Base); err != nil {
		return fmt.Errorf("checkpoint.store: %w", adviseOnSpace(err))
	}
	return nil
}

// adviseOnSpace adds to the error of a full disk what helps.
func adviseOnSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w; free space there, or choose another folder, and run the same command again", err)
	}
	return err
}

func (s *store) writeLineage() error {
	s.lineage.Chain, s.lineage.Steps = s.state.Chain, s.state.History
	write := checkpoint.WriteLineage
	if s.env.Cluster { // a worker that was given up may still be writing
		write = checkpoint.AdvanceLineage
	}
	return adviseOnSpace(write(s.env.FS, s.lineagePath(), s.lineage))
}

func (s *store) lineagePath() string { return filepath.Join(s.dir, lineageName) }

func (s *store) prune() error {
	_, err := checkpoint.Prune(s.env.FS, s.dir, s.adm.Spec.Job.Checkpoint.Keep)
	return err
}
