package operator_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	skein "github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/operator"
	"github.com/skein-ml/skein/k8s/operator/operatortest"
	"github.com/skein-ml/skein/k8s/policy"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// rig is an operator over an API server and coordinators that are not there. Nothing runs
// by itself: a test takes one step after the other.
type rig struct {
	*testing.T
	client.Client
	coordinators *operatortest.Coordinators
	clusters     reconcile.Reconciler
	jobs         reconcile.Reconciler
}

func newRig(t *testing.T, objects ...client.Object) *rig {
	t.Helper()
	c := fake.NewClientBuilder().WithScheme(operator.Scheme()).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.SkeinCluster{}, &v1alpha1.FineTuneJob{}, &appsv1.StatefulSet{}, &corev1.Pod{}).Build()
	r := &rig{T: t, Client: c, coordinators: &operatortest.Coordinators{}}
	r.clusters, r.jobs = operator.Reconcilers(c, operator.Config{Dial: r.coordinators.Dial})
	return r
}

func lab() *v1alpha1.SkeinCluster {
	c := &v1alpha1.SkeinCluster{ObjectMeta: metav1.ObjectMeta{Name: "lab", Namespace: "ml", UID: "u1", Generation: 1}}
	c.Spec.Image, c.Spec.Storage.ClaimName = "skein:1", "shared"
	c.Spec.WorkerPools = []v1alpha1.WorkerPool{{Name: "cpu", Min: 1, Max: 4}}
	return c
}

const spec = `{"model":{"base":"m"},"data":{"train":["t.jsonl"]},"train":{"steps":8,"optimizer":{"learningRate":0.0001}},"cluster":{"worldSize":4}}`

func tiny() *v1alpha1.FineTuneJob {
	j := &v1alpha1.FineTuneJob{ObjectMeta: metav1.ObjectMeta{Name: "tiny", Namespace: "ml", UID: "0b5a9c1e-7d2f-4e0a-9a53-6b1f0c2d3e4f", Generation: 1}}
	j.Spec.Job = []byte(spec)
	return j
}

// step reconciles an object of this name once, and must succeed.
func (r *rig) step(of reconcile.Reconciler, name string) reconcile.Result {
	r.Helper()
	result, err := of.Reconcile(r.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "ml", Name: name}})
	if err != nil {
		r.Fatal(err)
	}
	return result
}

func (r *rig) get(name string, o client.Object) {
	r.Helper()
	if err := r.Get(r.Context(), client.ObjectKey{Namespace: "ml", Name: name}, o); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) cluster() *v1alpha1.SkeinCluster {
	r.Helper()
	var c v1alpha1.SkeinCluster
	r.get("lab", &c)
	return &c
}

func (r *rig) job() *v1alpha1.FineTuneJob {
	r.Helper()
	var j v1alpha1.FineTuneJob
	r.get("tiny", &j)
	return &j
}

func (r *rig) workers() []corev1.Pod {
	r.Helper()
	var list corev1.PodList
	if err := r.List(r.Context(), &list, client.InNamespace("ml"), client.MatchingLabels{v1alpha1.LabelRole: policy.RoleWorker}); err != nil {
		r.Fatal(err)
	}
	return list.Items
}

// run starts the pod of a coordinator, as a StatefulSet's controller and a node would.
func (r *rig) run(name string) {
	r.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ml", Labels: map[string]string{v1alpha1.LabelCluster: "lab", v1alpha1.LabelRole: policy.RoleCoordinator}}}
	if err := r.Create(r.Context(), p); err != nil {
		r.Fatal(err)
	}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "coordinator", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	if err := r.Status().Update(r.Context(), p); err != nil {
		r.Fatal(err)
	}
}

func condition(t *testing.T, list []metav1.Condition, kind string, want metav1.ConditionStatus, reason, message string) {
	t.Helper()
	c := meta.FindStatusCondition(list, kind)
	if c == nil || c.Status != want || c.Reason != reason || !strings.Contains(c.Message, message) {
		t.Errorf("%s is %+v, want %s because of %s with %q", kind, c, want, reason, message)
	}
}

