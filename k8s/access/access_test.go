package access_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/internal/leak"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/jobspec/badspec"
	"github.com/skein-ml/skein/k8s/access"
	"github.com/skein-ml/skein/k8s/access/accesstest"
	"github.com/skein-ml/skein/k8s/policy"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience is long enough for a machine that does much else.
const patience = time.Minute

func open(t *testing.T, s *accesstest.Server, c access.Config) *access.Kube {
	t.Helper()
	c.Kubeconfig, c.Patience = s.Kubeconfig(t, "team"), patience
	k, err := access.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// refused holds an error against what it has to say, in one line.
func refused(t *testing.T, what string, err error, says ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: taken", what)
		return
	}
	for _, text := range says {
		if !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q, want one line with %q", what, err, text)
		}
	}
}

func TestTheClusterIsTheNamedOneOrTheOnlyOne(t *testing.T) {
	s := accesstest.New(t)
	choose := func(c access.Config) (string, error) {
		found, err := open(t, s, c).Cluster(t.Context())
		if err != nil {
			return "", err
		}
		return found.Name, nil
	}
	_, err := choose(access.Config{})
	refused(t, "none", err, "namespace team has no SkeinCluster", "--namespace")
	s.Cluster(t, "team", "lab", 1)
	s.Cluster(t, "others", "prod", 1)
	if name, err := choose(access.Config{}); name != "lab" || err != nil {
		t.Errorf("the only one is %q, %v", name, err)
	}
	if name, err := choose(access.Config{Namespace: "others"}); name != "prod" || err != nil {
		t.Errorf("that of another namespace is %q, %v", name, err)
	}
	s.Cluster(t, "team", "big", 3)
	_, err = choose(access.Config{})
	refused(t, "two", err, "several SkeinClusters: big, lab", "--cluster")
	if name, err := choose(access.Config{Cluster: "big"}); name != "big" || err != nil {
		t.Errorf("the named one is %q, %v", name, err)
	}
	_, err = choose(access.Config{Cluster: "small"})
	refused(t, "one that is not there", err, "no SkeinCluster small (here: big, lab)")
	if _, ok := errors.AsType[*access.ChoiceError](err); !ok {
		t.Errorf("%T is no ChoiceError", err)
	}
}

func TestWhoCannotBeAskedIsNamed(t *testing.T) {
	s := accesstest.New(t)
	_, err := open(t, s, access.Config{Context: "stranger"}).Cluster(t.Context())
	refused(t, "a stranger", err, "does not know you", "--context")
	_, err = access.Open(access.Config{Kubeconfig: s.Kubeconfig(t, "team"), Context: "mars"})
	refused(t, "a context that is not there", err, "mars", "kubectl config view")
	_, err = access.Open(access.Config{Kubeconfig: filepath.Join(t.TempDir(), "none")})
	refused(t, "a file that is not there", err, "kubeconfig")
	t.Setenv("KUBECONFIG", "")
	t.Setenv("HOME", t.TempDir())
	_, err = access.Open(access.Config{})
	refused(t, "no file", err, "which Kubernetes?", "--kubeconfig")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	raw, err := os.ReadFile(s.Kubeconfig(t, "team"))
	if err != nil {
		t.Fatal(err)
	}
	away := filepath.Join(t.TempDir(), "away")
	if err := os.WriteFile(away, bytes.ReplaceAll(raw, []byte(s.URL), []byte("https://"+l.Addr().String())), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := access.Open(access.Config{Kubeconfig: away, Patience: patience})
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.Cluster(t.Context())
	refused(t, "a server that is away", err, l.Addr().String()+" does not answer", "kubectl get")
	if _, ok := errors.AsType[*access.UnreachableError](err); !ok {
		t.Errorf("%T is no UnreachableError", err)
	}
}

func TestTheClientsCertificateIsThatOfTheSecret(t *testing.T) {
	s := accesstest.New(t)
	c, _ := s.Cluster(t, "team", "lab", 1)
	k := open(t, s, access.Config{})
	files, err := k.Credentials(t.Context(), c)
	if err != nil || files.Cluster != "team.lab" || files.Role != "client" {
		t.Errorf("%+v, %v", files, err)
	}
	c.Name = "new"
	_, err = k.Credentials(t.Context(), c)
	refused(t, "a cluster that is being made", err, "secret new-client-tls", "kubectl describe skeincluster new")
}

func TestWhatIsSentToACoordinatorsAddressArrivesAtItsPod(t *testing.T) {
	s := accesstest.New(t)
	c, _ := s.Cluster(t, "team", "lab", 3)
	dial := open(t, s, access.Config{}).Dialer(c)
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
	s.Listens("lab-coordinator-1", l.Addr().String())
	s.Listens("lab-coordinator-2", "127.0.0.1:1")
	conn, err := dial(t.Context(), policy.CoordinatorAddress(c, 1))
	if err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("a frame "), 1<<17)
	go func() { _, _ = conn.Write(sent) }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back otherwise, %v", len(sent), err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after its deadline it reads %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}

	deaf, err := dial(t.Context(), policy.CoordinatorAddress(c, 2))
	if err != nil {
		t.Fatal(err)
	}
	_, err = deaf.Read(got)
	refused(t, "a pod where nobody listens", err, "connection refused at port 7401 of pod lab-coordinator-2")
	deaf.Close()
	_, err = dial(t.Context(), policy.CoordinatorAddress(c, 0))
	refused(t, "a pod that is not there", err, `pods "lab-coordinator-0" not found`)
	for _, address := range []string{"10.0.0.1:7401", "lab-coordinator-0.lab-coordinator.other.svc:7401", "kubernetes.default.svc:443", "nonsense"} {
		if _, err := dial(t.Context(), address); err == nil {
			t.Errorf("%s is dialed", address)
		}
	}
}

