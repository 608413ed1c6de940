package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker"
)

func TestAJobGoesFromPreparingToDoneOnThreeWorkers(t *testing.T) {
	r := newRig(t, 1)
	for _, name := range []string{"w1", "w2", "w3"} {
		r.worker(name, nil)
	}
	r.joined(3)
	id := r.submit(func(j *jobspec.Job) { j.Cluster.WorldSize, j.Cluster.Workers.Max, j.Train.GlobalBatch = 3, 3, 3 })
	stream, err := r.jobs.Watch(r.ctx(), &skeinv1.WatchRequest{Job: id, Lines: true, LinesBefore: -1})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	seen := map[string]int{}
	last := map[string]uint64{}
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
		if l := m.GetLine(); l != nil {
			if l.GetSequence() != last[l.GetWorker()]+1 {
				t.Errorf("line %d of %s comes after line %d", l.GetSequence(), l.GetWorker(), last[l.GetWorker()])
			}
			last[l.GetWorker()] = l.GetSequence()
			seen[l.GetName()+" "+console.Unmarshal(l.GetName(), l.GetJson()).Line()]++
		}
	}
	if got, want := strings.Join(kinds, " "), "submitted preparing resolved generation published published published done"; got != want {
		t.Errorf("watched %s, want %s", got, want)
	}
	j := r.get(id)
	if j.GetPhase() != skeinv1.Phase_PHASE_DONE || string(j.GetResult()) != `{"loss":1.6}` || len(j.GetMembers()) != 0 {
		t.Errorf("it ended as %v", j)
	}
	for step := range 24 {
		if n := seen["step "+console.Step{Step: int64(step + 1), Steps: 24, Loss: 1.5}.Line()]; n != 1 {
			t.Errorf("step %d was seen %d times", step+1, n)
		}
	}
	for _, line := range []string{"note all done", "note w1 prepares"} {
		if seen[line] != 1 {
			t.Errorf("%q was seen %d times; seen: %v", line, seen[line], seen)
		}
	}
	if n := len(r.board.hosts); n != 3 {
		t.Errorf("%d workers hosted ranks: %v", n, r.board.hosts)
	}
}

func TestLosingTheLeaderStopsNothing(t *testing.T) {
	r := newRig(t, 3)
	gate := make(chan struct{})
	hold := func(_ *Config, f *fake) {
		f.host = func(ctx context.Context, _ func(console.Event), _ worker.HostConfig) (bool, error) {
			select {
			case <-gate:
				return false, nil
			case <-ctx.Done():
				return true, ctx.Err()
			}
		}
	}
	r.worker("w1", hold)
	r.worker("w2", hold)
	r.joined(2)
	id := r.submit(func(j *jobspec.Job) { j.Cluster.Workers.Max = 2 })
	r.until("both host ranks", func() bool { return r.board.has(&r.board.hosts, "w1:1") && r.board.has(&r.board.hosts, "w2:1") }, func() any { return r.board.hosts })
	out, err := r.ops.Nodes(r.ctx(), &skeinv1.NodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(out.GetCoordinators(), func(c *skeinv1.Coordinator) bool { return c.GetLeader() })
	r.stop(out.GetCoordinators()[i].GetId())
	close(gate) // what is published now has to wait for the next leader
	j := r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	if j.GetPublished().GetGeneration() != 1 || len(r.board.hosts) != 2 {
		t.Errorf("a new generation was needed: %v, %v", j, r.board.hosts)
	}
	stream, err := r.jobs.Watch(r.ctx(), &skeinv1.WatchRequest{Job: id, Lines: true, LinesBefore: -1})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if l := m.GetLine(); l != nil {
			seen[console.Unmarshal(l.GetName(), l.GetJson()).Line()]++
		}
	}
	for _, line := range []string{"w1 prepares", "all done"} { // the first was told to the leader that is gone
		if seen[line] != 1 {
			t.Errorf("the new leader shows %q %d times", line, seen[line])
		}
	}
}

// journal is a log that can be read while it is written.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) says(text string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Contains(j.text.String(), text)
}

