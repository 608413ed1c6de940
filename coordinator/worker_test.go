package coordinator

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// fakeWorker obeys orders without computing anything: it prepares jobs at once, and
// takes a step each few milliseconds.
type fakeWorker struct {
	name, incarnation string
	rig               *rig
	conn              *leader.Conn
	api               skeinv1.WorkersClient
	cancel            context.CancelFunc
	done              sync.WaitGroup

	idle       bool                 // accepts preparations and prepares nothing
	stall      bool                 // accepts assignments and takes no step
	unreadable bool                 // cannot read the store
	chatty     bool                 // says a line at every step
	ring       *fakeRing            // keeps what it holds; nil: it never holds anything
	hello      func(*skeinv1.Hello) // changes what it says of itself; nil: nothing
	release    chan struct{}

	mu     sync.Mutex
	orders *skeinv1.Orders
	epoch  uint64                   // of the last welcome
	gate   chan struct{}            // no step is taken while it is open; nil: all are
	talk   []*skeinv1.WorkerMessage // all that it has said of jobs: lines, one each, and progress
	talked chan struct{}            // closed at the next line
}

func (r *rig) worker(name, incarnation string, change func(*fakeWorker)) *fakeWorker {
	r.Helper()
	conn := r.dial(pki.Worker, name)
	w := &fakeWorker{name: name, incarnation: incarnation, rig: r, conn: conn, api: skeinv1.NewWorkersClient(conn), release: make(chan struct{}), talked: make(chan struct{})}
	if change != nil {
		change(w)
	}
	ctx, cancel := context.WithCancel(r.Context())
	w.cancel = cancel
	w.done.Go(func() {
		for ctx.Err() == nil {
			if w.session(ctx) {
				close(w.release)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	r.Cleanup(w.kill)
	return w
}

// kill ends the worker without a word.
func (w *fakeWorker) kill() {
	w.cancel()
	w.done.Wait()
	w.conn.Close()
}

func (w *fakeWorker) sender() *skeinv1.Sender {
	return &skeinv1.Sender{Worker: w.name, Incarnation: w.incarnation}
}

func (w *fakeWorker) last() *skeinv1.Orders {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.orders
}

// say says lines of a job, now and again in every session to come.
func (w *fakeWorker) say(job string, list ...*skeinv1.Line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range list {
		w.talk = append(w.talk, &skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Lines{Lines: &skeinv1.JobLines{Job: job, Lines: []*skeinv1.Line{l}}}})
	}
	close(w.talked)
	w.talked = make(chan struct{})
}

// report says how a job gets on.
func (w *fakeWorker) report(job string, p *skeinv1.Progress) {
	w.mu.Lock()
	w.talk = append(w.talk, &skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Progress{Progress: &skeinv1.JobProgress{Job: job, Progress: p}}})
	w.mu.Unlock()
	w.say(job)
}

// tell says the worker's next line.
func (w *fakeWorker) tell(job string) {
	w.mu.Lock()
	n := uint64(len(w.talk) + 1)
	w.mu.Unlock()
	w.say(job, said(w.name, n, int64(n)))
}

// unsaid is what a session has not said yet, and when there is more.
func (w *fakeWorker) unsaid(from int) ([]*skeinv1.WorkerMessage, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.talk[from:len(w.talk):len(w.talk)], w.talked
}

// lines are the keys of all that it has said.
func (w *fakeWorker) lines() []string {
	var out []string
	list, _ := w.unsaid(0)
	for _, m := range list {
		for _, l := range m.GetLines().GetLines() {
			out = append(out, key(l))
		}
	}
	return out
}

// hold keeps the worker from taking steps until it is let go.
func (w *fakeWorker) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gate = make(chan struct{})
}

func (w *fakeWorker) letGo() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.gate)
	w.gate = nil
}

// mayStep waits while the worker is held.
func (w *fakeWorker) mayStep(ctx context.Context) {
	w.mu.Lock()
	gate := w.gate
	w.mu.Unlock()
	if gate == nil {
		return
	}
	select {
	case <-gate:
	case <-ctx.Done():
	}
}

