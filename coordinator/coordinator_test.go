package coordinator

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

func TestAJobRunsFromSubmissionToItsResult(t *testing.T) {
	r := newRig(t, 1, nil)
	for _, name := range []string{"w1", "w2", "w3", "w4"} {
		r.worker(name, "p1", nil)
	}
	id := r.submit("one", nil)
	stream, err := r.jobs.Watch(r.ctx(), &skeinv1.WatchRequest{Job: id})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e := m.GetEvent(); e != nil {
			kinds = append(kinds, e.GetKind())
		}
	}
	if got, want := strings.Join(kinds, " "), "submitted preparing resolved generation published published published done"; got != want {
		t.Errorf("watched %s, want %s", got, want)
	}
	j := r.get(id)
	if j.GetPhase() != skeinv1.Phase_PHASE_DONE || string(j.GetResult()) != `{"loss":1.6}` || j.GetPublished().GetWeights() != weights(24) {
		t.Errorf("it ended as %v", j)
	}
	l, err := r.jobs.Lineage(r.ctx(), &skeinv1.LineageRequest{Job: id})
	if err != nil || len(l.GetPublished()) != 4 || l.GetDataHash() != dataHash || l.GetNumericClass() != "generic r1" {
		t.Errorf("lineage %v, %v", l, err)
	}
	for _, c := range l.GetPublished() {
		if ago := time.Since(time.UnixMilli(c.GetAtUnixMs())); ago < 0 || ago > time.Hour {
			t.Errorf("step %d was published %s ago", c.GetStep(), ago)
		}
	}
	list, err := r.jobs.List(r.ctx(), &skeinv1.ListRequest{})
	if err != nil || len(list.GetJobs()) != 1 {
		t.Errorf("listed %v, %v", list, err)
	}
	if list, err = r.jobs.List(r.ctx(), &skeinv1.ListRequest{ActiveOnly: true}); err != nil || len(list.GetJobs()) != 0 {
		t.Errorf("a job that is done is active: %v, %v", list, err)
	}
}

func TestAssignmentsNameRanksNeighboursAndData(t *testing.T) {
	r := newRig(t, 1, nil)
	stall := func(w *fakeWorker) { w.stall = true }
	r.worker("w1", "p1", stall)
	w2 := r.worker("w2", "p1", stall)
	w3 := r.worker("w3", "p1", func(w *fakeWorker) { w.unreadable = true })
	w4 := r.worker("w4", "p1", stall)
	id := r.submit("one", func(j *jobspec.Job) { j.Cluster.Workers.Min = 3 })
	o := w2.waitForOrders(t, "an assignment", func(o *skeinv1.Orders) bool {
		return o.GetAssignment() != nil && len(o.GetAssignment().GetDataServers()) >= 3
	})
	a := o.GetAssignment()
	if a.GetJob() != id || a.GetGeneration() != 1 || len(a.GetMembers()) != 3 || a.GetPrevious() != "w1" || a.GetNext() != "w4" ||
		a.GetResume().GetManifest() != "manifest-0" || a.GetMembers()[2].GetRingAddress() != "w4:1" || a.GetDataServers()[0] != "w2:2" {
		t.Errorf("w2 is assigned %v", a)
	}
	if w3.last().GetAssignment() != nil {
		t.Error("w3 cannot read the store, and was given ranks")
	}
	if got := w4.last().GetAssignment().GetNext(); got != "w1" {
		t.Errorf("the ring ends at %q", got)
	}
	nodes, err := r.ops.Nodes(r.ctx(), &skeinv1.NodesRequest{})
	if err != nil || len(nodes.GetWorkers()) != 4 || len(nodes.GetCoordinators()) != 1 {
		t.Fatalf("nodes %v, %v", nodes, err)
	}
	if n := nodes.GetWorkers()[1]; n.GetJob() != id || len(n.GetRanks()) != 1 || !n.GetConnected() || n.GetSilentMs() < 0 {
		t.Errorf("w2 is shown as %v", n)
	}
}

