package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/data/stream"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/protocol"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker"
	"github.com/skein-ml/skein/worker/workertest"
)

// place is a worker process as far as hosting needs one.
type place struct {
	name    string
	ring    *allreduce.Listener
	conns   *severed // of the ring
	streams *stream.Server
	address string // of the streams
	ask     chan struct{}
	keep    *worker.Keep  // nil: nothing outlives a generation
	yield   chan struct{} // asks for the end of the generation at a step boundary
}

// cluster plays the coordinator for one job: it keeps what is published and deals out
// generations.
type cluster struct {
	t      *testing.T
	fs     vfs.FS
	job    *jobspec.Job
	places []*place
	prep   worker.Preparation

	mu         sync.Mutex
	generation uint64
	published  []*skeinv1.Checkpoint
	results    [][]byte
	spent      *skeinv1.Spent // of the generation that completed the job
	events     []console.Event
	onPublish  func(*skeinv1.Checkpoint) error
	onStep     func(worker string, p *skeinv1.Progress)
	onPhases   func(worker string, p worker.Phases)
	onAccuse   func(by, accused string)
	openDevice func(class string) (device.Device, error) // nil: the class asked for
	mirror     bool
	storeRetry time.Duration
	live       *protocol.Plan // that the next generation goes on from; nil: from the newest checkpoint
}

func newCluster(t *testing.T, j workertest.Job, workers int, settings ...string) *cluster {
	t.Helper()
	job, err := jobspec.ReadFile(j.File(), settings...)
	if err != nil {
		t.Fatal(err)
	}
	job.Model.Base, job.Checkpoint.Store, job.Output.Export = j.Path("model"), j.Path("store"), j.Path("trained")
	job.Data.Train[0], job.Data.Validation.Paths[0] = j.Path("train.jsonl"), j.Path("heldout.jsonl")
	c := &cluster{t: t, fs: vfs.OS, job: job}
	for i := range workers {
		p := &place{name: fmt.Sprintf("w%d", i+1), ask: make(chan struct{}, 1), yield: make(chan struct{}, 1)}
		l := listen(t)
		p.conns = &severed{Listener: l}
		p.ring = allreduce.Listen(p.conns, allreduce.ListenerConfig{})
		t.Cleanup(func() { p.ring.Close() })
		if p.streams, err = stream.NewServer(stream.ServerConfig{Security: stream.Security{PlainText: true}}); err != nil {
			t.Fatal(err)
		}
		l = listen(t)
		p.address = l.Addr().String()
		served := make(chan error, 1)
		go func() { served <- p.streams.Serve(l) }()
		t.Cleanup(func() { p.streams.Close(); <-served })
		c.places = append(c.places, p)
	}
	return c
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (c *cluster) env() worker.Env {
	return worker.Env{FS: c.fs, CacheDir: filepath.Join(c.t.TempDir(), "cache"), Cluster: true,
		OpenDevice: func(class string) (device.Device, error) {
			if c.openDevice != nil {
				return c.openDevice(class)
			}
			path, _, _ := strings.Cut(class, " ")
			return cpu.New(cpu.Options{Path: path, Threads: 1})
		},
		Emit: func(e console.Event) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.events = append(c.events, e)
		},
	}
}

// prepare has the first place prepare the job.
func (c *cluster) prepare(ctx context.Context) error {
	spec, err := json.Marshal(c.job)
	if err != nil {
		c.t.Fatal(err)
	}
	c.prep, err = worker.Prepare(ctx, c.env(), worker.PrepareConfig{Job: "job-1", Spec: spec})
	if err == nil {
		c.published = []*skeinv1.Checkpoint{c.prep.Step0}
	}
	return err
}

func (c *cluster) newest() *skeinv1.Checkpoint { return c.published[len(c.published)-1] }

