package apitest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/skein-ml/skein/jobspec/badspec"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/operator"
	"github.com/skein-ml/skein/k8s/policy"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// control runs a part of Kubernetes' control plane until the test is over.
func control(t *testing.T, program string, flags ...string) {
	t.Helper()
	found, err := filepath.Glob("../../.cache/kube/*/" + program)
	if err != nil || len(found) == 0 {
		t.Skipf("SKIPPED: no %s in .cache/kube; `make kube-nodes` builds one, once (%v)", program, err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, kubeconfig(t, "default"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, found[len(found)-1], append(flags, "--kubeconfig="+file, "--leader-elect=false", "--secure-port=0")...)
	var said output
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		stop()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("%s said\n%s", program, said.String())
		}
	})
}

// nodes makes machines that are ready, and have nothing behind them.
func (l *life) nodes(n int) {
	l.Helper()
	for i := range n {
		node := &corev1.Node{}
		node.Name, node.Labels = fmt.Sprintf("%s-%d", l.namespace, i), map[string]string{"only": l.namespace}
		create(l.T, l, node)
		node.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("100Gi"), corev1.ResourcePods: resource.MustParse("9")}
		node.Status.Capacity = node.Status.Allocatable
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		if err := l.Status().Update(l.Context(), node); err != nil {
			l.Fatal(err)
		}
		node.Spec.Taints = nil
		if err := l.Update(l.Context(), node); err != nil {
			l.Fatal(err)
		}
	}
}

// share makes the claim that workers mount, and its volume.
func (l *life) share() {
	l.Helper()
	v := &corev1.PersistentVolume{}
	v.Name, v.Spec.Capacity = "shared-"+l.namespace, corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	v.Spec.AccessModes, v.Spec.HostPath = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}, &corev1.HostPathVolumeSource{Path: "/nowhere"}
	v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: l.namespace, Name: "shared"}
	create(l.T, l, v)
	c := &corev1.PersistentVolumeClaim{}
	c.Namespace, c.Name, c.Annotations = l.namespace, "shared", map[string]string{"pv.kubernetes.io/bind-completed": "yes"}
	c.Spec.AccessModes, c.Spec.VolumeName, c.Spec.StorageClassName = v.Spec.AccessModes, v.Name, new("")
	c.Spec.Resources.Requests = v.Spec.Capacity
	create(l.T, l, c)
	c.Status.Phase, c.Status.AccessModes, c.Status.Capacity = corev1.ClaimBound, v.Spec.AccessModes, v.Spec.Capacity
	if err := l.Status().Update(l.Context(), c); err != nil {
		l.Fatal(err)
	}
}

