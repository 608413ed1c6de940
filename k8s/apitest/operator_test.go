package apitest

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/skein-ml/skein/jobspec/badspec"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/operator"
	"github.com/skein-ml/skein/k8s/operator/operatortest"
	"github.com/skein-ml/skein/k8s/policy"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// log writes down what the API server is asked for, and what it forbids.
type log struct {
	next http.RoundTripper

	mu     sync.Mutex
	used   map[string]bool // "verb group/resource"
	denied []string
}

// RoundTrip implements http.RoundTripper.
func (l *log) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := l.next.RoundTrip(r)
	verb, resource := request(r)
	if err != nil || resource == "" {
		return answer, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used[verb+" "+resource] = true
	if verb == "patch" && answer.StatusCode == http.StatusCreated { // applied, and it was not there
		l.used["create "+resource] = true
	}
	if answer.StatusCode == http.StatusForbidden {
		l.denied = append(l.denied, verb+" "+resource)
	}
	return answer, nil
}

// request tells the verb and the resource of a request, as permissions name them. Paths
// are /api/v1/namespaces/NS/RESOURCE/NAME/SUB and /apis/GROUP/VERSION/….
func request(r *http.Request) (verb, resource string) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	group := ""
	switch {
	case len(parts) > 2 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		group, parts = parts[1], parts[3:]
	default:
		return "", "" // discovery, which everybody may
	}
	if parts[0] == "namespaces" && len(parts) > 2 {
		parts = parts[2:]
	}
	resource = group + "/" + parts[0]
	if len(parts) > 2 {
		resource += "/" + parts[2]
	}
	verb = map[string]string{http.MethodPost: "create", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete", http.MethodGet: "get"}[r.Method]
	if verb == "get" && len(parts) == 1 {
		verb = "list"
		if r.URL.Query().Get("watch") != "" {
			verb = "watch"
		}
	}
	return verb, resource
}

// allowed are the permissions of the operator, in the words of log.
func allowed(t *testing.T, c client.Client) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	add := func(rules []rbacv1.PolicyRule) {
		for _, r := range rules {
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					for _, verb := range r.Verbs {
						all[verb+" "+group+"/"+resource] = true
					}
				}
			}
		}
	}
	for _, u := range append(manifests(t, "../config/namespace.yaml"), manifests(t, "../config/rbac.yaml")...) {
		if u.GetName() == "skein-operator" && strings.HasSuffix(u.GetKind(), "Role") {
			var role rbacv1.ClusterRole
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &role); err != nil {
				t.Fatal(err)
			}
			add(role.Rules)
		}
		if err := c.Create(t.Context(), u, strict); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	return all
}

const older = "API servers that cannot send what there is at the beginning of a watch"

// unseen are permissions that no request shows.
var unseen = map[string]string{
	"update skein.dev/skeinclusters/finalizers": "asked for by the API server itself, where it checks who may block a deletion",
	"patch events.k8s.io/events":                "an event that repeats itself for minutes",
	"list skein.dev/skeinclusters":              older,
	"list skein.dev/finetunejobs":               older,
	"list apps/statefulsets":                    older,
}

func TestTheOperatorMakesAClusterWithNoMoreRightsThanItNeeds(t *testing.T) {
	c := admin(t)
	rights := allowed(t, c)
	record := &log{used: map[string]bool{}}
	to := rest.CopyConfig(server)
	to.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:skein-system:skein-operator", Groups: []string{"system:serviceaccounts", "system:authenticated"}}
	to.Wrap(func(next http.RoundTripper) http.RoundTripper {
		record.next = next
		return record
	})
	coordinators := &operatortest.Coordinators{}
	coordinators.Found("lab-coordinator-0")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- operator.Run(ctx, to, operator.Config{Dial: coordinators.Dial, Leader: true, LeaderIn: "skein-system"})
	}()
	follow(t, c, coordinators)
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the operator ends with %v", err)
	}
	if len(record.denied) > 0 {
		t.Errorf("the operator lacks %q", record.denied)
	}
	for _, right := range slices.Sorted(maps.Keys(rights)) {
		if !record.used[right] && unseen[right] == "" {
			t.Errorf("the operator may %s, and does not", right)
		}
	}
}

// follow is the life of a cluster and a job: made, submitted, run, given another pool,
// deleted.
func follow(t *testing.T, c client.Client, coordinators *operatortest.Coordinators) {
	t.Helper()
	cluster := manifests(t, "../../examples/kubernetes/cluster.yaml")[0]
	cluster.SetNamespace("default")
	if err := c.Create(t.Context(), cluster, strict); err != nil {
		t.Fatal(err)
	}
	var set appsv1.StatefulSet
	eventually(t, "the coordinators", func() error {
		return c.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "lab-coordinator"}, &set)
	})
	u := fineTuneJob(t, "tiny", badspec.Case{Settings: []string{"name=tiny", "cluster.worldSize=2"}})
	if err := c.Create(t.Context(), u, strict); err != nil {
		t.Fatal(err)
	}
	var j v1alpha1.FineTuneJob
	job := func() error { return c.Get(t.Context(), client.ObjectKeyFromObject(u), &j) }
	eventually(t, "the job at the coordinators", func() error {
		if err := job(); err != nil || !meta.IsStatusConditionTrue(j.Status.Conditions, v1alpha1.ConditionAccepted) {
			return fmt.Errorf("%+v, %w", j.Status, err)
		}
		return nil
	})
	coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_RUNNING })
	workers := func(n int) func() error {
		return func() error {
			var list corev1.PodList
			err := c.List(t.Context(), &list, client.InNamespace("default"), client.MatchingLabels{v1alpha1.LabelRole: policy.RoleWorker})
			ready := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return len(p.Spec.SchedulingGates) > 0 })
			if err != nil || len(ready) != n {
				return fmt.Errorf("%d of %d workers, %w", len(ready), n, err)
			}
			return nil
		}
	}
	eventually(t, "a worker for each rank", workers(2))
	cut(t, c)
	eventually(t, "the worker of the new pool alone", workers(1))
	if err := c.Delete(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the job's pause", func() error {
		if asked := coordinators.Asked(); !slices.Contains(asked, "pause tiny-1") {
			return fmt.Errorf("asked for %q", asked)
		}
		return nil
	})
	coordinators.Change("tiny-1", func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_PAUSED })
	eventually(t, "the job's end", func() error {
		if err := job(); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
}

// cut puts a pool of one worker in place of the pool that is there.
func cut(t *testing.T, c client.Client) {
	t.Helper()
	eventually(t, "another pool", func() error {
		var cluster v1alpha1.SkeinCluster
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "lab"}, &cluster); err != nil {
			return err
		}
		cluster.Spec.WorkerPools[0].Name, cluster.Spec.WorkerPools[0].Max = "small", 1
		return c.Update(t.Context(), &cluster)
	})
}
