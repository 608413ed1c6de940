package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/leak"
	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

func TestMain(m *testing.M) { leak.Main(m) }

// fake is a coordinator that leads and says what a test has it say.
type fake struct {
	skeinv1.UnimplementedClusterServer
	skeinv1.UnimplementedJobsServer
	build    string
	jobs     []*skeinv1.Job
	specs    map[string]string // of jobs, by id
	protocol bool              // refuses every caller's

	mu       sync.Mutex
	requests []string // of submissions
	lost     int      // submissions whose answer gets lost
	arrived  func()   // told of each submission
	removed  []*skeinv1.RemoveCoordinatorRequest
	quiet    time.Duration              // that a stream goes on for without a word before it breaks
	streams  [][]*skeinv1.WatchResponse // one for each Watch; all but the last break
	watched  []*skeinv1.WatchRequest
}

func (f *fake) List(ctx context.Context, _ *skeinv1.ListRequest) (*skeinv1.ListResponse, error) {
	if f.protocol {
		return nil, skeinv1.Refuse(codes.FailedPrecondition, &skeinv1.Refusal{Kind: skeinv1.Refusal_KIND_PROTOCOL}, "the caller speaks protocol 1, this coordinator 2; install the same version on both")
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs(skeinv1.BuildKey, f.build)); err != nil {
		return nil, err
	}
	return &skeinv1.ListResponse{Jobs: f.jobs}, nil
}

func (f *fake) Status(context.Context, *skeinv1.StatusRequest) (*skeinv1.StatusResponse, error) {
	return &skeinv1.StatusResponse{Id: "c1", State: "leader", LeaderId: "c1"}, nil
}

func (f *fake) Get(_ context.Context, r *skeinv1.GetRequest) (*skeinv1.GetResponse, error) {
	for _, j := range f.jobs {
		if j.GetId() == r.GetJob() && f.specs[j.GetId()] != "" {
			return &skeinv1.GetResponse{Job: j, Spec: []byte(f.specs[j.GetId()])}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "there is no job %q", r.GetJob())
}

func (f *fake) RemoveCoordinator(_ context.Context, r *skeinv1.RemoveCoordinatorRequest) (*skeinv1.RemoveCoordinatorResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed = append(f.removed, r)
	return &skeinv1.RemoveCoordinatorResponse{}, nil
}

func (f *fake) Nodes(context.Context, *skeinv1.NodesRequest) (*skeinv1.NodesResponse, error) {
	return &skeinv1.NodesResponse{Coordinators: []*skeinv1.Coordinator{{Id: "c1", Leader: true}, {Id: "c2"}}}, nil
}

func (f *fake) TransferLeadership(context.Context, *skeinv1.TransferLeadershipRequest) (*skeinv1.TransferLeadershipResponse, error) {
	return nil, status.Error(codes.FailedPrecondition, "cannot transfer leadership to itself")
}

func (f *fake) Submit(_ context.Context, r *skeinv1.SubmitRequest) (*skeinv1.SubmitResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, r.GetRequestId())
	if f.arrived != nil {
		f.arrived()
	}
	if len(f.requests) <= f.lost {
		return nil, status.Error(codes.Unavailable, "leadership was lost on the way")
	}
	return &skeinv1.SubmitResponse{Job: "tiny-7f3a", Leader: "c1"}, nil
}