func TestAClusterIsMadeMemberByMember(t *testing.T) {
	r := newRig(t, lab())
	r.step(r.clusters, "lab")
	var set appsv1.StatefulSet
	r.get("lab-coordinator", &set)
	var budget policyv1.PodDisruptionBudget
	r.get("lab-coordinator", &budget)
	var founders corev1.ConfigMap
	r.get("lab-founders", &founders)
	if *set.Spec.Replicas != 3 || budget.Spec.MinAvailable.IntValue() != 2 || founders.Data["members"] == "" {
		t.Errorf("%d coordinators, %s of them needed, founded by %v", *set.Spec.Replicas, budget.Spec.MinAvailable, founders.Data)
	}
	for _, o := range []client.Object{&set, &budget, &founders} {
		if owners := o.GetOwnerReferences(); len(owners) != 1 || owners[0].UID != "u1" {
			t.Errorf("%T would stay when the cluster goes: %+v", o, owners)
		}
	}
	r.step(r.clusters, "lab")
	condition(t, r.cluster().Status.Conditions, "Ready", "False", "CoordinatorsStarting", "connection refused")

	for _, id := range []string{"lab-coordinator-0", "lab-coordinator-1", "lab-coordinator-2"} {
		r.run(id)
	}
	r.coordinators.Found("lab-coordinator-0")
	for range 3 {
		r.step(r.clusters, "lab")
	}
	if asked := r.coordinators.Asked(); !slices.Equal(asked, []string{"add lab-coordinator-1", "add lab-coordinator-2"}) {
		t.Errorf("the operator asked for %q", asked)
	}
	c := r.cluster()
	condition(t, c.Status.Conditions, "Ready", "True", "Quorum", "3 coordinators agree")
	if c.Status.Leader != "lab-coordinator-0" || len(c.Status.Members) != 3 {
		t.Errorf("the status is %+v", c.Status)
	}
	r.get("lab-founders", &founders)
	if founders.Data["members"] != "" {
		t.Errorf("a coordinator without its volume would found another cluster by %v", founders.Data)
	}

	c.Spec.Coordinators.Replicas = new(int32(1))
	if err := r.Update(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r.step(r.clusters, "lab")
	r.get("lab-coordinator", &set)
	if asked := r.coordinators.Asked(); *set.Spec.Replicas != 3 || asked[len(asked)-1] != "remove lab-coordinator-2" {
		t.Errorf("%d pods when the operator has asked for %q", *set.Spec.Replicas, asked)
	}
	r.step(r.clusters, "lab")
	r.step(r.clusters, "lab")
	if r.get("lab-coordinator", &set); *set.Spec.Replicas != 1 {
		t.Errorf("%d pods are left of one coordinator", *set.Spec.Replicas)
	}
}

func TestCertificatesAreMadeOnceAndEachWorkerHasItsOwn(t *testing.T) {
	r := newRig(t, lab())
	r.step(r.clusters, "lab")
	var authority, coordinators, own corev1.Secret
	r.get("lab-ca", &authority)
	r.get("lab-coordinator-tls", &coordinators)
	ca, err := pki.ParseCA(authority.Data, time.Now())
	if err != nil || ca.Cluster() != "ml.lab" {
		t.Fatalf("the authority is of %q, %v", ca.Cluster(), err)
	}
	r.step(r.clusters, "lab")
	was := string(authority.Data["ca.crt"]) + string(coordinators.Data["lab-coordinator-0.crt"])
	r.get("lab-ca", &authority)
	r.get("lab-coordinator-tls", &coordinators)
	if is := string(authority.Data["ca.crt"]) + string(coordinators.Data["lab-coordinator-0.crt"]); is != was {
		t.Error("certificates that are good for months were made again")
	}
	workers := r.workers()
	if len(workers) != 1 || len(workers[0].Spec.SchedulingGates) != 0 {
		t.Fatalf("there are %d workers, %+v", len(workers), workers)
	}
	r.get(workers[0].Name, &own)
	if string(own.Data["ca.crt"]) != string(authority.Data["ca.crt"]) || len(own.Data["tls.key"]) == 0 || len(own.Data["gossip.key"]) == 0 {
		t.Errorf("%s has %v", own.Name, own.Data)
	}
	if owners := own.OwnerReferences; len(owners) != 1 || owners[0].Kind != "Pod" || owners[0].Name != workers[0].Name {
		t.Errorf("the certificate goes with %+v", owners)
	}

	coordinators.Data["lab-coordinator-0.crt"] = []byte("not a certificate any more")
	if err := r.Update(t.Context(), &coordinators); err != nil {
		t.Fatal(err)
	}
	var set appsv1.StatefulSet
	r.get("lab-coordinator", &set)
	before := set.Spec.Template.Annotations["skein.dev/certificates"]
	r.step(r.clusters, "lab")
	if r.get("lab-coordinator", &set); set.Spec.Template.Annotations["skein.dev/certificates"] == before {
		t.Error("coordinators are not started with their new certificates")
	}
}

func TestPoolsGrowWithJobsAndWorkersCarryTheirNames(t *testing.T) {
	r := newRig(t, lab(), tiny())
	r.step(r.clusters, "lab")
	r.coordinators.Found("lab-coordinator-0")
	r.step(r.jobs, "tiny")
	r.coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_QUEUED })
	r.step(r.jobs, "tiny")
	r.step(r.clusters, "lab")
	workers := r.workers()
	if c := r.cluster(); len(workers) != 4 || c.Status.WantedWorkers != 4 || c.Status.QueuedJobs != 1 {
		t.Fatalf("%d workers, status %+v", len(workers), c.Status)
	}
	r.coordinators.Connect(&skeinv1.WorkerNode{Worker: workers[0].Name, Connected: true, Job: "tiny-1"}, &skeinv1.WorkerNode{Worker: workers[1].Name, Connected: true})
	r.step(r.clusters, "lab")
	if labels := r.workers()[0].Labels; labels[v1alpha1.LabelJob] != "tiny" {
		t.Errorf("a worker of the job is labelled %v", labels)
	}
	if labels := r.workers()[1].Labels; labels[v1alpha1.LabelJob] != "" {
		t.Errorf("a free worker is labelled %v", labels)
	}
}