func TestWithoutAQuorumTrainingGoesOnUntilItNeedsADecisionAndSaysSo(t *testing.T) {
	r, log := newRig(t, 3), &journal{}
	gate, steps := make(chan struct{}), make(chan int64, 100) // more than there are steps
	r.worker("w1", func(c *Config, f *fake) {
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
		f.host = func(ctx context.Context, _ func(console.Event), h worker.HostConfig) (bool, error) {
			select {
			case <-gate:
				return true, f.train(ctx, func(e console.Event) {
					if s, ok := e.(console.Step); ok {
						steps <- s.Step
					}
				}, h, f.board.of(h.Order))
			case <-ctx.Done():
				return true, ctx.Err()
			}
		}
	})
	r.joined(1)
	id := r.submit(nil)
	r.until("it hosts ranks", func() bool { return r.board.has(&r.board.hosts, "w1:1") }, func() any { return r.board.hosts })
	for _, m := range r.members { // the last of them cannot hand over
		r.stop(m.ID)
	}
	close(gate)
	for want := int64(1); want <= 8; want++ { // a checkpoint is due after 8, and only the log can say that it exists
		select {
		case got := <-steps:
			if got != want {
				t.Fatalf("step %d is taken where %d should be", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("step %d is never taken", want)
		}
	}
	for _, want := range []string{"the session was lost; the task goes on while the leader is looked for", `msg="the leader has not answered; asking again" call=publish`} {
		r.until("it says so: "+want, func() bool { return log.says(want) }, func() any { return r.board.ends })
	}
	if len(steps) > 0 {
		t.Errorf("step %d was taken though step 8 was not published", <-steps)
	}
	for _, m := range r.members {
		r.start(m)
	}
	if j := r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE)); j.GetPublished().GetGeneration() != 1 || len(r.board.hosts) != 1 {
		t.Errorf("a new generation was needed: %v, %v", j, r.board.hosts)
	}
}

func TestALeaderThatHangsIsLeft(t *testing.T) {
	r := newRig(t, 1)
	r.joined(0) // it leads, so the first address that is asked is kept
	line, monitor := newCable(t, r.members[0].Address), freeAddress(t)
	r.worker("w1", func(c *Config, _ *fake) {
		c.Coordinators, c.MonitorListen = []string{line.address, r.members[0].Address}, monitor
	})
	sessions := func(n int) {
		t.Helper()
		var body string
		r.until(fmt.Sprintf("session %d", n), func() bool {
			_, body = fetch(t, "http://"+monitor+"/metrics")
			return strings.Contains(body, fmt.Sprintf("skein_worker_sessions_total %d\n", n)) && strings.Contains(body, "skein_worker_session_up 1\n")
		}, func() any { return body })
	}
	sessions(1)
	line.stall() // as if the leader were stopped; the other address is a way round it
	sessions(2)
	r.joined(1)
}

func TestABrokenTaskGoesOnInANewGeneration(t *testing.T) {
	r := newRig(t, 1)
	r.worker("w1", func(_ *Config, f *fake) {
		f.host = func(ctx context.Context, emit func(console.Event), h worker.HostConfig) (bool, error) {
			if h.Order.GetGeneration() == 1 {
				return untilStopped(ctx, emit, h) // its ring does not turn
			}
			return false, nil
		}
	})
	r.worker("w2", func(_ *Config, f *fake) {
		f.host = func(_ context.Context, _ func(console.Event), h worker.HostConfig) (bool, error) {
			if h.Order.GetGeneration() == 1 {
				return true, &worker.BrokenError{Accused: "w1", Reason: "connection reset (reduce, step 3)"}
			}
			return false, nil
		}
	})
	r.joined(2)
	id := r.submit(func(j *jobspec.Job) { j.Cluster.Workers.Min, j.Cluster.Workers.Max = 2, 2; j.Train.Steps = 24 })
	r.until("generation 2 on both", func() bool { return r.board.has(&r.board.hosts, "w1:2") && r.board.has(&r.board.hosts, "w2:2") }, func() any { return r.get(id) })
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	out, err := r.jobs.Get(r.ctx(), &skeinv1.GetRequest{Job: id})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(out.GetEvents(), func(e *skeinv1.Event) bool {
		return strings.Contains(e.GetText(), "w2 reports: connection reset (reduce, step 3)")
	}) {
		t.Errorf("no event has the reason: %v", out.GetEvents())
	}
}

