package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/skein-ml/skein/client"
)

// ring is the workers of a job in the order of their ranks: each mirrors those of the one before it.
func (r *rig) ring(id string) (names []string) {
	r.Helper()
	placed := r.describe(id).Workers
	slices.SortFunc(placed, func(a, b client.Placed) int { return int(a.Ranks[0] - b.Ranks[0]) })
	for _, p := range placed {
		names = append(names, p.Worker)
	}
	return names
}

// protected waits until every rank of a job is held by two workers.
func (r *rig) protected(id string) {
	r.Helper()
	r.eventually("every rank is held twice", func() bool {
		v := r.describe(id)
		return v.Progress != nil && v.Progress.Protected
	})
}

// generationsOf are a job's generations in words.
func (r *rig) generationsOf(id string) (texts []string) {
	r.Helper()
	for _, e := range r.describe(id).Events {
		if e.Kind == "generation" {
			texts = append(texts, e.Text)
		}
	}
	return texts
}

// Both workers of one node die at once: their mirrors are on the other node.
func TestANodeWithTwoWorkersIsLostAndNoStepWithIt(t *testing.T) {
	j, want := liveJob(t)
	r := newRig(t, j, 1, 0)
	nodes := map[string]string{"w1": "a", "w2": "a", "w3": "b", "w4": "b"}
	for name, node := range nodes {
		r.worker(name, "--node", node)
	}
	r.joined(len(nodes))
	id := r.submit(live...)
	r.at(id, 40)
	r.protected(id)
	ring := r.ring(id)
	for i, name := range ring {
		if next := ring[(i+1)%len(ring)]; len(ring) != len(nodes) || nodes[name] == nodes[next] {
			t.Fatalf("the ring is %v of %v: %s mirrors %s on the same node", ring, nodes, next, name)
		}
	}
	r.kill("w1", "w2")
	if got := r.wait(id); got != want {
		t.Errorf("after the loss of a node it ends on %s, undisturbed on %s\n%s", got, want, r.logs())
	}
	r.onceEach(id)
	told := r.generationsOf(id)
	if len(told) < 2 {
		t.Errorf("two of four workers were lost, and the generations are %q", told)
	}
	for _, text := range told[1:] {
		if !strings.Contains(text, "live") {
			t.Errorf("all ranks were held on node b, and the job does not go on live: %s", text)
		}
	}
}

// Who has a rank and who mirrors it die at once: nobody has its state, but the store has.
func TestOwnerAndMirrorDieAtOnceAndTheJobGoesOnFromItsCheckpoint(t *testing.T) {
	j := clusterJob(t)
	settings := []string{"train.steps=400", "checkpoint.every=30 steps", "cluster.protect=mirror"}
	want, _ := alone(t, j, settings...)
	r := newRig(t, j, 1, 4)
	id := r.submit(settings...)
	r.at(id, 100)
	r.protected(id)
	ring := r.ring(id)
	if len(ring) != 4 {
		t.Fatalf("the ring is %v", ring)
	}
	r.eventually("a checkpoint is published", func() bool { return r.describe(id).Published != nil })
	r.kill(ring[1], ring[2])
	if got := r.wait(id); got != want {
		t.Errorf("after the loss of both copies it ends on %s, undisturbed on %s\n%s", got, want, r.logs())
	}
	told := r.generationsOf(id)
	if !slices.ContainsFunc(told[1:], func(text string) bool { return strings.Contains(text, "checkpoint") }) {
		t.Errorf("%s had the only copy of what %s had, and no generation begins from a checkpoint: %q", ring[2], ring[1], told)
	}
	if v := r.describe(id); v.Goodput == nil || v.Goodput.Rework <= 0 {
		t.Errorf("steps were taken again, and the ledger tells %s", fmt.Sprintf("%+v", v.Goodput))
	}
}
