package agent

import (
	"context"
	"errors"
	"time"

	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/pki"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker"
)

// task is the task that runs.
type task struct {
	cancel     context.CancelFunc
	checkpoint chan struct{} // one token: somebody asks for a checkpoint
	yield      chan struct{} // one token: the ring is to stop after the next step
	seal       chan struct{} // closed: stop at once, and say what is kept
	ringBytes  int64         // that it has reported; the task's own
}

// sealNow has the task stop and say what it keeps; if it does not, it is stopped without.
func (t *task) sealNow(wait time.Duration) {
	close(t.seal)
	time.AfterFunc(wait, t.cancel) // of a task that has ended it is of no effect
}

// start runs do as a task, and lets the state know how it ended. One that is sealed from
// the start only says what is kept.
func (a *agent) start(t Task, sealed bool, do func(context.Context, *task) (*skeinv1.PreparedRequest, error)) {
	ctx, cancel := context.WithCancel(a.ctx)
	running := &task{cancel: cancel, checkpoint: make(chan struct{}, 1), yield: make(chan struct{}, 1), seal: make(chan struct{})}
	if a.task = running; sealed {
		running.sealNow(a.config.sealWait)
	}
	a.log.Info("task starts", "job", t.Job, "generation", t.Generation, "preparation", t.Preparation)
	a.metrics.begin(t)
	a.done.Go(func() {
		defer cancel()
		began := time.Now()
		prepared, err := do(ctx, running)
		e := outcome(ctx, err)
		e.Task, e.Prepared = t, prepared
		a.metrics.finish(e)
		a.log.Info("task ended", "job", t.Job, "generation", t.Generation, "preparation", t.Preparation, "how", e.How, "accused", e.Accused,
			"reason", e.Reason, "after", time.Since(began).Round(time.Millisecond))
		a.post(e)
	})
}

// outcome is how a task ended, by its error.
func outcome(ctx context.Context, err error) Ended {
	var broken *worker.BrokenError
	switch {
	case err == nil:
		return Ended{How: Done}
	case errors.As(err, &broken) && broken.Fenced:
		return Ended{How: Fenced, Reason: broken.Reason, Sealed: broken.Sealed}
	case errors.As(err, &broken):
		return Ended{How: Broken, Accused: broken.Accused, Reason: broken.Reason, Sealed: broken.Sealed, Diverged: broken.Diverged}
	case errors.Is(err, worker.ErrFenced):
		return Ended{How: Fenced, Reason: err.Error()}
	case ctx.Err() != nil:
		return Ended{How: Canceled, Reason: err.Error()}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return Ended{How: Broken, Reason: "it gave up waiting: " + err.Error()}
	}
	return Ended{How: Failed, Reason: err.Error()}
}

// prepare starts a preparation.
func (a *agent) prepare(o *skeinv1.Preparation) {
	a.start(Task{Job: o.GetJob(), Preparation: o.GetNumber()}, false, func(ctx context.Context, _ *task) (*skeinv1.PreparedRequest, error) {
		p, err := a.config.Tasks.Prepare(ctx, a.emit(o.GetJob(), 0), worker.PrepareConfig{Job: o.GetJob(), Spec: o.GetSpec()})
		if err != nil {
			return nil, err
		}
		return &skeinv1.PreparedRequest{
			Sender: a.sender(), Job: o.GetJob(), Number: o.GetNumber(), Resolved: p.Resolved, Step0: p.Step0, NonceObject: p.NonceObject, Nonce: p.Nonce,
			MemoryBytes: p.Memory,
		}, nil
	})
}

