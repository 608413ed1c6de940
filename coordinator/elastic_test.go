package coordinator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// fakeRing is what the workers of one job do together: rank 0's takes the steps, and all
// say what they hold when they are to stop.
type fakeRing struct {
	mu         sync.Mutex
	generation uint64
	step       int64
	yielded    uint64            // generation that stopped at a step boundary
	dead       map[string]bool   // workers without which no step is taken
	taken      []int64           // every step, in the order in which they were
	told       map[string]uint64 // by worker: the generation that it last reported
	limit      int64             // no step beyond it is taken
	late       map[string]bool   // workers that have not heard of the last decision, and have its sums
}

func newFakeRing() *fakeRing {
	return &fakeRing{dead: map[string]bool{}, told: map[string]uint64{}, late: map[string]bool{}, limit: 24}
}

// enter begins a generation, once.
func (r *fakeRing) enter(w *fakeWorker, a *skeinv1.Assignment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.GetGeneration() <= r.generation {
		return
	}
	r.generation = a.GetGeneration()
	from := a.GetResume().GetStep()
	if a.GetLive() {
		from = a.GetTarget()
		if from != r.step || string(a.GetDecision()) != decision(from) || len(a.GetSources()) != 4 {
			w.rig.Errorf("generation %d goes on live from step %d with %q, and %d is decided", r.generation, from, a.GetDecision(), r.step)
		}
	}
	r.step = from
}

func decision(step int64) string {
	if step == 0 {
		return ""
	}
	return fmt.Sprintf("D(%d)", step)
}

// host is a worker's part in a generation, as far as its newest orders say.
func (r *fakeRing) host(ctx context.Context, w *fakeWorker, a *skeinv1.Assignment) {
	if a.GetSeal() {
		r.report(ctx, w, a, false)
		return
	}
	r.enter(w, a)
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Millisecond):
		}
		if r.hasYielded(a) {
			r.report(ctx, w, a, true)
			return
		}
		if a.GetRanks()[0] == 0 && r.take(ctx, w, a) {
			return
		}
	}
}

func (r *fakeRing) hasYielded(a *skeinv1.Assignment) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.yielded == a.GetGeneration()
}

// take takes a step, unless a worker is dead; it tells whether the job is over.
func (r *fakeRing) take(ctx context.Context, w *fakeWorker, a *skeinv1.Assignment) (over bool) {
	r.mu.Lock()
	if r.generation != a.GetGeneration() || slices.ContainsFunc(a.GetMembers(), func(m *skeinv1.Member) bool { return r.dead[m.GetWorker()] }) {
		r.mu.Unlock()
		return false
	}
	if r.step == r.limit && r.limit < 24 {
		r.mu.Unlock()
		return false
	}
	if r.step < 24 {
		r.step++
		r.taken = append(r.taken, r.step)
	}
	step := r.step
	r.mu.Unlock()
	w.report(a.GetJob(), &skeinv1.Progress{Generation: a.GetGeneration(), Step: step, Steps: 24, Protected: a.GetMirror()})
	if step%8 == 0 || a.GetCheckpointRequest() > 0 && a.GetYieldRequest() > 0 {
		_, err := w.api.Publish(ctx, &skeinv1.PublishRequest{Sender: w.sender(), Job: a.GetJob(), Checkpoint: &skeinv1.Checkpoint{
			Generation: a.GetGeneration(), Step: step, Manifest: fmt.Sprintf("manifest-%d-%d", a.GetGeneration(), step), Weights: weights(step),
		}})
		w.expect(err)
	}
	if step == 24 {
		_, err := w.api.Complete(ctx, &skeinv1.CompleteRequest{Sender: w.sender(), Job: a.GetJob(), Generation: a.GetGeneration(), Result: []byte(`{"loss":1.6}`)})
		w.expect(err)
		return true
	}
	if a.GetYieldRequest() > 0 {
		r.mu.Lock()
		r.yielded = a.GetGeneration()
		r.mu.Unlock()
	}
	return false
}

