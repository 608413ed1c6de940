package coordinator

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// The rows of the table in DESIGN.md that are about a job's state: what reaches the leader
// when a failure strikes at some point of a step.

// mirrored starts a protected job on w1…w4, a rank each, that has taken so many steps.
func mirrored(r *rig, ring *fakeRing, steps int64) (id string, workers []*fakeWorker) {
	r.Helper()
	ring.upTo(steps)
	workers = r.elastic(ring, "w1", "w2", "w3", "w4")
	r.joined(4)
	id = r.submit("one", func(j *jobspec.Job) { j.Cluster.Protect, j.Cluster.Workers.Min = jobspec.ProtectMirror, 2 })
	ring.steps(r.T, steps)
	return id, workers
}

// endsWell lets the job take its last steps, and looks whether each was taken once.
func (r *rig) endsWell(ring *fakeRing, id, want string) {
	r.Helper()
	ring.upTo(24)
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	ring.once(r.T)
	if text := events(r, id); !strings.Contains(text, want) || strings.Contains(text, "checkpoint of step") {
		r.Errorf("want %q and no checkpoint to fall back to, got\n%s", want, text)
	}
}

func TestADecisionThatOnlyTheDeadKnewIsTakenAgain(t *testing.T) {
	r, ring := newRig(t, 1, nil), newFakeRing()
	id, workers := mirrored(r, ring, 5)
	// Nobody but rank 0's worker, which makes the decisions, ever heard of the last one.
	ring.forget(workers[0])
	r.endsWell(ring, id, "goes on live as generation 2 from step 4 on w2:0,1 w3:2 w4:3: w1 lost")
}

func TestOneSurvivorThatKnowsTheDecisionIsEnough(t *testing.T) {
	r, ring := newRig(t, 1, nil), newFakeRing()
	id, workers := mirrored(r, ring, 5)
	ring.behind("w2", "w4") // they have its sums, and have not heard of it
	ring.lose(workers[0])
	r.endsWell(ring, id, "goes on live as generation 2 from step 5 on w2:0,1 w3:2 w4:3: w1 lost")
}

func TestInTheNextStepTheJobGoesOnFromTheLastDecision(t *testing.T) {
	r, ring := newRig(t, 1, nil), newFakeRing()
	id, workers := mirrored(r, ring, 5) // and no further: they are in step 6
	ring.lose(workers[2])
	r.endsWell(ring, id, "goes on live as generation 2 from step 5 on w1:0 w2:1 w4:2,3: w3 lost")
}

func TestASecondLossUnderAnotherLeaderIsTheSameRecovery(t *testing.T) {
	r, ring := newRig(t, 3, nil), newFakeRing()
	id, workers := mirrored(r, ring, 5)
	first := r.leader()
	ring.lose(workers[1])
	r.stop(first)
	ring.lose(workers[3])
	r.endsWell(ring, id, "goes on live")
	if j := r.get(id); r.leader() == first || j.GetGeneration() > 3 {
		t.Errorf("%s leads, and the job is in generation %d", r.leader(), j.GetGeneration())
	}
}

func TestAZombieIsRefusedWhateverItSays(t *testing.T) {
	r, ring := newRig(t, 1, nil), newFakeRing()
	id, workers := mirrored(r, ring, 5)
	zombie := workers[1]
	ring.lose(zombie)
	r.eventually(id, "generation 2", func(j *skeinv1.Job) bool { return j.GetGeneration() == 2 })
	speaker := r.worker("speaker", "p1", nil) // its connection, for what a frozen process still has to say
	newest := &skeinv1.Sealed{Step: 6, Decision: []byte(decision(6)), Held: []int32{0, 1, 2, 3}, Reaches: []string{"w1", "w2", "w3", "w4"}}
	again := func() {
		t.Helper()
		for what, err := range map[string]error{
			"a report": second(speaker.api.Broken(r.ctx(), &skeinv1.BrokenRequest{Sender: zombie.sender(), Job: id, Generation: 1, Accused: "w1", Reason: "late", Sealed: newest})),
			"a checkpoint": second(speaker.api.Publish(r.ctx(), &skeinv1.PublishRequest{Sender: zombie.sender(), Job: id, Checkpoint: &skeinv1.Checkpoint{
				Generation: 1, Step: 6, Manifest: "late", Weights: weights(6)}})),
			"an end":    second(speaker.api.Complete(r.ctx(), &skeinv1.CompleteRequest{Sender: zombie.sender(), Job: id, Generation: 1})),
			"a failure": second(speaker.api.Fail(r.ctx(), &skeinv1.FailRequest{Sender: zombie.sender(), Job: id, Generation: 1, Reason: "late"})),
		} {
			if code := status.Code(err); code != codes.Aborted && code != codes.NotFound {
				t.Errorf("%s of the zombie: %v", what, err)
			}
		}
	}
	again()
	// The same process wakes and has a session again: it is still of no generation that runs.
	r.worker(zombie.name, zombie.incarnation, func(w *fakeWorker) { w.stall = true })
	r.until("it is back", func() bool {
		n, err := r.ops.Nodes(r.ctx(), &skeinv1.NodesRequest{})
		return err == nil && slices.ContainsFunc(n.GetWorkers(), func(w *skeinv1.WorkerNode) bool { return w.GetWorker() == zombie.name && w.GetConnected() })
	})
	again()
	if j := r.get(id); j.GetGeneration() != 2 || j.GetPublished().GetStep() != 0 {
		t.Errorf("the zombie has moved the job to %v", j)
	}
}

// second is the error of a call whose answer says nothing.
func second[T any](_ T, err error) error { return err }
