package coordinator

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

func TestServersOfTheDataComeAndGoWithoutANewGeneration(t *testing.T) {
	r := newRig(t, 1, nil)
	on := func(node string) func(*fakeWorker) {
		return func(w *fakeWorker) {
			w.stall = true
			w.hello = func(h *skeinv1.Hello) { h.Node = node }
		}
	}
	r.worker("w1", "p1", on("n1"))
	w2 := r.worker("w2", "p1", on("n2"))
	r.worker("w3", "p1", on("n1"))
	r.joined(3)
	r.submit("one", func(j *jobspec.Job) { j.Cluster.Workers.Min, j.Cluster.Workers.Max = 3, 3 })
	serves := func(want ...string) func(*skeinv1.Orders) bool {
		return func(o *skeinv1.Orders) bool { return slices.Equal(o.GetAssignment().GetDataServers(), want) }
	}
	before := w2.waitForOrders(t, "three servers, its own first", serves("w2:2", "w3:2", "w1:2"))
	w4 := r.worker("w4", "p1", on("n2")) // free, on the same node
	o := w2.waitForOrders(t, "a fourth on its node", serves("w2:2", "w4:2", "w3:2", "w1:2"))
	if o.GetAssignment().GetGeneration() != before.GetAssignment().GetGeneration() || o.GetRevision() <= before.GetRevision() {
		t.Errorf("from generation %d, revision %d to %d, %d", before.GetAssignment().GetGeneration(), before.GetRevision(), o.GetAssignment().GetGeneration(), o.GetRevision())
	}
	w4.kill()
	o = w2.waitForOrders(t, "three again", serves("w2:2", "w3:2", "w1:2"))
	if o.GetAssignment().GetGeneration() != 1 {
		t.Errorf("a server of data has gone, and generation %d begins", o.GetAssignment().GetGeneration())
	}
}

func TestAJobSaysWhatItLacksAndNeverGetsAnotherClassOrTooLittleMemory(t *testing.T) {
	r := newRig(t, 1, nil)
	r.worker("w1", "p1", func(w *fakeWorker) { w.stall = true })
	w2 := r.worker("w2", "p1", func(w *fakeWorker) {
		w.hello = func(h *skeinv1.Hello) { h.NumericClasses = []string{"avx512 r1"} }
	})
	w3 := r.worker("w3", "p1", func(w *fakeWorker) {
		w.hello = func(h *skeinv1.Hello) { h.MemoryBytes = 5e8 }
	})
	r.joined(3)
	id := r.submit("one", func(j *jobspec.Job) { j.Cluster.Workers.Min, j.Train.NumericClass = 2, "generic" })
	want := "needs 2 workers of class generic r1 with 1 GB each; 1 is free (w1); w2 is of class avx512 r1; w3 is limited to 500 MB"
	j := r.eventually(id, want, func(j *skeinv1.Job) bool { return j.GetWaitingFor() == want })
	if j.GetPhase() != skeinv1.Phase_PHASE_QUEUED {
		t.Errorf("it waits, and is %v", j.GetPhase())
	}
	w4 := r.worker("w4", "p1", func(w *fakeWorker) { w.stall = true })
	w4.waitForOrders(t, "an assignment", func(o *skeinv1.Orders) bool { return o.GetAssignment() != nil })
	for _, w := range []*fakeWorker{w2, w3} {
		if w.last().GetAssignment() != nil {
			t.Errorf("%s was given ranks", w.name)
		}
	}
}

