package operator_test

import (
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/skein-ml/skein/internal/pki"
)

// roll ends the rolling upgrade of the coordinators.
func (r *rig) roll() {
	r.Helper()
	var set appsv1.StatefulSet
	r.get("lab-coordinator", &set)
	n := *set.Spec.Replicas
	set.Status.Replicas, set.Status.UpdatedReplicas, set.Status.ReadyReplicas, set.Status.ObservedGeneration = n, n, n, set.Generation
	if err := r.Status().Update(r.Context(), &set); err != nil {
		r.Fatal(err)
	}
}

// authority reads the authority, and how far its replacement is.
func (r *rig) authority() (string, pki.Stage) {
	r.Helper()
	var s corev1.Secret
	r.get("lab-ca", &s)
	return string(s.Data["ca.crt"]), pki.Parts(s.Data).Stage()
}

func TestAnAuthorityIsReplacedWhenItIsAskedForAndNobodyIsLeftBehind(t *testing.T) {
	r := newRig(t, lab())
	r.step(r.clusters, "lab")
	r.coordinators.Found("lab-coordinator-0")
	r.step(r.clusters, "lab")
	first, _ := r.authority()
	c := r.cluster()
	c.Annotations = map[string]string{"skein.dev/rotate-authority": "first"}
	if err := r.Update(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		r.step(r.clusters, "lab")
	}
	if now, stage := r.authority(); now != first || stage != pki.Introduced {
		t.Fatalf("before the coordinators have started again it is at stage %d", stage)
	}
	stages := []pki.Stage{pki.Introduced}
	var pods [][]string
	for range 30 {
		var before []string
		for _, p := range r.workers() {
			var own corev1.Secret
			r.get(p.Name, &own)
			before = append(before, string(own.Data["ca.crt"]))
		}
		r.roll()
		r.step(r.clusters, "lab")
		if _, stage := r.authority(); stage != stages[len(stages)-1] {
			stages, pods = append(stages, stage), append(pods, before)
		}
	}
	if len(stages) != 3 || stages[1] != pki.Replaced || stages[2] != pki.Settled {
		t.Fatalf("the stages were %v", stages)
	}
	last, _ := r.authority()
	if last == first {
		t.Error("it is the one that was")
	}
	for i, trusted := range pods {
		want := []string{first + last, last + first}[i]
		if slices.ContainsFunc(trusted, func(authorities string) bool { return authorities != want }) {
			t.Errorf("stage %d began when a worker trusted others", stages[i+1])
		}
	}
	var coordinators, client corev1.Secret
	r.get("lab-coordinator-tls", &coordinators)
	r.get("lab-client-tls", &client)
	for _, s := range []corev1.Secret{coordinators, client} {
		if string(s.Data["ca.crt"]) != last {
			t.Errorf("%s trusts more than the one that is", s.Name)
		}
	}
	if files, err := pki.ParseFiles(client.Data, time.Now()); err != nil || files.Cluster != "ml.lab" {
		t.Errorf("a client's files: %+v, %v", files, err)
	}
}
