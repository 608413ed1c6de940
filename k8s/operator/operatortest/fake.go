// Package operatortest has coordinators that are not there: they take what the operator
// asks of them, remember it, and fail when they are told to.
package operatortest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/k8s/operator"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Coordinators stand in for those of one cluster. The zero value has no members and does
// not answer before [Coordinators.Found].
type Coordinators struct {
	mu       sync.Mutex
	silent   error
	refusing error
	members  []*skeinv1.Coordinator
	workers  []*skeinv1.WorkerNode
	jobs     []*skeinv1.Job
	requests map[string]string // request id → job
	asked    []string          // what changed something, in order
	first    skeinv1.Phase     // of a new job
}

// Dial is the operator's, to these coordinators. It refuses to speak without
// certificates.
func (c *Coordinators) Dial(_ []string, secure *tls.Config, _ string) (operator.Coordinators, error) {
	if secure == nil || len(secure.Certificates) != 1 {
		return nil, errors.New("the operator comes without a certificate")
	}
	return c, nil
}

// Found makes them answer, with one member.
func (c *Coordinators) Found(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = skeinv1.Phase_PHASE_PREPARING
	c.members, c.requests = []*skeinv1.Coordinator{{Id: id, Leader: true, Voter: true}}, map[string]string{}
}

// Fail makes every call fail that only asks (silence) or that changes something (refusal);
// nil ends that.
func (c *Coordinators) Fail(silence, refusal error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.silent, c.refusing = silence, refusal
}

// Change changes a job as coordinators and workers would.
func (c *Coordinators) Change(id string, change func(*skeinv1.Job)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, j := range c.jobs {
		if j.GetId() == id {
			change(j)
		}
	}
}

// Prepared makes jobs that are submitted from now on wait for all their workers at once, as
// if they had been prepared.
func (c *Coordinators) Prepared() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = skeinv1.Phase_PHASE_QUEUED
}

// Connect sets the workers that the leader hears.
func (c *Coordinators) Connect(workers ...*skeinv1.WorkerNode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.workers = workers
}

// Asked is what changed something, in order.
func (c *Coordinators) Asked() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.asked)
}

func (c *Coordinators) answer() error {
	if c.silent != nil {
		return c.silent
	}
	if len(c.members) == 0 {
		return &client.UnreachableError{Tries: []client.Try{{Address: "lab", Fault: "connection refused"}}}
	}
	return nil
}

// do remembers a call that changes something, unless it fails.
func (c *Coordinators) do(format string, args ...any) error {
	if err := c.answer(); err != nil {
		return err
	}
	if c.refusing != nil {
		return c.refusing
	}
	c.asked = append(c.asked, fmt.Sprintf(format, args...))
	return nil
}

func (c *Coordinators) job(id string) *skeinv1.Job {
	i := slices.IndexFunc(c.jobs, func(j *skeinv1.Job) bool { return j.GetId() == id })
	if i < 0 {
		return nil
	}
	return c.jobs[i]
}

// Submit takes a job; the same request is the same job.
func (c *Coordinators) Submit(_ context.Context, s *client.Submission) (id, leader string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id, known := c.requests[s.Request]; known {
		return id, "c1", c.answer()
	}
	if err := c.do("submit %s", s.Job.Name); err != nil {
		return "", "", err
	}
	id = fmt.Sprintf("%s-%d", s.Job.Name, len(c.jobs)+1)
	w := s.Job.Cluster.Workers
	c.requests[s.Request] = id
	c.jobs = append(c.jobs, &skeinv1.Job{Id: id, Name: s.Job.Name, Phase: c.first, WorkersMin: int32(w.Min), WorkersMax: int32(w.Max), WorldSize: int32(s.Job.Cluster.WorldSize)})
	return id, "c1", nil
}

// Get shows a job.
func (c *Coordinators) Get(_ context.Context, id string) (*skeinv1.GetResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.answer(); err != nil {
		return nil, err
	}
	j := c.job(id)
	if j == nil {
		return nil, &client.AnsweredError{Code: codes.NotFound, Reason: "there is no job " + id}
	}
	return &skeinv1.GetResponse{Job: copyOf(j)}, nil
}

// List shows the jobs.
func (c *Coordinators) List(_ context.Context, activeOnly bool) ([]*skeinv1.Job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*skeinv1.Job
	for _, j := range c.jobs {
		if !activeOnly || !client.Over(j.GetPhase()) {
			list = append(list, copyOf(j))
		}
	}
	return list, c.answer()
}

// Cancel ends a job at once.
func (c *Coordinators) Cancel(_ context.Context, id, _ string) error {
	return c.turn(id, "cancel "+id, func(j *skeinv1.Job) { j.Phase = skeinv1.Phase_PHASE_CANCELED })
}

// Pause asks a job to stop; [Coordinators.Change] lets it.
func (c *Coordinators) Pause(_ context.Context, id, _ string) error {
	return c.turn(id, "pause "+id, func(j *skeinv1.Job) { j.Paused = true })
}

// Resume lets a paused job go on.
func (c *Coordinators) Resume(_ context.Context, id string) error {
	return c.turn(id, "resume "+id, func(j *skeinv1.Job) { j.Paused, j.Phase = false, skeinv1.Phase_PHASE_QUEUED })
}

// Scale changes the most workers of a job.
func (c *Coordinators) Scale(_ context.Context, id string, workers int32) (useful int32, err error) {
	return workers, c.turn(id, fmt.Sprintf("scale %s %d", id, workers), func(j *skeinv1.Job) { j.WorkersMax = workers })
}

func (c *Coordinators) turn(id, what string, change func(*skeinv1.Job)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.do("%s", what); err != nil {
		return err
	}
	if j := c.job(id); j != nil {
		change(j)
	}
	return nil
}

// Nodes lists members and workers.
func (c *Coordinators) Nodes(context.Context) (*skeinv1.NodesResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.answer(); err != nil {
		return nil, err
	}
	return &skeinv1.NodesResponse{Coordinators: slices.Clone(c.members), Workers: slices.Clone(c.workers)}, nil
}

// AddCoordinator makes a member.
func (c *Coordinators) AddCoordinator(_ context.Context, id, _ string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.do("add %s", id); err != nil {
		return err
	}
	c.members = append(slices.Clone(c.members), &skeinv1.Coordinator{Id: id, Voter: true})
	return nil
}

// RemoveCoordinator takes a member out.
func (c *Coordinators) RemoveCoordinator(_ context.Context, id string, _ bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.do("remove %s", id); err != nil {
		return err
	}
	c.members = slices.DeleteFunc(slices.Clone(c.members), func(m *skeinv1.Coordinator) bool { return m.GetId() == id })
	return nil
}

// TransferLeadership makes another member lead.
func (c *Coordinators) TransferLeadership(_ context.Context, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.do("transfer %s", id); err != nil {
		return err
	}
	var members []*skeinv1.Coordinator
	for _, m := range c.members {
		members = append(members, &skeinv1.Coordinator{Id: m.GetId(), Voter: m.GetVoter(), Leader: m.GetId() == id})
	}
	c.members = members
	return nil
}

// Close implements operator.Coordinators.
func (c *Coordinators) Close() error { return nil }

func copyOf(j *skeinv1.Job) *skeinv1.Job {
	out, ok := proto.Clone(j).(*skeinv1.Job)
	if !ok {
		panic("operatortest: a copy of a job is no job")
	}
	return out
}
