package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/internal/pki"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// said is a line.
func said(worker string, sequence uint64, at int64) *skeinv1.Line {
	return &skeinv1.Line{Worker: worker, Sequence: sequence, AtUnixMs: at, Name: "note", Json: fmt.Appendf(nil, `{"text":"%s-%d"}`, worker, sequence)}
}

func key(l *skeinv1.Line) string {
	return fmt.Sprint(l.GetWorker(), "-", l.GetSequence(), "@", l.GetAtUnixMs())
}

func keys(list []*skeinv1.Line) string {
	var out []string
	for _, l := range list {
		out = append(out, key(l))
	}
	return strings.Join(out, " ")
}

func TestEachLineIsKeptOnceAndTheNewestOfThem(t *testing.T) {
	h := newMemory(time.Now())
	h.say("a", "p1", []*skeinv1.Line{said("w1", 1, 10), said("w1", 2, 30)})
	h.say("a", "p1", []*skeinv1.Line{said("w2", 1, 20)})
	told := h.told()
	h.say("a", "p1", []*skeinv1.Line{said("w1", 1, 10), said("w1", 2, 30)}) // a new session says them again
	select {
	case <-told:
		t.Error("watchers were woken for nothing")
	default:
	}
	h.say("a", "p2", []*skeinv1.Line{said("w1", 1, 40)}) // another process of the same name
	list, next := h.lastLines("a", -1)
	if got, want := keys(list), "w1-1@10 w2-1@20 w1-2@30 w1-1@40"; got != want || next != 4 {
		t.Errorf("kept %s, next %d, want %s", got, next, want)
	}
	if list, _ = h.lastLines("a", 2); keys(list) != "w1-2@30 w1-1@40" {
		t.Errorf("the last two are %s", keys(list))
	}
	if list, _ = h.lastLines("a", 0); len(list) != 0 {
		t.Errorf("none were wished, and came: %s", keys(list))
	}
	if list, next = h.linesFrom("a", 3); keys(list) != "w1-1@40" || next != 4 {
		t.Errorf("from 3 on: %s, next %d", keys(list), next)
	}
	for i := range uint64(linesMax + 10) {
		h.say("a", "p2", []*skeinv1.Line{said("w1", i+2, 50)})
	}
	list, next = h.linesFrom("a", 4)
	if len(list) != linesMax || next != linesMax+14 || list[len(list)-1].GetSequence() != linesMax+11 {
		t.Errorf("%d lines are kept, next %d, the last is %s", len(list), next, key(list[len(list)-1]))
	}
	if list, _ = h.linesFrom("a", next); len(list) != 0 {
		t.Errorf("behind the end there is %s", keys(list))
	}
}

func TestLinesGoWithTheirJob(t *testing.T) {
	h, s := newMemory(time.Now()), fsm.New()
	h.say("gone", "p1", []*skeinv1.Line{said("w1", 1, 10)})
	apply := func(d fsm.Decision) string {
		r := s.Apply(s.Index+1, fsm.Entry{Reason: "test", Decision: d})
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		return r.Job
	}
	var ids []string
	long := []byte(`"` + strings.Repeat("x", skeinv1.LineBytesMax-2) + `"`)
	for i := range linesBytesTotalMax/linesBytesMax + 2 {
		id := apply(&fsm.Submit{Request: fmt.Sprint(i), Name: "job", Spec: []byte("{}"), WorldSize: 1, WorkersMin: 1, WorkersMax: 1})
		for n := range uint64(linesBytesMax/skeinv1.LineBytesMax + 10) {
			h.say(id, "p1", []*skeinv1.Line{{Worker: "w1", Sequence: n + 1, Name: "note", Json: long}})
		}
		if list, _ := h.linesFrom(id, 0); len(list) != linesBytesMax/(skeinv1.LineBytesMax+lineBytesExtra) {
			t.Fatalf("%d long lines are kept", len(list))
		}
		if ids = append(ids, id); i > 0 {
			apply(&fsm.Cancel{Job: id})
		}
	}
	h.forget(time.Now(), s)
	has := func(id string) bool { list, _ := h.linesFrom(id, 0); return len(list) > 0 }
	if has("gone") || !has(ids[0]) || has(ids[1]) || has(ids[2]) || !has(ids[3]) {
		t.Errorf("kept: of a job that is gone %t, of one that runs %t, of the oldest that are over %t %t, of the next %t",
			has("gone"), has(ids[0]), has(ids[1]), has(ids[2]), has(ids[3]))
	}
}

// record is all that a client has seen of a job, over as many coordinators as it took.
type record struct {
	events []*skeinv1.Event
	lines  []*skeinv1.Line
	ended  error
}

