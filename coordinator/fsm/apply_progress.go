package fsm

import (
	"bytes"
	"fmt"
	"slices"
)

func (d *Publish) apply(s *State, index uint64, e Entry) (string, error) {
	j, err := s.job(d.Job)
	if err != nil {
		return d.Job, err
	}
	c := d.Checkpoint
	if known, ok := j.at(c.Step); ok {
		if known.Weights != c.Weights {
			return d.Job, fmt.Errorf("%w: step %d has weights %.12s, but %.12s were published: the same steps gave other bits", ErrConflict, c.Step, c.Weights, known.Weights)
		}
		if known.Manifest == c.Manifest {
			return d.Job, nil // a retry
		}
	}
	if c.Generation != j.Generation { // whatever phase it is in by now: the worker's part is over, and no more
		return d.Job, fmt.Errorf("%w: generation %d of %s is over, it is at %d", ErrFenced, c.Generation, d.Job, j.Generation)
	}
	if j.Phase != Running {
		return d.Job, fmt.Errorf("%w: the job is %s, not running", ErrIllegal, j.Phase)
	}
	newest, _ := j.Newest()
	if c.Step <= newest.Step || c.Step > j.Steps || c.Manifest == "" {
		return d.Job, fmt.Errorf("%w: step %d of %d published after step %d", ErrConflict, c.Step, j.Steps, newest.Step)
	}
	from := max(0, len(j.Published)+1-publishedMax)
	j.Published = append(slices.Clone(j.Published[from:]), c)
	j.PublishedIndex, j.Setbacks = index, 0
	j.Ledger.Publish(j.spent(e))
	j.tell(index, e, "published")
	s.put(j)
	return d.Job, nil
}

// at finds the published checkpoint of a step among those that are kept.
func (j *Job) at(step int64) (Checkpoint, bool) {
	for _, c := range j.Published {
		if c.Step == step {
			return c, true
		}
	}
	return Checkpoint{}, false
}

func (d *Complete) apply(s *State, index uint64, e Entry) (string, error) {
	j, err := s.job(d.Job)
	if err != nil {
		return d.Job, err
	}
	if d.Generation != j.Generation {
		return d.Job, fmt.Errorf("%w: generation %d of %s is over, it is at %d", ErrFenced, d.Generation, d.Job, j.Generation)
	}
	if j.Phase == Done && bytes.Equal(j.Result, d.Result) {
		return d.Job, nil // a retry
	}
	if newest, _ := j.Newest(); newest.Step != j.Steps {
		return d.Job, fmt.Errorf("%w: step %d of %d is the last that is published", ErrConflict, newest.Step, j.Steps)
	}
	if err := j.become(Done, index, e, "done"); err != nil {
		return d.Job, err
	}
	j.Result, j.Placement, j.Live = d.Result, nil, nil
	j.Ledger.End(e.At, j.spent(e), true)
	s.put(j)
	return d.Job, nil
}

func (d *Fail) apply(s *State, index uint64, e Entry) (string, error) {
	j, err := s.job(d.Job)
	if err != nil {
		return d.Job, err
	}
	if d.Generation != 0 && d.Generation != j.Generation {
		return d.Job, fmt.Errorf("%w: generation %d of %s is over, it is at %d", ErrFenced, d.Generation, d.Job, j.Generation)
	}
	// A job that is queued has the number of its last generation still, and nobody acts
	// in it.
	if d.Generation != 0 && j.Phase != Running && j.Phase != Failed {
		return d.Job, fmt.Errorf("%w: %s is %s, not running", ErrFenced, d.Job, j.Phase)
	}
	if d.Preparation != 0 && d.Preparation != j.Preparation.Number {
		return d.Job, fmt.Errorf("%w: preparation %d of %s is over, it is at %d", ErrFenced, d.Preparation, d.Job, j.Preparation.Number)
	}
	if d.Preparation != 0 && j.Phase != Preparing && j.Phase != Failed {
		return d.Job, fmt.Errorf("%w: %s is %s, not preparing", ErrFenced, d.Job, j.Phase)
	}
	return d.Job, s.end(j, Failed, index, e)
}

func (d *Cancel) apply(s *State, index uint64, e Entry) (string, error) {
	j, err := s.job(d.Job)
	if err != nil {
		return d.Job, err
	}
	return d.Job, s.end(j, Canceled, index, e)
}

// end puts a job into a final phase; doing so again is a retry.
func (s *State) end(j Job, to Phase, index uint64, e Entry) error {
	if j.Phase == to {
		return nil
	}
	if err := j.become(to, index, e, string(to)); err != nil {
		return err
	}
	j.Placement, j.Live, j.Parked = nil, nil, Parked{}
	j.Ledger.End(e.At, j.spent(e), false)
	s.put(j)
	return nil
}

