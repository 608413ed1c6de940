package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/k8s/access/accesstest"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// member is a coordinator of a cluster in Kubernetes: its fake leads, or names who does.
type member struct {
	fakeLeader
	leader string // address; "": this one
	ended  bool   // its job is done

	mu   sync.Mutex
	told []string // what it was asked to do
}

func (m *member) refuse() error {
	if m.leader == "" {
		return nil
	}
	return skeinv1.Refuse(codes.Unavailable, &skeinv1.Refusal{Kind: skeinv1.Refusal_KIND_NOT_LEADER, LeaderAddress: m.leader}, "not me")
}

func (m *member) note(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = append(m.told, what)
}

func (m *member) heard(what string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.told, what)
}

func (m *member) Status(ctx context.Context, r *skeinv1.StatusRequest) (*skeinv1.StatusResponse, error) {
	if m.leader != "" {
		return &skeinv1.StatusResponse{Id: "f", State: "follower", LeaderId: "l", LeaderAddress: m.leader}, nil
	}
	return m.fakeLeader.Status(ctx, r)
}

func (m *member) List(ctx context.Context, r *skeinv1.ListRequest) (*skeinv1.ListResponse, error) {
	if err := m.refuse(); err != nil {
		return nil, err
	}
	return m.fakeLeader.List(ctx, r)
}

func (m *member) Get(ctx context.Context, r *skeinv1.GetRequest) (*skeinv1.GetResponse, error) {
	if err := m.refuse(); err != nil {
		return nil, err
	}
	got, err := m.fakeLeader.Get(ctx, r)
	if m.ended {
		got.Job.Phase = skeinv1.Phase_PHASE_DONE
	}
	return got, err
}

func (m *member) Watch(r *skeinv1.WatchRequest, s skeinv1.Jobs_WatchServer) error {
	if err := m.refuse(); err != nil || !m.ended {
		if err == nil {
			err = m.fakeLeader.Watch(r, s)
		}
		return err
	}
	j := m.job()
	j.Phase = skeinv1.Phase_PHASE_DONE
	return s.Send(&skeinv1.WatchResponse{What: &skeinv1.WatchResponse_Job{Job: j}})
}

func (m *member) Scale(_ context.Context, r *skeinv1.ScaleRequest) (*skeinv1.ScaleResponse, error) {
	m.note("scale " + r.GetJob())
	return &skeinv1.ScaleResponse{Useful: r.GetWorkers()}, m.refuse()
}

func (m *member) Cancel(_ context.Context, r *skeinv1.CancelRequest) (*skeinv1.CancelResponse, error) {
	m.note("cancel " + r.GetJob())
	return &skeinv1.CancelResponse{}, m.refuse()
}

func (m *member) Resume(_ context.Context, r *skeinv1.ResumeRequest) (*skeinv1.ResumeResponse, error) {
	m.note("resume " + r.GetJob())
	return &skeinv1.ResumeResponse{}, m.refuse()
}

// serve returns where the member listens, with a coordinator's certificate.
func (m *member) serve(t *testing.T, files *pki.Files) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(files.Expect(pki.Client))))
	skeinv1.RegisterClusterServer(s, m)
	skeinv1.RegisterJobsServer(s, m)
	go func() { _ = s.Serve(l) }() // ends with Stop
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

// inKube is SkeinCluster lab in namespace team, whose second coordinator leads. It has a
// job tiny-7f3a.
func inKube(t *testing.T) (s *accesstest.Server, leader *member, flags []string) {
	t.Helper()
	t.Setenv(coordinatorVariable, "10.0.0.1:7401") // which --kube does not look at
	s = accesstest.New(t)
	c, files := s.Cluster(t, "team", "lab", 3)
	leader = &member{}
	follower := &member{leader: policy.CoordinatorAddress(c, 1)}
	s.Listens("lab-coordinator-0", follower.serve(t, files[0]))
	s.Listens("lab-coordinator-1", leader.serve(t, files[1]))
	return s, leader, []string{"--kube", "--kubeconfig", s.Kubeconfig(t, "team"), "--connect-timeout", "1m"}
}

// taken makes the FineTuneJob of job tiny-7f3a.
func taken(t *testing.T, s *accesstest.Server, name string) {
	t.Helper()
	j := &v1alpha1.FineTuneJob{}
	j.Namespace, j.Name, j.Status.Job, j.Status.Cluster = "team", name, "tiny-7f3a", "lab"
	j.Spec.Job = []byte(`{}`)
	s.Put(t, "/apis/skein.dev/v1alpha1/namespaces/team/finetunejobs/"+name, j)
}

