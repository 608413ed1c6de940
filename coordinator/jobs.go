package coordinator

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/hearing"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/shard"
)

// jobs is the service of clients.
type jobs struct {
	skeinv1.UnimplementedJobsServer
	*Coordinator
}

// Submit implements skeinv1.JobsServer.
func (s jobs) Submit(ctx context.Context, r *skeinv1.SubmitRequest) (*skeinv1.SubmitResponse, error) {
	d, err := submission(r.GetRequestId(), r.GetSpec())
	if err != nil {
		return nil, err
	}
	job, err := s.decided(ctx, fmt.Sprintf("submitted: %d ranks on %d to %d workers", d.WorldSize, d.WorkersMin, d.WorkersMax), d)
	if err != nil {
		return nil, err
	}
	return &skeinv1.SubmitResponse{Job: job, Leader: s.config.ID}, nil
}

// look reads the state and finds a job in it.
func (s jobs) look(ctx context.Context, id string) (*fsm.State, *fsm.Job, error) {
	state, err := s.node.Read(ctx)
	if err != nil {
		return nil, nil, err
	}
	j := state.Jobs[id]
	if j == nil {
		return nil, nil, status.Errorf(codes.NotFound, "there is no job %q; `skein jobs` lists them", id)
	}
	return state, j, nil
}

// heard is what the workers have said, if this coordinator leads.
func (s jobs) heard() *memory {
	if r := s.leading(); r != nil {
		return r.memory
	}
	return nil
}

// Get implements skeinv1.JobsServer.
func (s jobs) Get(ctx context.Context, r *skeinv1.GetRequest) (*skeinv1.GetResponse, error) {
	state, j, err := s.look(ctx, r.GetJob())
	if err != nil {
		return nil, err
	}
	out := &skeinv1.GetResponse{Job: jobOf(state, j, s.heard()), Spec: j.Spec, Resolved: j.Resolved}
	for _, e := range j.Events {
		out.Events = append(out.Events, eventOf(e))
	}
	return out, nil
}

// List implements skeinv1.JobsServer.
func (s jobs) List(ctx context.Context, r *skeinv1.ListRequest) (*skeinv1.ListResponse, error) {
	state, err := s.node.Read(ctx)
	if err != nil {
		return nil, err
	}
	out, h := &skeinv1.ListResponse{}, s.heard()
	for _, j := range state.InOrder() {
		if r.GetActiveOnly() && j.Phase.Final() {
			continue
		}
		job := jobOf(state, j, h)
		job.Result = nil // Get has it
		out.Jobs = append(out.Jobs, job)
	}
	return out, nil
}

// Cancel implements skeinv1.JobsServer.
func (s jobs) Cancel(ctx context.Context, r *skeinv1.CancelRequest) (*skeinv1.CancelResponse, error) {
	reason := "canceled"
	if r.GetReason() != "" {
		reason += ": " + r.GetReason()
	}
	if _, err := s.decided(ctx, reason, &fsm.Cancel{Job: r.GetJob()}); err != nil {
		return nil, err
	}
	return &skeinv1.CancelResponse{}, nil
}

// Scale implements skeinv1.JobsServer.
func (s jobs) Scale(ctx context.Context, r *skeinv1.ScaleRequest) (*skeinv1.ScaleResponse, error) {
	_, j, err := s.look(ctx, r.GetJob())
	if err != nil {
		return nil, err
	}
	n := int(r.GetWorkers())
	if n > j.WorldSize {
		return nil, status.Errorf(codes.FailedPrecondition, "%d workers for %d ranks: a worker hosts at least one, so at most %d can work for %s", n, j.WorldSize, j.WorldSize, j.ID)
	}
	useful := shard.UsefulWorkers(j.WorldSize, n)
	reason := fmt.Sprintf("scaled from at most %d to at most %d workers", j.WorkersMax, n)
	if useful < n {
		reason += fmt.Sprintf(", of which %d shorten a step", useful)
	}
	if _, err := s.decided(ctx, reason, &fsm.Scale{Job: j.ID, Workers: n}); err != nil {
		return nil, err
	}
	return &skeinv1.ScaleResponse{Useful: int32(useful)}, nil
}

// Pause implements skeinv1.JobsServer.
func (s jobs) Pause(ctx context.Context, r *skeinv1.PauseRequest) (*skeinv1.PauseResponse, error) {
	reason := "is to pause"
	if r.GetReason() != "" {
		reason += ": " + r.GetReason()
	}
	if _, err := s.decided(ctx, reason, &fsm.Pause{Job: r.GetJob()}); err != nil {
		return nil, err
	}
	return &skeinv1.PauseResponse{}, nil
}

// Resume implements skeinv1.JobsServer.
func (s jobs) Resume(ctx context.Context, r *skeinv1.ResumeRequest) (*skeinv1.ResumeResponse, error) {
	if _, err := s.decided(ctx, "is to go on", &fsm.Resume{Job: r.GetJob()}); err != nil {
		return nil, err
	}
	return &skeinv1.ResumeResponse{}, nil
}

// Lineage implements skeinv1.JobsServer.
func (s jobs) Lineage(ctx context.Context, r *skeinv1.LineageRequest) (*skeinv1.LineageResponse, error) {
	_, j, err := s.look(ctx, r.GetJob())
	if err != nil {
		return nil, err
	}
	out := &skeinv1.LineageResponse{Job: j.ID, Resolved: j.Resolved, SpecHash: j.SpecHash, DataHash: j.DataHash, Result: j.Result}
	if len(j.Resolved) > 0 {
		out.NumericClass = j.Class
	}
	for _, c := range j.Published {
		out.Published = append(out.Published, hearing.Checkpoint(c))
	}
	return out, nil
}
