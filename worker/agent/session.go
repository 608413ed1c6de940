package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

const (
	openWait     = 10 * time.Second // for a leader to be found and to say welcome
	quietWait    = 2 * time.Second  // for a first session, before somebody looks what keeps it
	pauseMin     = 50 * time.Millisecond
	pauseMax     = 2 * time.Second
	linesEvery   = 100 * time.Millisecond
	linesMax     = 200              // in one message
	heartbeatMin = time.Millisecond // between two, whatever a leader asks for
	leaseMin     = 100 * time.Millisecond
	flushWait    = 500 * time.Millisecond
	missesMax    = 2 // late answers in a row that a leader is left for
)

// sessions keeps a session with whoever leads, until the process ends. A worker that has
// never been let in, and hears why, ends with the reason; one that has been let in goes
// on trying, as its task does.
func (a *agent) sessions() {
	pause, taken, known := pauseMin, time.Time{}, false
	a.done.Go(func() {
		select {
		case <-a.ctx.Done():
		case <-time.After(a.config.quietWait):
			a.lookWhy()
		}
	})
	for a.ctx.Err() == nil {
		stood, err := a.oneSession()
		if a.ctx.Err() != nil {
			return
		}
		kind := skeinv1.RefusalOf(err).GetKind()
		a.lose(err, stood, kind)
		if stood {
			pause, taken, known = pauseMin, time.Time{}, true
			a.post(Lost{Fenced: kind == skeinv1.Refusal_KIND_FENCED})
		}
		switch code := status.Code(err); {
		case !known && (kind == skeinv1.Refusal_KIND_CLUSTER || kind == skeinv1.Refusal_KIND_PROTOCOL ||
			code == codes.InvalidArgument || code == codes.PermissionDenied || code == codes.Unauthenticated):
			a.stop(fmt.Errorf("the coordinator at %s refuses this worker: %s", a.conn.Address(), said(err)))
			return
		case code == codes.AlreadyExists:
			// The other process may be this worker's dead predecessor, which is given up soon.
			if taken.IsZero() {
				taken = time.Now()
			} else if time.Since(taken) > a.config.NameWait {
				a.stop(errors.New(said(err)))
				return
			}
		}
		select {
		case <-a.ctx.Done():
		case <-time.After(pause/2 + rand.N(pause)/2): // workers that lost the same leader come back one by one
		}
		pause = min(2*pause, pauseMax)
	}
}

// lookWhy warns of what keeps the first session: a wrong address or a lack of
// certificates would be waited for in silence.
func (a *agent) lookWhy() {
	if a.config.Why == nil || a.hasSession() {
		return
	}
	ctx, cancel := context.WithTimeout(a.ctx, a.config.openWait)
	defer cancel()
	if err := a.config.Why(ctx); err != nil && ctx.Err() == nil && !a.hasSession() {
		a.log.Warn("no session with a coordinator yet", "err", err)
	}
}

// hasSession tells whether there is one.
func (a *agent) hasSession() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.session.open
}

// said is what a refusal says, without gRPC's words around it.
func said(err error) string { return status.Convert(err).Message() }

// lose notes why there is no session, and logs it if it is news.
func (a *agent) lose(err error, stood bool, kind skeinv1.Refusal_Kind) {
	a.mu.Lock()
	news := stood || said(err) != said(a.session.lost)
	a.session.open, a.session.lost = false, errors.New(said(err))
	a.mu.Unlock()
	a.metrics.sessionUp.Set(0)
	switch {
	case kind == skeinv1.Refusal_KIND_FENCED:
		a.log.Warn("given up by the leader", "coordinator", a.conn.Address(), "err", said(err))
	case stood:
		a.log.Warn("the session was lost; the task goes on while the leader is looked for", "coordinator", a.conn.Address(), "err", said(err))
	case news:
		a.log.Warn("no session with a coordinator yet", "err", said(err))
	}
}

