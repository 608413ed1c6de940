package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/skein-ml/skein/coordinator/ledger"
	"github.com/skein-ml/skein/internal/invariant"
	"github.com/skein-ml/skein/shard"
)

// Why a decision is refused. A refused entry stays in the log and changes nothing.
var (
	ErrIllegal  = errors.New("not in this phase")                 // the job's phase does not allow it
	ErrFenced   = errors.New("superseded")                        // of an older generation, preparation or worker process
	ErrUnknown  = errors.New("unknown")                           // no such job or worker
	ErrConflict = errors.New("conflict")                          // contradicts what was decided: other bits, a busy worker
	ErrFull     = errors.New("a limit of the cluster is reached") // wait, or clean up
)

// Result is what became of an entry.
type Result struct {
	Job string // that it is about, if it is about one
	Err error  // why it changed nothing; wraps one of the errors above
}

// Apply carries out the entry at index. Entries must come in the order of the log.
func (s *State) Apply(index uint64, e Entry) Result {
	invariant.Check(index > s.Index, "entry %d applied after %d", index, s.Index)
	s.Index = index
	job, err := e.Decision.apply(s, index, e)
	if invariant.Enabled {
		s.check()
	}
	return Result{Job: job, Err: err}
}

// job finds a job, as a copy that may be changed and put back.
func (s *State) job(id string) (Job, error) {
	j := s.Jobs[id]
	if j == nil {
		return Job{}, fmt.Errorf("%w: there is no job %q", ErrUnknown, id)
	}
	return *j, nil
}

// put replaces a job. Slices of the old value must not have been written to.
func (s *State) put(j Job) { s.Jobs[j.ID] = &j }

// become changes the phase, which must be legal, and tells why.
func (j *Job) become(to Phase, index uint64, e Entry, kind string) error {
	if err := j.Phase.mayBecome(to); err != nil {
		return err
	}
	j.Phase, j.Reason, j.Changed = to, e.Reason, e.At
	j.tell(index, e, kind)
	return nil
}

// spent is what an entry says of where the running generation's time went. Who proposed it
// may have been late: what is known of another generation is in the ledger already.
func (j *Job) spent(e Entry) ledger.Spent {
	if g := e.Spent.Generation; g != 0 && g != j.Generation {
		return ledger.Spent{}
	}
	return e.Spent
}

// tell adds an event to the history.
func (j *Job) tell(index uint64, e Entry, kind string) {
	from := max(0, len(j.Events)+1-eventsMax)
	j.Events = append(slices.Clone(j.Events[from:]), Event{Index: index, At: e.At, Kind: kind, Text: e.Reason})
}

func (d *Submit) apply(s *State, index uint64, e Entry) (string, error) {
	if id, again := s.requests[d.Request]; again {
		if !bytes.Equal(s.Jobs[id].Spec, d.Spec) {
			return id, fmt.Errorf("%w: request %q was used for %s, which has another spec", ErrConflict, d.Request, id)
		}
		return id, nil // a retry: the first one counted
	}
	if err := shard.CheckWorldSize(d.WorldSize); err != nil {
		return "", fmt.Errorf("%w: %w", ErrConflict, err)
	}
	if d.Request == "" || d.Name == "" || d.WorkersMin < 1 || d.WorkersMax < d.WorkersMin || d.WorkersMax > d.WorldSize {
		return "", fmt.Errorf("%w: %q asks for %d to %d workers of %d ranks", ErrConflict, d.Name, d.WorkersMin, d.WorkersMax, d.WorldSize)
	}
	if err := s.makeRoom(len(d.Spec)); err != nil {
		return "", err
	}
	j := Job{
		ID: s.newID(d.Name, d.Request), Name: d.Name, Request: d.Request, Sequence: index, Spec: d.Spec,
		Phase: Preparing, Reason: e.Reason, Submitted: e.At, Changed: e.At,
		WorldSize: d.WorldSize, WorkersMin: d.WorkersMin, WorkersMax: d.WorkersMax, Class: d.Class, Store: d.Store,
		Priority: d.Priority, Mirror: d.Mirror, Ledger: ledger.Begin(e.At),
	}
	j.tell(index, e, "submitted")
	s.put(j)
	s.requests[d.Request] = j.ID
	return j.ID, nil
}

// newID makes a job's id from its name and a hash of the request, as short as is
// unique.
func (s *State) newID(name, request string) string {
	sum := sha256.Sum256([]byte(request))
	digits := hex.EncodeToString(sum[:])
	for n := 4; ; n += 2 {
		id := name + "-" + digits[:n]
		if s.Jobs[id] == nil {
			return id
		}
		invariant.Check(n < len(digits), "two requests with one hash")
	}
}