// read reads a job file; "": the smallest one.
func read(t *testing.T, file string, settings ...string) *jobspec.Job {
	t.Helper()
	var job *jobspec.Job
	var err error
	if file == "" {
		job, err = jobspec.Read("job.yaml", strings.NewReader(badspec.Minimal), settings...)
	} else {
		job, err = jobspec.ReadFile(file, settings...)
	}
	if err != nil {
		t.Fatal(err)
	}
	return job
}

func TestAManifestIsReadAsTheJobThatItWasMadeOf(t *testing.T) {
	files, err := filepath.Glob("../../examples/*/job*.yaml")
	files = slices.DeleteFunc(files, func(f string) bool { return strings.Contains(f, "kubernetes") })
	if err != nil || len(files) == 0 {
		t.Fatalf("examples: %v, %v", files, err)
	}
	jobs := []*jobspec.Job{
		read(t, "", "train.seed=18446744073709551615", "train.optimizer.epsilon=1e-300", "data.validation=2.5%"),
		read(t, "", "cluster.worldSize=4", "train.globalBatch=8", "train.microBatch=2", "cluster.workers.min=2", "cluster.workers.max=3", "eval.prompts=[a, b]", "data.shuffle=false", "cluster.zero=0", "resources.memory=8GiB"),
	}
	for _, f := range files {
		jobs = append(jobs, read(t, f))
	}
	for _, job := range jobs {
		j, err := access.Manifest(job, "lab")
		if err != nil {
			t.Errorf("%s: %v", job.Name, err)
			continue
		}
		back, err := j.Read("")
		if err != nil || !reflect.DeepEqual(back, job.In("")) || j.Name != job.Name || j.Spec.ClusterRef.Name != "lab" {
			t.Errorf("%s: %s is read as %+v, %v", job.Name, j.Spec.Job, back, err)
		}
	}
	j, err := access.Manifest(read(t, ""), "")
	want := `{"checkpoint":{"store":"/s"},"cluster":{"workers":{"max":1}},"data":{"train":["/t.jsonl"]},"model":{"base":"/m"},"output":{"export":"/e"},"train":{"optimizer":{"learningRate":0.0001},"steps":1}}`
	if err != nil || string(j.Spec.Job) != want || j.Spec.ClusterRef != nil {
		t.Errorf("the smallest job becomes %s, %v\nwant %s", j.Spec.Job, err, want)
	}
	_, err = access.Manifest(read(t, "", "data.validation=[/a, /b]"), "")
	refused(t, "a list of held-out files", err, "data.validation", "glob")
}

func TestPathsThatNoWorkerSeesAreNamed(t *testing.T) {
	s := accesstest.New(t)
	c, _ := s.Cluster(t, "team", "lab", 1)
	job := read(t, "", "model.base=/shared/m", "data.train=[here.jsonl, /shared/../t.jsonl]", "checkpoint.store=/shared", "output.export=/sharedness")
	got := strings.Join(access.Elsewhere(job, c), ", ")
	if want := "data.train: /shared/../t.jsonl, output.export: /sharedness"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAJobIsMadeOnceAndFoundByItsNameOrItsId(t *testing.T) {
	s := accesstest.New(t)
	c, _ := s.Cluster(t, "team", "lab", 1)
	k := open(t, s, access.Config{})
	if _, err := k.Submit(t.Context(), c, read(t, "")); err != nil {
		t.Fatal(err)
	}
	_, err := k.Submit(t.Context(), c, read(t, ""))
	refused(t, "a second one", err, "there is a FineTuneJob a in namespace team", "--set name=")
	_, err = k.Resolve(t.Context(), c, "a")
	refused(t, "one that nobody has looked at", err, "FineTuneJob a has not reached the coordinators", "operator")

	made := s.Job(t, "team", "a")
	made.Status.Job, made.Status.Cluster = "a-7f3a", "lab"
	s.Put(t, "/apis/skein.dev/v1alpha1/namespaces/team/finetunejobs/a", made)
	for word, want := range map[string]string{"a": "a-7f3a", "b": "b", "a-7f3a": "a-7f3a", "No Name": "No Name"} {
		if id, err := k.Resolve(t.Context(), c, word); id != want || err != nil {
			t.Errorf("%q is resolved to %q, %v", word, id, err)
		}
	}
	for word, want := range map[string]bool{"a": true, "a-7f3a": true, "b": false} {
		if j, err := k.Owner(t.Context(), c, word); (j != nil) != want || err != nil {
			t.Errorf("the owner of %q is %v, %v", word, j, err)
		}
	}
	if err := k.Scale(t.Context(), "a", 3); err != nil || s.Scaled("team", "a") != `{"spec":{"replicas":3}}` {
		t.Errorf("scaled by %s, %v", s.Scaled("team", "a"), err)
	}
	refused(t, "too many workers", k.Scale(t.Context(), "a", 99), "cluster.workers.max")
	made.Status.Cluster = "big"
	s.Put(t, "/apis/skein.dev/v1alpha1/namespaces/team/finetunejobs/a", made)
	_, err = k.Resolve(t.Context(), c, "a")
	refused(t, "one of another cluster", err, "--cluster big")
}