func TestAFailureEndsTheJobWithItsReason(t *testing.T) {
	r := newRig(t, 1)
	r.worker("w1", func(_ *Config, f *fake) {
		f.once = func(context.Context, worker.PrepareConfig) (worker.Preparation, error) {
			return worker.Preparation{}, errors.New("model.base: /models/tiny holds no model")
		}
	})
	id := r.submit(nil)
	j := r.eventually(id, "it failed", inPhase(skeinv1.Phase_PHASE_FAILED))
	if j.GetReason() != "w1: model.base: /models/tiny holds no model" {
		t.Errorf("it failed because %q", j.GetReason())
	}
}

func TestAnotherWorkerPreparesWhatOneCannot(t *testing.T) {
	r := newRig(t, 1)
	r.worker("w1", func(_ *Config, f *fake) {
		f.once = func(context.Context, worker.PrepareConfig) (worker.Preparation, error) {
			return worker.Preparation{}, &worker.BrokenError{Reason: "no space left on device"}
		}
	})
	r.joined(1)
	id := r.submit(nil)
	r.worker("w2", nil)
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
}

func TestCancelingStopsTheTaskInEachPhase(t *testing.T) {
	r := newRig(t, 1)
	preparing := make(chan struct{}, 1)
	p := r.worker("w1", func(_ *Config, f *fake) {
		f.host = untilStopped
		f.once = func(ctx context.Context, _ worker.PrepareConfig) (worker.Preparation, error) {
			preparing <- struct{}{}
			<-ctx.Done()
			return worker.Preparation{}, ctx.Err()
		}
	})
	cancel := func(id string) {
		t.Helper()
		if _, err := r.jobs.Cancel(r.ctx(), &skeinv1.CancelRequest{Job: id}); err != nil {
			t.Fatal(err)
		}
		r.eventually(id, "it is canceled", inPhase(skeinv1.Phase_PHASE_CANCELED))
	}
	first := r.submit(nil)
	select {
	case <-preparing:
	case <-time.After(patience):
		t.Fatal("nothing is prepared")
	}
	cancel(first)
	p.drain()
	if err := p.wait(); err != nil {
		t.Fatal(err)
	}
	r.worker("w2", func(_ *Config, f *fake) { f.host = untilStopped })
	second := r.submit(nil)
	r.until("w2 hosts ranks", func() bool { return r.board.has(&r.board.hosts, "w2:1") }, func() any { return r.get(second) })
	cancel(second)
	r.until("w2 has stopped", func() bool { return r.board.has(&r.board.ends, "w2:1 context canceled") }, func() any { return r.board.ends })
}

func TestAWorkerThatDrainsLeavesAfterACheckpointAndTheJobGoesOn(t *testing.T) {
	r := newRig(t, 1)
	first := make(chan int64, 1)
	r.worker("w1", func(_ *Config, f *fake) {
		f.host = func(ctx context.Context, _ func(console.Event), h worker.HostConfig) (bool, error) {
			if h.Order.GetGeneration() > 1 {
				first <- h.Order.GetResume().GetStep()
				return false, nil
			}
			select {
			case <-h.Checkpoint: // asked for by the worker that leaves
			case <-ctx.Done():
				return true, ctx.Err()
			}
			if err := h.Publish(ctx, &skeinv1.Checkpoint{Generation: 1, Step: 3, Manifest: "m", Weights: weights(3)}); err != nil {
				return true, err
			}
			<-ctx.Done()
			return true, ctx.Err()
		}
	})
	r.joined(1)
	w2 := r.worker("w2", func(_ *Config, f *fake) { f.host = untilStopped })
	r.joined(2)
	id := r.submit(func(j *jobspec.Job) { j.Cluster.Workers.Max = 2 })
	r.until("both host ranks", func() bool { return r.board.has(&r.board.hosts, "w1:1") && r.board.has(&r.board.hosts, "w2:1") }, func() any { return r.get(id) })
	w2.drain()
	if err := w2.wait(); err != nil {
		t.Fatal(err)
	}
	if !r.board.has(&r.board.ends, "w2:1 context canceled") {
		t.Errorf("w2 left while its task ran: %v", r.board.ends)
	}
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	if step := <-first; step != 3 {
		t.Errorf("generation 2 began at step %d", step)
	}
	r.joined(1)
}