// session is one session; it tells whether the worker was released.
func (w *fakeWorker) session(ctx context.Context) (released bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.api.Session(ctx)
	if err != nil {
		return false
	}
	hello := &skeinv1.Hello{
		Cluster: "test", Worker: w.name, Incarnation: w.incarnation, Node: "node-" + w.name, Build: "test",
		RingAddress: w.name + ":1", StreamAddress: w.name + ":2", NumericClasses: []string{"generic r1"},
	}
	if w.hello != nil {
		w.hello(hello)
	}
	err = stream.Send(&skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Hello{Hello: hello}})
	if err != nil {
		return false
	}
	answers := make(chan *skeinv1.WorkerMessage, 16) // probes come one or two at a time
	var done sync.WaitGroup
	defer done.Wait()
	defer cancel()
	done.Go(func() {
		spoken := 0
		for seq := uint64(1); ; seq++ {
			unsaid, more := w.unsaid(spoken)
			for _, m := range unsaid {
				if stream.Send(m) != nil {
					return
				}
				spoken++
			}
			m := &skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Heartbeat{Heartbeat: &skeinv1.Heartbeat{Sequence: seq, DataSets: []string{dataHash}, Warm: w.last().GetWarm().GetJob()}}}
			if stream.Send(m) != nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case a := <-answers:
				if stream.Send(a) != nil {
					return
				}
			case <-more:
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	work := func() {}
	defer func() { work() }()
	for {
		m, err := stream.Recv()
		if err != nil {
			return false
		}
		o := m.GetOrders()
		if welcome := m.GetWelcome(); welcome != nil {
			w.mu.Lock()
			w.epoch = welcome.GetEpoch()
			w.mu.Unlock()
		}
		if o == nil {
			continue
		}
		w.mu.Lock()
		w.orders = o
		w.mu.Unlock()
		work() // stop what was ordered before
		work = w.obey(ctx, o, answers)
		if o.GetReleased() {
			return true
		}
	}
}

// obey begins what is ordered, and returns how to end it.
func (w *fakeWorker) obey(ctx context.Context, o *skeinv1.Orders, answers chan<- *skeinv1.WorkerMessage) (stop func()) {
	for _, p := range o.GetProbes() {
		read := &skeinv1.StoreRead{Job: p.GetJob(), Nonce: "42"}
		if p.GetStore() != "/store/"+p.GetJob() || p.GetNonceObject() != "nonce" {
			w.rig.Errorf("%s is asked to read %q from %q", w.name, p.GetNonceObject(), p.GetStore())
		}
		if w.unreadable {
			read = &skeinv1.StoreRead{Job: p.GetJob(), Error: "permission denied"}
		}
		answers <- &skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_StoreRead{StoreRead: read}}
	}
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	if a := o.GetAssignment(); a != nil && w.ring != nil {
		done.Go(func() { w.ring.host(ctx, w, a) })
		return func() { cancel(); done.Wait() }
	}
	if p := o.GetPreparation(); p != nil && !w.idle {
		done.Go(func() { w.prepare(ctx, p) })
	}
	if a := o.GetAssignment(); a.GetSeal() {
		done.Go(func() { w.seal(ctx, a) })
	} else if a != nil && a.GetRanks()[0] == 0 && !w.stall {
		done.Go(func() { w.train(ctx, a) })
	}
	return func() { cancel(); done.Wait() }
}

const (
	modelHash = "aa"
	dataHash  = "dd"
)

// resolved is what a worker makes of a job.
func resolved(raw []byte) ([]byte, error) {
	j, err := parseSpec(raw)
	if err != nil {
		return nil, err
	}
	r, err := j.Resolve(jobspec.Facts{ModelHash: modelHash, DataHash: dataHash, Sequences: 1000, NumericClass: "generic r1", MicroBatch: 1})
	if err != nil {
		return nil, err
	}
	return r.Canonical(), nil
}

func (w *fakeWorker) prepare(ctx context.Context, p *skeinv1.Preparation) {
	spec, err := resolved(p.GetSpec())
	if err != nil {
		w.rig.Errorf("%s: %v", w.name, err)
		return
	}
	_, err = w.api.Prepared(ctx, &skeinv1.PreparedRequest{
		Sender: w.sender(), Job: p.GetJob(), Number: p.GetNumber(), Resolved: spec, Step0: &skeinv1.Checkpoint{Manifest: "manifest-0", Weights: weights(0)},
		NonceObject: "nonce", Nonce: "42", MemoryBytes: 1e9,
	})
	w.expect(err)
}

// expect reports errors that do not come from the faults of a test.
func (w *fakeWorker) expect(err error) {
	switch status.Code(err) {
	case codes.OK, codes.Canceled, codes.Aborted, codes.Unavailable, codes.DeadlineExceeded, codes.FailedPrecondition:
	default:
		w.rig.Errorf("%s: %v", w.name, err)
	}
}

func weights(step int64) string { return fmt.Sprintf("%064x", step) }

// seal says, once for each generation, that nothing is left of it here.
func (w *fakeWorker) seal(ctx context.Context, a *skeinv1.Assignment) {
	_, err := w.api.Broken(ctx, &skeinv1.BrokenRequest{Sender: w.sender(), Job: a.GetJob(), Generation: a.GetGeneration(), Reason: "told to stop", Sealed: &skeinv1.Sealed{Told: true}})
	w.expect(err)
}

// train takes steps as rank 0 of a generation.
func (w *fakeWorker) train(ctx context.Context, a *skeinv1.Assignment) {
	for step := a.GetResume().GetStep() + 1; step <= 24; step++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Millisecond):
		}
		w.mayStep(ctx)
		if w.chatty {
			w.tell(a.GetJob())
		}
		if step%8 != 0 && a.GetCheckpointRequest() == 0 {
			continue
		}
		_, err := w.api.Publish(ctx, &skeinv1.PublishRequest{Sender: w.sender(), Job: a.GetJob(), Checkpoint: &skeinv1.Checkpoint{
			Generation: a.GetGeneration(), Step: step, Manifest: fmt.Sprintf("manifest-%d-%d", a.GetGeneration(), step), Weights: weights(step),
		}})
		w.expect(err)
		if err != nil {
			return
		}
	}
	_, err := w.api.Complete(ctx, &skeinv1.CompleteRequest{Sender: w.sender(), Job: a.GetJob(), Generation: a.GetGeneration(), Result: []byte(`{"loss":1.6}`)})
	w.expect(err)
}

// waitForOrders waits until a worker's orders are as wanted.
func (w *fakeWorker) waitForOrders(t *testing.T, what string, ok func(*skeinv1.Orders) bool) *skeinv1.Orders {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		if o := w.last(); o != nil && ok(o) {
			return o
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s never got orders: %s; it has %v", w.name, what, w.last())
		}
		time.Sleep(10 * time.Millisecond)
	}
}