func TestAnotherWorkerPreparesWhenTheFirstIsLost(t *testing.T) {
	r := newRig(t, 1, nil)
	w1 := r.worker("w1", "p1", func(w *fakeWorker) { w.idle = true })
	id := r.submit("one", nil)
	r.eventually(id, "w1 prepares", func(j *skeinv1.Job) bool { return j.GetPreparer() == "w1" })
	r.worker("w2", "p1", nil)
	w1.kill()
	began := time.Now()
	r.eventually(id, "the job is done by w2", inPhase(skeinv1.Phase_PHASE_DONE))
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s to get over the loss", took)
	}
}

func TestGenerationsGoOnAfterTheFirstWorkerDies(t *testing.T) {
	r := newRig(t, 1, nil)
	// w1 prepares, then hosts rank 0 and takes no step; w2 would.
	w1 := r.worker("w1", "p1", nil)
	r.worker("w2", "p1", nil)
	r.joined(2)
	id := r.submit("one", func(j *jobspec.Job) { j.Cluster.WorldSize, j.Cluster.Workers.Max = 2, 2; j.Train.GlobalBatch = 2 })
	r.eventually(id, "a checkpoint of step 8", func(j *skeinv1.Job) bool { return j.GetPublished().GetStep() >= 8 })
	w1.kill()
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	// A zombie of the first generation is refused, whatever it says.
	zombie := r.worker("zombie", "p1", nil)
	_, err := zombie.api.Publish(r.ctx(), &skeinv1.PublishRequest{Sender: w1.sender(), Job: id, Checkpoint: &skeinv1.Checkpoint{Generation: 1, Step: 9, Manifest: "m", Weights: "w"}})
	if skeinv1.RefusalOf(err).GetKind() != skeinv1.Refusal_KIND_FENCED {
		t.Errorf("the zombie was told %v", err)
	}
}

func TestAWorkerThatDrainsIsReleasedAfterACheckpoint(t *testing.T) {
	r := newRig(t, 1, nil)
	r.worker("w1", "p1", nil)
	w2 := r.worker("w2", "p1", nil)
	r.joined(2)
	id := r.submit("one", func(j *jobspec.Job) {
		j.Cluster.WorldSize, j.Cluster.Workers.Max, j.Train.GlobalBatch, j.Train.Steps = 2, 2, 2, 24
	})
	w2.waitForOrders(t, "an assignment", func(o *skeinv1.Orders) bool { return o.GetAssignment() != nil })
	if _, err := w2.api.Drain(r.ctx(), &skeinv1.DrainRequest{Sender: w2.sender()}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w2.release:
	case <-time.After(patience):
		t.Fatalf("w2 is kept: %v", w2.last())
	}
	r.eventually(id, "the job is done", inPhase(skeinv1.Phase_PHASE_DONE))
	r.joined(1)
}

func TestABrokenLinkMakesANewGenerationOfTheSameWorkers(t *testing.T) {
	r := newRig(t, 1, nil)
	stall := func(w *fakeWorker) { w.stall = true }
	r.worker("w1", "p1", stall)
	w2 := r.worker("w2", "p1", stall)
	id := r.submit("one", func(j *jobspec.Job) {
		j.Cluster.WorldSize, j.Cluster.Workers.Min, j.Cluster.Workers.Max = 2, 2, 2
		j.Train.GlobalBatch, j.Train.Steps = 2, 1000
		j.Checkpoint.Every = 8
	})
	w2.waitForOrders(t, "an assignment", func(o *skeinv1.Orders) bool { return o.GetAssignment() != nil })
	report := &skeinv1.BrokenRequest{Sender: w2.sender(), Job: id, Generation: 1, Accused: "w1", Reason: "timed out\n(reduce, step 3)"}
	if _, err := w2.api.Broken(r.ctx(), report); err != nil {
		t.Fatal(err)
	}
	o := w2.waitForOrders(t, "generation 2", func(o *skeinv1.Orders) bool { return o.GetAssignment().GetGeneration() == 2 })
	if n := len(o.GetAssignment().GetMembers()); n != 2 {
		t.Errorf("generation 2 has %d workers", n)
	}
	if j := r.get(id); !strings.Contains(j.GetReason(), "w2 reports: timed out (reduce, step 3)") {
		t.Errorf("the reason is %q", j.GetReason())
	}
	if _, err := w2.api.Broken(r.ctx(), report); skeinv1.RefusalOf(err).GetKind() != skeinv1.Refusal_KIND_FENCED {
		t.Errorf("an old report was taken: %v", err)
	}
	if _, err := w2.api.Fail(r.ctx(), &skeinv1.FailRequest{Sender: w2.sender(), Job: id, Generation: 2, Reason: "record 7 of train.jsonl is unreadable"}); err != nil {
		t.Fatal(err)
	}
	if j := r.get(id); j.GetPhase() != skeinv1.Phase_PHASE_FAILED || j.GetReason() != "w2: record 7 of train.jsonl is unreadable" {
		t.Errorf("it failed as %v", j)
	}
}