func (f *fake) Watch(r *skeinv1.WatchRequest, s skeinv1.Jobs_WatchServer) error {
	f.mu.Lock()
	f.watched = append(f.watched, r)
	stream := f.streams[0]
	last := len(f.streams) == 1
	if !last {
		f.streams = f.streams[1:]
	}
	f.mu.Unlock()
	for _, m := range stream {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	if !last {
		time.Sleep(f.quiet)
		return status.Error(codes.Unavailable, "not the leader any more")
	}
	return nil
}

// talk serves a fake and returns a client of it.
func talk(t *testing.T, f *fake, warn func(string)) *Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	skeinv1.RegisterClusterServer(s, f)
	skeinv1.RegisterJobsServer(s, f)
	go func() { _ = s.Serve(l) }() // ends with Stop
	t.Cleanup(s.Stop)
	c, err := New(Config{Coordinators: []string{l.Addr().String()}, Build: "ours", Patience: 20 * time.Second, Warn: warn})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func job(id, name string, phase skeinv1.Phase) *skeinv1.Job {
	return &skeinv1.Job{Id: id, Name: name, Phase: phase}
}

const (
	running  = skeinv1.Phase_PHASE_RUNNING
	done     = skeinv1.Phase_PHASE_DONE
	canceled = skeinv1.Phase_PHASE_CANCELED
)

func TestAJobIsMeantByIdBeginningOrNameOfTheOnlyActiveOne(t *testing.T) {
	jobs := []*skeinv1.Job{
		job("tiny-7f3a", "tiny", done), job("tiny-7fb0", "tiny", running), job("tiny-c001", "tiny", canceled), job("big-0001", "big", done),
		job("twin-0001", "twin", running), job("twin-0002", "twin", running), job("a", "a", running), job("ab", "ab", running),
	}
	for word, want := range map[string]string{
		"tiny-7f3a": "tiny-7f3a", "tiny-7fb": "tiny-7fb0", "tiny": "tiny-7fb0", "tiny-c": "tiny-c001", "big": "big-0001", "a": "a",
	} {
		if j, err := choose(jobs, word); err != nil || j.GetId() != want {
			t.Errorf("%q is %s, %v; want %s", word, j.GetId(), err, want)
		}
	}
	var ambiguous *AmbiguousError
	for _, word := range []string{"tiny-7f", "twin", "t"} {
		if _, err := choose(jobs, word); !errors.As(err, &ambiguous) || !strings.Contains(err.Error(), "give more of the id") {
			t.Errorf("%q: %v", word, err)
		}
	}
	var missing *NotFoundError
	for _, word := range []string{"none", "", "iny"} {
		if _, err := choose(jobs, word); !errors.As(err, &missing) {
			t.Errorf("%q: %v", word, err)
		}
	}
}

func TestAnotherBuildIsWarnedOfOnceAndAnotherProtocolRefused(t *testing.T) {
	var warnings []string
	c := talk(t, &fake{build: "theirs"}, func(text string) { warnings = append(warnings, text) })
	for range 3 {
		if _, err := c.List(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "build theirs, this is ours") {
		t.Errorf("warned %q", warnings)
	}
	c = talk(t, &fake{protocol: true}, nil)
	began := time.Now()
	_, err := c.List(t.Context(), false)
	if err == nil || !strings.Contains(err.Error(), "install the same version") || time.Since(began) > 5*time.Second {
		t.Errorf("another protocol: %v after %s", err, time.Since(began))
	}
}

func spec(t *testing.T) *Submission {
	t.Helper()
	j, err := jobspec.Read("job.yaml", strings.NewReader("name: tiny\nmodel: {base: m}\ndata: {train: [t.jsonl, /abs/*.jsonl]}\ntrain: {steps: 1, optimizer: {learningRate: 1e-4}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSubmission(j)
	if err != nil {
		t.Fatal(err)
	}
	if j.Model.Base != "m" || j.Data.Train[0] != "t.jsonl" {
		t.Error("the caller's job was changed")
	}
	return s
}

func TestASubmissionIsOneJobHoweverOftenItIsSent(t *testing.T) {
	f := &fake{lost: 2}
	c := talk(t, f, nil)
	id, leader, err := c.Submit(t.Context(), spec(t))
	if err != nil || id != "tiny-7f3a" || leader != "c1" {
		t.Fatalf("%s, %s, %v", id, leader, err)
	}
	if len(f.requests) != 3 || f.requests[0] != f.requests[2] || len(f.requests[0]) < 16 {
		t.Errorf("sent as %q", f.requests)
	}
}

func TestASubmissionWithoutAnAnswerMayHaveBeenTakenAndCanBeRepeated(t *testing.T) {
	f := &fake{lost: 1 << 30}
	c := talk(t, f, nil)
	c.config.Patience = 300 * time.Millisecond
	s := spec(t)
	_, _, err := c.Submit(t.Context(), s)
	unsure, ok := errors.AsType[*UncertainError](err)
	if _, unreachable := errors.AsType[*UnreachableError](err); !ok || !unreachable || unsure.Request != s.Request {
		t.Fatalf("without an answer: %v", err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	f.mu.Lock()
	f.arrived = interrupt
	f.mu.Unlock()
	if _, _, err := c.Submit(ctx, s); !errors.As(err, &unsure) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("interrupted: %v", err)
	}
	f.mu.Lock()
	f.lost, f.arrived = 0, nil
	f.mu.Unlock()
	again := spec(t)
	if err := again.Repeat(s.Request); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Submit(t.Context(), again); err != nil || f.requests[len(f.requests)-1] != f.requests[0] {
		t.Errorf("repeated: %v, as %q", err, f.requests)
	}
	for _, id := range []string{"", "short", strings.Repeat("A", 20), strings.Repeat("a", 65)} {
		if again.Repeat(id) == nil {
			t.Errorf("%q is taken for a request id", id)
		}
	}
}

func TestAnExportThatAnActiveJobWillWriteIsRefused(t *testing.T) {
	same, err := json.Marshal(spec(t).Job)
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(string(same), `"name":"tiny"`, `"name":"other"`, 1)
	if other == string(same) {
		t.Fatalf("no name in %s", same)
	}
	request := "0123456789abcdef"
	for what, c := range map[string]struct {
		theirs string
		phase  skeinv1.Phase
		again  bool
		taken  bool
	}{
		"the same job once more":        {string(same), running, false, false},
		"another job":                   {other, running, false, false},
		"another job, repeated":         {other, running, true, false},
		"the same job, repeated":        {string(same), running, true, true},
		"a job that has ended by now":   {other, canceled, false, true},
		"a job that nobody knows":       {"", running, false, true},
		"a job that writes elsewhere":   {strings.Replace(other, `"export":"`, `"export":"/elsewhere`, 1), running, false, true},
		"a job that nobody understands": {"{", running, false, true},
	} {
		f := &fake{jobs: []*skeinv1.Job{job("theirs-0001", "tiny", c.phase)}, specs: map[string]string{"theirs-0001": c.theirs}}
		s := spec(t)
		if c.again {
			if err := s.Repeat(request); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := talk(t, f, nil).Submit(t.Context(), s)
		rejected, ok := errors.AsType[*RejectedError](err)
		if c.taken && err != nil || !c.taken && (!ok || !strings.Contains(rejected.Reason, "theirs-0001") || len(f.requests) > 0) {
			t.Errorf("%s: %v; sent %q", what, err, f.requests)
		}
	}
}

func TestACoordinatorIsRemovedByForceOnlyIfThatIsAsked(t *testing.T) {
	f := &fake{}
	c := talk(t, f, nil)
	for _, force := range []bool{false, true} {
		if err := c.RemoveCoordinator(t.Context(), "c2", force); err != nil {
			t.Fatal(err)
		}
		if r := f.removed[len(f.removed)-1]; r.GetId() != "c2" || r.GetForce() != force {
			t.Errorf("asked for %v, want force %t", r, force)
		}
	}
}

func TestLeadershipIsHandedToWhoHasItAlready(t *testing.T) {
	c := talk(t, &fake{}, nil)
	if err := c.TransferLeadership(t.Context(), "c1"); err != nil {
		t.Errorf("to the leader: %v", err)
	}
	if c.TransferLeadership(t.Context(), "c2") == nil || c.TransferLeadership(t.Context(), "") == nil {
		t.Error("a refusal is taken for success")
	}
}

func TestSubmittedPathsAreAbsolute(t *testing.T) {
	s := spec(t)
	for _, p := range paths(s.Job) {
		if !strings.HasPrefix(*p, "/") {
			t.Errorf("%q is relative", *p)
		}
	}
	if s.Job.Data.Train[1] != "/abs/*.jsonl" {
		t.Errorf("an absolute path became %q", s.Job.Data.Train[1])
	}
}

func event(index uint64, at int64, kind, text string) *skeinv1.WatchResponse {
	return &skeinv1.WatchResponse{What: &skeinv1.WatchResponse_Event{Event: &skeinv1.Event{Index: index, AtUnixMs: at, Kind: kind, Text: text}}}
}

func line(worker string, sequence uint64, at int64, e console.Event) *skeinv1.WatchResponse {
	return &skeinv1.WatchResponse{What: &skeinv1.WatchResponse_Line{Line: &skeinv1.Line{Worker: worker, Sequence: sequence, AtUnixMs: at, Name: e.Name(), Json: console.Marshal(e)}}}
}

func state(phase skeinv1.Phase, result []byte) *skeinv1.WatchResponse {
	return &skeinv1.WatchResponse{What: &skeinv1.WatchResponse_Job{Job: &skeinv1.Job{Id: "tiny-7f3a", Phase: phase, Result: result}}}
}

// told watches the fake's job and returns the lines of its story.
func told(t *testing.T, f *fake) []string {
	t.Helper()
	c := talk(t, f, nil)
	var lines []string
	s := &Story{Job: "tiny-7f3a", Emit: func(e console.Event) { lines = append(lines, e.Name()+": "+e.Line()) }}
	defer s.Close()
	j, err := c.Watch(t.Context(), "tiny-7f3a", Watching{Lines: true, Before: 5}, s.Show)
	if err != nil {
		t.Fatal(err)
	}
	s.End(j)
	return lines
}

func TestAStoryIsToldOnceInOrderHoweverOftenItsStreamBreaks(t *testing.T) {
	step := func(n int64) console.Event { return console.Note{Text: fmt.Sprint("step ", n)} }
	f := &fake{streams: [][]*skeinv1.WatchResponse{
		{event(1, 10, "submitted", "x"), event(2, 20, "preparing", "w1 imports"), event(5, 40, "generation", "generation 1 from step 0: w1:0"),
			line("w1", 1, 30, step(0)), line("w1", 2, 50, step(1)), state(running, nil), line("w1", 3, 60, step(2))},
		{line("w1", 2, 50, step(1)), line("w1", 3, 60, step(2)), line("w1", 4, 70, step(3)), state(running, nil)},
		{line("w1", 1, 80, step(4)), state(done, console.Marshal(console.Done{Steps: 4, WeightsHash: "5b1c"})), event(9, 90, "done", "x")},
	}}
	got := strings.Join(told(t, f), "\n")
	want := `preparing: w1 imports
note: step 0
running: generation 1 from step 0: w1:0
note: step 1
note: step 2
note: step 3
note: step 4
done: 4 steps, 0 tokens in 0s · weights 5b1c`
	if got != want {
		t.Errorf("told\n%s\nwant\n%s", got, want)
	}
	if len(f.watched) != 3 || f.watched[0].GetLinesBefore() != 5 || f.watched[1].GetAfter() != 5 || f.watched[1].GetLinesBefore() != -1 {
		t.Errorf("asked for %v", f.watched)
	}
}

func TestAWatchThatHadNothingToShowForLongOutlivesItsLeader(t *testing.T) {
	f := &fake{quiet: 400 * time.Millisecond, streams: [][]*skeinv1.WatchResponse{{state(skeinv1.Phase_PHASE_QUEUED, nil)}, {state(done, nil)}}}
	c := talk(t, f, nil)
	c.config.WatchPatience = 300 * time.Millisecond
	j, err := c.Watch(t.Context(), "tiny-7f3a", Watching{}, func(*skeinv1.WatchResponse) {})
	if err != nil || j.GetPhase() != done {
		t.Errorf("%v, %v", j, err)
	}
}

func TestTheLastWordsOfAWorkerAreNotSaidTwice(t *testing.T) {
	e := console.Done{Steps: 4, WeightsHash: "5b1c"}
	f := &fake{streams: [][]*skeinv1.WatchResponse{{line("w1", 1, 1, e), state(done, console.Marshal(e))}}}
	if got := told(t, f); len(got) != 1 {
		t.Errorf("told %q", got)
	}
}

func TestWaitEndsAtThePhaseOrWithTheEndThatCameInstead(t *testing.T) {
	watch := func(phases ...skeinv1.Phase) *Client {
		var stream []*skeinv1.WatchResponse
		for _, p := range phases {
			stream = append(stream, state(p, nil))
		}
		return talk(t, &fake{streams: [][]*skeinv1.WatchResponse{stream}}, nil)
	}
	j, err := watch(skeinv1.Phase_PHASE_PREPARING, running, canceled).Wait(t.Context(), "tiny-7f3a", "running")
	if err != nil || j.GetPhase() != running {
		t.Errorf("for running: %v, %v", j, err)
	}
	_, err = watch(running, canceled).Wait(t.Context(), "tiny-7f3a", "done")
	ended, ok := errors.AsType[*EndedError](err)
	if !ok || !ended.Canceled() || ended.TooBig() {
		t.Errorf("for done: %v", err)
	}
	if _, err := watch(running, canceled).Wait(t.Context(), "tiny-7f3a", "over"); err != nil {
		t.Errorf("for any end: %v", err)
	}
	if _, err := watch().Wait(t.Context(), "tiny-7f3a", "levitating"); err == nil {
		t.Error("it waits for what never comes")
	}
}

func TestWhatMakesNoSenseIsRefusedBeforeAnybodyIsAsked(t *testing.T) {
	for want, c := range map[string]Config{
		"--coordinator host:port": {},
		"not host:port":           {Coordinators: []string{"here"}},
		"another machine":         {Coordinators: []string{"192.0.2.1:7401"}},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", c, err, want)
		}
	}
	local, far := Config{Coordinators: []string{"127.0.0.1:1", "localhost:2", "[::1]:3"}}, Config{Coordinators: []string{"127.0.0.1:1", "192.0.2.1:2"}}
	if !local.Local() || far.Local() {
		t.Error("what is this machine is taken for another")
	}
}