func TestReportsOfUnreasonableSizeAreRefused(t *testing.T) {
	r := newRig(t, 1, nil)
	w := r.worker("w1", "p1", func(w *fakeWorker) { w.stall = true })
	id := r.submit("one", nil)
	w.waitForOrders(t, "an assignment", func(o *skeinv1.Orders) bool { return o.GetAssignment() != nil })
	huge := strings.Repeat("x", 1000)
	for what, try := range map[string]func() error{
		"a huge result": func() error {
			_, err := w.api.Complete(r.ctx(), &skeinv1.CompleteRequest{Sender: w.sender(), Job: id, Generation: 1, Result: make([]byte, specBytesMax+1)})
			return err
		},
		"a result that is not JSON": func() error {
			_, err := w.api.Complete(r.ctx(), &skeinv1.CompleteRequest{Sender: w.sender(), Job: id, Generation: 1, Result: []byte("{")})
			return err
		},
		"a huge manifest": func() error {
			_, err := w.api.Publish(r.ctx(), &skeinv1.PublishRequest{Sender: w.sender(), Job: id, Checkpoint: &skeinv1.Checkpoint{Generation: 1, Step: 1, Manifest: huge, Weights: "w"}})
			return err
		},
		"no weights": func() error {
			_, err := w.api.Publish(r.ctx(), &skeinv1.PublishRequest{Sender: w.sender(), Job: id, Checkpoint: &skeinv1.Checkpoint{Generation: 1, Step: 1, Manifest: "m"}})
			return err
		},
	} {
		if err := try(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// backup fetches one as a client does.
func (r *rig) backup() []byte {
	r.Helper()
	s, err := r.ops.Backup(r.ctx(), &skeinv1.BackupRequest{})
	if err != nil {
		r.Fatal(err)
	}
	var out bytes.Buffer
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out.Bytes()
		}
		if err != nil {
			r.Fatal(err)
		}
		out.Write(m.GetChunk())
	}
}

func TestARestoredClusterGoesOnWithItsJobs(t *testing.T) {
	ca := newCA(t, "test")
	r := newRig(t, 1, ca)
	w1 := r.worker("w1", "p1", func(w *fakeWorker) { w.stall = true })
	// A spec of some size, so that the backup comes in more than one piece.
	running := r.submit("running", nil)
	w1.waitForOrders(t, "an assignment", func(o *skeinv1.Orders) bool { return o.GetAssignment() != nil })
	for i := range 150 {
		r.submit("big-"+string(rune('a'+i%26))+string(rune('a'+i/26)), func(j *jobspec.Job) {
			j.Data.Train = slices.Repeat([]string{"/data/" + strings.Repeat("x", 100)}, 20)
		})
	}
	backup := r.backup()
	if len(backup) < chunkBytes {
		t.Errorf("the backup of %d bytes came in one piece", len(backup))
	}
	r.stop("c1")
	w1.kill()

	dir := filepath.Join(r.dir, "restored")
	n := &rig{T: t, dir: r.dir, ca: ca, members: []raftlog.Server{{ID: "n1", Address: freeAddress(t)}}, running: map[string]*Coordinator{}}
	t.Cleanup(func() {
		for _, c := range n.running {
			if err := c.Stop(); err != nil {
				t.Error(err)
			}
		}
	})
	if _, err := Restore(dir, "n1", n.members[0].Address, bytes.NewReader(backup)); err != nil {
		t.Fatal(err)
	}
	c := n.config(n.members[0])
	c.Dir, c.Members = dir, nil
	co, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	n.running["n1"] = co
	n.connect()
	if list, err := n.jobs.List(n.ctx(), &skeinv1.ListRequest{}); err != nil || len(list.GetJobs()) != 151 {
		t.Fatalf("%d jobs, %v", len(list.GetJobs()), err)
	}
	if j := n.get(running); j.GetPhase() != skeinv1.Phase_PHASE_QUEUED || !strings.Contains(j.GetReason(), "restored from a backup") {
		t.Errorf("the job that was running is %v", j)
	}
	second := n.config(raftlog.Server{ID: "n2", Address: freeAddress(t)})
	second.Members = nil
	if n.running["n2"], err = Start(second); err != nil {
		t.Fatal(err)
	}
	if _, err := n.ops.AddCoordinator(n.ctx(), &skeinv1.AddCoordinatorRequest{Id: "n2", Address: second.Listen}); err != nil {
		t.Fatal(err)
	}
	w2 := n.worker("w1", "p2", nil)
	j := n.eventually(running, "it is done by the new cluster", inPhase(skeinv1.Phase_PHASE_DONE))
	if j.GetGeneration() < 1_000_000 {
		t.Errorf("it went on as generation %d, which the old cluster may have reached", j.GetGeneration())
	}
	w1.mu.Lock()
	defer w1.mu.Unlock()
	w2.mu.Lock()
	defer w2.mu.Unlock()
	if w1.epoch == w2.epoch {
		t.Errorf("workers cannot tell that the coordinators were restored: epoch %d before and after", w1.epoch)
	}
}

// journal is a log that a test reads.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) count(text string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.text.String(), text)
}

