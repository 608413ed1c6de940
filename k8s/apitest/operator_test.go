package apitest

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/skein-ml/skein/k8s/operator"
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
	for _, gangs := range []string{operator.GangsAuto, operator.GangsGates} { // the server has PodGroups
		l := newLife(t, c, "life-"+gangs)
		stop := l.operate(to, operator.Config{Leader: true, LeaderIn: "skein-system", Gangs: gangs})
		l.follow(gangs == operator.GangsAuto)
		stop()
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
