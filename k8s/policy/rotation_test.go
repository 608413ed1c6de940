package policy

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/skein-ml/skein/internal/pki"
)

func TestAnAuthorityGoesOnWhenAllHaveTheFilesOfItsStage(t *testing.T) {
	const now, old = "now", "old"
	worker := func(trust string) corev1.Pod {
		p := corev1.Pod{}
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: GateCertificate}, {Name: GateGang}}
		if trust != "" {
			Certified(&p, trust)
		}
		return p
	}
	far := noon.Add(9 * authorityYear)
	for what, s := range map[string]struct {
		asked  string
		change func(*Rotation)
		want   bool
	}{
		"for years":                 {"", func(r *Rotation) { r.Stage = pki.Settled }, false},
		"in its last year":          {"", func(r *Rotation) { r.Stage, r.Ends = pki.Settled, noon.Add(authorityYear-time.Hour) }, true},
		"asked":                     {"a", func(r *Rotation) { r.Stage = pki.Settled }, true},
		"asked before":              {"a", func(r *Rotation) { r.Stage, r.Done = pki.Settled, "a" }, false},
		"asked again":               {"b", func(r *Rotation) { r.Stage, r.Done = pki.Settled, "a" }, true},
		"all have the files":        {"", func(*Rotation) {}, true},
		"a worker has others":       {"", func(r *Rotation) { r.Workers = append(r.Workers, worker(old)) }, false},
		"a worker has none yet":     {"", func(r *Rotation) { r.Workers = append(r.Workers, worker("")) }, true},
		"coordinators start again":  {"", func(r *Rotation) { r.Set.Status.UpdatedReplicas = 2 }, false},
		"one is not ready":          {"", func(r *Rotation) { r.Set.Status.ReadyReplicas = 2 }, false},
		"they are to start again":   {"", func(r *Rotation) { r.Started = "other" }, false},
		"nobody has looked at them": {"", func(r *Rotation) { r.Set.Generation = 8 }, false},
		"there are none":            {"", func(r *Rotation) { r.Set.Spec.Replicas = nil }, false},
		"and the last stage":        {"", func(r *Rotation) { r.Stage = pki.Replaced }, true},
	} {
		c := lab()
		c.Annotations = map[string]string{AnnotationRotate: s.asked}
		r := Rotation{Now: noon, Stage: pki.Introduced, Ends: far, Trust: now, Started: "x", Set: CoordinatorSet(c, 3, "x"), Workers: []corev1.Pod{worker(now)}}
		r.Set.Generation, r.Set.Status.ObservedGeneration = 7, 7
		r.Set.Status.Replicas, r.Set.Status.UpdatedReplicas, r.Set.Status.ReadyReplicas = 3, 3, 3
		s.change(&r)
		if got := Rotate(c, r); got != s.want {
			t.Errorf("%s: %v", what, got)
		}
	}
	stale := worker(old)
	if seen := PodOf(&stale, noon, now); !seen.Expiring {
		t.Error("a worker that trusts others is not replaced")
	}
}