// TestTheSchedulerPlacesGangsWholeOrNotAtAll queues jobs of four workers on nodes that take
// one each, with room for two thirds of them. SKEIN_NODES=200 is for `make kube-scale`.
func TestTheSchedulerPlacesGangsWholeOrNotAtAll(t *testing.T) {
	c := admin(t)
	control(t, "kube-scheduler", "--feature-gates=GenericWorkload=true")
	l := newLife(t, c, "queue")
	count := 22
	if text := os.Getenv("SKEIN_NODES"); text != "" {
		var err error
		if count, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	const size = 4
	fit := count / size
	jobs := fit + max(1, fit/3)
	if os.Getenv("SKEIN_NODES") != "" {
		jobs = fit // how long it takes is told of those that fit
	}
	l.share()
	l.nodes(count)
	cluster := manifests(t, "../../examples/kubernetes/cluster.yaml")[0]
	cluster.SetNamespace(l.namespace)
	pool := cluster.Object["spec"].(map[string]any)["workerPools"].([]any)[0].(map[string]any)
	pool["max"], pool["nodeSelector"] = int64(1000), map[string]any{"only": l.namespace}
	create(t, c, cluster)
	l.coordinators.Prepared()
	l.operate(server, operator.Config{Gangs: operator.GangsGroups})
	for i := range jobs {
		name := fmt.Sprint("job-", i)
		u := fineTuneJob(t, name, badspec.Case{Settings: []string{"name=" + name, "cluster.worldSize=4", "train.globalBatch=8", "cluster.workers.min=4"}})
		u.SetNamespace(l.namespace)
		if err := c.Create(t.Context(), u, strict); err != nil {
			t.Fatal(err)
		}
	}
	born := time.Now()
	var took []time.Duration
	eventually(t, "gangs on all nodes that they fill", func() error {
		took = nil
		for job, pods := range l.gangs() {
			placed := slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool { return p.Spec.NodeName == "" })
			if len(placed) != 0 && len(placed) != size {
				return fmt.Errorf("%d of %d workers of %s have a node", len(placed), len(pods), job)
			}
			if len(placed) == size {
				took = append(took, scheduled(placed).Sub(born))
			}
		}
		if len(took) != fit {
			return fmt.Errorf("%d of %d gangs are placed", len(took), fit)
		}
		return nil
	})
	for range 20 { // what is left over stays whole, and without a node
		for job, pods := range l.gangs() {
			placed := 0
			for i := range pods {
				if pods[i].Spec.NodeName != "" {
					placed++
				}
			}
			if placed != 0 && placed != size {
				t.Fatalf("%d of %d workers of %s have a node", placed, len(pods), job)
			}
		}
	}
	if jobs > fit {
		eventually(t, "a job that says why it waits", func() error {
			var list v1alpha1.FineTuneJobList
			if err := c.List(t.Context(), &list, client.InNamespace(l.namespace)); err != nil {
				return err
			}
			said := map[string]int{}
			for i := range list.Items {
				if r := meta.FindStatusCondition(list.Items[i].Status.Conditions, v1alpha1.ConditionRunning); r != nil {
					said[r.Reason]++
				}
			}
			if said[v1alpha1.ReasonUnschedulable] == 0 {
				return fmt.Errorf("%v", said)
			}
			return nil
		})
	}
	slices.Sort(took)
	fmt.Printf("%d nodes, %d queued jobs of %d workers: the slowest gang had its nodes %.1f s after the last job was made\n", count, jobs, size, took[len(took)-1].Seconds())
}

// gangs are the pods that start together, by job.
func (l *life) gangs() map[string][]corev1.Pod {
	l.Helper()
	all := map[string][]corev1.Pod{}
	for _, p := range l.pods() {
		if seen := policy.PodOf(&p, time.Now(), ""); seen.Gang != "" {
			all[seen.GangJob] = append(all[seen.GangJob], p)
		}
	}
	return all
}

// scheduled is when the last of some pods got its node.
func scheduled(pods []corev1.Pod) time.Time {
	var last time.Time
	for i := range pods {
		for _, c := range pods[i].Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionTrue && c.LastTransitionTime.After(last) {
				last = c.LastTransitionTime.Time
			}
		}
	}
	return last
}

func TestAnAutoscalerChangesTheWorkersOfAJob(t *testing.T) {
	l := newLife(t, admin(t), "scaled")
	control(t, "kube-controller-manager", "--controllers=horizontal-pod-autoscaler-controller", "--horizontal-pod-autoscaler-sync-period=1s")
	l.operate(server, operator.Config{})
	l.begin()
	l.coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_RUNNING })
	l.says("the job's run", v1alpha1.ConditionRunning, metav1.ConditionTrue, v1alpha1.ReasonOnWorkers)
	a := &autoscalingv2.HorizontalPodAutoscaler{}
	a.Namespace, a.Name = l.namespace, "tiny"
	a.Spec.ScaleTargetRef = autoscalingv2.CrossVersionObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.KindFineTuneJob, Name: "tiny"}
	a.Spec.MinReplicas, a.Spec.MaxReplicas = new(int32(3)), 3 // fewer than the four that the job has
	create(t, l, a)
	l.asked("scale tiny-1 3")
	eventually(t, "an autoscaler that lacks metrics alone", func() error {
		if err := l.Get(t.Context(), client.ObjectKeyFromObject(a), a); err != nil {
			return err
		}
		for _, c := range a.Status.Conditions {
			if c.Type == autoscalingv2.ScalingActive && c.Reason == "FailedGetResourceMetric" {
				return nil
			}
		}
		return fmt.Errorf("%+v", a.Status.Conditions)
	})
}