func TestJobsAreCanceledInEveryPhase(t *testing.T) {
	r := newRig(t, 1, nil)
	cancel := func(id string) {
		t.Helper()
		for range 2 { // a client may repeat itself
			if _, err := r.jobs.Cancel(r.ctx(), &skeinv1.CancelRequest{Job: id, Reason: "not needed"}); err != nil {
				t.Fatal(err)
			}
		}
		if j := r.get(id); j.GetPhase() != skeinv1.Phase_PHASE_CANCELED || j.GetReason() != "canceled: not needed" {
			t.Errorf("canceled as %v", j)
		}
	}
	cancel(r.submit("waiting", nil))
	w := r.worker("w1", "p1", func(w *fakeWorker) { w.idle = true })
	preparing := r.submit("preparing", nil)
	w.waitForOrders(t, "a preparation", func(o *skeinv1.Orders) bool { return o.GetPreparation() != nil })
	cancel(preparing)
	w.waitForOrders(t, "no preparation", func(o *skeinv1.Orders) bool { return o.GetPreparation() == nil })
	w.kill()
	w2 := r.worker("w2", "p1", func(w *fakeWorker) { w.unreadable = true })
	queued := r.submit("queued", nil)
	r.eventually(queued, "it waits for a worker that reads the store", func(j *skeinv1.Job) bool {
		return strings.Contains(j.GetWaitingFor(), "w2 is unable to read /store: permission denied")
	})
	cancel(queued)
	w2.kill()
	w3 := r.worker("w3", "p1", func(w *fakeWorker) { w.stall = true })
	running := r.submit("running", nil)
	w3.waitForOrders(t, "an assignment", func(o *skeinv1.Orders) bool { return o.GetAssignment() != nil })
	cancel(running)
	w3.waitForOrders(t, "no assignment", func(o *skeinv1.Orders) bool { return o.GetAssignment() == nil })
	w3.kill()
	_, err := r.jobs.Cancel(r.ctx(), &skeinv1.CancelRequest{Job: "nobody"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("canceled nobody: %v", err)
	}
}

func TestBadSubmissionsAreRefused(t *testing.T) {
	r := newRig(t, 1, nil)
	good := "request-0123456789"
	for what, c := range map[string]struct {
		request string
		spec    []byte
		want    string
	}{
		"no request id": {"", spec(t, nil), "request id"},
		"garbage":       {good, []byte("{"), "cannot be read"},
		"unknown key":   {good, []byte(`{"speed":11}`), "speed"},
		"trailing":      {good, append(spec(t, nil), "{}"...), "something follows"},
		"invalid":       {good, spec(t, func(j *jobspec.Job) { j.Cluster.WorldSize = 99 }), "worldSize"},
		"relative path": {good, spec(t, func(j *jobspec.Job) { j.Model.Base = "./model" }), "model.base"},
		"too large":     {good, make([]byte, submitBytesMax+1), "is the most"},
		"long path":     {good, spec(t, func(j *jobspec.Job) { j.Checkpoint.Store = "/" + strings.Repeat("x", pathBytesMax) }), "checkpoint.store: a path"},
	} {
		_, err := r.jobs.Submit(r.ctx(), &skeinv1.SubmitRequest{RequestId: c.request, Spec: c.spec})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want it refused because of %q", what, err, c.want)
		}
	}
	r.submit("same", nil)
	_, err := r.jobs.Submit(r.ctx(), &skeinv1.SubmitRequest{RequestId: "request-00000000-same", Spec: spec(t, func(j *jobspec.Job) { j.Train.Seed = 5 })})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("one request id for two jobs: %v", err)
	}
}