func TestCommandsReachACoordinatorInKubernetesWithAKubeconfigAlone(t *testing.T) {
	s, leader, flags := inKube(t)
	taken(t, s, "pronounce")
	for _, c := range []struct{ args, says string }{
		{"jobs", "tiny-7f3a"},
		{"describe tiny-7f3a", "tiny-7f3a"},
		{"describe pronounce", "tiny-7f3a"}, // the name of its FineTuneJob
		{"wait pronounce --for running", "tiny-7f3a  running"},
		{"logs pronounce", ""},
		{"cancel pronounce", "tiny-7f3a  canceled"},
		{"resume pronounce", "tiny-7f3a  goes on"},
	} {
		code, out, errs := skein(t, &notes{}, "", append(strings.Fields(c.args), flags...)...)
		if code != exitOK || errs != "" || !strings.Contains(out, c.says) {
			t.Errorf("%s: status %d, printed %q, %q", c.args, code, out, errs)
		}
	}
	if !leader.heard("cancel tiny-7f3a") || !leader.heard("resume tiny-7f3a") {
		t.Errorf("the leader was told %q", leader.told)
	}
	code, _, errs := skein(t, &notes{}, "", append([]string{"describe", "nobody"}, flags...)...)
	if code != exitNotFound {
		t.Errorf("a job that is not there: status %d, %q", code, errs)
	}
	code, _, errs = skein(t, &notes{}, "", append([]string{"export", "pronounce", t.TempDir() + "/x"}, flags...)...)
	if code != exitFailure || !strings.Contains(errs, "published nothing yet") {
		t.Errorf("export: status %d, %q", code, errs)
	}
}

func TestScaleChangesTheFineTuneJobThatTheOperatorFollows(t *testing.T) {
	s, leader, flags := inKube(t)
	scale := append([]string{"scale", "tiny-7f3a", "--workers", "2"}, flags...)
	if code, out, errs := skein(t, &notes{}, "", scale...); code != exitOK || !leader.heard("scale tiny-7f3a") {
		t.Errorf("a job of the coordinators alone: status %d, printed %q, %q", code, out, errs)
	}
	taken(t, s, "pronounce")
	scale[3] = "3"
	code, out, errs := skein(t, &notes{}, "", scale...)
	if code != exitOK || out != "pronounce  at most 3 workers\n" || s.Scaled("team", "pronounce") != `{"spec":{"replicas":3}}` || len(leader.told) != 1 {
		t.Errorf("status %d, printed %q, %q; scaled by %s", code, out, errs, s.Scaled("team", "pronounce"))
	}
	scale[3] = "99"
	if code, _, errs := skein(t, &notes{}, "", scale...); code != exitUsage || !strings.Contains(errs, "workers.max") {
		t.Errorf("too many: status %d, %q", code, errs)
	}
}

func TestAJobThatItsFineTuneJobSuspendsIsNotResumed(t *testing.T) {
	s, leader, flags := inKube(t)
	j := &v1alpha1.FineTuneJob{}
	j.Namespace, j.Name, j.Status.Job, j.Spec.Suspend, j.Spec.Job = "team", "pronounce", "tiny-7f3a", new(true), []byte(`{}`)
	s.Put(t, "/apis/skein.dev/v1alpha1/namespaces/team/finetunejobs/pronounce", j)
	code, _, errs := skein(t, &notes{}, "", append([]string{"resume", "pronounce"}, flags...)...)
	if code != exitFailure || !strings.Contains(errs, "FineTuneJob pronounce is suspended: spec.suspend is true") || leader.heard("resume tiny-7f3a") {
		t.Errorf("status %d, %q", code, errs)
	}
}

func TestSubmitMakesAFineTuneJobOfTheJobFile(t *testing.T) {
	s, _, flags := inKube(t)
	submit := append([]string{"submit", "-f", jobFile(t), "--set", "name=pronounce"}, flags...)
	code, out, errs := skein(t, &notes{}, "", submit...)
	if code != exitOK || errs != "" || out != "pronounce  submitted to SkeinCluster lab in namespace team\n" {
		t.Errorf("status %d, printed %q, %q", code, out, errs)
	}
	j := s.Job(t, "team", "pronounce")
	if j == nil || j.Spec.ClusterRef.Name != "lab" {
		t.Fatalf("made was %+v", j)
	}
	job, err := j.Read("/shared")
	if err != nil || job.Path(job.Model.Base) != "/shared/m" || job.Train.Steps != 3 {
		t.Errorf("it is read as %+v, %v", job, err)
	}
	for what, c := range map[string]struct {
		more   []string
		status int
		says   string
	}{
		"the same name":    {nil, exitUsage, "there is a FineTuneJob pronounce in namespace team"},
		"a bad job":        {[]string{"--set", "train.optimizer.learningRate=-1"}, exitUsage, "learningRate: "},
		"an upload":        {[]string{"--upload"}, exitUsage, "--upload is not for --kube"},
		"a request id":     {[]string{"--request", "0123456789abcdef"}, exitUsage, "--request is not for --kube"},
		"a coordinator":    {[]string{"--coordinator", "127.0.0.1:1"}, exitUsage, "--kube and --coordinator exclude each other"},
		"plain text":       {[]string{"--insecure"}, exitUsage, "--kube and --insecure exclude each other"},
		"no such cluster":  {[]string{"--cluster", "big"}, exitUsage, "namespace team has no SkeinCluster big (here: lab)"},
		"an empty place":   {[]string{"-n", "void"}, exitUsage, "namespace void has no SkeinCluster"},
		"a stranger":       {[]string{"--context", "stranger"}, exitFailure, "does not know you"},
		"no kubeconfig":    {[]string{"--kubeconfig", "/nowhere"}, exitUsage, "kubeconfig: "},
		"flags without it": {[]string{"--kube=false"}, exitUsage, "give --kube too"},
	} {
		code, out, errs := skein(t, &notes{}, "", append(slices.Clone(submit), c.more...)...)
		if code != c.status || out != "" || !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: status %d, printed %q, %q", what, code, out, errs)
		}
	}
	for output, want := range map[string]string{"name": "b\n", "json": `{"event":"submitted","job":"c","namespace":"team","cluster":"lab"}` + "\n"} {
		name := map[string]string{"name": "b", "json": "c"}[output]
		_, out, errs := skein(t, &notes{}, "", append(slices.Clone(submit), "--set", "name="+name, "--set", "model.base=/elsewhere/m", "-o", output)...)
		if out != want || !strings.Contains(errs, "model.base: /elsewhere/m is not below /shared") {
			t.Errorf("-o %s prints %q, %q", output, out, errs)
		}
	}
}

