package apitest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/skein-ml/skein/jobspec/badspec"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/operator"
	"github.com/skein-ml/skein/k8s/operator/operatortest"
	"github.com/skein-ml/skein/k8s/policy"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// life is a namespace with a cluster whose coordinators are not there, and a job that
// begins with three workers and may have four.
type life struct {
	*testing.T
	client.Client
	namespace    string
	coordinators *operatortest.Coordinators
	job          *v1alpha1.FineTuneJob
}

func newLife(t *testing.T, c client.Client, namespace string) *life {
	t.Helper()
	ns := &corev1.Namespace{}
	ns.GenerateName = namespace + "-" // it outlives the test: nobody here empties namespaces
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	l := &life{T: t, Client: c, namespace: ns.Name, coordinators: &operatortest.Coordinators{}}
	l.coordinators.Found("lab-coordinator-0")
	return l
}

// operate runs an operator until the function that it returns is called.
func (l *life) operate(to *rest.Config, config operator.Config) (stop func()) {
	config.Dial, config.Poll, config.PollIdle = l.coordinators.Dial, 200*time.Millisecond, time.Second
	config.Namespaces = []string{l.namespace} // others have coordinators of their own
	ctx, cancel := context.WithCancel(l.Context())
	ended := make(chan error, 1)
	go func() { ended <- operator.Run(ctx, to, config) }()
	var once bool
	stop = func() {
		if once {
			return
		}
		once = true
		cancel()
		if err := <-ended; err != nil {
			l.Errorf("the operator ends with %v", err)
		}
	}
	l.Cleanup(stop)
	return stop
}

// begin makes the cluster and its job, which the coordinators take and prepare on one
// worker, on a node that this makes.
func (l *life) begin() {
	l.Helper()
	cluster := manifests(l.T, "../../examples/kubernetes/cluster.yaml")[0]
	cluster.SetNamespace(l.namespace)
	create(l.T, l, cluster)
	eventually(l.T, "the coordinators", func() error {
		return l.Get(l.Context(), client.ObjectKey{Namespace: l.namespace, Name: "lab-coordinator"}, &appsv1.StatefulSet{})
	})
	u := fineTuneJob(l.T, "tiny", badspec.Case{Settings: []string{"name=tiny", "cluster.worldSize=4", "train.globalBatch=8", "cluster.workers.min=3", "cluster.workers.max=4"}})
	u.SetNamespace(l.namespace)
	if err := l.Create(l.Context(), u, strict); err != nil {
		l.Fatal(err)
	}
	l.job = &v1alpha1.FineTuneJob{}
	l.says("the job at the coordinators", v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonTaken)
	eventually(l.T, "a worker to prepare it", l.workers(1))
	node := &corev1.Node{}
	node.Name, node.Labels = "node-"+l.namespace, map[string]string{corev1.LabelTopologyZone: "east"}
	create(l.T, l, node)
	node.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("3"), corev1.ResourceMemory: resource.MustParse("100Gi"), corev1.ResourcePods: resource.MustParse("9")}
	node.Status.Capacity = node.Status.Allocatable
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	if err := l.Status().Update(l.Context(), node); err != nil {
		l.Fatal(err)
	}
	node.Spec.Taints = nil // that a new node has until a controller has seen that it is ready
	if err := l.Update(l.Context(), node); err != nil {
		l.Fatal(err)
	}
	pod := &l.pods()[0]
	if err := l.SubResource("binding").Create(l.Context(), pod, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node.Name}}); err != nil {
		l.Fatal(err)
	}
}

// says waits for a condition of the job.
func (l *life) says(what, kind string, want metav1.ConditionStatus, reason string) {
	l.Helper()
	eventually(l.T, what, func() error {
		if err := l.Get(l.Context(), client.ObjectKey{Namespace: l.namespace, Name: "tiny"}, l.job); err != nil {
			return err
		}
		if is := meta.FindStatusCondition(l.job.Status.Conditions, kind); is == nil || is.Status != want || is.Reason != reason {
			return fmt.Errorf("%s is %+v", kind, is)
		}
		return nil
	})
}

// pods are the workers' that are not leaving.
func (l *life) pods() []corev1.Pod {
	l.Helper()
	var list corev1.PodList
	if err := l.List(l.Context(), &list, client.InNamespace(l.namespace), client.MatchingLabels{v1alpha1.LabelRole: policy.RoleWorker}); err != nil {
		l.Fatal(err)
	}
	// No kubelet ends those that have a node.
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
}

