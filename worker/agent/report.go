package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker"
)

const (
	callWait   = 5 * time.Second // for one answer of the leader
	answerWait = time.Second     // for it to come once the caller need not know it any more
	againMin   = 100 * time.Millisecond
	againMax   = 5 * time.Second
	refusedBy  = "the coordinator refused"
)

// refused is the leader's final no.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

// decided makes a call until the leader has decided. It fails with worker.ErrFenced if
// what the call is about is over, with a refused error if it will never be taken, and
// with ctx's error.
func (a *agent) decided(ctx context.Context, call, job string, do func(context.Context) error) error {
	for pause := againMin; ; pause = min(2*pause, againMax) {
		err := a.once(ctx, do)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case skeinv1.RefusalOf(err).GetKind() == skeinv1.Refusal_KIND_FENCED, status.Code(err) == codes.NotFound:
			return fmt.Errorf("%w: %s", worker.ErrFenced, said(err))
		case final(err):
			return refused{fmt.Errorf("%s to %s: %s", refusedBy, call, said(err))}
		}
		a.log.Warn("the leader has not answered; asking again", "call", call, "job", job, "err", said(err))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// once makes a call. When ctx ends meanwhile, the answer gets a moment to come: whoever
// completes a job is told to stop by the very decision that it asked for.
func (a *agent) once(ctx context.Context, do func(context.Context) error) error {
	one, cancel := context.WithTimeout(context.WithoutCancel(ctx), callWait)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-one.Done():
		case <-a.ctx.Done():
		case <-time.After(answerWait):
		}
		cancel()
	})()
	return do(one)
}

// final tells whether repeating a call would be answered the same.
func final(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated,
		codes.Unimplemented, codes.OutOfRange, codes.ResourceExhausted:
		return true
	}
	return false
}

// tell reports how a task ended.
func (a *agent) tell(r Report) {
	if a.telling[r] {
		return // it is repeated until it is answered
	}
	a.telling[r] = true
	a.done.Go(func() {
		a.lines.flush(a.ctx, flushWait)
		err := a.decided(a.ctx, "report", r.Task.Job, func(ctx context.Context) error { return a.send(ctx, r) })
		answer := Answered{Report: r}
		var no refused
		switch {
		case errors.Is(err, worker.ErrFenced):
			answer.Fenced, answer.Refused = true, err.Error()
			a.log.Info("what was reported is over", "job", r.Task.Job, "task", r.Task, "err", err)
		case errors.As(err, &no):
			answer.Refused = no.Error()
			a.log.Error("a report was refused", "job", r.Task.Job, "task", r.Task, "err", err)
		case err == nil:
			a.log.Info("reported", "job", r.Task.Job, "generation", r.Task.Generation, "preparation", r.Task.Preparation, "how", r.How)
		}
		a.post(answer)
	})
}

// send makes the call that a report is.
func (a *agent) send(ctx context.Context, r Report) (err error) {
	t := r.Task
	switch r.How {
	case Done:
		_, err = a.api.Prepared(ctx, r.Prepared)
	case Failed:
		_, err = a.api.Fail(ctx, &skeinv1.FailRequest{Sender: a.sender(), Job: t.Job, Generation: t.Generation, Preparation: t.Preparation, Reason: r.Reason})
	default:
		_, err = a.api.Broken(ctx, &skeinv1.BrokenRequest{
			Sender: a.sender(), Job: t.Job, Generation: t.Generation, Preparation: t.Preparation, Accused: r.Accused, Reason: r.Reason, Sealed: r.Sealed, Diverged: r.Diverged,
		})
	}
	return err
}

// accuse tells the leader at once whom a broken link names, so that it asks that worker while
// this one seals. If nobody hears it, the report of what broke says the same.
func (a *agent) accuse(o *skeinv1.Assignment, accused, reason string) {
	a.done.Go(func() {
		err := a.once(a.ctx, func(ctx context.Context) error {
			_, err := a.api.Broken(ctx, &skeinv1.BrokenRequest{
				Sender: a.sender(), Job: o.GetJob(), Generation: o.GetGeneration(), Accused: accused, Reason: reason, Sealing: true,
			})
			return err
		})
		if err != nil && a.ctx.Err() == nil {
			a.log.Info("the leader has not heard who is accused; it is reported again", "job", o.GetJob(), "accused", accused, "err", said(err))
		}
	})
}

// tellDrain puts the wish to leave into the log. A leader that gave this worker up has
// nothing to release; the next session says it again.
func (a *agent) tellDrain() {
	a.done.Go(func() {
		err := a.decided(a.ctx, "drain", "", func(ctx context.Context) error {
			_, err := a.api.Drain(ctx, &skeinv1.DrainRequest{Sender: a.sender()})
			return err
		})
		if err != nil && a.ctx.Err() == nil {
			a.log.Warn("the leader does not know that this worker wants to leave", "err", err)
		}
	})
}
