package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skein-ml/skein/checkpoint/depot"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker"
	"github.com/skein-ml/skein/worker/agent"
)

const (
	class    = "generic r1"
	stepTime = time.Second // of the fake job: rank 0's worker reports so often
)

// crowd are the workers, all in this process.
type crowd struct {
	dir          string
	coordinators []string
	ctx          context.Context
	cancel       context.CancelFunc
	done         sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{} // closed at the next change
	jobs    map[string]*job
}

// job is what its workers do together without a ring.
type job struct {
	generation uint64
	hosts      map[string]bool // of that generation
	step       int64           // decided
	broken     chan struct{}   // closed when a link of that generation breaks
}

func newCrowd(ctx context.Context, dir string, coordinators []string) *crowd {
	c := &crowd{dir: dir, coordinators: coordinators, changed: make(chan struct{}), jobs: map[string]*job{}}
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c
}

// start starts a worker. Sixteen share a machine, as far as the scheduler knows.
func (c *crowd) start(n int) {
	name := fmt.Sprintf("w%05d", n)
	conf := agent.Config{
		Name: name, Node: fmt.Sprint("node", n/16), Build: "scalebench", Coordinators: c.coordinators, Dir: filepath.Join(c.dir, "workers"),
		Classes: []string{class}, Memory: 1 << 30, Threads: 1, DrainWait: time.Millisecond, NameWait: time.Minute, Tasks: &tasks{c, name},
	}
	c.done.Go(func() {
		if err := agent.Run(c.ctx, conf); err != nil && c.ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "scalebench: worker %s has ended: %v\n", name, err)
		}
	})
}

func (c *crowd) end() {
	c.cancel()
	c.done.Wait()
}

// enter notes that a worker hosts ranks of a generation, and returns when a link of that
// generation breaks.
func (c *crowd) enter(a *skeinv1.Assignment, name string) (broken chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[a.GetJob()]
	if j == nil {
		j = &job{}
		c.jobs[a.GetJob()] = j
	}
	if j.generation < a.GetGeneration() {
		j.generation, j.hosts, j.broken = a.GetGeneration(), map[string]bool{}, make(chan struct{})
	}
	j.hosts[name] = true
	close(c.changed)
	c.changed = make(chan struct{})
	return j.broken
}

// hosted waits until a worker for each rank hosts a generation, or a later one.
func (c *crowd) hosted(ctx context.Context, id string, generation uint64) error {
	late := time.After(endless)
	for {
		c.mu.Lock()
		j, changed := c.jobs[id], c.changed
		ok := j != nil && j.generation >= generation && len(j.hosts) == shard.WorldSizeMax
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return fmt.Errorf("generation %d of %s never has all its workers", generation, id)
		case <-changed:
		}
	}
}

// breakLink ends a job's generation after one more step.
func (c *crowd) breakLink(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[id]
	j.step++
	select {
	case <-j.broken:
	default:
		close(j.broken)
	}
}

func (c *crowd) step(id string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.jobs[id].step
}

// tasks are what a worker can be ordered to do.
type tasks struct {
	*crowd
	name string
}

// Prepare implements agent.Tasks: a nonce is written for the others to read, and nothing
// else.
func (t *tasks) Prepare(_ context.Context, _ func(console.Event), p worker.PrepareConfig) (out worker.Preparation, err error) {
	var j jobspec.Job
	if err := json.Unmarshal(p.Spec, &j); err != nil {
		return out, err
	}
	r, err := j.Resolve(jobspec.Facts{ModelHash: "aa", DataHash: "dd", Sequences: 1000, NumericClass: class, MicroBatch: 1})
	if err != nil {
		return out, err
	}
	out = worker.Preparation{Resolved: r.Canonical(), Memory: 1000, Step0: &skeinv1.Checkpoint{Manifest: "manifest-0", Weights: strings.Repeat("0", 64)}, DataHash: "dd"}
	out.NonceObject, out.Nonce, err = depot.PutNonce(vfs.OS, worker.JobFolder(j.Checkpoint.Store, p.Job))
	return out, err
}

// Warm implements agent.Tasks.
func (*tasks) Warm(context.Context, func(console.Event), worker.WarmConfig) error { return nil }

// Drop implements agent.Tasks.
func (*tasks) Drop() {}

// Host implements agent.Tasks: it waits for the end of the generation, and says that it
// holds its ranks at the step that the job is at.
func (t *tasks) Host(ctx context.Context, _ func(console.Event), h worker.HostConfig) error {
	a := h.Order
	broken := t.enter(a, t.name)
	var steps <-chan time.Time
	if a.GetRanks()[0] == 0 {
		beat := time.NewTicker(stepTime)
		defer beat.Stop()
		steps = beat.C
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-broken:
			return t.sealed(a, "the link broke", false)
		case <-h.Seal:
			return t.sealed(a, "told to stop", true)
		case <-h.Yield:
			return t.sealed(a, "told to stop after a step", true)
		case <-steps:
			h.Report(&skeinv1.Progress{Generation: a.GetGeneration(), Step: t.step(a.GetJob()), Steps: 1 << 20, Loss: 1.5, TokensPerSecond: 900}, worker.Phases{})
		}
	}
}

func (t *tasks) sealed(a *skeinv1.Assignment, why string, told bool) error {
	s := &skeinv1.Sealed{Step: t.step(a.GetJob()), Held: a.GetRanks(), Told: told}
	if s.Step > 0 {
		s.Decision = fmt.Appendf(nil, "D(%d)", s.Step)
	}
	for _, m := range a.GetMembers() {
		s.Reaches = append(s.Reaches, m.GetWorker())
	}
	return &worker.BrokenError{Reason: why, Sealed: s}
}

// submit gives the cluster a job that takes a worker for each of its ranks.
func (b *bench) submit(ctx context.Context, n int) (id string, err error) {
	j, err := jobspec.Read("job.yaml", strings.NewReader(fmt.Sprintf(`
kind: FineTune
name: job%d
model: {base: /models/tiny}
data: {train: /data/train.jsonl, sequenceLength: 64}
train: {steps: 1000000, globalBatch: %[2]d, optimizer: {learningRate: 3e-4}}
cluster: {worldSize: %[2]d, workers: {min: %[2]d, max: %[2]d}}
checkpoint: {every: 100000 steps, store: %[3]s}
output: {export: %[3]s/out-%[1]d}
`, n, shard.WorldSizeMax, filepath.Join(b.dir, "store"))))
	if err != nil {
		return "", err
	}
	raw, err := json.Marshal(j)
	if err != nil {
		return "", err
	}
	out, err := b.jobs.Submit(ctx, &skeinv1.SubmitRequest{RequestId: fmt.Sprintf("request-000000000-%d", n), Spec: raw})
	return out.GetJob(), err
}
