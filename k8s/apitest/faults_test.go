package apitest

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/skein-ml/skein/jobspec/badspec"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/operator"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

func TestAWorkersPodIsToldTheZoneOfItsNode(t *testing.T) {
	l := newLife(t, admin(t), "zoned")
	l.operate(server, operator.Config{})
	l.begin()
	pod := l.pods()[0]
	if zone := pod.Labels[corev1.LabelTopologyZone]; zone != "east" {
		t.Errorf("on a node of zone east it has the labels %v", pod.Labels)
	}
	for _, e := range pod.Spec.Containers[0].Env {
		if e.Name == "SKEIN_ZONE" && e.ValueFrom.FieldRef.FieldPath == "metadata.labels['"+corev1.LabelTopologyZone+"']" {
			return
		}
	}
	t.Errorf("its environment is %+v", pod.Spec.Containers[0].Env)
}

func TestAQuotaThatIsExceededIsSaidAndNoPartOfAGangIsLeft(t *testing.T) {
	l := newLife(t, admin(t), "poor")
	l.operate(server, operator.Config{})
	l.begin()
	quota := &corev1.ResourceQuota{}
	quota.Name, quota.Namespace = "few", l.namespace
	quota.Spec.Hard = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("2")}
	create(t, l, quota)
	quota.Status.Hard, quota.Status.Used = quota.Spec.Hard, corev1.ResourceList{corev1.ResourcePods: resource.MustParse("1")}
	if err := l.Status().Update(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	l.coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_QUEUED })
	l.says("the quota", v1alpha1.ConditionRunning, metav1.ConditionFalse, v1alpha1.ReasonQuotaExceeded)
	if why := l.job.Status.Message; !strings.Contains(why, "raise the quota of the namespace, or ask for less") {
		t.Errorf("the job says %q", why)
	}
	for _, p := range l.pods() {
		if p.Labels["skein.dev/gang"] != "" && len(p.Spec.SchedulingGates) == 0 {
			t.Errorf("%s may have a node, and the others of its gang are not there", p.Name)
		}
	}
	if err := l.Delete(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all workers, without the quota", l.workers(4))
}

func TestCoordinatorsThatAQuotaForbidsAreSaidToBe(t *testing.T) {
	l := newLife(t, admin(t), "destitute")
	quota := &corev1.ResourceQuota{}
	quota.Name, quota.Namespace = "none", l.namespace
	quota.Spec.Hard = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}
	create(t, l, quota)
	quota.Status.Hard, quota.Status.Used = quota.Spec.Hard, corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}
	if err := l.Status().Update(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	l.operate(server, operator.Config{})
	cluster := manifests(t, "../../examples/kubernetes/cluster.yaml")[0]
	cluster.SetNamespace(l.namespace)
	create(t, l, cluster)
	eventually(t, "the reason", func() error {
		var c v1alpha1.SkeinCluster
		if err := l.Get(t.Context(), client.ObjectKey{Namespace: l.namespace, Name: "lab"}, &c); err != nil {
			return err
		}
		d := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionDegraded)
		if d == nil || d.Reason != v1alpha1.ReasonQuotaExceeded || !strings.Contains(d.Message, "coordinators: ") {
			return fmt.Errorf("it is degraded by %+v", d)
		}
		return nil
	})
}

// outage lets no request through while it lasts.
type outage struct {
	next  http.RoundTripper
	lasts *atomic.Bool
	lost  *atomic.Int64
}

// RoundTrip implements http.RoundTripper.
func (o outage) RoundTrip(r *http.Request) (*http.Response, error) {
	if o.lasts.Load() {
		o.lost.Add(1)
		return nil, errors.New("the API server is away")
	}
	return o.next.RoundTrip(r)
}

func TestAnAPIServerThatWasAwayCostsAJobNothing(t *testing.T) {
	l := newLife(t, admin(t), "cut-off")
	var lasts atomic.Bool
	var lost atomic.Int64
	to := rest.CopyConfig(server)
	to.Wrap(func(next http.RoundTripper) http.RoundTripper { return outage{next, &lasts, &lost} })
	l.operate(to, operator.Config{})
	l.begin()
	l.coordinators.Change("tiny-1", func(j *skeinv1.Job) {
		j.Phase, j.Progress = skeinv1.Phase_PHASE_RUNNING, &skeinv1.Progress{Step: 3}
	})
	l.says("the job's run", v1alpha1.ConditionRunning, metav1.ConditionTrue, v1alpha1.ReasonOnWorkers)
	eventually(t, "its workers", l.workers(4))
	before, asked := len(l.pods()), len(l.coordinators.Asked())
	lasts.Store(true)
	eventually(t, "requests that are lost", func() error {
		if n := lost.Load(); n < 10 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	l.coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Progress = &skeinv1.Progress{Step: 9} })
	lasts.Store(false)
	eventually(t, "the steps that it took meanwhile", func() error {
		err := l.Get(t.Context(), client.ObjectKeyFromObject(l.job), l.job)
		if l.job.Status.Step != 9 {
			err = errors.Join(err, fmt.Errorf("step %d", l.job.Status.Step))
		}
		return err
	})
	if pods, now := len(l.pods()), len(l.coordinators.Asked()); pods != before || now != asked {
		t.Errorf("%d workers became %d, and the coordinators were asked for %q", before, pods, l.coordinators.Asked()[asked:])
	}
}

func TestOfTwoOperatorsOneActsUntilItIsGone(t *testing.T) {
	c := admin(t)
	l := newLife(t, c, "doubled")
	config := operator.Config{Leader: true, LeaderIn: l.namespace}
	holder := func(not string) string {
		t.Helper()
		var lease coordinationv1.Lease
		eventually(t, "who leads", func() error {
			err := c.Get(t.Context(), client.ObjectKey{Namespace: l.namespace, Name: "skein-operator"}, &lease)
			if err == nil && (lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" || *lease.Spec.HolderIdentity == not) {
				err = fmt.Errorf("held by %v", lease.Spec.HolderIdentity)
			}
			return err
		})
		return *lease.Spec.HolderIdentity
	}
	answered := func(name string) {
		t.Helper()
		u := fineTuneJob(t, name, badspec.Case{Settings: []string{"name=" + name}})
		u.SetNamespace(l.namespace)
		create(t, c, u)
		eventually(t, "an answer about "+name, func() error {
			var j v1alpha1.FineTuneJob
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(u), &j); err != nil {
				return err
			}
			if a := meta.FindStatusCondition(j.Status.Conditions, v1alpha1.ConditionAccepted); a == nil || a.Reason != v1alpha1.ReasonNoCluster {
				return fmt.Errorf("%+v", a)
			}
			return nil
		})
	}
	stop := l.operate(server, config)
	first := holder("")
	l.operate(server, config)
	answered("a")
	if now := holder(""); now != first {
		t.Errorf("%s has taken over from %s, which is there", now, first)
	}
	stop()
	holder(first)
	answered("b")
}