// report says what a worker holds: its ranks, and those of the one before it if they are
// mirrored.
func (r *fakeRing) report(ctx context.Context, w *fakeWorker, a *skeinv1.Assignment, yielded bool) {
	r.mu.Lock()
	s := &skeinv1.Sealed{Step: r.step, Decision: []byte(decision(r.step)), Held: slices.Clone(a.GetRanks()), Yielded: yielded, Told: !yielded}
	r.told[w.name] = a.GetGeneration()
	late := r.late[w.name] && a.GetGeneration() == 1
	r.mu.Unlock()
	for _, m := range a.GetMembers() {
		s.Reaches = append(s.Reaches, m.GetWorker())
		if a.GetMirror() && m.GetWorker() == a.GetPrevious() {
			s.Held = append(s.Held, m.GetRanks()...)
		}
	}
	if late {
		s.Step, s.Decision, s.Summed = s.Step-1, []byte(decision(s.Step-1)), s.Held
	}
	_, err := w.api.Broken(ctx, &skeinv1.BrokenRequest{Sender: w.sender(), Job: a.GetJob(), Generation: a.GetGeneration(), Reason: "told to stop", Sealed: s})
	w.expect(err)
}

// upTo lets steps be taken up to one.
func (r *fakeRing) upTo(step int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limit = step
}

// lose has no step taken without a worker.
func (r *fakeRing) lose(w *fakeWorker) {
	r.mu.Lock()
	r.dead[w.name] = true
	r.mu.Unlock()
	w.kill()
}

// forget loses a worker together with the last step, of which nobody else has heard.
func (r *fakeRing) forget(w *fakeWorker) {
	r.mu.Lock()
	r.dead[w.name] = true
	r.step--
	r.taken = r.taken[:len(r.taken)-1]
	r.limit = r.step
	r.mu.Unlock()
	w.kill()
}

// behind has workers report, of the first generation, the step before the last one.
func (r *fakeRing) behind(names ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range names {
		r.late[n] = true
	}
}

// steps waits until so many are taken.
func (r *fakeRing) steps(t *testing.T, n int64) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		r.mu.Lock()
		at := r.step
		r.mu.Unlock()
		if at >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("step %d is never taken; it is at %d", n, at)
		}
	}
}

// once fails unless every step was taken exactly once.
func (r *fakeRing) once(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, step := range r.taken {
		if step != int64(i+1) {
			t.Fatalf("steps were taken twice or left out: %v", r.taken)
		}
	}
}

// elastic are workers that keep what they hold.
func (r *rig) elastic(ring *fakeRing, names ...string) []*fakeWorker {
	r.Helper()
	var list []*fakeWorker
	for _, n := range names {
		list = append(list, r.worker(n, n+"-1", func(w *fakeWorker) { w.ring = ring }))
	}
	return list
}

func events(r *rig, id string) string {
	r.Helper()
	out, err := r.jobs.Get(r.ctx(), &skeinv1.GetRequest{Job: id})
	if err != nil {
		r.Fatal(err)
	}
	var list []string
	for _, e := range out.GetEvents() {
		list = append(list, e.GetKind()+": "+e.GetText())
	}
	return strings.Join(list, "\n")
}

// yields tells whether orders have a worker ask for a stop after the next step.
func yields(o *skeinv1.Orders) bool { return o.GetAssignment().GetYieldRequest() > 0 }

func TestALostWorkerCostsAProtectedJobNoStep(t *testing.T) {
	r, ring := newRig(t, 1, nil), newFakeRing()
	ring.upTo(3)
	workers := r.elastic(ring, "w1", "w2", "w3", "w4")
	r.joined(4)
	id := r.submit("one", func(j *jobspec.Job) { j.Cluster.Protect = jobspec.ProtectMirror })
	ring.steps(t, 3)
	ring.lose(workers[1])
	ring.upTo(24)
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	ring.once(t)
	if text := events(r, id); !strings.Contains(text, "goes on live as generation 2 from step 3 on w1:0 w3:1,2 w4:3: w2 lost") {
		t.Error(text)
	}
}

