// Package accesstest stands in for a Kubernetes in tests: an API server that keeps a few
// objects, and the node's end of port forwarding.
package accesstest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
)

// token is what clients have to show.
const token = "ana's"

// Server is an API server. It knows SkeinClusters, FineTuneJobs with their scale, Secrets,
// and pods as far as their ports can be forwarded.
type Server struct {
	URL  string
	Node // the pods

	// Created, if set, is told of each new FineTuneJob, and may change it.
	Created func(*v1alpha1.FineTuneJob)

	mu      sync.Mutex
	objects map[string]json.RawMessage // by path
}

// New starts a server that ends with the test.
func New(t *testing.T) *Server {
	t.Helper()
	s := &Server{objects: map[string]json.RawMessage{}, Node: Node{ports: map[string]string{}}}
	web := httptest.NewTLSServer(s)
	t.Cleanup(web.Close)
	s.URL = web.URL
	return s
}

// Kubeconfig writes a file that leads to the server, and to one namespace of it.
func (s *Server) Kubeconfig(t *testing.T, namespace string) string {
	t.Helper()
	b, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []any{map[string]any{"name": "test", "cluster": map[string]any{"server": s.URL, "insecure-skip-tls-verify": true}}},
		"users":    []any{map[string]any{"name": "ana", "user": map[string]any{"token": token}}, map[string]any{"name": "mallory", "user": map[string]any{"token": "x"}}},
		"contexts": []any{
			map[string]any{"name": "test", "context": map[string]any{"cluster": "test", "user": "ana", "namespace": namespace}},
			map[string]any{"name": "stranger", "context": map[string]any{"cluster": "test", "user": "mallory", "namespace": namespace}},
		},
	})
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// Cluster makes a SkeinCluster as the operator would, and returns the files with which
// its coordinators speak.
func (s *Server) Cluster(t *testing.T, namespace, name string, replicas int32) (*v1alpha1.SkeinCluster, []*pki.Files) {
	t.Helper()
	c := &v1alpha1.SkeinCluster{}
	c.Namespace, c.Name, c.Spec.Coordinators.Replicas = namespace, name, &replicas
	s.Put(t, "/apis/skein.dev/v1alpha1/namespaces/"+namespace+"/skeinclusters/"+name, c)
	ca, err := pki.NewCA(policy.ClusterName(c))
	if err != nil {
		t.Fatal(err)
	}
	parts, err := ca.IssueParts(pki.Client, "client", nil, policy.CertificateValidity)
	if err != nil {
		t.Fatal(err)
	}
	s.Put(t, "/api/v1/namespaces/"+namespace+"/secrets/"+policy.ClientSecret(c), policy.Secret(c, policy.ClientSecret(c), parts))
	var files []*pki.Files
	for i := range int(replicas) {
		id := policy.CoordinatorID(c, i)
		f, err := ca.Member(pki.Coordinator, id, policy.CoordinatorHosts(c, id), policy.CertificateValidity)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return c, files
}

// Put stores an object.
func (s *Server) Put(t *testing.T, path string, object any) {
	t.Helper()
	raw, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[path] = raw
}

// Job reads a FineTuneJob; nil if there is none.
func (s *Server) Job(t *testing.T, namespace, name string) *v1alpha1.FineTuneJob {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	raw := s.objects["/apis/skein.dev/v1alpha1/namespaces/"+namespace+"/finetunejobs/"+name]
	if raw == nil {
		return nil
	}
	j := &v1alpha1.FineTuneJob{}
	if err := json.Unmarshal(raw, j); err != nil {
		t.Fatal(err)
	}
	return j
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+token {
		refuse(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized, "Unauthorized")
		return
	}
	if pod, ok := strings.CutSuffix(r.URL.Path, "/portforward"); ok {
		s.forward(w, r, path.Base(pod))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	switch resource := path.Base(r.URL.Path); {
	case r.Method == http.MethodGet && slices.Contains([]string{"skeinclusters", "finetunejobs"}, resource):
		err = s.list(w, r.URL.Path+"/")
	case r.Method == http.MethodGet && s.objects[r.URL.Path] != nil:
		_, err = w.Write(s.objects[r.URL.Path])
	case r.Method == http.MethodPost && resource == "finetunejobs":
		err = s.create(w, r)
	case r.Method == http.MethodPatch && resource == "scale" && s.objects[path.Dir(r.URL.Path)] != nil:
		err = s.scale(w, r)
	default:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%s %s: not found", r.Method, r.URL.Path))
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
	}
}

// forward is what the API server does with a request to forward: it knows no WebSockets,
// as old ones do not.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, pod string) {
	switch {
	case r.Method != http.MethodPost:
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, "Upgrade request required")
	case !s.has(pod):
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("pods %q not found", pod))
	default:
		s.Node.ServePod(w, r, pod)
	}
}

func (s *Server) list(w io.Writer, prefix string) error {
	items := []json.RawMessage{}
	for _, p := range slices.Sorted(maps.Keys(s.objects)) {
		if name, ok := strings.CutPrefix(p, prefix); ok && !strings.Contains(name, "/") {
			items = append(items, s.objects[p])
		}
	}
	return json.NewEncoder(w).Encode(map[string]any{"items": items})
}

func (s *Server) create(w http.ResponseWriter, r *http.Request) error {
	j := &v1alpha1.FineTuneJob{}
	if err := json.NewDecoder(r.Body).Decode(j); err != nil {
		return err
	}
	at := r.URL.Path + "/" + j.Name
	if s.objects[at] != nil {
		refuse(w, http.StatusConflict, metav1.StatusReasonAlreadyExists, fmt.Sprintf("finetunejobs.skein.dev %q already exists", j.Name))
		return nil
	}
	if r.URL.Query().Get("fieldValidation") != "Strict" {
		return errors.New("it is not asked for strict validation")
	}
	if s.Created != nil {
		s.Created(j)
	}
	raw, err := json.Marshal(j)
	if err != nil {
		return err
	}
	s.objects[at] = raw
	_, err = w.Write(raw)
	return err
}

// scale is the scale subresource, and keeps what it was given beside the job.
func (s *Server) scale(w http.ResponseWriter, r *http.Request) error {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if strings.Contains(string(raw), ":99") {
		refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "cluster.workers.max: more than worldSize")
		return nil
	}
	s.objects[r.URL.Path] = raw
	_, err = w.Write([]byte("{}"))
	return err
}

// Scaled is what a FineTuneJob was scaled by last; "" if it never was.
func (s *Server) Scaled(namespace, name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.objects["/apis/skein.dev/v1alpha1/namespaces/"+namespace+"/finetunejobs/"+name+"/scale"])
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{ // whoever is gone hears nothing
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	})
}