// order is the next generation's order to each of some places.
func (c *cluster) orders(use []*place) []*skeinv1.Assignment {
	c.t.Helper()
	spec, err := jobspec.ParseResolved(c.prep.Resolved)
	if err != nil {
		c.t.Fatal(err)
	}
	placement, err := shard.EvenPlacement(spec.Job.Cluster.WorldSize, len(use))
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation++
	var members []*skeinv1.Member
	for i, p := range use {
		m := &skeinv1.Member{Worker: p.name, RingAddress: p.ring.Addr(), StreamAddress: p.address}
		for _, r := range placement.Ranks(i) {
			m.Ranks = append(m.Ranks, int32(r))
		}
		members = append(members, m)
	}
	var list []*skeinv1.Assignment
	for i := range use {
		list = append(list, &skeinv1.Assignment{Job: "job-1", Generation: c.generation, Resolved: c.prep.Resolved, SpecHash: spec.Hash(),
			Ranks: members[i].Ranks, Members: members, Resume: c.newest(), DataServers: []string{c.places[0].address}, Mirror: c.mirror})
		if c.live == nil {
			continue
		}
		a := list[i]
		a.Live, a.After, a.Target, a.Decision = true, c.generation-1, c.live.Target, c.live.Decision
		for r, w := range c.live.Sources {
			a.Sources = append(a.Sources, &skeinv1.Source{Rank: int32(r), Worker: w})
		}
	}
	c.live = nil
	return list
}

// run has some places host one generation and returns how each ended. hurt, if given, is
// the context of each place.
func (c *cluster) run(use []*place, ctxOf func(*place) context.Context) []error {
	c.t.Helper()
	errs := make([]error, len(use))
	var all sync.WaitGroup
	for i, order := range c.orders(use) {
		all.Go(func() {
			p := use[i]
			errs[i] = worker.Host(ctxOf(p), c.env(), worker.HostConfig{
				Order: order, Worker: p.name, Ring: p.ring, Streams: p.streams, Checkpoint: p.ask, Keep: p.keep, Yield: p.yield, StoreRetry: c.storeRetry,
				Publish: func(_ context.Context, ck *skeinv1.Checkpoint) error {
					c.mu.Lock()
					defer c.mu.Unlock()
					if c.onPublish != nil {
						if err := c.onPublish(ck); err != nil {
							return err
						}
					}
					c.published = append(c.published, ck)
					return nil
				},
				Complete: func(_ context.Context, result []byte, spent *skeinv1.Spent) error {
					c.mu.Lock()
					defer c.mu.Unlock()
					c.results, c.spent = append(c.results, result), spent
					return nil
				},
				Accuse: func(accused, _ string) {
					if c.onAccuse != nil {
						c.onAccuse(p.name, accused)
					}
				},
				Report: func(pr *skeinv1.Progress, phases worker.Phases) {
					if c.onPhases != nil {
						c.onPhases(p.name, phases)
					}
					if c.onStep != nil {
						c.onStep(p.name, pr)
					}
				},
			})
		})
	}
	all.Wait()
	return errs
}

// recover plans the next generation from what the places of the last one say that they keep.
func (c *cluster) recover(was []*place, errs []error) {
	c.t.Helper()
	var reports []protocol.Report
	var owners []string
	placement, err := shard.EvenPlacement(4, len(was))
	if err != nil {
		c.t.Fatal(err)
	}
	for i, p := range was {
		for range placement.Ranks(i) {
			owners = append(owners, p.name)
		}
		broken, ok := errors.AsType[*worker.BrokenError](errs[i])
		if !ok || broken.Sealed == nil {
			continue
		}
		s := broken.Sealed
		if sp := s.Spent; len(s.Held) > 0 && sp != nil && sp.Step != s.Step {
			c.t.Errorf("%s holds step %d, and tells what the time went into up to step %d", p.name, s.Step, sp.Step)
		}
		r := protocol.Report{Worker: p.name, Step: s.Step, Decision: s.Decision, Reaches: s.Reaches}
		for _, x := range s.Held {
			r.Held = append(r.Held, shard.Rank(x))
		}
		for _, x := range s.Summed {
			r.Summed = append(r.Summed, shard.Rank(x))
		}
		reports = append(reports, r)
	}
	plan, err := protocol.Recover(4, owners, reports)
	if err != nil {
		c.t.Fatalf("%v, of reports %+v and errors %v", err, reports, errs)
	}
	c.live = &plan
}

func (c *cluster) always(*place) context.Context { return c.t.Context() }