// shown is a metric of cluster ml/lab.
func shown(t *testing.T, name string) float64 {
	t.Helper()
	families, err := metrics.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if f.GetName() == name && labels["namespace"] == "ml" && labels["cluster"] == "lab" {
				return m.GetGauge().GetValue()
			}
		}
	}
	t.Errorf("there is no %s", name)
	return -1
}

func TestQueueAndWishesAreMetrics(t *testing.T) {
	r := newRig(t, lab(), tiny())
	r.step(r.clusters, "lab")
	r.coordinators.Found("lab-coordinator-0")
	r.coordinators.Prepared()
	r.step(r.jobs, "tiny")
	r.step(r.clusters, "lab")
	r.step(r.clusters, "lab") // which sees the workers that were made
	for name, want := range map[string]float64{"skein_operator_wanted_workers": 4, "skein_operator_queued_jobs": 1, "skein_operator_workers": 4} {
		if got := shown(t, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func TestAJobIsSubmittedOnceAndFollowed(t *testing.T) {
	r := newRig(t, lab(), tiny())
	r.step(r.jobs, "tiny")
	condition(t, r.job().Status.Conditions, "Accepted", "False", "ClusterNotReady", "SkeinCluster lab is being made")
	r.step(r.clusters, "lab")
	r.step(r.jobs, "tiny")
	condition(t, r.job().Status.Conditions, "Accepted", "False", "CoordinatorsUnreachable", "kubectl describe skeincluster lab")
	r.coordinators.Found("lab-coordinator-0")
	r.step(r.jobs, "tiny")
	j := r.job()
	if !slices.Contains(j.Finalizers, v1alpha1.Finalizer) || j.Status.Job != "tiny-1" || j.Status.Phase != "preparing" || !j.Spec.HasWorkersMax() {
		t.Errorf("the job is %+v with %q", j.Status, j.Finalizers)
	}
	j.Status = v1alpha1.FineTuneJobStatus{} // somebody restored the object without its status
	if err := r.Status().Update(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	r.step(r.jobs, "tiny")
	if asked := r.coordinators.Asked(); len(asked) != 1 || r.job().Status.Job != "tiny-1" {
		t.Errorf("the operator asked for %q", asked)
	}
	r.coordinators.Change("tiny-1", func(j *skeinv1.Job) {
		j.Phase, j.Steps, j.Published = skeinv1.Phase_PHASE_DONE, 8, &skeinv1.Checkpoint{Step: 8, Weights: "5b1c"}
	})
	if again := r.step(r.jobs, "tiny"); again.RequeueAfter != 0 {
		t.Errorf("a job that is over is looked at again in %s", again.RequeueAfter)
	}
	j = r.job()
	condition(t, j.Status.Conditions, "Complete", "True", "Done", "")
	if j.Status.Result != "5b1c" || j.Status.Step != 8 {
		t.Errorf("the status is %+v", j.Status)
	}
}

func (r *rig) change(change func(*v1alpha1.FineTuneJob)) {
	r.Helper()
	j := r.job()
	change(j)
	if err := r.Update(r.Context(), j); err != nil {
		r.Fatal(err)
	}
}

func TestSuspendAndScaleReachTheCoordinators(t *testing.T) {
	r := newRig(t, lab(), tiny())
	r.step(r.clusters, "lab")
	r.coordinators.Found("lab-coordinator-0")
	r.step(r.jobs, "tiny")
	r.coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_RUNNING })
	r.change(func(j *v1alpha1.FineTuneJob) {
		j.Spec.Job = []byte(strings.Replace(string(j.Spec.Job), `"max":4`, `"max":2`, 1))
	})
	r.step(r.jobs, "tiny")
	r.change(func(j *v1alpha1.FineTuneJob) { j.Spec.Suspend = new(true) })
	r.step(r.jobs, "tiny")
	r.step(r.jobs, "tiny")
	condition(t, r.job().Status.Conditions, "Suspended", "False", "Suspending", "with a checkpoint")
	r.coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_PAUSED })
	r.step(r.jobs, "tiny")
	condition(t, r.job().Status.Conditions, "Suspended", "True", "SuspendedByUser", "set it to false")
	r.change(func(j *v1alpha1.FineTuneJob) { j.Spec.Suspend = new(false) })
	r.step(r.jobs, "tiny")
	r.step(r.jobs, "tiny")
	condition(t, r.job().Status.Conditions, "Suspended", "False", "NotSuspended", "")
	if asked := r.coordinators.Asked(); !slices.Equal(asked, []string{"submit tiny", "scale tiny-1 2", "pause tiny-1", "resume tiny-1"}) {
		t.Errorf("the operator asked for %q", asked)
	}
}