func TestAJobThatTheCoordinatorsDoNotHaveYetIsSaidToBeAndWaitedFor(t *testing.T) {
	s, _, flags := inKube(t)
	j := &v1alpha1.FineTuneJob{}
	j.Namespace, j.Name, j.Spec.Job = "team", "pronounce", []byte(`{}`)
	policy.Pending(j, policy.Refusal{Reason: v1alpha1.ReasonClusterNotReady, Message: "SkeinCluster lab is being made"})
	const at = "/apis/skein.dev/v1alpha1/namespaces/team/finetunejobs/pronounce"
	s.Put(t, at, j)
	const says = "FineTuneJob pronounce has not reached the coordinators: SkeinCluster lab is being made"
	code, out, errs := skein(t, &notes{}, "", append([]string{"jobs"}, flags...)...)
	if code != exitOK || !strings.Contains(out, "tiny-7f3a") || !strings.Contains(errs, says) {
		t.Errorf("jobs: status %d, printed %q, %q", code, out, errs)
	}
	if code, _, errs := skein(t, &notes{}, "", append([]string{"describe", "pronounce"}, flags...)...); code != exitFailure || !strings.Contains(errs, says) {
		t.Errorf("describe: status %d, %q", code, errs)
	}
	wait := append([]string{"wait", "pronounce", "--for", "running"}, flags...)
	if code, _, errs := skein(t, &notes{}, "", append(slices.Clone(wait), "--timeout", "1ms")...); code != exitTimeout {
		t.Errorf("a wait that is too short: status %d, %q", code, errs)
	}
	waiting := &transcript{}
	ended := make(chan int, 1)
	var done bytes.Buffer
	go func() {
		ended <- run(t.Context(), wait, streams{in: strings.NewReader(""), out: &done, err: waiting}, &notes{})
	}()
	waiting.waitFor(t, says)
	taken(t, s, "pronounce")
	if code := <-ended; code != exitOK || done.String() != "tiny-7f3a  running\n" {
		t.Errorf("wait: status %d, printed %q, %q", code, done.String(), waiting.String())
	}
}

// TestEveryExampleThatNamesKubernetesDoesWhatItSays runs what the help and the page on
// Kubernetes show, from the submission of a job to its end.
func TestEveryExampleThatNamesKubernetesDoesWhatItSays(t *testing.T) {
	s, leader, flags := inKube(t)
	leader.ended = true
	s.Created = func(j *v1alpha1.FineTuneJob) { j.Status.Job, j.Status.Cluster = "tiny-7f3a", "lab" }
	t.Setenv("KUBECONFIG", flags[2])
	var lines []string
	for _, c := range commands(newRoot(streams{}, &notes{})) {
		lines = slices.AppendSeq(lines, strings.Lines(c.Example))
	}
	page, err := os.ReadFile("../../docs/KUBERNETES.md")
	if err != nil {
		t.Fatal(err)
	}
	lines = slices.AppendSeq(lines, strings.Lines(string(page)))
	ran := 0
	for _, line := range lines {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "skein ") || !strings.Contains(line, "--kube") {
			continue
		}
		words := shellWords(line)[1:]
		for i, w := range words {
			if w == "job.yaml" {
				words[i] = jobFile(t)
			}
			if strings.HasPrefix(w, "examples/") {
				words[i] = "../../" + w
			}
		}
		if status, _, errs := skein(t, &notes{}, "", words...); status != exitOK {
			t.Errorf("%s: status %d, %s", line, status, errs)
		}
		ran++
	}
	if !leader.heard("cancel tiny-7f3a") || s.Scaled("team", "pronounce") != `{"spec":{"replicas":2}}` || ran < 7 {
		t.Errorf("%d examples told the leader %q and the API server %s", ran, leader.told, s.Scaled("team", "pronounce"))
	}
}