// workers holds when so many workers wait for nothing but a node.
func (l *life) workers(n int) func() error {
	return func() error {
		pods := l.pods()
		free := 0
		for i := range pods {
			if len(pods[i].Spec.SchedulingGates) == 0 {
				free++
			}
		}
		if free != n || len(pods) < n {
			return fmt.Errorf("%d of %d workers may have a node", free, len(pods))
		}
		return nil
	}
}

// follow is the life of a cluster and a job: made, submitted, run, scaled, given another
// pool, deleted.
func (l *life) follow(grouped bool) {
	l.Helper()
	l.begin()
	l.coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_QUEUED })
	if grouped {
		l.groups()
	} else {
		l.gates()
	}
	l.coordinators.Change("tiny-1", func(j *skeinv1.Job) {
		j.Phase, j.Members = skeinv1.Phase_PHASE_RUNNING, []*skeinv1.Member{{Worker: "a"}, {Worker: "b"}, {Worker: "c"}}
	})
	l.says("the job's run", v1alpha1.ConditionRunning, metav1.ConditionTrue, v1alpha1.ReasonOnWorkers)
	scale := &autoscalingv1.Scale{}
	if err := l.SubResource("scale").Get(l.Context(), l.job, scale); err != nil || scale.Spec.Replicas != 4 || scale.Status.Replicas != 3 || scale.Status.Selector != "skein.dev/job=tiny" {
		l.Errorf("an autoscaler reads %+v, %v", scale, err)
	}
	l.cut()
	eventually(l.T, "the worker of the new pool alone", l.workers(1))
	if err := l.Delete(l.Context(), l.job); err != nil {
		l.Fatal(err)
	}
	l.asked("pause tiny-1")
	l.coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_PAUSED })
	eventually(l.T, "the job's end", func() error {
		if err := l.Get(l.Context(), client.ObjectKeyFromObject(l.job), l.job); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
}

// asked waits until the operator has asked the coordinators for something.
func (l *life) asked(what string) {
	l.Helper()
	eventually(l.T, what, func() error {
		if asked := l.coordinators.Asked(); !slices.Contains(asked, what) {
			return fmt.Errorf("asked for %q", asked)
		}
		return nil
	})
}

// groups waits for a PodGroup of the two workers that the job lacks.
func (l *life) groups() {
	l.Helper()
	eventually(l.T, "a worker for each rank", l.workers(4))
	var groups schedulingv1beta1.PodGroupList
	if err := l.List(l.Context(), &groups, client.InNamespace(l.namespace)); err != nil {
		l.Fatal(err)
	}
	if len(groups.Items) != 1 || groups.Items[0].Spec.SchedulingPolicy.Gang.MinCount != 2 {
		l.Fatalf("the groups are %+v", groups.Items)
	}
	members := 0
	for _, p := range l.pods() {
		if g := p.Spec.SchedulingGroup; g != nil && *g.PodGroupName == groups.Items[0].Name {
			members++
		}
	}
	if owners := groups.Items[0].OwnerReferences; members != 2 || len(owners) != 2 {
		l.Errorf("it has %d pods, and belongs to %+v", members, owners)
	}
}

// gates waits until the two workers that the job lacks are let go together: not before the
// node has room for both.
func (l *life) gates() {
	l.Helper()
	eventually(l.T, "the first worker and the fourth", l.workers(2))
	l.says("the wait for room", v1alpha1.ConditionRunning, metav1.ConditionFalse, v1alpha1.ReasonUnschedulable)
	if why := l.job.Status.Message; !strings.Contains(why, "no room for the 2 workers that job tiny-1 needs at once") {
		l.Errorf("the job says %q", why)
	}
	if err := l.workers(2)(); err != nil {
		l.Errorf("without room: %v", err)
	}
	node := &corev1.Node{}
	if err := l.Get(l.Context(), client.ObjectKey{Name: "node-" + l.namespace}, node); err != nil {
		l.Fatal(err)
	}
	node.Status.Allocatable[corev1.ResourceCPU] = resource.MustParse("9")
	if err := l.Status().Update(l.Context(), node); err != nil {
		l.Fatal(err)
	}
	eventually(l.T, "room for all", l.workers(4))
}

// cut puts a pool of one worker in place of the pool that is there.
func (l *life) cut() {
	l.Helper()
	eventually(l.T, "another pool", func() error {
		var cluster v1alpha1.SkeinCluster
		if err := l.Get(l.Context(), client.ObjectKey{Namespace: l.namespace, Name: "lab"}, &cluster); err != nil {
			return err
		}
		cluster.Spec.WorkerPools[0].Name, cluster.Spec.WorkerPools[0].Max = "small", 1
		return l.Update(l.Context(), &cluster)
	})
}