func TestAWorkerThatIsNotReleasedInTimeLeaves(t *testing.T) {
	r := newRig(t, 1)
	p := r.worker("w1", func(c *Config, f *fake) { c.DrainWait, f.host = 50*time.Millisecond, untilStopped })
	id := r.submit(nil)
	r.until("w1 hosts ranks", func() bool { return r.board.has(&r.board.hosts, "w1:1") }, func() any { return r.get(id) })
	p.drain()
	if err := p.wait(); err != nil {
		t.Fatal(err)
	}
	if !r.board.has(&r.board.ends, "w1:1 context canceled") {
		t.Errorf("it left while its task ran: %v", r.board.ends)
	}
}

func TestAWorkerWhoseTaskHangsLeavesWithAnError(t *testing.T) {
	r := newRig(t, 1)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	p := r.worker("w1", func(c *Config, f *fake) {
		c.DrainWait, c.stopWait = 50*time.Millisecond, 50*time.Millisecond
		f.host = func(context.Context, func(console.Event), worker.HostConfig) (bool, error) { // as if its disk were dead
			<-release
			return true, nil
		}
	})
	id := r.submit(nil)
	r.until("w1 hosts ranks", func() bool { return r.board.has(&r.board.hosts, "w1:1") }, func() any { return r.get(id) })
	p.drain()
	if err := p.wait(); !errors.Is(err, errStuck) || !strings.Contains(err.Error(), "generation 1 of "+id) {
		t.Errorf("it left with %v", err)
	}
}

