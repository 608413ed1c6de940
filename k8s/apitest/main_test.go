package apitest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/skein-ml/skein/jobspec/badspec"
	"github.com/skein-ml/skein/k8s/operator"
)

// The API server that all tests of this package share; nil if there is none to start.
var (
	server  *rest.Config
	missing string // why there is none
)

func TestMain(m *testing.M) {
	os.Exit(withServer(m))
}

func withServer(m *testing.M) int {
	out, err := exec.Command("../../scripts/kube.sh", "--where").Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || !there(filepath.Join(dir, "kube-apiserver")) || !there(filepath.Join(dir, "etcd")) {
		missing = "SKIPPED: no API server in .cache/kube; `make kube` builds one, once"
		return m.Run()
	}
	e := &envtest.Environment{BinaryAssetsDirectory: dir, CRDDirectoryPaths: []string{"../config/crd"}, ErrorIfCRDPathMissing: true, ControlPlaneStartTimeout: 2 * time.Minute, ControlPlaneStopTimeout: time.Minute}
	flags := e.ControlPlane.GetAPIServer().Configure()
	flags.Append("feature-gates", "GenericWorkload=true").Append("runtime-config", "scheduling.k8s.io/v1beta1=true") // PodGroups
	if server, err = e.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "the API server does not start, or does not take the definitions: %v\n", errors.Join(err, e.Stop()))
		return 1
	}
	server.QPS, server.Burst = -1, 0
	status := m.Run()
	if err := e.Stop(); err != nil {
		fmt.Fprintf(os.Stderr, "the API server does not stop: %v\n", err)
		return 1
	}
	return status
}

func there(file string) bool {
	_, err := os.Stat(file)
	return !errors.Is(err, fs.ErrNotExist)
}

// admin is a client that may do everything.
func admin(t *testing.T) client.Client {
	t.Helper()
	if server == nil {
		t.Skip(missing)
	}
	c, err := client.New(server, client.Options{Scheme: operator.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// strict refuses what a definition does not know, as kubectl asks for.
var strict = client.FieldValidation("Strict")

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	var last error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if last = holds(); last == nil {
			return
		}
	}
	t.Fatalf("%s: not within a minute: %v", what, last)
}

// tree is a value as JSON reads it.
func tree(t *testing.T, v any) map[string]any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// fineTuneJob is the job of a case as a manifest.
func fineTuneJob(t *testing.T, name string, c badspec.Case) *unstructured.Unstructured {
	t.Helper()
	spec, err := c.Spec()
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "skein.dev/v1alpha1", "kind": "FineTuneJob", "spec": tree(t, spec)}}
	u.SetName(name)
	u.SetNamespace("default")
	return u
}

// manifests reads the objects of a file.
func manifests(t *testing.T, file string) []*unstructured.Unstructured {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var list []*unstructured.Unstructured
	for part := range strings.SplitSeq(string(b), "\n---\n") {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(part), &u.Object); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		list = append(list, u)
	}
	return list
}

// create makes an object that goes when the test is over.
func create(t *testing.T, c client.Client, o client.Object) {
	t.Helper()
	if err := c.Create(t.Context(), o, strict); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(c.Delete(context.WithoutCancel(t.Context()), o)); err != nil {
			t.Error(err)
		}
	})
}