// host starts hosting ranks.
func (a *agent) host(o *skeinv1.Assignment) {
	a.start(Task{Job: o.GetJob(), Generation: o.GetGeneration()}, o.GetSeal(), func(ctx context.Context, t *task) (*skeinv1.PreparedRequest, error) {
		h := worker.HostConfig{
			Order: o, Worker: a.config.Name, Ring: a.ring, Streams: a.streams, Checkpoint: t.checkpoint, Yield: t.yield, Seal: t.seal,
			Publish: func(ctx context.Context, c *skeinv1.Checkpoint) error { return a.publish(ctx, o, c) },
			Complete: func(ctx context.Context, result []byte, spent *skeinv1.Spent) error {
				return a.complete(ctx, o, result, spent)
			},
			Report: func(p *skeinv1.Progress, phases worker.Phases) { a.report(o, t, p, phases) },
			Accuse: func(accused, reason string) { a.accuse(o, accused, reason) },
		}
		if a.config.TLS != nil {
			h.TLS, h.PeerName = a.config.TLS.Expect(pki.Worker), workerName
		}
		return nil, a.config.Tasks.Host(ctx, a.emit(o.GetJob(), o.GetGeneration()), h)
	})
}

// makeReady makes ready to enter a job.
func (a *agent) makeReady(o *skeinv1.Warm) {
	ctx, cancel := context.WithCancel(a.ctx)
	a.warming = cancel
	a.log.Info("makes ready", "job", o.GetJob())
	a.done.Go(func() {
		defer cancel()
		c := worker.WarmConfig{Order: o, Worker: a.config.Name, Streams: a.streams}
		if a.config.TLS != nil {
			c.TLS = a.config.TLS.Expect(pki.Worker)
		}
		e := Warmed{Job: o.GetJob()}
		if err := a.config.Tasks.Warm(ctx, a.emit(o.GetJob(), 0), c); err != nil {
			e.Err = err.Error()
			a.log.Warn("is not ready", "job", o.GetJob(), "err", err)
		}
		a.post(e)
	})
}

// emit is where a task's console events go: to whoever watches the job, and to the log.
func (a *agent) emit(job string, generation uint64) func(console.Event) {
	return func(e console.Event) {
		a.lines.add(time.Now(), job, e)
		a.metrics.event(e)
		if _, step := e.(console.Step); step {
			a.log.Debug(e.Name(), "job", job, "generation", generation, "event", e)
			return
		}
		a.log.Info(e.Name(), "job", job, "generation", generation, "text", e.Line())
	}
}

// report takes in what a step was like. It never blocks.
func (a *agent) report(o *skeinv1.Assignment, t *task, p *skeinv1.Progress, phases worker.Phases) {
	if !phases.Again {
		sent := phases.RingBytes // since the generation began
		phases.RingBytes -= t.ringBytes
		t.ringBytes = sent
		a.metrics.step(p, phases)
	}
	if p != nil {
		a.outbox.report(&skeinv1.JobProgress{Job: o.GetJob(), Progress: p})
	}
}

// publish puts a checkpoint into the log.
func (a *agent) publish(ctx context.Context, o *skeinv1.Assignment, c *skeinv1.Checkpoint) error {
	began := time.Now()
	err := a.decided(ctx, "publish", o.GetJob(), func(ctx context.Context) error {
		_, err := a.api.Publish(ctx, &skeinv1.PublishRequest{Sender: a.sender(), Job: o.GetJob(), Checkpoint: c})
		return err
	})
	if err == nil {
		a.metrics.publishSeconds.Observe(time.Since(began).Seconds())
		a.log.Info("published", "job", o.GetJob(), "generation", o.GetGeneration(), "step", c.GetStep(), "manifest", c.GetManifest())
	}
	return err
}

// complete ends a job in the log. What its console has said goes first.
func (a *agent) complete(ctx context.Context, o *skeinv1.Assignment, result []byte, spent *skeinv1.Spent) error {
	a.lines.flush(ctx, flushWait)
	return a.decided(ctx, "complete", o.GetJob(), func(ctx context.Context) error {
		_, err := a.api.Complete(ctx, &skeinv1.CompleteRequest{Sender: a.sender(), Job: o.GetJob(), Generation: o.GetGeneration(), Result: result, Spent: spent})
		return err
	})
}
