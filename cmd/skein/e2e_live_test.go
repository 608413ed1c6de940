package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/worker/workertest"
)

// live is a job that is protected by mirrors and publishes hardly ever: whoever goes back to
// a checkpoint runs many steps again.
var live = []string{"train.steps=400", "checkpoint.every=1000 steps", "cluster.protect=mirror"}

// told lists the steps that a job's log tells of, in order.
func (r *rig) told(id string) (steps []int64) {
	r.Helper()
	for line := range strings.Lines(r.must("logs", id, "-o", "json")) {
		var ev struct {
			Event string
			Step  int64
		}
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			r.Fatalf("%v: %s", err, line)
		}
		if ev.Event == "step" {
			steps = append(steps, ev.Step)
		}
	}
	return steps
}

// onceEach checks that no step is told twice.
func (r *rig) onceEach(id string) {
	r.Helper()
	steps := r.told(id)
	slices.Sort(steps)
	for i := range steps[1:] {
		if steps[i] == steps[i+1] {
			r.Fatalf("step %d was taken twice\n%s", steps[i], r.logs())
		}
	}
}

// at waits until a job has taken a step, and returns its generation.
func (r *rig) at(id string, step int64) (generation uint64) {
	r.Helper()
	c := r.client()
	r.eventually(fmt.Sprintf("step %d is taken", step), func() bool {
		got, err := c.Get(r.Context(), id)
		if err != nil {
			return false
		}
		v := client.View(got.GetJob())
		generation = v.Generation
		return v.Step >= step || client.Over(got.GetJob().GetPhase())
	})
	return generation
}

func liveJob(t *testing.T) (j workertest.Job, want string) {
	t.Helper()
	j = clusterJob(t)
	want, _ = alone(t, j, live...)
	return j, want
}

func TestAKilledWorkerThatIsMirroredCostsNoStep(t *testing.T) {
	j, want := liveJob(t)
	r := newRig(t, j, 1, 4)
	id := r.submit(live...)
	for i, victim := range []string{"w2", "w1"} {
		r.at(id, int64(60+80*i))
		r.kill(victim)
	}
	if got := r.wait(id); got != want {
		t.Errorf("after the loss of two workers it ends on %s, undisturbed on %s\n%s", got, want, r.logs())
	}
	r.onceEach(id)
	if g := r.accounted(id); g.Recovery <= 0 || g.Capacity <= 0 || g.Capacity >= 1 {
		t.Errorf("two workers were lost, and the ledger tells %+v", g)
	}
}

func TestAStoppedWorkerIsNoticedAndItsStateNotUsed(t *testing.T) {
	j, want := liveJob(t)
	r := newRig(t, j, 1, 3)
	id := r.submit(live...)
	generation := r.at(id, 60)
	zombie := r.processes["w2"]
	if err := zombie.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	r.eventually("a generation without it", func() bool { return r.at(id, 0) > generation })
	t.Logf("a generation without the stopped worker after %.2f s", time.Since(stopped).Seconds())
	r.at(id, 120)
	if err := zombie.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got := r.wait(id); got != want {
		t.Errorf("with a worker that slept it ends on %s, undisturbed on %s\n%s", got, want, r.logs())
	}
	r.onceEach(id)
}

func TestAJobIsScaledPausedAndResumedWhileItTrains(t *testing.T) {
	j, want := liveJob(t)
	r := newRig(t, j, 1, 4)
	id := r.submit(live...)
	r.at(id, 40)
	r.must("scale", id, "--workers", "2")
	r.at(id, 120)
	r.must("scale", id, "--workers", "4")
	r.at(id, 200)
	r.must("pause", id)
	r.eventually("it is paused", func() bool { return strings.Contains(strings.ToLower(r.describe(id).Phase), "paused") })
	r.must("resume", id)
	if got := r.wait(id); got != want {
		t.Errorf("after all that it ends on %s, undisturbed on %s\n%s", got, want, r.logs())
	}
	r.onceEach(id)
}

func TestScalingBeyondTheLimitsIsRefusedWithTheNumbersAndTheJobTrainsOn(t *testing.T) {
	j, want := liveJob(t)
	r := newRig(t, j, 1, 2)
	id := r.submit(append(slices.Clone(live), "cluster.workers.min=2")...)
	r.at(id, 20)
	for _, c := range []struct {
		to     string
		status int
		says   string
	}{
		{"5", exitFailure, "5 workers for 4 ranks: a worker hosts at least one, so at most 4 can work"},
		{"1", exitFailure, "give a number from 2 to 4"},
		{"0", exitUsage, "a job needs at least 1, and `skein pause` stops it"},
		{"-1", exitUsage, "a job needs at least 1"},
	} {
		if status, _, errs := r.run("scale", id, "--workers", c.to); status != c.status || !strings.Contains(errs, c.says) {
			t.Errorf("to %s workers: status %d, %q; want %d, %q", c.to, status, errs, c.status, c.says)
		}
	}
	if got := r.wait(id); got != want {
		t.Errorf("it ends on %s, undisturbed on %s\n%s", got, want, r.logs())
	}
	if v := r.describe(id); v.Generation != 1 || v.WorkersMax != 4 {
		t.Errorf("generation %d on at most %d workers, though nothing was to change", v.Generation, v.WorkersMax)
	}
}
