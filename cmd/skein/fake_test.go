package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/internal/console"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// fakeLeader is a coordinator that has one running job, and answers no submission.
type fakeLeader struct {
	skeinv1.UnimplementedClusterServer
	skeinv1.UnimplementedJobsServer
	lines   []*skeinv1.Line
	arrived func() // told of each submission
}

func (f *fakeLeader) Status(context.Context, *skeinv1.StatusRequest) (*skeinv1.StatusResponse, error) {
	return &skeinv1.StatusResponse{Id: "c1", State: "leader", LeaderId: "c1"}, nil
}

func (f *fakeLeader) job() *skeinv1.Job {
	return &skeinv1.Job{Id: "tiny-7f3a", Name: "tiny", Phase: skeinv1.Phase_PHASE_RUNNING}
}

func (f *fakeLeader) List(context.Context, *skeinv1.ListRequest) (*skeinv1.ListResponse, error) {
	return &skeinv1.ListResponse{Jobs: []*skeinv1.Job{f.job()}}, nil
}

func (f *fakeLeader) Get(context.Context, *skeinv1.GetRequest) (*skeinv1.GetResponse, error) {
	return &skeinv1.GetResponse{Job: f.job(), Spec: []byte(`{}`)}, nil
}

func (f *fakeLeader) Submit(context.Context, *skeinv1.SubmitRequest) (*skeinv1.SubmitResponse, error) {
	f.arrived()
	return nil, status.Error(codes.Unavailable, "leadership was lost on the way")
}

func (f *fakeLeader) Watch(_ *skeinv1.WatchRequest, s skeinv1.Jobs_WatchServer) error {
	for _, l := range f.lines {
		if err := s.Send(&skeinv1.WatchResponse{What: &skeinv1.WatchResponse_Line{Line: l}}); err != nil {
			return err
		}
	}
	if err := s.Send(&skeinv1.WatchResponse{What: &skeinv1.WatchResponse_Job{Job: f.job()}}); err != nil {
		return err
	}
	late := console.Note{Text: "what comes later"}
	err := s.Send(&skeinv1.WatchResponse{What: &skeinv1.WatchResponse_Line{Line: &skeinv1.Line{Worker: "w1", Sequence: 99, AtUnixMs: 1, Name: late.Name(), Json: console.Marshal(late)}}})
	<-s.Context().Done()
	return err
}

// serve returns the fake's address.
func (f *fakeLeader) serve(t *testing.T) string {
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
	return l.Addr().String()
}

func TestLogsPrintsWhatIsKeptWhateverTheClocksOfWorkersSay(t *testing.T) {
	f := &fakeLeader{}
	for i, ahead := range []time.Duration{-time.Hour, time.Hour, 24 * time.Hour} {
		e := console.Note{Text: "said with a clock " + ahead.String() + " off"}
		f.lines = append(f.lines, &skeinv1.Line{Worker: "w1", Sequence: uint64(i + 1), AtUnixMs: time.Now().Add(ahead).UnixMilli(), Name: e.Name(), Json: console.Marshal(e)})
	}
	code, out, errs := skein(t, &notes{}, "", "logs", "tiny", "--coordinator", f.serve(t))
	if code != exitOK || errs != "" || strings.Count(out, "said with a clock") != len(f.lines) || strings.Contains(out, "later") {
		t.Errorf("status %d, printed %q, %q", code, out, errs)
	}
}

func TestASubmissionWithoutAnAnswerSaysHowToAskAgain(t *testing.T) {
	silent := fakeLeader{arrived: func() {}}
	args := []string{"submit", "-f", jobFile(t), "--connect-timeout", "300ms", "--coordinator", silent.serve(t)}
	says := func(errs string) bool {
		_, id, ok := strings.Cut(errs, "--request ")
		id, _, _ = strings.Cut(id, " ")
		return ok && len(id) >= 16 && strings.Contains(errs, "may have been taken") && strings.Contains(errs, "skein jobs") && strings.Count(errs, "\n") == 1
	}
	if code, out, errs := skein(t, &notes{}, "", args...); code != exitUnreachable || out != "" || !says(errs) {
		t.Errorf("status %d, printed %q, %q", code, out, errs)
	}
	const id = "0123456789abcdef"
	if _, _, errs := skein(t, &notes{}, "", append(args, "--request", id)...); !strings.Contains(errs, "--request "+id+" ") {
		t.Errorf("asked again under another id: %q", errs)
	}
	if code, _, errs := skein(t, &notes{}, "", append(args, "--request", "x")...); code != exitUsage || !strings.Contains(errs, `--request: "x" is no request id`) {
		t.Errorf("asked for what is no id: status %d, %q", code, errs)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	waiting := fakeLeader{arrived: interrupt}
	args[4], args[6] = "20s", waiting.serve(t)
	var out, errs bytes.Buffer
	if code := run(ctx, args, streams{in: strings.NewReader(""), out: &out, err: &errs}, &notes{}); code != exitInterrupted || !says(errs.String()) {
		t.Errorf("interrupted: status %d, printed %q, %q", code, out.String(), errs.String())
	}
	errs.Reset()
	if code := run(ctx, args, streams{in: strings.NewReader(""), out: &out, err: &errs}, &notes{}); code != exitInterrupted || !strings.Contains(errs.String(), "nothing was submitted") {
		t.Errorf("interrupted before: status %d, printed %q", code, errs.String())
	}
}