func TestADeletedJobIsPausedThenCanceled(t *testing.T) {
	r := newRig(t, lab(), tiny())
	r.step(r.clusters, "lab")
	r.coordinators.Found("lab-coordinator-0")
	r.step(r.jobs, "tiny")
	r.coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_RUNNING })
	if err := r.Delete(t.Context(), r.job()); err != nil {
		t.Fatal(err)
	}
	r.coordinators.Fail(&skein.UnreachableError{Tries: []skein.Try{{Address: "lab", Fault: "away"}}}, nil)
	r.step(r.jobs, "tiny")
	if j := r.job(); !slices.Contains(j.Finalizers, v1alpha1.Finalizer) {
		t.Error("it is gone, and its job trains on")
	}
	r.coordinators.Fail(nil, nil)
	for range 3 {
		r.step(r.jobs, "tiny")
	}
	if asked := r.coordinators.Asked(); !slices.Equal(asked, []string{"submit tiny", "pause tiny-1"}) {
		t.Fatalf("before its last step is published the operator asked for %q", asked)
	}
	r.coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_PAUSED })
	r.step(r.jobs, "tiny")
	r.step(r.jobs, "tiny")
	var j v1alpha1.FineTuneJob
	if err := r.Get(t.Context(), client.ObjectKey{Namespace: "ml", Name: "tiny"}, &j); !apierrors.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
	if asked := r.coordinators.Asked(); asked[len(asked)-1] != "cancel tiny-1" {
		t.Errorf("the operator asked for %q", asked)
	}
}