// makeRoom keeps the number of jobs and their bytes within the limits, for one more of
// so many bytes. It counts a resolved spec for each job, which has about its spec's size.
func (s *State) makeRoom(specBytes int) error {
	var finished []*Job
	active, activeBytes, bytes := 0, 2*specBytes, 2*specBytes
	for _, j := range s.InOrder() {
		bytes += j.bytes()
		if j.Phase.Final() {
			finished = append(finished, j)
		} else {
			active++
			activeBytes += j.bytes()
		}
	}
	if active >= jobsActiveMax {
		return fmt.Errorf("%w: %d jobs are not over yet; cancel some or wait", ErrFull, active)
	}
	if activeBytes > jobsBytesMax {
		return fmt.Errorf("%w: %d jobs that are not over have specs of %d MB together; cancel some or wait", ErrFull, active, activeBytes>>20)
	}
	for len(finished) >= jobsFinishedMax || bytes > jobsBytesMax && len(finished) > 0 {
		bytes -= finished[0].bytes()
		delete(s.requests, finished[0].Request)
		delete(s.Jobs, finished[0].ID)
		finished = finished[1:]
	}
	return nil
}

// bytes is about what a job takes in a snapshot.
func (j *Job) bytes() int { return len(j.Spec) + max(len(j.Spec), len(j.Resolved)) + len(j.Result) }

func (d *Prepare) apply(s *State, index uint64, e Entry) (string, error) {
	j, err := s.job(d.Job)
	if err != nil {
		return d.Job, err
	}
	if err := j.Phase.mayBecome(Preparing); err != nil {
		return d.Job, err
	}
	if d.Number != j.Preparation.Number+1 {
		return d.Job, fmt.Errorf("%w: preparation %d after %d", ErrFenced, d.Number, j.Preparation.Number)
	}
	if err := s.free(d.Job, d.Worker, d.Incarnation, false); err != nil {
		return d.Job, err
	}
	gaveUp := j.Preparation.GaveUp
	if d.GaveUp {
		gaveUp++
	}
	j.Preparation = Preparation{Number: d.Number, Worker: d.Worker, Incarnation: d.Incarnation, GaveUp: gaveUp}
	if err := j.become(Preparing, index, e, "preparing"); err != nil {
		return d.Job, err
	}
	s.put(j)
	return d.Job, nil
}

// free refuses a worker process that may not get work of the job. One that leaves may, if
// it stays where it is.
func (s *State) free(job, worker, incarnation string, stays bool) error {
	w := s.Workers[worker]
	switch {
	case w == nil:
		return fmt.Errorf("%w: there is no worker %q", ErrUnknown, worker)
	case w.Incarnation != incarnation:
		return fmt.Errorf("%w: worker %s was started again", ErrFenced, worker)
	case w.Draining && !stays:
		return fmt.Errorf("%w: worker %s is leaving", ErrConflict, worker)
	}
	if other := s.Busy()[worker]; other != "" && other != job {
		return fmt.Errorf("%w: worker %s works for %s", ErrConflict, worker, other)
	}
	return nil
}

func (d *Resolve) apply(s *State, index uint64, e Entry) (string, error) {
	j, err := s.job(d.Job)
	if err != nil {
		return d.Job, err
	}
	if d.Number != j.Preparation.Number {
		return d.Job, fmt.Errorf("%w: preparation %d of %s is over, it is at %d", ErrFenced, d.Number, d.Job, j.Preparation.Number)
	}
	if j.Resolved != nil && bytes.Equal(j.Resolved, d.Resolved) {
		return d.Job, nil // a retry
	}
	if len(d.Resolved) == 0 || d.Steps < 1 || d.Step0.Step != 0 || d.Step0.Generation != 0 {
		return d.Job, fmt.Errorf("%w: %s resolved to %d steps from step %d", ErrConflict, d.Job, d.Steps, d.Step0.Step)
	}
	if err := j.become(Queued, index, e, "resolved"); err != nil {
		return d.Job, err
	}
	j.Resolved, j.SpecHash, j.DataHash, j.Class, j.Steps, j.Nonce, j.Memory = d.Resolved, d.SpecHash, d.DataHash, d.Class, d.Steps, d.Nonce, d.Memory
	j.Published, j.PublishedIndex = []Checkpoint{d.Step0}, index
	j.Ledger.Wait(e.At, e.Spent)
	s.put(j)
	return d.Job, nil
}

