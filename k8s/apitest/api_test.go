// Package apitest holds the definitions, the permissions and the operator against a real
// API server of Kubernetes.
package apitest

import (
	"fmt"
	"strings"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/skein-ml/skein/jobspec/badspec"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

func TestTheExamplesAreTaken(t *testing.T) {
	c := admin(t)
	for _, file := range []string{"cluster.yaml", "job.yaml"} {
		for _, o := range manifests(t, "../../examples/kubernetes/"+file) {
			o.SetNamespace("default")
			if err := c.Create(t.Context(), o, strict, client.DryRunAll); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
}

func TestNoBadJobIsTaken(t *testing.T) {
	c := admin(t)
	if err := c.Create(t.Context(), fineTuneJob(t, "a", badspec.Case{}), strict, client.DryRunAll); err != nil {
		t.Fatalf("the job that they spoil is not taken: %v", err)
	}
	for _, bad := range badspec.Cases {
		if bad.Local {
			continue
		}
		err := c.Create(t.Context(), fineTuneJob(t, "a", bad), strict, client.DryRunAll)
		last := bad.Key[strings.LastIndexByte(bad.Key, '.')+1:]
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), last) {
			t.Errorf("%s: %v, want a word about %s", bad, err, bad.Key)
		}
	}
	unnamed := fineTuneJob(t, "a.b", badspec.Case{})
	unstructured.RemoveNestedField(unnamed.Object, "spec", "name")
	if err := c.Create(t.Context(), unnamed, strict, client.DryRunAll); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "metadata.name: a job's name") {
		t.Errorf("a name that no job can have: %v", err)
	}
}

func TestNoBadClusterIsTaken(t *testing.T) {
	c := admin(t)
	for what, spoil := range map[string]func(*unstructured.Unstructured) error{
		"replicas": func(u *unstructured.Unstructured) error {
			return unstructured.SetNestedField(u.Object, int64(2), "spec", "coordinators", "replicas")
		},
		"claimName": func(u *unstructured.Unstructured) error {
			unstructured.RemoveNestedField(u.Object, "spec", "storage", "claimName")
			return nil
		},
		"workerPools": func(u *unstructured.Unstructured) error {
			return unstructured.SetNestedSlice(u.Object, nil, "spec", "workerPools")
		},
		"min is more": func(u *unstructured.Unstructured) error {
			return unstructured.SetNestedSlice(u.Object, []any{map[string]any{"name": "cpu", "min": int64(3), "max": int64(2)}}, "spec", "workerPools")
		},
		"Duplicate": func(u *unstructured.Unstructured) error {
			one := map[string]any{"name": "cpu", "max": int64(2)}
			return unstructured.SetNestedSlice(u.Object, []any{one, one}, "spec", "workerPools")
		},
		"metadata.name": func(u *unstructured.Unstructured) error { u.SetName(strings.Repeat("a", 31)); return nil },
	} {
		u := manifests(t, "../../examples/kubernetes/cluster.yaml")[0]
		u.SetNamespace("default")
		if err := spoil(u); err != nil {
			t.Fatal(err)
		}
		if err := c.Create(t.Context(), u, strict, client.DryRunAll); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDefaultsOfAClusterAreFilledIn(t *testing.T) {
	c := admin(t)
	u := manifests(t, "../../examples/kubernetes/cluster.yaml")[0]
	u.SetNamespace("default")
	unstructured.RemoveNestedField(u.Object, "spec", "coordinators")
	if err := c.Create(t.Context(), u, strict, client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	spec := fmt.Sprint(u.Object["spec"])
	for _, want := range []string{"replicas:3", "antiAffinity:Required", "topologyKey:kubernetes.io/hostname", "size:1Gi", "mountPath:/shared", "idleSeconds:60"} {
		if !strings.Contains(spec, want) {
			t.Errorf("%s is not filled in: %s", want, spec)
		}
	}
}

func TestAJobKeepsWhatItIsAndMayBeScaled(t *testing.T) {
	c := admin(t)
	u := fineTuneJob(t, "scaled", badspec.Case{Settings: []string{"name=scaled", "cluster.worldSize=4", "train.globalBatch=8", "cluster.workers.min=2", "cluster.workers.max=4"}})
	create(t, c, u)
	for what, change := range map[string]func(*unstructured.Unstructured) error{
		"train": func(u *unstructured.Unstructured) error {
			return unstructured.SetNestedField(u.Object, int64(2), "spec", "train", "steps")
		},
		"eval": func(u *unstructured.Unstructured) error {
			return unstructured.SetNestedField(u.Object, int64(9), "spec", "eval", "maxNewTokens")
		},
		"cluster": func(u *unstructured.Unstructured) error {
			return unstructured.SetNestedField(u.Object, int64(8), "spec", "cluster", "worldSize")
		},
		"clusterRef": func(u *unstructured.Unstructured) error {
			return unstructured.SetNestedField(u.Object, "other", "spec", "clusterRef", "name")
		},
		"resources": func(u *unstructured.Unstructured) error {
			return unstructured.SetNestedField(u.Object, int64(2), "spec", "resources", "threads")
		},
	} {
		changed := u.DeepCopy()
		err := change(changed)
		if err == nil {
			err = c.Update(t.Context(), changed, strict)
		}
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "make a new FineTuneJob") {
			t.Errorf("%s: %v", what, err)
		}
	}
	j := &v1alpha1.FineTuneJob{}
	j.Name, j.Namespace = u.GetName(), u.GetNamespace()
	scale := &autoscalingv1.Scale{}
	if err := c.SubResource("scale").Get(t.Context(), j, scale); err != nil || scale.Spec.Replicas != 4 {
		t.Fatalf("the scale is %+v, %v", scale, err)
	}
	scale.Spec.Replicas = 3
	if err := c.SubResource("scale").Update(t.Context(), j, client.WithSubResourceBody(scale)); err != nil {
		t.Errorf("scaling: %v", err)
	}
	for _, replicas := range []int32{1, 5} { // below workers.min, above worldSize
		scale.ResourceVersion, scale.Spec.Replicas = "", replicas
		if err := c.SubResource("scale").Update(t.Context(), j, client.WithSubResourceBody(scale)); !apierrors.IsInvalid(err) {
			t.Errorf("scaled to %d workers: %v", replicas, err)
		}
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(u), j); err != nil {
		t.Fatal(err)
	}
	spec, err := j.Read("/shared")
	if err != nil || spec.Cluster.Workers.Max != 3 || spec.Cluster.WorldSize != 4 || spec.Train.GlobalBatch != 8 {
		t.Errorf("the job is read as %+v, %v", spec, err)
	}
}