func TestAWorkerThatHasNotStoppedGetsNoOtherJob(t *testing.T) {
	r := newRig(t, 1)
	release := make(chan struct{})
	var once sync.Once
	free := func() { once.Do(func() { close(release) }) }
	t.Cleanup(free)
	r.worker("w1", func(_ *Config, f *fake) {
		f.host = func(_ context.Context, _ func(console.Event), h worker.HostConfig) (bool, error) {
			if strings.HasPrefix(h.Order.GetJob(), "second") {
				return false, nil
			}
			<-release
			return true, context.Canceled
		}
	})
	first := r.submit(nil)
	r.until("w1 hosts ranks", func() bool { return r.board.has(&r.board.hosts, "w1:1") }, func() any { return r.get(first) })
	if _, err := r.jobs.Cancel(r.ctx(), &skeinv1.CancelRequest{Job: first}); err != nil {
		t.Fatal(err)
	}
	second := r.submit(func(j *jobspec.Job) { j.Name = "second" })
	r.eventually(second, "it says who has not stopped", func(j *skeinv1.Job) bool {
		return strings.Contains(j.GetWaitingFor(), "busy with generation 1 of "+first)
	})
	free()
	r.eventually(second, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
}

func TestAWorkerThatWasGivenUpIsFencedAndBeginsAnew(t *testing.T) {
	r := newRig(t, 1)
	line := newCable(t, r.members[0].Address)
	published := make(chan error, 1)
	r.worker("w1", func(c *Config, f *fake) {
		c.Coordinators = []string{line.address}
		f.host = func(ctx context.Context, _ func(console.Event), h worker.HostConfig) (bool, error) {
			if h.Order.GetGeneration() > 1 {
				return false, nil
			}
			line.cut()
			published <- h.Publish(context.WithoutCancel(ctx), &skeinv1.Checkpoint{Generation: 1, Step: 1, Manifest: "m", Weights: weights(1)})
			return true, worker.ErrFenced
		}
	})
	r.joined(1)
	id := r.submit(func(j *jobspec.Job) { j.Cluster.Workers.Max = 1 })
	r.eventually(id, "w1 is given up", func(j *skeinv1.Job) bool { return j.GetGeneration() > 1 && j.GetPhase() == skeinv1.Phase_PHASE_QUEUED })
	line.mend()
	select {
	case err := <-published:
		if !errors.Is(err, worker.ErrFenced) {
			t.Errorf("a worker that was given up publishes: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the publication is never decided")
	}
	r.eventually(id, "w1 does it in a new generation", inPhase(skeinv1.Phase_PHASE_DONE))
}

func TestAnAnswerThatIsUnderWayIsTakenThoughTheTaskIsStopped(t *testing.T) {
	a := &agent{ctx: t.Context(), log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	err := a.decided(ctx, "complete", "a", func(ctx context.Context) error {
		cancel()
		return ctx.Err() // nobody has cut it off
	})
	if err != nil {
		t.Errorf("what the leader has decided is reported as %v", err)
	}
}

func TestAnotherClusterIsRefused(t *testing.T) {
	r := newRig(t, 1)
	err := r.worker("w1", func(c *Config, _ *fake) { c.Cluster = "production" }).wait()
	if err == nil || !strings.Contains(err.Error(), `"production"`) || !strings.Contains(err.Error(), `"test"`) {
		t.Errorf("it ended with %v", err)
	}
}

func TestTheSecondProcessOfANameIsRefused(t *testing.T) {
	r := newRig(t, 1)
	r.worker("w1", nil)
	r.joined(1)
	err := r.worker("w1", func(c *Config, _ *fake) { c.Dir += "-second" }).wait()
	if err == nil || !strings.Contains(err.Error(), "give this one another name") {
		t.Errorf("it ended with %v", err)
	}
	r.joined(1)
}

func TestAWorkerStartedAgainTakesItsPlace(t *testing.T) {
	r := newRig(t, 1)
	line := newCable(t, r.members[0].Address)
	r.worker("w1", func(c *Config, _ *fake) { c.Coordinators, c.NameWait = []string{line.address}, time.Hour })
	r.joined(1)
	line.cut() // its machine is gone, as far as anybody can see
	r.joined(0)
	r.worker("w1", func(c *Config, _ *fake) { c.NameWait = patience })
	r.joined(1)
}

func TestWithoutACoordinatorAWorkerIsNotReadyAndLeavesAtOnce(t *testing.T) {
	r := &rig{T: t, dir: t.TempDir()}
	address, monitor := freeAddress(t), freeAddress(t)
	p := r.worker("w1", func(c *Config, _ *fake) { c.Coordinators, c.MonitorListen = []string{address}, monitor })
	var code int
	var body string
	r.until("it says that it is not ready", func() bool {
		code, body = fetch(t, "http://"+monitor+"/readyz")
		return code == http.StatusServiceUnavailable
	}, func() any { return fmt.Sprint(code, body) })
	if !strings.Contains(body, "no coordinator") {
		t.Errorf("it is not ready because of %q", body)
	}
	p.drain()
	if err := p.wait(); err != nil {
		t.Error(err)
	}
}

func TestAWorkerShowsWhatItDoes(t *testing.T) {
	r := newRig(t, 1)
	monitor := freeAddress(t)
	r.worker("w1", func(c *Config, _ *fake) { c.MonitorListen = monitor })
	id := r.submit(func(j *jobspec.Job) { j.Cluster.Workers.Max = 1 })
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	if code, body := fetch(t, "http://"+monitor+"/readyz"); code != http.StatusOK {
		t.Errorf("it is not ready: %d %s", code, body)
	}
	var body string
	r.until("the task has ended", func() bool {
		_, body = fetch(t, "http://"+monitor+"/metrics")
		return strings.Contains(body, `skein_worker_tasks_total{end="done",kind="generation"} 1`)
	}, func() any { return body })
	for _, line := range []string{
		"skein_worker_session_up 1", "skein_worker_steps_total 24", "skein_worker_ring_bytes_total 24000", `skein_worker_step_seconds_count{phase="compute"} 24`,
		"skein_worker_checkpoint_seconds_count 3", "skein_worker_checkpoint_bytes_total 15", `skein_worker_tasks_total{end="done",kind="preparation"} 1`,
		"skein_worker_loss 1.5", `skein_worker_info{build="test",classes="generic r1",node="node-w1",worker="w1"} 1`,
	} {
		if !strings.Contains(body, line+"\n") {
			t.Errorf("no %q in the metrics", line)
		}
	}
	if strings.Contains(body, "skein_worker_generation{") {
		t.Error("a generation is shown, and none is hosted")
	}
}

// fetch gets a page; code 0 if there is no server yet.
func fetch(t *testing.T, url string) (code int, body string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	response, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(b)
}