func (d *Generate) apply(s *State, index uint64, e Entry) (string, error) {
	j, err := s.job(d.Job)
	if err != nil {
		return d.Job, err
	}
	if err := j.Phase.mayBecome(Running); err != nil {
		return d.Job, err
	}
	if d.Generation != j.Generation+1 {
		return d.Job, fmt.Errorf("%w: generation %d after %d", ErrFenced, d.Generation, j.Generation)
	}
	from, ok := j.Newest()
	if !ok || d.From != from.Step {
		return d.Job, fmt.Errorf("%w: generation %d from step %d, but %d is published by now", ErrFenced, d.Generation, d.From, from.Step)
	}
	if j.Paused && j.Phase == Queued {
		return d.Job, fmt.Errorf("%w: %s is paused", ErrConflict, d.Job)
	}
	if err := s.checkPlacement(&j, d); err != nil {
		return d.Job, err
	}
	if err := j.checkLive(d, from.Step); err != nil {
		return d.Job, err
	}
	gained, spent := d.Live != nil && d.Live.Target > j.Ended().From, j.spent(e)
	if err := j.become(Running, index, e, "generation"); err != nil {
		return d.Job, err
	}
	j.Generation, j.Placement, j.Resume, j.Live, j.Parked = d.Generation, d.Placement, from, d.Live, Parked{}
	j.Ledger.Train(e.At, spent, d.Live != nil, len(d.Placement), j.Useful())
	if j.Setbacks++; gained {
		j.Setbacks = 0
	}
	s.put(j)
	return d.Job, nil
}

// decisionBytesMax bounds a decision record in the log.
const decisionBytesMax = 4 << 10

// checkLive refuses to go on from a state that is behind what is published, or that lies
// elsewhere than on processes that had a part in the generation before.
func (j *Job) checkLive(d *Generate, published int64) error {
	l := d.Live
	if l == nil {
		return nil
	}
	if l.Target < published || l.Target > j.Steps || len(l.Decision) > decisionBytesMax {
		return fmt.Errorf("%w: live from step %d of %d with step %d published", ErrConflict, l.Target, j.Steps, published)
	}
	if l.After == 0 || l.After != j.Ended().Generation {
		return fmt.Errorf("%w: the state is generation %d's, and %d was the last to run", ErrFenced, l.After, j.Ended().Generation)
	}
	if !j.Sound() {
		return fmt.Errorf("%w: copies of a rank's state differed in generation %d", ErrConflict, l.After)
	}
	if len(l.Sources) != j.WorldSize {
		return fmt.Errorf("%w: %d sources for %d ranks", ErrConflict, len(l.Sources), j.WorldSize)
	}
	for r, w := range l.Sources {
		had, has := j.Holder(w), placeOf(d.Placement, w)
		if had == nil || has == nil || had.Incarnation != has.Incarnation {
			return fmt.Errorf("%w: the state of rank %d is not on worker %s of both generations", ErrConflict, r, w)
		}
	}
	return nil
}

// checkPlacement refuses a placement that is not the job's ranks in order on workers
// that are free for it. A live generation may have as many workers as the one before: it
// shrinks by steps, because state has to be moved first.
func (s *State) checkPlacement(j *Job, d *Generate) error {
	most := j.WorkersMax
	if d.Live != nil {
		most = max(most, len(j.Ended().Placement))
	}
	if n := len(d.Placement); n < j.WorkersMin || n > most {
		return fmt.Errorf("%w: %d workers for a job of %d to %d", ErrConflict, n, j.WorkersMin, most)
	}
	rank, seen := 0, map[string]bool{}
	for _, p := range d.Placement {
		if err := s.free(j.ID, p.Worker, p.Incarnation, d.Live != nil && j.Holder(p.Worker) != nil); err != nil {
			return err
		}
		if w := s.Workers[p.Worker]; !w.Has(j.Class) {
			return fmt.Errorf("%w: worker %s cannot compute as %s", ErrConflict, p.Worker, j.Class)
		}
		if seen[p.Worker] || len(p.Ranks) == 0 {
			return fmt.Errorf("%w: worker %s is placed twice or without a rank", ErrConflict, p.Worker)
		}
		seen[p.Worker] = true
		for _, r := range p.Ranks {
			if r != rank {
				return fmt.Errorf("%w: rank %d is placed where %d should be", ErrConflict, r, rank)
			}
			rank++
		}
	}
	if rank != j.WorldSize {
		return fmt.Errorf("%w: %d of %d ranks are placed", ErrConflict, rank, j.WorldSize)
	}
	return nil
}

func (d *Suspend) apply(s *State, index uint64, e Entry) (string, error) {
	j, err := s.job(d.Job)
	if err != nil {
		return d.Job, err
	}
	if j.Phase == Queued && d.Generation == j.Generation {
		return d.Job, nil // a retry
	}
	if d.Generation != j.Generation+1 {
		return d.Job, fmt.Errorf("%w: suspended as generation %d after %d", ErrFenced, d.Generation, j.Generation)
	}
	if j.Phase != Running { // Preparing may become queued too, but not by this
		return d.Job, fmt.Errorf("%w: the job is %s, not running", ErrIllegal, j.Phase)
	}
	if err := j.become(Queued, index, e, "suspended"); err != nil {
		return d.Job, err
	}
	j.Ledger.Wait(e.At, j.spent(e))
	j.Parked = Parked{Generation: j.Generation, Placement: j.Placement, Live: j.Live, From: j.Began()}
	j.Generation, j.Placement, j.Live = d.Generation, nil, nil
	s.put(j)
	return d.Job, nil
}
