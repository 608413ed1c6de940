package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/worker/workertest"
)

// useful is how many of some workers eight ranks are spread over: what does not shorten a
// step stays a warm spare.
var useful = map[int32]int{1: 1, 2: 2, 3: 3, 5: 4, 8: 8}

func eightRanks(t *testing.T) workertest.Job {
	t.Helper()
	j := workertest.New(t)
	j.Edit(t, "job.yaml", "worldSize: 2", "worldSize: 8")
	return j
}

func TestEightRanksEndOnTheSameBitsOnAnyNumberOfWorkers(t *testing.T) {
	j := eightRanks(t)
	short := []string{"train.steps=8", "eval.every=100 steps"}
	want, export := alone(t, j, short...)
	r := newRig(t, j, 1, 8)
	for _, n := range []int32{1, 2, 3, 5, 8} {
		out := fmt.Sprint("trained-", n)
		id := r.submit(append(short, fmt.Sprint("cluster.workers.max=", n), "output.export=./"+out)...)
		if got := r.wait(id); got != want {
			t.Errorf("on %d workers it ends on %s, in one process on %s", n, got, want)
		}
		if diff := cmp.Diff(export, sums(t, j.Path(out))); diff != "" {
			t.Errorf("on %d workers it exports other files:\n%s", n, diff)
		}
		for _, e := range r.describe(id).Events {
			if placed := placedOn.FindAllString(e.Text, -1); e.Kind == "generation" && len(placed) != useful[n] {
				t.Errorf("%d workers were asked for, %d are of use, and it ran on %d: %s", n, useful[n], len(placed), e.Text)
			}
		}
	}

	long := []string{"train.steps=600", "eval.every=1000 steps", "checkpoint.every=1000 steps", "cluster.protect=mirror"}
	want, _ = alone(t, j, long...)
	id := r.submit(append(long, "cluster.workers.max=3", "output.export=./trained-long")...)
	c := r.client()
	r.at(id, 1)
	changes := 0
	for _, n := range []int32{8, 2, 5, 1, 3} {
		if _, err := c.Scale(r.Context(), id, n); err != nil {
			if !r.over(c, id) {
				t.Fatal(err)
			}
			break // the machine was too busy with other things to be asked in time
		}
		r.eventually(fmt.Sprintf("it trains on %d workers", useful[n]), func() bool {
			got, err := c.Get(r.Context(), id)
			j := got.GetJob()
			return err == nil && (client.Over(j.GetPhase()) ||
				len(j.GetMembers()) == useful[n] && j.GetProgress().GetGeneration() == j.GetGeneration() && j.GetProgress().GetStep() > j.GetBegan())
		})
		changes++
	}
	t.Logf("scaled %d times", changes)
	if got := r.wait(id); got != want {
		t.Errorf("scaled to 8, 2, 5, 1 and 3 workers it ends on %s, in one process on %s\n%s", got, want, r.logs())
	}
	r.onceEach(id)
	for _, e := range r.describe(id).Events {
		if e.Kind == "generation" && !strings.Contains(e.Text, "generation 1 ") && !strings.Contains(e.Text, "live") {
			t.Errorf("a planned change went back to a checkpoint: %s", e.Text)
		}
	}
}

func TestAJobOfHigherPriorityTakesTheWorkersAndBothEndOnTheirBits(t *testing.T) {
	j := clusterJob(t)
	low := []string{"train.steps=200", "checkpoint.every=1000 steps", "cluster.workers.min=2", "cluster.workers.max=2"}
	high := []string{"train.steps=30", "train.seed=8", "cluster.workers.min=2", "cluster.workers.max=2", "cluster.priority=10", "name=urgent", "output.export=./urgent"}
	want, _ := alone(t, j, low...)
	other := j.Copy(t)
	args := []string{"train", "-f", "job.yaml", "-o", "json"}
	for _, s := range high {
		args = append(args, "--set", s)
	}
	urgent := last(events(t, mustRun(t, other, args...)), "done").WeightsHash

	r := newRig(t, j, 1, 2)
	first := r.submit(low...)
	r.at(first, 40)
	second := r.submit(high...)
	r.eventually("the second job runs", func() bool { return r.describe(second).Phase != "queued" && r.describe(second).Generation > 0 })
	if v := r.describe(first); v.Phase == "running" && r.describe(second).Phase == "running" {
		t.Errorf("both run on two workers that each wants: %+v", v)
	}
	if got := r.wait(second); got != urgent {
		t.Errorf("the job that was let go first ends on %s, alone on %s", got, urgent)
	}
	if got := r.wait(first); got != want {
		t.Errorf("the job that gave its workers up ends on %s, alone on %s", got, want)
	}
	r.onceEach(first)
	if events := fmt.Sprint(r.describe(first).Events); !strings.Contains(events, "urgent") {
		t.Errorf("nothing says to whom its workers went: %s", events)
	}
}
