package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-ml/skein/client"
)

// stages is how many stages ZeRO has.
const stages = 4

// staged is a short job that has no checkpoint but those of its start and its end.
var staged = []string{"train.steps=100", "checkpoint.every=1000 steps", "eval.every=1000 steps", "cluster.protect=mirror"}

// TestAWorkerIsKilledInEachZeROStageAndAllEndOnTheSameBits kills in stage n the worker that
// has rank n: of stage 0 the one that makes the decisions.
func TestAWorkerIsKilledInEachZeROStageAndAllEndOnTheSameBits(t *testing.T) {
	j := clusterJob(t)
	want, export := alone(t, j, staged...)
	r := newRig(t, j, 1, 4)
	for stage := range stages {
		lost := false
		for try := 0; !lost; try++ {
			if try == 5 {
				t.Fatalf("ZeRO %d: the job ended %d times before a worker was hit", stage, try)
			}
			out := fmt.Sprintf("trained-%d-%d", stage, try)
			var hash string
			hash, lost = r.loseRank(stage, append(staged, fmt.Sprint("cluster.zero=", stage), "output.export=./"+out))
			if hash != want {
				t.Errorf("ZeRO %d ends on %s, undisturbed in one process on %s\n%s", stage, hash, want, r.logs())
			}
			if diff := cmp.Diff(export, sums(t, j.Path(out))); diff != "" {
				t.Errorf("ZeRO %d exports other files:\n%s", stage, diff)
			}
		}
	}
}

// loseRank runs a job on all four workers, kills the one that has a rank, and starts it
// again. It returns the hash that the job ends on, and whether it was hit before its end.
func (r *rig) loseRank(rank int, settings []string) (hash string, hit bool) {
	r.Helper()
	r.joined(4)
	id := r.submit(settings...)
	c := r.client()
	defer c.Close()
	var before client.Job
	r.eventually("four workers protect each other", func() bool {
		got, err := c.Get(r.Context(), id)
		before = client.View(got.GetJob())
		return err == nil && (client.Over(got.GetJob().GetPhase()) ||
			before.Step >= 8 && len(before.Workers) == 4 && before.Progress != nil && before.Progress.Protected)
	})
	if len(before.Workers) == 4 {
		victim := before.Workers[rank].Worker
		r.kill(victim)
		r.worker(victim)
	}
	hash = r.wait(id)
	after := r.describe(id)
	for _, e := range after.Events {
		if e.Kind == "generation" && !strings.Contains(e.Text, "generation 1 ") && !strings.Contains(e.Text, "live") {
			r.Errorf("all was held twice, and it went back to a checkpoint: %s", e.Text)
		}
	}
	return hash, after.Generation > before.Generation
}
