package client

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Watching says what of a job is shown.
type Watching struct {
	After  uint64 // events from here on; 0: all that are kept
	Lines  bool   // what its workers say, too
	Before int    // how many of the lines so far; -1: all that are kept
}

// Watch shows a job's life until it is over, and returns how it ended. Coordinators may
// come and go meanwhile. What is kept of the past comes first, in order of time. Show is
// called by one goroutine.
func (c *Client) Watch(ctx context.Context, id string, w Watching, show func(*skeinv1.WatchResponse)) (*skeinv1.Job, error) {
	v := &view{client: c, id: id, watching: w, show: show, seen: map[lineKey]bool{}, lastHeard: time.Now()}
	for {
		err := v.stream(ctx)
		if v.job != nil && Over(v.job.GetPhase()) {
			return v.job, nil
		}
		if ctx.Err() != nil {
			return v.job, ctx.Err()
		}
		if code := status.Code(err); err != nil && code != codes.Unavailable && code != codes.DeadlineExceeded {
			return v.job, c.explain(ctx, err, nil)
		}
		patience := c.config.WatchPatience
		if v.job == nil {
			patience = c.config.Patience
		}
		if time.Since(v.lastHeard) > patience {
			return v.job, c.explain(ctx, err, nil)
		}
		select {
		case <-ctx.Done():
			return v.job, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		v.watching.Before = -1 // a new leader hears the lines again; those that were shown are left out
	}
}

// lineKey names a line: a worker that is started again counts from 1.
type lineKey struct {
	worker   string
	sequence uint64
	at       int64
}

// view is one watcher over all its streams.
type view struct {
	client    *Client
	id        string
	watching  Watching
	show      func(*skeinv1.WatchResponse)
	seen      map[lineKey]bool
	job       *skeinv1.Job             // as last seen
	lastHeard time.Time                // when the last stream that said anything ended
	past      []*skeinv1.WatchResponse // until the first stream has brought the job
}

// stream shows one stream to its end.
func (v *view) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	open := func(ctx context.Context) (skeinv1.Jobs_WatchClient, error) {
		return v.client.jobs.Watch(ctx, &skeinv1.WatchRequest{
			Job: v.id, After: v.watching.After, Lines: v.watching.Lines, LinesBefore: int32(v.watching.Before),
		})
	}
	// A stream lives longer than the patience to open it: only the opening is cut short.
	opened := time.AfterFunc(v.client.config.Patience, cancel)
	stream, err := open(ctx)
	if !opened.Stop() {
		return status.Error(codes.Unavailable, "no coordinator answers")
	}
	if err != nil {
		return err
	}
	for heard := false; ; heard = true {
		m, err := stream.Recv()
		if err != nil {
			if heard { // a job may have nothing to say for hours; patience runs from the loss
				v.lastHeard = time.Now()
			}
			v.flush()
			return err
		}
		v.take(m)
	}
}

func (v *view) take(m *skeinv1.WatchResponse) {
	switch {
	case m.GetEvent() != nil:
		v.watching.After = max(v.watching.After, m.GetEvent().GetIndex())
	case m.GetLine() != nil:
		l := m.GetLine()
		key := lineKey{l.GetWorker(), l.GetSequence(), l.GetAtUnixMs()}
		if v.seen[key] {
			return
		}
		v.seen[key] = true
	case m.GetJob() != nil:
		first := v.job == nil
		v.job = m.GetJob()
		if first {
			v.flush()
		}
	}
	if v.job == nil {
		v.past = append(v.past, m)
		return
	}
	v.show(m)
}

// flush shows the past in order of time.
func (v *view) flush() {
	slices.SortStableFunc(v.past, func(a, b *skeinv1.WatchResponse) int {
		return int(min(max(moment(a)-moment(b), -1), 1))
	})
	for _, m := range v.past {
		v.show(m)
	}
	v.past = nil
}

func moment(m *skeinv1.WatchResponse) int64 {
	if e := m.GetEvent(); e != nil {
		return e.GetAtUnixMs()
	}
	return m.GetLine().GetAtUnixMs()
}

// Phases that a job can be waited for, and what counts as having reached them.
var awaited = map[string]func(skeinv1.Phase) bool{
	"queued": func(p skeinv1.Phase) bool {
		return p >= skeinv1.Phase_PHASE_QUEUED && p <= skeinv1.Phase_PHASE_DONE || p == skeinv1.Phase_PHASE_PAUSED
	},
	"paused":   func(p skeinv1.Phase) bool { return p == skeinv1.Phase_PHASE_PAUSED },
	"running":  func(p skeinv1.Phase) bool { return p == skeinv1.Phase_PHASE_RUNNING || p == skeinv1.Phase_PHASE_DONE },
	"done":     func(p skeinv1.Phase) bool { return p == skeinv1.Phase_PHASE_DONE },
	"failed":   func(p skeinv1.Phase) bool { return p == skeinv1.Phase_PHASE_FAILED },
	"canceled": func(p skeinv1.Phase) bool { return p == skeinv1.Phase_PHASE_CANCELED },
	"over":     Over,
}

// Awaited lists what Wait can wait for.
func Awaited() []string {
	return []string{"queued", "running", "paused", "done", "failed", "canceled", "over"}
}

// Wait waits until a job has reached a phase of [Awaited], and returns the job. One that
// ends without reaching it is an [EndedError].
func (c *Client) Wait(ctx context.Context, id, what string) (*skeinv1.Job, error) {
	reached := awaited[what]
	if reached == nil {
		return nil, fmt.Errorf("phase %q; one of %s can be waited for", what, strings.Join(Awaited(), ", "))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var there *skeinv1.Job
	job, err := c.Watch(ctx, id, Watching{}, func(m *skeinv1.WatchResponse) {
		if j := m.GetJob(); j != nil && there == nil && reached(j.GetPhase()) {
			there = j
			cancel()
		}
	})
	if there != nil {
		return there, nil
	}
	if err != nil {
		return job, err
	}
	return job, &EndedError{job}
}

// EndedError says that a job is over and did not succeed.
type EndedError struct{ Job *skeinv1.Job }

func (e *EndedError) Error() string {
	phase := Word(e.Job.GetPhase())
	reason := strings.TrimPrefix(strings.TrimPrefix(e.Job.GetReason(), phase), ": ")
	if reason == "" {
		return fmt.Sprintf("job %s was %s", e.Job.GetId(), phase)
	}
	return fmt.Sprintf("job %s %s: %s", e.Job.GetId(), phase, reason)
}

// Ended is nil for a job that is done, else an [EndedError].
func Ended(j *skeinv1.Job) error {
	if j.GetPhase() == skeinv1.Phase_PHASE_DONE {
		return nil
	}
	return &EndedError{j}
}

// TooBig tells whether the job failed because no worker has the memory that it needs.
func (e *EndedError) TooBig() bool {
	return e.Job.GetPhase() == skeinv1.Phase_PHASE_FAILED && strings.Contains(e.Job.GetReason(), "resources.memory: ")
}

// Canceled tells whether somebody ended the job.
func (e *EndedError) Canceled() bool { return e.Job.GetPhase() == skeinv1.Phase_PHASE_CANCELED }