func TestOtherProtocolsAndClustersAreRefused(t *testing.T) {
	r := newRig(t, 1, nil)
	r.until("c1 takes sessions", func() bool { return r.running["c1"].leading() != nil })
	conn, err := grpc.NewClient("passthrough:///"+r.members[0].Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, protocol := range []string{"", "999"} {
		ctx := metadata.AppendToOutgoingContext(r.ctx(), skeinv1.ProtocolKey, protocol)
		_, err = skeinv1.NewClusterClient(conn).Status(ctx, &skeinv1.StatusRequest{})
		if skeinv1.RefusalOf(err).GetKind() != skeinv1.Refusal_KIND_PROTOCOL {
			t.Errorf("protocol %q: %v", protocol, err)
		}
	}
	for what, c := range map[string]struct {
		hello *skeinv1.Hello
		code  codes.Code
	}{
		"other cluster": {&skeinv1.Hello{Cluster: "other", Worker: "w", Incarnation: "p", RingAddress: "a", StreamAddress: "b", NumericClasses: []string{"generic r1"}}, codes.FailedPrecondition},
		"nameless":      {&skeinv1.Hello{Cluster: "test", Incarnation: "p", RingAddress: "a", StreamAddress: "b", NumericClasses: []string{"generic r1"}}, codes.InvalidArgument},
		"a bad name":    {&skeinv1.Hello{Cluster: "test", Worker: "w\n", Incarnation: "p", RingAddress: "a", StreamAddress: "b", NumericClasses: []string{"generic r1"}}, codes.InvalidArgument},
		"nowhere":       {&skeinv1.Hello{Cluster: "test", Worker: "w", Incarnation: "p", NumericClasses: []string{"generic r1"}}, codes.InvalidArgument},
		"no class":      {&skeinv1.Hello{Cluster: "test", Worker: "w", Incarnation: "p", RingAddress: "a", StreamAddress: "b"}, codes.InvalidArgument},
	} {
		stream, err := skeinv1.NewWorkersClient(r.conn).Session(r.ctx())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Hello{Hello: c.hello}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != c.code {
			t.Errorf("%s: %v, want %s", what, err, c.code)
		}
	}
	silent, err := skeinv1.NewWorkersClient(r.conn).Session(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if err := silent.Send(&skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Heartbeat{}}); err != nil {
		t.Fatal(err)
	}
	if _, err := silent.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no hello: %v", err)
	}
	r.worker("w1", "p1", nil).waitForOrders(t, "any", func(*skeinv1.Orders) bool { return true })
	stream, err := skeinv1.NewWorkersClient(r.conn).Session(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	twin := &skeinv1.Hello{Cluster: "test", Worker: "w1", Incarnation: "p2", RingAddress: "a", StreamAddress: "b", NumericClasses: []string{"generic r1"}}
	if err := stream.Send(&skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Hello{Hello: twin}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.AlreadyExists {
		t.Errorf("two processes named w1: %v", err)
	}
}

func TestAWorkersResolutionIsCheckedByTheCoordinator(t *testing.T) {
	r := newRig(t, 1, nil)
	w := r.worker("w1", "p1", func(w *fakeWorker) { w.idle = true })
	id := r.submit("one", nil)
	p := w.waitForOrders(t, "a preparation", func(o *skeinv1.Orders) bool { return o.GetPreparation() != nil }).GetPreparation()
	good, err := resolved(p.GetSpec())
	if err != nil {
		t.Fatal(err)
	}
	reseeded, err := resolved(spec(t, func(j *jobspec.Job) { j.Train.Seed++ }))
	if err != nil {
		t.Fatal(err)
	}
	request := func(change func(*skeinv1.PreparedRequest)) *skeinv1.PreparedRequest {
		q := &skeinv1.PreparedRequest{Sender: w.sender(), Job: id, Number: 1, Resolved: good, Step0: &skeinv1.Checkpoint{Manifest: "m", Weights: "00"}}
		change(q)
		return q
	}
	for what, c := range map[string]struct {
		change func(*skeinv1.PreparedRequest)
		code   codes.Code
	}{
		"another seed": {func(q *skeinv1.PreparedRequest) {
			q.Resolved = reseeded
		}, codes.InvalidArgument},
		"another class": {func(q *skeinv1.PreparedRequest) {
			q.Resolved = []byte(strings.Replace(string(good), "generic r1", "avx512 r1", 1))
		}, codes.InvalidArgument},
		"garbage":       {func(q *skeinv1.PreparedRequest) { q.Resolved = []byte("{") }, codes.InvalidArgument},
		"no step 0":     {func(q *skeinv1.PreparedRequest) { q.Step0 = nil }, codes.InvalidArgument},
		"other try":     {func(q *skeinv1.PreparedRequest) { q.Number = 2 }, codes.Aborted},
		"other worker":  {func(q *skeinv1.PreparedRequest) { q.Sender.Worker = "w2" }, codes.Aborted},
		"other process": {func(q *skeinv1.PreparedRequest) { q.Sender.Incarnation = "p0" }, codes.Aborted},
		"other job":     {func(q *skeinv1.PreparedRequest) { q.Job = "nobody" }, codes.NotFound},
	} {
		if _, err := w.api.Prepared(r.ctx(), request(c.change)); status.Code(err) != c.code {
			t.Errorf("%s: %v, want %s", what, err, c.code)
		}
	}
	for range 2 {
		if _, err := w.api.Prepared(r.ctx(), request(func(*skeinv1.PreparedRequest) {})); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPlainTextIsForLoopbackAlone(t *testing.T) {
	c := Config{ID: "c1", Dir: t.TempDir(), Listen: "0.0.0.0:0", Advertise: "127.0.0.1:7401", Alone: true}
	if _, err := Start(c); err == nil || !strings.Contains(err.Error(), "needs TLS") {
		t.Fatalf("it listens to everybody: %v", err)
	}
	c.Insecure = true
	co, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := co.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestPlainTextToOtherMachinesIsRefused(t *testing.T) {
	const far = "192.0.2.7:7401" // of documentation: nobody answers
	for what, change := range map[string]func(*Config){
		"a member":  func(c *Config) { c.Members = append(c.Members, raftlog.Server{ID: "c2", Address: far}) },
		"advertise": func(c *Config) { c.Advertise = far },
	} {
		c := Config{ID: "c1", Dir: t.TempDir(), Listen: "127.0.0.1:0", Members: []raftlog.Server{{ID: "c1", Address: "127.0.0.1:7401"}}}
		c.EnsureDefaults()
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), far+" is another machine") {
			t.Errorf("%s: %v", what, err)
		}
		c.Insecure = true
		if err := c.Validate(); err != nil {
			t.Errorf("%s, and nobody minds: %v", what, err)
		}
	}
	r := newRig(t, 1, nil)
	_, err := r.ops.AddCoordinator(r.ctx(), &skeinv1.AddCoordinatorRequest{Id: "c2", Address: far})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "is another machine") {
		t.Errorf("one was added: %v", err)
	}
	// What the log brings from others is looked at too.
	if conn, err := r.running["c1"].port.dial(r.ctx(), far); err == nil || !strings.Contains(err.Error(), "is another machine") {
		if err == nil {
			conn.Close()
		}
		t.Errorf("it was dialed: %v", err)
	}
}

func TestBadConfigurationsAreNamed(t *testing.T) {
	r := newRig(t, 1, nil)
	for what, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"port in use":       {func(c *Config) { c.Dir = t.TempDir() }, "in use"},
		"folder in use":     {func(c *Config) { c.Listen = freeAddress(t); c.Advertise = c.Listen; c.Members = nil }, "another process"},
		"no id":             {func(c *Config) { c.ID = "" }, "id:"},
		"no address":        {func(c *Config) { c.Listen = "" }, "listen:"},
		"no host":           {func(c *Config) { c.Listen = "7902" }, `listen: "7902" is not a host:port`},
		"no port":           {func(c *Config) { c.Members[0].Address = "localhost" }, `members: "localhost" is not a host:port`},
		"every address":     {func(c *Config) { c.Listen = ":7401" }, "advertise:"},
		"alone with others": {func(c *Config) { c.Alone = true }, "members:"},
		"short lease":       {func(c *Config) { c.Membership.Lease = time.Millisecond }, "lease:"},
		"not a member":      {func(c *Config) { c.ID, c.Listen = "c9", freeAddress(t) }, "not among"},
	} {
		config := r.config(r.members[0])
		config.Members = slices.Clone(config.Members)
		c.change(&config)
		co, err := Start(config)
		if err == nil {
			_ = co.Stop()
			t.Fatalf("%s: it started", what)
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want it to say %q", what, err, c.want)
		}
	}
}

func TestOneThatWaitsToBeAddedSaysHow(t *testing.T) {
	var log bytes.Buffer
	lone, err := Start(Config{ID: "c5", Dir: t.TempDir(), Listen: "127.0.0.1:0", Cluster: "test", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := lone.Ready(); err == nil || !strings.Contains(err.Error(), "no cluster") {
		t.Errorf("it is ready: %v", err)
	}
	if err := lone.Stop(); err != nil {
		t.Error(err)
	}
	if want := "skein coordinator add c5 " + lone.Address(); strings.Count(log.String(), want) != 1 {
		t.Errorf("it does not say %q once:\n%s", want, &log)
	}
}

func TestThreeCoordinatorsOutliveTheirLeader(t *testing.T) {
	r := newRig(t, 3, nil)
	w := r.worker("w1", "p1", nil)
	r.worker("w2", "p1", nil)
	r.joined(2)
	id := r.submit("one", func(j *jobspec.Job) { j.Train.Steps = 24 })
	first := r.leader()
	r.stop(first)
	r.eventually(id, "the job is done under another leader", inPhase(skeinv1.Phase_PHASE_DONE))
	if second := r.leader(); second == first {
		t.Errorf("%s leads and is stopped", second)
	}
	for _, m := range r.members {
		if m.ID == first {
			r.start(m)
		}
	}
	if _, err := r.ops.TransferLeadership(r.ctx(), &skeinv1.TransferLeadershipRequest{}); err != nil {
		t.Fatal(err)
	}
	if again := r.submit("one", nil); again != id {
		t.Errorf("the retry of %s under a third leader made %s", id, again)
	}
	w.waitForOrders(t, "orders of the new leader", func(o *skeinv1.Orders) bool { return o.GetAssignment() == nil })
}

func TestACoordinatorIsReplaced(t *testing.T) {
	r := newRig(t, 1, nil)
	id := r.submit("one", nil)
	address := freeAddress(t)
	c := r.config(raftlog.Server{ID: "c2", Address: address})
	c.Members = nil
	second, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	r.running["c2"] = second
	if _, err := r.ops.AddCoordinator(r.ctx(), &skeinv1.AddCoordinatorRequest{Id: "c2", Address: address}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ops.AddCoordinator(r.ctx(), &skeinv1.AddCoordinatorRequest{Id: "c3", Address: address}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("two coordinators at one address: %v", err)
	}
	for r.leader() != "c2" { // a transfer may be lost to an election
		if _, err := r.ops.TransferLeadership(r.ctx(), &skeinv1.TransferLeadershipRequest{Id: "c2"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.ops.RemoveCoordinator(r.ctx(), &skeinv1.RemoveCoordinatorRequest{Id: "c1"}); err != nil {
		t.Fatal(err)
	}
	r.stop("c1")
	// The client was given c1's address alone, and has heard of c2 since.
	if j := r.get(id); j.GetId() != id {
		t.Errorf("the job is %v", j)
	}
}
