package apitest

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/k8s/access"
	"github.com/skein-ml/skein/k8s/access/accesstest"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
)

// kubelet makes a node whose kubelet forwards ports, and returns where to say what a pod
// listens on.
func kubelet(t *testing.T, name string) *accesstest.Node {
	t.Helper()
	n := &accesstest.Node{}
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/portForward/") {
			http.NotFound(w, r)
			return
		}
		n.ServePod(w, r, filepath.Base(r.URL.Path))
	}))
	t.Cleanup(web.Close)
	at, err := url.Parse(web.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(at.Port())
	if err != nil {
		t.Fatal(err)
	}
	c := admin(t)
	node := &corev1.Node{}
	node.Name = name
	create(t, c, node)
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: at.Hostname()}}
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(port)
	if err := c.Status().Update(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	return n
}

// labIn makes the example's cluster in a namespace, as far as a client sees it.
func labIn(t *testing.T, namespace string) *v1alpha1.SkeinCluster {
	t.Helper()
	c := admin(t)
	ns := &corev1.Namespace{}
	ns.Name = namespace
	if err := c.Create(t.Context(), ns); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	u := manifests(t, "../../examples/kubernetes/cluster.yaml")[0]
	u.SetNamespace(namespace)
	create(t, c, u)
	cluster := &v1alpha1.SkeinCluster{}
	cluster.Name, cluster.Namespace, cluster.UID = u.GetName(), namespace, u.GetUID()
	ca, err := pki.NewCA(policy.ClusterName(cluster))
	if err != nil {
		t.Fatal(err)
	}
	parts, err := ca.IssueParts(pki.Client, "client", nil, policy.CertificateValidity)
	if err != nil {
		t.Fatal(err)
	}
	create(t, c, policy.Secret(cluster, policy.ClientSecret(cluster), parts))
	return cluster
}

func TestAClientReachesACoordinatorsPodThroughTheAPIServer(t *testing.T) {
	c := admin(t)
	labIn(t, "forwarded")
	node := kubelet(t, "n1")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // what comes goes back
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				conn.Close()
			}()
		}
	}()
	for i, address := range []string{l.Addr().String(), "127.0.0.1:1"} {
		pod := &corev1.Pod{}
		pod.Name, pod.Namespace = "lab-coordinator-"+strconv.Itoa(i), "forwarded"
		pod.Spec.NodeName, pod.Spec.Containers = "n1", []corev1.Container{{Name: "coordinator", Image: "skein"}}
		create(t, c, pod)
		node.Listens(pod.Name, address)
	}
	k, err := access.With(server, access.Config{Namespace: "forwarded", Patience: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := k.Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if files, err := k.Credentials(t.Context(), cluster); err != nil || files.Cluster != "forwarded.lab" {
		t.Errorf("credentials: %+v, %v", files, err)
	}
	dial := k.Dialer(cluster)
	conn, err := dial(t.Context(), policy.CoordinatorAddress(cluster, 0))
	if err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("a frame "), 1<<16)
	go func() { _, _ = conn.Write(sent) }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back otherwise, %v", len(sent), err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	deaf, err := dial(t.Context(), policy.CoordinatorAddress(cluster, 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := deaf.Read(got); err == nil || !strings.Contains(err.Error(), "connection refused at port 7401") {
		t.Errorf("where nobody listens: %v", err)
	}
	deaf.Close()
	if _, err := dial(t.Context(), policy.CoordinatorAddress(cluster, 2)); err == nil || !strings.Contains(err.Error(), `"lab-coordinator-2" not found`) {
		t.Errorf("a pod that is not there: %v", err)
	}
}

func TestEveryJobFileOfTheExamplesIsTakenAsAFineTuneJob(t *testing.T) {
	c := admin(t)
	labIn(t, "submitted")
	k, err := access.With(server, access.Config{Namespace: "submitted", Patience: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := k.Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../../examples/*/job*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for i, file := range files {
		if strings.Contains(file, "kubernetes") {
			continue
		}
		name := "job-" + strconv.Itoa(i)
		job, err := jobspec.ReadFile(file, "name="+name)
		if err != nil {
			t.Fatal(err)
		}
		j, err := k.Submit(t.Context(), cluster, job)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		t.Cleanup(func() {
			if err := c.Delete(context.WithoutCancel(t.Context()), j); err != nil {
				t.Error(err)
			}
		})
		if _, err := k.Submit(t.Context(), cluster, job); err == nil || !strings.Contains(err.Error(), "there is a FineTuneJob "+name) {
			t.Errorf("a second %s: %v", name, err)
		}
		most := job.Cluster.WorldSize
		if err := k.Scale(t.Context(), name, int32(most)); err != nil {
			t.Errorf("%s: scaled to its world size: %v", file, err)
		}
		if err := k.Scale(t.Context(), name, int32(most)+1); err == nil {
			t.Errorf("%s: scaled above its world size", file)
		}
		owner, err := k.Owner(t.Context(), cluster, name)
		if err != nil || owner == nil {
			t.Errorf("%s: %v, %v", file, owner, err)
			continue
		}
		job.Cluster.Workers.Max = most
		if got, err := owner.Read(""); err != nil || !reflect.DeepEqual(got, job.In("")) {
			t.Errorf("%s: it is read as %+v, %v", file, got, err)
		}
	}
}