func (d *Scale) apply(s *State, index uint64, e Entry) (string, error) {
	j, err := s.job(d.Job)
	if err != nil {
		return d.Job, err
	}
	if j.Phase.Final() {
		return d.Job, fmt.Errorf("%w: the job is %s", ErrIllegal, j.Phase)
	}
	if d.Workers < j.WorkersMin || d.Workers > j.WorldSize {
		return d.Job, fmt.Errorf("%w: %d workers for a job that runs on at least %d and has %d ranks; give a number from %d to %d",
			ErrConflict, d.Workers, j.WorkersMin, j.WorldSize, j.WorkersMin, j.WorldSize)
	}
	if j.WorkersMax == d.Workers {
		return d.Job, nil // a retry
	}
	j.WorkersMax = d.Workers
	j.Ledger.Want(e.At, j.Useful())
	j.tell(index, e, "scaled")
	s.put(j)
	return d.Job, nil
}

func (d *Pause) apply(s *State, index uint64, e Entry) (string, error) {
	j, err := s.job(d.Job)
	if err != nil {
		return d.Job, err
	}
	if j.Phase.Final() {
		return d.Job, fmt.Errorf("%w: the job is %s", ErrIllegal, j.Phase)
	}
	if j.Paused {
		return d.Job, nil // a retry
	}
	j.Paused, j.PausedIndex = true, index
	j.tell(index, e, "pausing")
	s.put(j)
	return d.Job, nil
}

func (d *Resume) apply(s *State, index uint64, e Entry) (string, error) {
	j, err := s.job(d.Job)
	if err != nil {
		return d.Job, err
	}
	if j.Phase.Final() {
		return d.Job, fmt.Errorf("%w: the job is %s", ErrIllegal, j.Phase)
	}
	if !j.Paused {
		return d.Job, nil // a retry
	}
	j.Paused, j.PausedIndex = false, 0
	j.tell(index, e, "resumed")
	s.put(j)
	return d.Job, nil
}

func (d *Diverge) apply(s *State, index uint64, e Entry) (string, error) {
	j, err := s.job(d.Job)
	if err != nil {
		return d.Job, err
	}
	if d.Generation == 0 || d.Generation != j.Ended().Generation {
		return d.Job, fmt.Errorf("%w: generation %d of %s is over, it is at %d", ErrFenced, d.Generation, d.Job, j.Generation)
	}
	if j.Diverged == d.Generation {
		return d.Job, nil // a retry, or another rank of the same machines: once for each generation
	}
	if d.Owner == d.Mirror {
		return d.Job, fmt.Errorf("%w: worker %s cannot differ from itself", ErrConflict, d.Owner)
	}
	j.Diverged, j.Doubts = d.Generation, slices.Clone(j.Doubts)
	for _, w := range []string{d.Owner, d.Mirror} {
		if j.Holder(w) == nil {
			return d.Job, fmt.Errorf("%w: worker %s had no part in generation %d", ErrConflict, w, d.Generation)
		}
		j.Doubts = append(j.Doubts, Doubt{Worker: w, Generation: d.Generation, At: e.At})
	}
	j.Doubts = j.Doubts[max(0, len(j.Doubts)-doubtsMax):]
	j.tell(index, e, "diverged")
	s.put(j)
	return d.Job, nil
}

func (d *Register) apply(s *State, _ uint64, _ Entry) (string, error) {
	w := d.Worker
	if w.Name == "" || w.Incarnation == "" {
		return "", fmt.Errorf("%w: a worker needs a name and an incarnation", ErrConflict)
	}
	old := s.Workers[w.Name]
	if old == nil && len(s.Workers) >= workersMax {
		return "", fmt.Errorf("%w: there are %d workers", ErrFull, len(s.Workers))
	}
	w.Draining, w.DrainIndex = false, 0
	if old != nil && old.Incarnation == w.Incarnation {
		w.Draining, w.DrainIndex = old.Draining, old.DrainIndex
	}
	w.Classes = slices.Clone(w.Classes)
	s.Workers[w.Name] = &w
	return "", nil
}

// process finds a worker process, as a copy that may be changed.
func (s *State) process(worker, incarnation string) (Worker, error) {
	w := s.Workers[worker]
	if w == nil {
		return Worker{}, fmt.Errorf("%w: there is no worker %q", ErrUnknown, worker)
	}
	if w.Incarnation != incarnation {
		return Worker{}, fmt.Errorf("%w: worker %s was started again", ErrFenced, worker)
	}
	return *w, nil
}

func (d *Drain) apply(s *State, index uint64, _ Entry) (string, error) {
	w, err := s.process(d.Worker, d.Incarnation)
	if err != nil || w.Draining {
		return "", err
	}
	w.Draining, w.DrainIndex = true, index
	s.Workers[w.Name] = &w
	return "", nil
}

func (d *Remove) apply(s *State, _ uint64, _ Entry) (string, error) {
	if _, err := s.process(d.Worker, d.Incarnation); err != nil {
		return "", err
	}
	delete(s.Workers, d.Worker)
	return "", nil
}