// oneSession is one session, from hello to its end. It tells whether the leader
// welcomed this worker.
func (a *agent) oneSession() (stood bool, err error) {
	ctx, cancel := context.WithCancelCause(a.ctx)
	defer cancel(nil)
	late := time.AfterFunc(a.config.openWait, func() { cancel(fmt.Errorf("no leader has answered for %s", a.config.openWait)) })
	defer late.Stop()
	s, err := a.api.Session(ctx)
	if err != nil {
		return false, err
	}
	if err := s.Send(&skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Hello{Hello: a.hello()}}); err != nil {
		_, err = s.Recv() // which has the reason
		return false, because(ctx, err)
	}
	first, err := s.Recv()
	if err != nil {
		return false, because(ctx, err)
	}
	welcome := first.GetWelcome()
	if welcome == nil {
		return false, status.Error(codes.FailedPrecondition, "the coordinator began a session without a welcome")
	}
	if !late.Stop() {
		return false, context.Cause(ctx)
	}
	a.welcome(welcome)

	var speaker sync.WaitGroup // and watcher
	defer speaker.Wait()
	defer cancel(nil)
	speaker.Go(func() { cancel(a.speak(ctx, s, welcome)) })
	speaker.Go(func() { cancel(a.watch(ctx, welcome)) })
	for {
		m, err := s.Recv()
		if err != nil {
			return true, because(ctx, err)
		}
		if o := m.GetOrders(); o != nil {
			a.log.Debug("orders", "revision", o.GetRevision(), "orders", o)
			a.post(Ordered{o})
		}
		if p := m.GetPing(); p != nil {
			a.outbox.pong(p.GetNumber())
		}
	}
}

// watch asks the leader now and then whether it still is the one. One that hangs keeps
// its connections open: without this, the next leader would give this worker up before
// it looks for it.
//
// One answer that is late may be due to a busy machine; two in a row are believed.
func (a *agent) watch(ctx context.Context, w *skeinv1.Welcome) error {
	lease := max(time.Duration(w.GetLeaseMs())*time.Millisecond, leaseMin)
	look := time.NewTicker(lease / 4)
	defer look.Stop()
	address, misses := a.conn.Address(), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		one, cancel := context.WithTimeout(ctx, lease/2)
		s, err := a.cluster.Status(one, &skeinv1.StatusRequest{})
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if misses++; misses < missesMax {
				continue
			}
			a.conn.Doubt(address)
			return status.Errorf(codes.Unavailable, "the leader at %s has not answered for %s, %d times in a row", address, lease/2, misses)
		case s.GetLeaderId() != "" && s.GetLeaderId() != w.GetCoordinator():
			return status.Errorf(codes.Unavailable, "%s leads by now", s.GetLeaderId())
		}
		misses = 0
	}
}

// because is the error of a stream, or rather why this end gave it up.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && status.Code(err) == codes.Canceled {
		return cause
	}
	return err
}

func (a *agent) hello() *skeinv1.Hello {
	c := a.config
	return &skeinv1.Hello{
		Cluster: c.Cluster, Worker: c.Name, Incarnation: a.incarnation, Node: c.Node, Zone: c.Zone, Build: c.Build, RingAddress: a.ringAddress,
		StreamAddress: a.streamAddress, NumericClasses: c.Classes, MemoryBytes: c.Memory, Threads: int32(c.Threads),
	}
}

// welcome begins a session.
func (a *agent) welcome(w *skeinv1.Welcome) {
	a.mu.Lock()
	a.session.open = true
	a.mu.Unlock()
	a.metrics.sessionUp.Set(1)
	a.metrics.sessions.Inc()
	a.log.Info("session opened", "coordinator", w.GetCoordinator(), "address", a.conn.Address())
	a.outbox.clear()
	a.lines.rewind()
	a.post(Opened{w.GetEpoch()})
}

// speak says everything that this worker has to say in a session. It runs beside the
// task, and whatever it sends is at hand, so that a busy task delays no heartbeat.
func (a *agent) speak(ctx context.Context, s skeinv1.Workers_SessionClient, w *skeinv1.Welcome) error {
	beat := time.NewTicker(max(time.Duration(w.GetHeartbeatMs())*time.Millisecond, heartbeatMin))
	defer beat.Stop()
	sequence := uint64(0)
	var due <-chan time.Time // when the next lines may go
	heartbeat := func() error {
		sequence++
		t, ready, keeps := a.running()
		return s.Send(&skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Heartbeat{Heartbeat: &skeinv1.Heartbeat{
			Sequence: sequence, DataSets: a.streams.Hashes(), Job: t.Job, Generation: t.Generation, Preparation: t.Preparation,
			Warm: ready, Keeps: &keeps,
		}}})
	}
	err, last := heartbeat(), time.Time{}
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
			err = heartbeat()
		case <-a.turned: // whoever is to place work waits for it
			err = heartbeat()
		case <-a.outbox.wake:
			for _, m := range a.outbox.take() {
				err = errors.Join(err, s.Send(m))
			}
		case <-a.lines.wake:
			if due == nil {
				due = time.After(linesEvery - time.Since(last))
			}
		case <-due:
			due, last = nil, time.Now()
			err = a.lines.send(func(l *skeinv1.JobLines) error {
				return s.Send(&skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Lines{Lines: l}})
			})
		}
	}
	return err // io.EOF: Recv has the reason
}