func TestAnotherBuildIsWarnedOfOnceOnBothSides(t *testing.T) {
	var log journal
	c := Config{ID: "c1", Dir: t.TempDir(), Listen: "127.0.0.1:0", Alone: true, Build: "v2", Logger: slog.New(slog.NewTextHandler(&log, nil))}
	co, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = co.Stop() }()
	var warned []string
	conn, err := leader.New(leader.Config{Addresses: []string{co.Address()}, Build: "v1", OtherBuild: func(_, build string) { warned = append(warned, build) }})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 3 {
		if _, err := skeinv1.NewClusterClient(conn).Status(t.Context(), &skeinv1.StatusRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(warned, []string{"v2"}) {
		t.Errorf("the client was warned of %v", warned)
	}
	if n := log.count("a caller is of another build"); n != 1 {
		t.Errorf("the coordinator remarks on it %d times", n)
	}
}

func TestMetricsTellHowTheClusterIs(t *testing.T) {
	r := newRig(t, 1, newCA(t, "test"))
	r.stop("c1")
	c := r.config(r.members[0])
	c.Registry = prometheus.NewRegistry()
	co, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	r.running["c1"] = co
	w := r.worker("w1", "p1", func(w *fakeWorker) { w.stall = true })
	r.worker("w2", "p1", nil)
	r.joined(2)
	id := r.submit("one", func(j *jobspec.Job) { j.Cluster.WorldSize, j.Cluster.Workers.Max, j.Train.GlobalBatch = 1, 1, 1 })
	o := w.waitForOrders(t, "an assignment", func(o *skeinv1.Orders) bool { return o.GetAssignment() != nil })
	w.report(id, &skeinv1.Progress{Generation: o.GetAssignment().GetGeneration(), Step: 7, TokensPerSecond: 912, Exposed: "one worker has all ranks"})
	r.eventually(id, "its progress", func(j *skeinv1.Job) bool { return j.GetProgress().GetStep() == 7 })
	got := gathered(t, c.Registry)
	for series, want := range map[string]float64{
		`skein_coordinator_raft_state state=leader`:                    1,
		`skein_coordinator_raft_state state=follower`:                  0,
		`skein_coordinator_raft_last_contact_seconds`:                  0,
		`skein_coordinator_leader_changes_total`:                       1,
		`skein_coordinator_sessions`:                                   2,
		`skein_coordinator_workers state=busy`:                         1,
		`skein_coordinator_workers state=free`:                         1,
		`skein_coordinator_workers state=draining`:                     0,
		`skein_coordinator_jobs phase=running`:                         1,
		`skein_coordinator_jobs phase=done`:                            0,
		`skein_coordinator_decisions_total kind=submit outcome=held`:   1,
		`skein_coordinator_decisions_total kind=generate outcome=held`: 1,
		`skein_job_step job=` + id:                                     7,
		`skein_job_tokens_per_second job=` + id:                        912,
		`skein_job_protected job=` + id:                                0,
		`skein_job_published_step job=` + id:                           0,
		`skein_job_setbacks job=` + id:                                 0,
		`skein_coordinator_certificate_expires_seconds`:                float64(c.TLS.Expires.Unix()),
	} {
		if v, ok := got[series]; !ok || v != want {
			t.Errorf("%s is %v (there: %t), want %v", series, v, ok, want)
		}
	}
	if series := "skein_job_exposed because=one worker has all ranks job=" + id; got[series] != 1 {
		t.Errorf("%s is %v, in %v", series, got[series], got)
	}
	w.report(id, &skeinv1.Progress{Generation: o.GetAssignment().GetGeneration(), Step: 8, Protected: true})
	r.until("it is protected, and why it was not is gone", func() bool {
		now := gathered(t, c.Registry)
		return now[`skein_job_protected job=`+id] == 1 && !slices.ContainsFunc(slices.Collect(maps.Keys(now)), func(series string) bool { return strings.HasPrefix(series, "skein_job_exposed") })
	})
	for _, series := range []string{"raft_term", "raft_commit_index", "raft_applied_index", "raft_log_bytes", "propose_seconds"} {
		if got["skein_coordinator_"+series] <= 0 {
			t.Errorf("%s is %v", series, got["skein_coordinator_"+series])
		}
	}
	if _, err := Start(Config{ID: "c9", Dir: t.TempDir(), Listen: "127.0.0.1:0", Alone: true, Registry: c.Registry}); err == nil || !strings.Contains(err.Error(), "metrics") {
		t.Errorf("two coordinators in one registry: %v", err)
	}
	if _, err := r.jobs.Cancel(r.ctx(), &skeinv1.CancelRequest{Job: id}); err != nil {
		t.Fatal(err)
	}
	r.until("a job that is over has no step", func() bool { _, has := gathered(t, c.Registry)[`skein_job_step job=`+id]; return !has })
	r.stop("c1")
	if left := gathered(t, c.Registry); len(left) > 0 {
		t.Errorf("a coordinator that has stopped still shows %v", left)
	}
}

// gathered are all series by name and labels; of a histogram, how many were observed.
func gathered(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := f.GetName()
			for _, l := range m.GetLabel() {
				key += " " + l.GetName() + "=" + l.GetValue()
			}
			got[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return got
}