func TestALostWorkerSendsAnExposedJobBackToItsCheckpoint(t *testing.T) {
	r, ring := newRig(t, 1, nil), newFakeRing()
	ring.upTo(11)
	workers := r.elastic(ring, "w1", "w2")
	r.joined(2)
	id := r.submit("one", nil)
	ring.steps(t, 11)
	ring.lose(workers[1])
	ring.upTo(24)
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	if text := events(r, id); !strings.Contains(text, "goes on as generation 2 from the checkpoint of step 8") {
		t.Error(text)
	}
}

func TestAJobIsPausedResumedAndScaledWithoutTakingAStepTwice(t *testing.T) {
	r, ring := newRig(t, 1, nil), newFakeRing()
	ring.upTo(2)
	workers := r.elastic(ring, "w1", "w2", "w3")
	r.joined(3)
	id := r.submit("one", func(j *jobspec.Job) { j.Cluster.Workers.Max = 2 })
	ring.steps(t, 2)
	if _, err := r.jobs.Pause(r.ctx(), &skeinv1.PauseRequest{Job: id, Reason: "lunch"}); err != nil {
		t.Fatal(err)
	}
	r.eventually(id, "it is to pause", func(j *skeinv1.Job) bool { return j.GetWaitingFor() == "stops after the next step: it is to pause" })
	workers[0].waitForOrders(t, "to stop", yields)
	ring.upTo(5)
	j := r.eventually(id, "it is paused", inPhase(skeinv1.Phase_PHASE_PAUSED))
	ring.mu.Lock()
	at := ring.step
	ring.mu.Unlock()
	if got := j.GetPublished().GetStep(); got != at || len(j.GetMembers()) != 0 {
		t.Errorf("it paused at step %d, and step %d is published; it has %v", at, got, j.GetMembers())
	}
	ring.upTo(at)
	if _, err := r.jobs.Resume(r.ctx(), &skeinv1.ResumeRequest{Job: id}); err != nil {
		t.Fatal(err)
	}
	r.eventually(id, "it goes on live", func(j *skeinv1.Job) bool { return j.GetLive() && j.GetBegan() == at })
	for _, n := range []int32{0, 5} {
		if _, err := r.jobs.Scale(r.ctx(), &skeinv1.ScaleRequest{Job: id, Workers: n}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a job of 4 ranks is scaled to %d workers: %v", n, err)
		}
	}
	if _, err := r.jobs.Scale(r.ctx(), &skeinv1.ScaleRequest{Job: id, Workers: 4}); err != nil {
		t.Fatal(err)
	}
	r.elastic(ring, "w4")
	r.eventually(id, "it stops for those who come", func(j *skeinv1.Job) bool { return strings.HasSuffix(j.GetWaitingFor(), "join") })
	workers[0].waitForOrders(t, "to stop", yields)
	ring.upTo(24)
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	ring.once(t)
	if text := events(r, id); !strings.Contains(text, "scaled from at most 2 to at most 4 workers") || !strings.Contains(text, "the state of 2 ranks moves: w3, w4 join") {
		t.Error(text)
	}
}

