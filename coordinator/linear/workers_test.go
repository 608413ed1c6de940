package linear

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// worker prepares what it is ordered to at once, and ends a job soon after it runs: it is
// the client that completes.
type worker struct {
	number  int
	name    string
	cluster *cluster
	api     skeinv1.WorkersClient
}

// work starts a worker that lives until ctx ends.
func (c *cluster) worker(ctx context.Context, number int) {
	conf := leader.Config{Build: "test"}
	for _, m := range c.members {
		conf.Addresses = append(conf.Addresses, m.Address)
	}
	conn, err := leader.New(conf)
	if err != nil {
		c.Fatal(err)
	}
	w := &worker{number: number, name: fmt.Sprint("w", number), cluster: c, api: skeinv1.NewWorkersClient(conn)}
	c.done.Go(func() {
		defer conn.Close()
		for ctx.Err() == nil {
			w.session(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
}

func (w *worker) sender() *skeinv1.Sender {
	return &skeinv1.Sender{Worker: w.name, Incarnation: w.name + "-1"}
}

// session is one session with a leader.
func (w *worker) session(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	defer done.Wait()
	defer cancel()
	stream, err := w.api.Session(ctx)
	if err != nil {
		return
	}
	if stream.Send(&skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Hello{Hello: &skeinv1.Hello{
		Cluster: "test", Worker: w.name, Incarnation: w.name + "-1", Node: w.name, Build: "test", RingAddress: w.name + ":1", StreamAddress: w.name + ":2",
		NumericClasses: []string{"generic r1"},
	}}}) != nil {
		return
	}
	done.Go(func() {
		beat := time.NewTicker(100 * time.Millisecond)
		defer beat.Stop()
		for n := uint64(1); stream.Send(&skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Heartbeat{Heartbeat: &skeinv1.Heartbeat{Sequence: n}}}) == nil; n++ {
			select {
			case <-ctx.Done():
				return
			case <-beat.C:
			}
		}
	})
	stop := func() {}
	defer func() { stop() }()
	for {
		m, err := stream.Recv()
		if err != nil {
			return
		}
		if o := m.GetOrders(); o != nil {
			stop()
			stop = w.obey(ctx, o)
		}
	}
}

// obey begins what is ordered, and returns how to end it.
func (w *worker) obey(ctx context.Context, o *skeinv1.Orders) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		switch a := o.GetAssignment(); {
		case o.GetPreparation() != nil:
			w.prepare(ctx, o.GetPreparation())
		case a.GetSeal():
			_, err := w.api.Broken(ctx, &skeinv1.BrokenRequest{Sender: w.sender(), Job: a.GetJob(), Generation: a.GetGeneration(), Reason: "told to stop", Sealed: &skeinv1.Sealed{Told: true}})
			w.expect(err)
		case a != nil && a.GetRanks()[0] == 0:
			w.train(ctx, a)
		}
	})
	return func() { cancel(); done.Wait() }
}

// expect reports errors that no fault explains.
func (w *worker) expect(err error) {
	switch status.Code(err) {
	case codes.OK, codes.Canceled, codes.Aborted, codes.Unavailable, codes.DeadlineExceeded, codes.FailedPrecondition:
	default:
		w.cluster.Errorf("%s: %v", w.name, err)
	}
}

func (w *worker) prepare(ctx context.Context, p *skeinv1.Preparation) {
	var j jobspec.Job
	err := json.Unmarshal(p.GetSpec(), &j)
	var resolved *jobspec.Resolved
	if err == nil {
		resolved, err = j.Resolve(jobspec.Facts{ModelHash: "aa", DataHash: "dd", Sequences: 1000, NumericClass: "generic r1", MicroBatch: 1})
	}
	if err != nil {
		w.cluster.Errorf("%s: %v", w.name, err)
		return
	}
	_, err = w.api.Prepared(ctx, &skeinv1.PreparedRequest{
		Sender: w.sender(), Job: p.GetJob(), Number: p.GetNumber(), Resolved: resolved.Canonical(), Step0: &skeinv1.Checkpoint{Manifest: "manifest-0", Weights: "00"},
	})
	w.expect(err)
}

// train takes the last step of a job, after a while, and completes it. To complete is
// repeated until there is an answer: once a job is done nothing comes in between.
func (w *worker) train(ctx context.Context, a *skeinv1.Assignment) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(time.Duration(rand.Int64N(int64(6 * w.cluster.pace)))):
	}
	const last = 8
	_, err := w.api.Publish(ctx, &skeinv1.PublishRequest{Sender: w.sender(), Job: a.GetJob(), Checkpoint: &skeinv1.Checkpoint{
		Generation: a.GetGeneration(), Step: last, Manifest: fmt.Sprint("manifest-", a.GetGeneration()), Weights: "08",
	}})
	w.expect(err)
	if err != nil {
		return
	}
	g, job := w.cluster.find(a.GetJob())
	if g == nil {
		return
	}
	told := g.history.ask(w.number, call{kind: complete, job: job})
	_, err = w.api.Complete(ctx, &skeinv1.CompleteRequest{Sender: w.sender(), Job: a.GetJob(), Generation: a.GetGeneration(), Result: []byte(`{"loss":1.6}`)})
	w.expect(err)
	out := answer{outcome: held}
	switch {
	case err != nil && uncertain(err):
		out.outcome = unknown
	case err != nil:
		out.outcome = refused
	}
	told(out)
}