func TestAJobWhoseClusterIsGoneIsLetGo(t *testing.T) {
	j := tiny()
	j.Finalizers, j.Status.Cluster, j.Status.Job = []string{v1alpha1.Finalizer}, "lab", "tiny-1"
	r := newRig(t, j)
	if err := r.Delete(t.Context(), r.job()); err != nil {
		t.Fatal(err)
	}
	r.step(r.jobs, "tiny")
	if err := r.Get(t.Context(), client.ObjectKey{Namespace: "ml", Name: "tiny"}, j); !apierrors.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestWhatIsWrongWithAJobIsSaidInACondition(t *testing.T) {
	second := lab()
	second.Name, second.UID = "field", "u2"
	for what, c := range map[string]struct {
		objects []client.Object
		change  func(*v1alpha1.FineTuneJob, *operatortest.Coordinators)
		reason  string
		message string
	}{
		"no cluster":   {nil, nil, "NoCluster", "make one"},
		"two clusters": {[]client.Object{lab(), second}, nil, "SeveralClusters", "spec.clusterRef.name"},
		"unknown key": {[]client.Object{lab()}, func(j *v1alpha1.FineTuneJob, _ *operatortest.Coordinators) {
			j.Spec.Job = []byte(strings.Replace(spec, "learningRate", "learningrate", 1)) // of a definition that is newer than this operator
		}, "InvalidSpec", "did you mean train.optimizer.learningRate?"},
		"wrong type": {[]client.Object{lab()}, func(j *v1alpha1.FineTuneJob, _ *operatortest.Coordinators) {
			j.Spec.Job = []byte(strings.Replace(spec, `"steps":8`, `"steps":["x"]`, 1))
		}, "InvalidSpec", "train.steps: must be a whole number"},
		"refused": {[]client.Object{lab()}, func(_ *v1alpha1.FineTuneJob, c *operatortest.Coordinators) {
			c.Fail(nil, &skein.RejectedError{Reason: "output.export: /shared/tiny is what job a-1 will write"})
		}, "Refused", "what job a-1 will write"},
		"in a queue": {[]client.Object{lab()}, func(j *v1alpha1.FineTuneJob, _ *operatortest.Coordinators) {
			j.Labels = map[string]string{v1alpha1.LabelQueue: "team"}
		}, "WaitsForQueue", "queue team"},
	} {
		t.Run(what, func(t *testing.T) {
			j := tiny()
			r := newRig(t, append(c.objects, j)...)
			r.coordinators.Found("lab-coordinator-0")
			if c.change != nil {
				r.change(func(j *v1alpha1.FineTuneJob) { c.change(j, r.coordinators) })
			}
			for _, o := range c.objects {
				r.step(r.clusters, o.GetName())
			}
			r.step(r.jobs, "tiny")
			condition(t, r.job().Status.Conditions, "Accepted", "False", c.reason, c.message)
			if asked := r.coordinators.Asked(); len(asked) != 0 {
				t.Errorf("the operator asked for %q", asked)
			}
		})
	}
}

func TestAJobOfAnotherManagerIsLeftAlone(t *testing.T) {
	j := tiny()
	j.Spec.ManagedBy = new("kueue.x-k8s.io/multikueue")
	r := newRig(t, lab(), j)
	r.coordinators.Found("lab-coordinator-0")
	r.step(r.jobs, "tiny")
	if s := r.job().Status; len(s.Conditions) != 0 || len(r.coordinators.Asked()) != 0 {
		t.Errorf("its status is %+v", s)
	}
}

func TestACoordinatorsSilenceLosesNothing(t *testing.T) {
	r := newRig(t, lab(), tiny())
	r.step(r.clusters, "lab")
	r.coordinators.Found("lab-coordinator-0")
	r.step(r.jobs, "tiny")
	r.coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_RUNNING })
	r.step(r.jobs, "tiny")
	r.step(r.clusters, "lab")
	before := len(r.workers())
	r.coordinators.Fail(fmt.Errorf("%w", &skein.UnreachableError{Tries: []skein.Try{{Address: "lab", Fault: "away"}}}), nil)
	r.step(r.clusters, "lab")
	r.step(r.jobs, "tiny")
	if after := len(r.workers()); after != before {
		t.Errorf("%d of %d workers are left", after, before)
	}
	j := r.job()
	condition(t, j.Status.Conditions, "Accepted", "True", "Taken", "")
	if j.Status.Phase != "running" || !strings.Contains(j.Status.Message, "do not answer") {
		t.Errorf("the status is %+v", j.Status)
	}
	condition(t, r.cluster().Status.Conditions, "Ready", "False", "NoQuorum", "away")
}