func (c *cluster) mustPrepare() {
	c.t.Helper()
	if err := c.prepare(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) mustRun(use []*place) {
	c.t.Helper()
	if err := errors.Join(c.run(use, c.always)...); err != nil {
		c.t.Fatal(err)
	}
}

// trainedHash is the weights hash that the job comes to on one machine.
func trainedHash(t *testing.T, j workertest.Job, settings ...string) string {
	t.Helper()
	s := &site{Job: j.Copy(t), fs: vfs.OS}
	return s.mustRun(t, settings...).Hash
}

func TestAClusterOfAnySizeTrainsToTheHashOfOneMachine(t *testing.T) {
	j := workertest.New(t)
	const world = "cluster.worldSize=4"
	want := trainedHash(t, j, world)
	for _, x := range []struct{ workers, stage int }{{1, 1}, {2, 0}, {3, 1}, {4, 0}, {4, 2}, {3, 3}} {
		zero := fmt.Sprintf("cluster.zero=%d", x.stage)
		t.Run(fmt.Sprintf("%d workers, %s", x.workers, zero), func(t *testing.T) {
			c := newCluster(t, j.Copy(t), x.workers, world, zero)
			c.mustPrepare()
			c.mustRun(c.places)
			if got := c.newest(); got.Weights != want || got.Step != 30 {
				t.Errorf("step %d has weights %s, want step 30 with %s", got.Step, got.Weights, want)
			}
			if len(c.results) != 1 {
				t.Fatalf("%d results", len(c.results))
			}
			done := console.Unmarshal("done", c.results[0]).(console.Done)
			if done.WeightsHash != want || done.Steps != 30 || done.LossAfter == nil || *done.LossAfter >= *done.LossBefore {
				t.Errorf("result %s", c.results[0])
			}
			if _, err := worker.OpenBase(c.job.Output.Export); err != nil {
				t.Errorf("the export: %v", err)
			}
			var measured []int64
			for _, e := range c.events {
				if e, ok := e.(console.Evaluated); ok {
					measured = append(measured, e.Step)
				}
			}
			if want := []int64{0, 10, 20, 30}; !slices.Equal(measured, want) {
				t.Errorf("measured at steps %v, want %v", measured, want)
			}
		})
	}
}

func TestALostWorkerSendsTheOthersBackToThePublishedCheckpoint(t *testing.T) {
	j := workertest.New(t)
	const world = "cluster.worldSize=4"
	want := trainedHash(t, j, world)
	c := newCluster(t, j, 3, world)
	c.mustPrepare()
	lost, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.onStep = func(name string, p *skeinv1.Progress) {
		if name == "w2" && p.Step == 13 {
			cancel()
		}
	}
	errs := c.run(c.places, func(p *place) context.Context {
		if p.name == "w2" {
			return lost
		}
		return t.Context()
	})
	for i, err := range errs {
		broken, ok := errors.AsType[*worker.BrokenError](err)
		if i == 1 && !errors.Is(err, context.Canceled) || i != 1 && !ok {
			t.Errorf("%s ended with %v", c.places[i].name, err)
		}
		if ok && !strings.Contains(broken.Reason, "left the ring") { // w2, or who left because of it
			t.Errorf("%s does not say who left: %q", c.places[i].name, broken.Reason)
		}
	}
	step := c.newest().Step // that of step 10 may have been on its way
	if step != 5 && step != 10 {
		t.Fatalf("step %d is published, want 5 or 10", step)
	}
	c.mustRun([]*place{c.places[2], c.places[0]})
	if got := c.newest(); got.Weights != want || got.Step != 30 {
		t.Errorf("step %d has weights %s, want step 30 with %s", got.Step, got.Weights, want)
	}
	l, err := checkpoint.ReadLineage(vfs.OS, filepath.Join(c.job.Checkpoint.Store, "job-1", "lineage.json"))
	if err != nil || len(l.Steps) != 30 || !slices.Contains(l.ResumedAt, step) {
		t.Errorf("lineage: %d steps, resumed at %v, %v", len(l.Steps), l.ResumedAt, err)
	}
}

func TestAPublicationThatIsFencedEndsTheGeneration(t *testing.T) {
	c := newCluster(t, workertest.New(t), 2)
	c.mustPrepare()
	c.onPublish = func(*skeinv1.Checkpoint) error { return fmt.Errorf("generation 2 began: %w", worker.ErrFenced) }
	errs := c.run(c.places, c.always)
	if !errors.Is(errs[0], worker.ErrFenced) {
		t.Errorf("rank 0's worker ended with %v", errs[0])
	}
	if _, ok := errors.AsType[*worker.BrokenError](errs[1]); !ok {
		t.Errorf("the other worker ended with %v", errs[1])
	}
	if len(c.published) != 1 {
		t.Errorf("%d checkpoints are published", len(c.published))
	}
}

func TestACheckpointIsSavedWhenAnyWorkerAsks(t *testing.T) {
	c := newCluster(t, workertest.New(t), 2)
	c.mustPrepare()
	c.onStep = func(name string, p *skeinv1.Progress) {
		if name == "w2" && p.Step == 6 {
			c.places[1].ask <- struct{}{}
		}
	}
	c.mustRun(c.places)
	var steps []int64
	for _, ck := range c.published {
		steps = append(steps, ck.Step)
	}
	if want := []int64{0, 5, 7, 10, 15, 20, 25, 30}; !slices.Equal(steps, want) {
		t.Errorf("published %v, want %v", steps, want)
	}
}

func TestAStoppedWorkerReturnsSoonAndLeavesNothingBehind(t *testing.T) {
	c := newCluster(t, workertest.New(t), 2)
	c.mustPrepare()
	ctx, cancel := context.WithCancel(t.Context())
	c.onStep = func(_ string, p *skeinv1.Progress) {
		if p.Step == 5 { // while its checkpoint is on its way
			cancel()
		}
	}
	began := time.Now()
	for i, err := range c.run(c.places, func(*place) context.Context { return ctx }) {
		if err == nil {
			t.Errorf("%s ended well", c.places[i].name)
		}
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("stopping took %v", took)
	}
	c.onStep = nil
	c.mustRun(c.places)
	if c.newest().Step != 30 {
		t.Errorf("step %d is published at the end", c.newest().Step)
	}
}

func TestAPreparationMayBeTriedAgain(t *testing.T) {
	j := workertest.New(t)
	c := newCluster(t, j, 1)
	c.mustPrepare()
	first := c.prep
	c.mustPrepare()
	if c.prep.Step0.Manifest != first.Step0.Manifest || string(c.prep.Resolved) != string(first.Resolved) || c.prep.Memory <= 0 {
		t.Errorf("the second try says %v, the first %v", c.prep.Step0, first.Step0)
	}
	j.Write(t, "trained/config.json", "{}")
	if err := c.prepare(t.Context()); err == nil || !strings.Contains(err.Error(), "output.export") {
		t.Errorf("an export folder that is there already: %v", err)
	}
}

func TestAPreparerOfAnotherNumericClassMayTakeOver(t *testing.T) {
	c := newCluster(t, workertest.New(t), 1)
	c.mustPrepare() // and killed before the log knew
	first := c.prep.Step0.Manifest
	c.openDevice = func(string) (device.Device, error) { return cpu.New(cpu.Options{Path: "generic", Threads: 1}) }
	c.mustPrepare()
	c.mustRun(c.places)
	if c.newest().Step != 30 || first == "" {
		t.Errorf("step %d is published at the end", c.newest().Step)
	}
}

func TestAnExportOfAnotherJobIsNotTakenForTheJobsOwn(t *testing.T) {
	j := workertest.New(t)
	c := newCluster(t, j, 1, "train.steps=6")
	c.mustPrepare()
	j.Write(t, "trained/config.json", "{}")
	err := c.run(c.places, c.always)[0]
	if err == nil || !strings.Contains(err.Error(), "holds another model") || len(c.results) > 0 {
		t.Errorf("%d results, error %v", len(c.results), err)
	}
	if _, broken := errors.AsType[*worker.BrokenError](err); broken {
		t.Error("it is to be tried again for ever")
	}
}

func TestAnExportThatAnEarlierGenerationWroteIsTheJobs(t *testing.T) {
	c := newCluster(t, workertest.New(t), 2, "train.steps=6")
	c.mustPrepare()
	c.mustRun(c.places)
	c.mustRun(c.places) // the first did not get as far as to say so
	if len(c.results) != 2 || string(c.results[0]) == "" {
		t.Errorf("%d results", len(c.results))
	}
	left, err := filepath.Glob(filepath.Join(c.job.Checkpoint.Store, "job-1", "export-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// failing is a file system on which one operation on some names fails.
type failing struct {
	vfs.FS
	create, open, rename, renameNew func(name string) error
}

func (f failing) Open(name string) (vfs.File, error) {
	if f.open != nil {
		if err := f.open(name); err != nil {
			return nil, err
		}
	}
	return f.FS.Open(name)
}

func (f failing) Create(name string) (vfs.File, error) {
	if f.create != nil {
		if err := f.create(name); err != nil {
			return nil, err
		}
	}
	return f.FS.Create(name)
}

func (f failing) Rename(from, to string) error {
	if f.rename != nil {
		if err := f.rename(to); err != nil {
			return err
		}
	}
	return f.FS.Rename(from, to)
}

func (f failing) RenameNew(from, to string) error {
	if f.renameNew != nil {
		if err := f.renameNew(to); err != nil {
			return err
		}
	}
	return f.FS.RenameNew(from, to)
}

func TestAStoreThatRefusesCostsACheckpointAndNoStep(t *testing.T) {
	full := func(name string) error { return &os.PathError{Op: "open", Path: name, Err: syscall.ENOSPC} }
	broken := func(name string) error { return &os.PathError{Op: "open", Path: name, Err: syscall.EIO} }
	stale := func(name string) error {
		return &os.LinkError{Op: "rename", Old: "temp", New: name, Err: syscall.ESTALE}
	}
	for name, x := range map[string]struct {
		fault failing
		of    string // the files that are refused
		says  string
	}{
		"parts":    {failing{FS: vfs.OS, create: full}, "rank-00", "no space left"},
		"names":    {failing{FS: vfs.OS, rename: stale}, "rank-00", "stale"},
		"a look":   {failing{FS: vfs.OS, open: broken}, "manifest.json", "input/output error"},
		"one part": {failing{FS: vfs.OS, create: full}, "rank-01", "no space left"},
		"manifest": {failing{FS: vfs.OS, create: full}, "manifest", "no space left"},
		"its name": {failing{FS: vfs.OS, renameNew: stale}, "manifest", "is not named in the store"},
	} {
		t.Run(name, func(t *testing.T) {
			j, settings := workertest.New(t), []string{"train.steps=8", "checkpoint.every=3 steps"}
			want := trainedHash(t, j, settings...)
			c := newCluster(t, j, 2, settings...)
			c.mustPrepare()
			var refused atomic.Int64
			wrap := func(refuse func(string) error) func(string) error {
				if refuse == nil {
					return nil
				}
				return func(name string) error {
					if !strings.Contains(filepath.Base(name), x.of) || !strings.Contains(name, "step-") || strings.Contains(name, "step-00000000") || strings.Contains(name, "step-00000006") { // the second checkpoint finds room
						return nil
					}
					if strings.Contains(name, "step-00000008") && refused.Load() > 20 { // the last one in the end
						return nil
					}
					refused.Add(1)
					return refuse(name)
				}
			}
			c.fs, c.storeRetry = failing{FS: vfs.OS, create: wrap(x.fault.create), open: wrap(x.fault.open), rename: wrap(x.fault.rename), renameNew: wrap(x.fault.renameNew)}, time.Millisecond
			var told atomic.Pointer[string]
			c.onStep = func(_ string, p *skeinv1.Progress) {
				if p.GetUnsaved() != "" {
					told.Store(&p.Unsaved)
				}
			}
			c.mustRun(c.places)
			if got := c.newest(); got.Step != 8 || got.Weights != want {
				t.Errorf("step %d is published with %s, undisturbed the job ends on %s", got.Step, got.Weights, want)
			}
			if c.generation != 1 || refused.Load() <= 20 {
				t.Errorf("generation %d, %d times refused", c.generation, refused.Load())
			}
			if s := told.Load(); s == nil || !strings.Contains(*s, "that of step ") || !strings.Contains(*s, x.says) {
				t.Errorf("the progress does not say what was refused: %v", s)
			}
		})
	}
}

func TestACheckpointThatWasPrunedIsNamed(t *testing.T) {
	c := newCluster(t, workertest.New(t), 1, "checkpoint.keep=1", "train.steps=10")
	c.mustPrepare()
	c.mustRun(c.places)
	c.published = c.published[:1]
	err := c.run(c.places, c.always)[0]
	if err == nil || !strings.Contains(err.Error(), "goes on from step 0") || !strings.Contains(err.Error(), "[10]") {
		t.Errorf("error %v", err)
	}
}