// watch follows a job until it is over, as a client does: from the last event on, and
// without the lines that it has.
func (r *rig) watch(ctx context.Context, api skeinv1.JobsClient, job string, got *record) {
	seen := map[string]bool{}
	after := uint64(0)
	for {
		stream, err := api.Watch(ctx, &skeinv1.WatchRequest{Job: job, After: after, Lines: true, LinesBefore: -1})
		for err == nil {
			var m *skeinv1.WatchResponse
			if m, err = stream.Recv(); err != nil {
				break
			}
			switch what := m.GetWhat().(type) {
			case *skeinv1.WatchResponse_Event:
				after = what.Event.GetIndex()
				got.events = append(got.events, what.Event)
			case *skeinv1.WatchResponse_Line:
				if !seen[key(what.Line)] {
					seen[key(what.Line)] = true
					got.lines = append(got.lines, what.Line)
				}
			}
		}
		if errors.Is(err, io.EOF) || ctx.Err() != nil || status.Code(err) != codes.Unavailable {
			got.ended = err
			return
		}
	}
}

func TestAWatcherGetsEventsAndKeptLinesBeforeTheJob(t *testing.T) {
	r := newRig(t, 1, nil)
	w := r.worker("w1", "p1", func(w *fakeWorker) { w.idle = true })
	id := r.submit("one", nil)
	w.waitForOrders(t, "a preparation", func(o *skeinv1.Orders) bool { return o.GetPreparation() != nil })
	other := said("w2", 1, 5)
	w.say(id, said("w1", 1, 10), said("w1", 2, 20), other, said("w1", 3, 30))
	r.until("three lines are kept", func() bool {
		list, _ := r.running["c1"].leading().lastLines(id, -1)
		return len(list) == 3
	})
	stream, err := r.jobs.Watch(r.ctx(), &skeinv1.WatchRequest{Job: id, Lines: true, LinesBefore: 2})
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetJob() != nil {
			break
		}
		if l := m.GetLine(); l != nil {
			order = append(order, key(l))
		} else {
			order = append(order, m.GetEvent().GetKind())
		}
	}
	if got, want := strings.Join(order, " "), "submitted preparing w1-2@20 w1-3@30"; got != want {
		t.Errorf("came %s, want %s", got, want)
	}
	w.say(id, said("w1", 4, 40))
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if l := m.GetLine(); l != nil {
			if key(l) != "w1-4@40" {
				t.Errorf("the next line is %s", key(l))
			}
			break
		}
	}
	// The last line comes after the job's end, and is shown.
	if _, err := r.jobs.Cancel(r.ctx(), &skeinv1.CancelRequest{Job: id}); err != nil {
		t.Fatal(err)
	}
	w.say(id, said("w1", 5, 50))
	var last []string
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if l := m.GetLine(); l != nil {
			last = append(last, key(l))
		}
	}
	if !slices.Equal(last, []string{"w1-5@50"}) {
		t.Errorf("after the end came %v", last)
	}
}

func TestAWatchGoesOnUnderTheNextLeaderAndShowsNothingTwice(t *testing.T) {
	r := newRig(t, 3, newCA(t, "test"))
	w := r.worker("w1", "p1", func(w *fakeWorker) { w.chatty = true })
	r.worker("w2", "p1", func(w *fakeWorker) { w.chatty = true })
	r.joined(2)
	w.hold() // takes no step until it is let go
	id := r.submit("one", nil)
	var got record
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.watch(r.ctx(), skeinv1.NewJobsClient(r.dial(pki.Client, "alice")), id, &got)
	}()
	r.eventually(id, "it runs", inPhase(skeinv1.Phase_PHASE_RUNNING))
	first := r.leader()
	r.stop(first)
	w.letGo()
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the watch never ends")
	}
	if !errors.Is(got.ended, io.EOF) {
		t.Errorf("the watch ended with %v", got.ended)
	}
	var kinds []string
	for i, e := range got.events {
		if i > 0 && e.GetIndex() <= got.events[i-1].GetIndex() {
			t.Errorf("event %d after %d", e.GetIndex(), got.events[i-1].GetIndex())
		}
		kinds = append(kinds, e.GetKind())
	}
	if kinds[0] != "submitted" || kinds[len(kinds)-1] != "done" || !slices.Contains(kinds, "resolved") {
		t.Errorf("watched %v", kinds)
	}
	// Every line that a worker said is there; the client has dropped what came twice.
	want := w.lines()
	var of []string
	for _, l := range got.lines {
		if l.GetWorker() == "w1" {
			of = append(of, key(l))
		}
	}
	if len(want) < 5 || !slices.Equal(of, want) {
		t.Errorf("w1 said %v, and the client has %v", want, of)
	}
}