// A leader that is replaced knows nothing of what workers hold; they tell the next one.
func TestANewLeaderHearsWhatAPausedJobHolds(t *testing.T) {
	r, ring := newRig(t, 3, nil), newFakeRing()
	ring.upTo(2)
	workers := r.elastic(ring, "w1", "w2")
	r.joined(2)
	id := r.submit("one", nil)
	ring.steps(t, 2)
	if _, err := r.jobs.Pause(r.ctx(), &skeinv1.PauseRequest{Job: id}); err != nil {
		t.Fatal(err)
	}
	workers[0].waitForOrders(t, "to stop", yields)
	ring.upTo(24)
	r.eventually(id, "it is paused", inPhase(skeinv1.Phase_PHASE_PAUSED))
	if _, err := r.ops.TransferLeadership(r.ctx(), &skeinv1.TransferLeadershipRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.jobs.Resume(r.ctx(), &skeinv1.ResumeRequest{Job: id}); err != nil {
		t.Fatal(err)
	}
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	ring.once(t)
	if text := events(r, id); !strings.Contains(text, "goes on live") {
		t.Error(text)
	}
}

// differ has a worker say, after step 11 of a generation, that its copy of w1's state differs,
// and waits until the job goes on.
func (r *rig) differ(ring *fakeRing, mirror *fakeWorker, id string, generation uint64) {
	r.Helper()
	ring.steps(r.T, 11)
	r.eventually(id, "step 8 is published", func(j *skeinv1.Job) bool { return j.GetPublished().GetStep() == 8 })
	diverged := &skeinv1.BrokenRequest{
		Sender: mirror.sender(), Job: id, Generation: generation, Reason: "two copies differ",
		Diverged: &skeinv1.Divergence{Rank: 1, Bucket: "layer.3", Step: 11, Owner: "w1", Mirror: mirror.name},
	}
	for range 2 { // the answer to the first was lost
		if _, err := mirror.api.Broken(r.ctx(), diverged); err != nil && status.Code(err) != codes.Aborted {
			r.Fatal(err)
		}
	}
	r.eventually(id, "it goes on", func(j *skeinv1.Job) bool { return j.GetGeneration() > generation })
}

func TestCopiesThatDifferSetTheJobBackToItsCheckpointByName(t *testing.T) {
	r, ring := newRig(t, 1, nil), newFakeRing()
	ring.upTo(11)
	workers := r.elastic(ring, "w1", "w2", "w3")
	r.joined(3)
	id := r.submit("one", func(j *jobspec.Job) {
		j.Cluster.Protect, j.Cluster.Workers.Min, j.Cluster.Workers.Max = jobspec.ProtectMirror, 1, 2
	})
	for generation := uint64(1); generation <= 2; generation++ { // w1 and w2, which nobody can tell apart, twice
		r.differ(ring, workers[1], id, generation)
	}
	ring.upTo(24)
	j := r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	if j.GetGeneration() != 3 {
		t.Errorf("it took %d generations", j.GetGeneration())
	}
	text := events(r, id)
	for _, want := range []string{
		"diverged: rank 1, layer.3: the copies of w1 and of its mirror on w2 differ after step 11; going on from the checkpoint of step 8",
		"goes on as generation 2 from the checkpoint of step 8 on w1:0,1 w2:2,3: rank 1, layer.3: the copies",
		"goes on as generation 3 from the checkpoint of step 8 on w3:0,1,2,3: rank 1, layer.3: the copies",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no event says %q:\n%s", want, text)
		}
	}
}

func TestTwoWorkersThatNobodyCanReplaceGoOnThoughTheyDiffer(t *testing.T) {
	r, ring := newRig(t, 1, nil), newFakeRing()
	ring.upTo(11)
	workers := r.elastic(ring, "w1", "w2")
	r.joined(2)
	id := r.submit("one", func(j *jobspec.Job) {
		j.Cluster.Protect, j.Cluster.Workers.Min, j.Cluster.Workers.Max = jobspec.ProtectMirror, 1, 2
	})
	for generation := uint64(1); generation <= 2; generation++ {
		r.differ(ring, workers[1], id, generation)
	}
	ring.upTo(24)
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	if text := events(r, id); !strings.Contains(text, "; w1, w2 take part, although copies differed there again and again") {
		t.Errorf("no event says that both are taken again:\n%s", text)
	}
}
