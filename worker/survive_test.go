package worker_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/internal/vfs"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker"
	"github.com/skein-ml/skein/worker/workertest"
)

// severed is a listener whose connections can be cut, as by the death of a process.
type severed struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (l *severed) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, c)
		l.mu.Unlock()
	}
	return c, err
}

func (l *severed) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	l.conns = nil
}

// keeping gives places memory between generations.
func (c *cluster) keeping(use ...*place) {
	for _, p := range use {
		p.keep = worker.NewKeep()
		c.t.Cleanup(p.keep.Drop)
	}
}

// lineage is the record that the job's folder holds.
func (c *cluster) lineage() checkpoint.Lineage {
	c.t.Helper()
	l, err := checkpoint.ReadLineage(vfs.OS, filepath.Join(c.job.Checkpoint.Store, "job-1", "lineage.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	return l
}

func TestALostWorkerCostsNoDecidedStepWhereItIsMirrored(t *testing.T) {
	j := workertest.New(t)
	const world = "cluster.worldSize=4"
	want := trainedHash(t, j, world)
	for _, zero := range []string{"cluster.zero=0", "cluster.zero=1", "cluster.zero=3"} {
		c := newCluster(t, j.Copy(t), 3, world, zero)
		c.mirror = true
		for _, p := range c.places {
			p.keep = worker.NewKeep()
			t.Cleanup(p.keep.Drop)
		}
		c.places[1].keep = nil // what it has dies with it
		c.mustPrepare()
		lost, cancel := context.WithCancel(t.Context())
		defer cancel()
		var told []int64 // steps, by rank 0's worker
		c.onStep = func(name string, p *skeinv1.Progress) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if name == "w1" && c.generation < 3 || name == "w3" && c.generation == 3 {
				told = append(told, p.Step)
			}
			if name == "w2" && p.Step == 13 {
				cancel()
			}
			if name == "w3" && p.Step == 20 && c.generation == 2 {
				c.places[2].yield <- struct{}{}
			}
		}
		errs := c.run(c.places, func(p *place) context.Context {
			if p.name == "w2" {
				return lost
			}
			return t.Context()
		})
		c.recover(c.places, errs)
		if c.live.Target < 13 {
			t.Errorf("%s: on from step %d, and w2 had told of step 13", zero, c.live.Target)
		}
		left := []*place{c.places[0], c.places[2]}
		errs = c.run(left, c.always)
		for i, err := range errs {
			if broken, ok := errors.AsType[*worker.BrokenError](err); !ok || broken.Sealed == nil || !broken.Sealed.Yielded {
				t.Fatalf("%s: %s was to yield and ended with %v, all: %v", zero, left[i].name, err, errs)
			}
		}
		c.recover(left, errs)
		if c.live.Target < 20 || c.live.Target > 22 {
			t.Errorf("%s: yielded after step %d, asked for at step 20", zero, c.live.Target)
		}
		c.places[1].keep = worker.NewKeep() // another process of the name joins, and rank 0 moves
		t.Cleanup(c.places[1].keep.Drop)
		c.mustRun([]*place{c.places[2], c.places[1], c.places[0]})
		if got := c.newest(); got.Weights != want || got.Step != 30 {
			t.Errorf("%s: step %d has weights %s, want step 30 with %s", zero, got.Step, got.Weights, want)
		}
		for i, step := range told { // rank 0's worker tells of a step once it is applied
			if i > 0 && step <= told[i-1] {
				t.Errorf("%s: a step is told twice: %v", zero, told)
				break
			}
		}
		l, err := checkpoint.ReadLineage(vfs.OS, filepath.Join(c.job.Checkpoint.Store, "job-1", "lineage.json"))
		if err != nil || len(l.Steps) != 30 || len(l.ResumedAt) != 0 {
			t.Errorf("%s: lineage: %d steps, resumed at %v, %v", zero, len(l.Steps), l.ResumedAt, err)
		}
	}
}

// measured are the results of a record but for what is counted with checkpoints, which are
// given by their steps.
func measured(list []checkpoint.Result) (values map[string]map[int64]checkpoint.Number, counted map[string][]int64) {
	values, counted = map[string]map[int64]checkpoint.Number{}, map[string][]int64{}
	for _, r := range list {
		if r.Name == "tokens" || r.Name == "seconds" {
			counted[r.Name] = append(counted[r.Name], r.Step)
			continue
		}
		if values[r.Name] == nil {
			values[r.Name] = map[int64]checkpoint.Number{}
		}
		values[r.Name][r.Step] = r.Value
	}
	return values, counted
}

func TestTheLossOfRankZerosWorkerLeavesNoGapInTheRecord(t *testing.T) {
	j := workertest.New(t)
	settings := []string{"cluster.worldSize=4", "eval.every=3 steps", "checkpoint.keep=100"}
	whole := (&site{Job: j.Copy(t), fs: vfs.OS}).mustRun(t, settings...)
	want, _ := measured(whole.Results)
	for _, zero := range []string{"cluster.zero=0", "cluster.zero=1"} {
		t.Run(zero, func(t *testing.T) {
			c := newCluster(t, j.Copy(t), 3, append(slices.Clone(settings), zero)...)
			c.mirror = true
			c.keeping(c.places[1:]...)
			c.mustPrepare()
			lost, cancel := context.WithCancel(t.Context())
			defer cancel()
			c.onStep = func(name string, p *skeinv1.Progress) {
				if name == "w3" && p.Step == 13 { // steps 5 and 10 are published, 0 to 12 measured
					cancel()
				}
			}
			errs := c.run(c.places, func(p *place) context.Context {
				if p.name == "w1" {
					return lost
				}
				return t.Context()
			})
			c.recover(c.places, errs)
			c.mustRun(c.places[1:])
			if got := c.newest(); got.Weights != whole.Hash || got.Step != 30 {
				t.Errorf("step %d has weights %s, want step 30 with %s", got.Step, got.Weights, whole.Hash)
			}
			l := c.lineage()
			var published, linked []int64
			for _, ck := range c.published {
				published = append(published, ck.Step)
			}
			for _, x := range l.Chain {
				linked = append(linked, x.Step)
			}
			if !slices.Equal(linked, published) {
				t.Errorf("the chain has steps %v, published were %v", linked, published)
			}
			got, counted := measured(l.Results)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("measured otherwise than by one machine that nothing befell:\n%s", diff)
			}
			for name, steps := range counted {
				if !slices.Equal(steps, published[1:]) {
					t.Errorf("%s are counted at steps %v, published were %v", name, steps, published)
				}
			}
			if diff := cmp.Diff(whole.Steps, l.Steps); diff != "" {
				t.Errorf("the steps differ:\n%s", diff)
			}
		})
	}
}

func TestAFencedPublisherKeepsWhatItHolds(t *testing.T) {
	j := workertest.New(t)
	const world = "cluster.worldSize=4"
	want := trainedHash(t, j, world)
	c := newCluster(t, j, 2, world, "cluster.zero=1")
	c.mirror = true
	c.keeping(c.places...)
	c.mustPrepare()
	c.onPublish = func(ck *skeinv1.Checkpoint) error {
		if ck.Step == 10 {
			return worker.ErrFenced
		}
		return nil
	}
	errs := c.run(c.places, c.always)
	broken, ok := errors.AsType[*worker.BrokenError](errs[0])
	if !ok || !errors.Is(errs[0], worker.ErrFenced) || broken.Sealed == nil || len(broken.Sealed.Held) == 0 {
		t.Fatalf("rank 0's worker ended with %v, and keeps %v", errs[0], broken)
	}
	c.onPublish = nil
	c.recover(c.places, errs)
	if c.live.Target < 10 || slices.Contains(c.live.Sources, "w2") && !slices.Contains(c.live.Sources, "w1") {
		t.Errorf("on from step %d with state of %v", c.live.Target, c.live.Sources)
	}
	c.mustRun(c.places)
	if got := c.newest(); got.Weights != want || got.Step != 30 {
		t.Errorf("step %d has weights %s, want step 30 with %s", got.Step, got.Weights, want)
	}
}

// wrong is a device that once, when it is told to, keeps something else than it was given.
type wrong struct {
	device.Device
	now  *atomic.Bool
	keep func(device.AdamWArgs) device.Tensor // of what
}

func (d wrong) AdamW(s device.Stream, a device.AdamWArgs) {
	d.Device.AdamW(s, a)
	if d.now.CompareAndSwap(true, false) {
		d.Upload(s, d.keep(a).ColRange(0, 1).Buf, device.HostBytes([]float32{42}))
	}
}

func TestCopiesThatDivergeEndTheGenerationByNameAndNotTheJob(t *testing.T) {
	j := workertest.New(t)
	settings := []string{"cluster.worldSize=4", "train.steps=12", "checkpoint.every=12 steps"}
	want := trainedHash(t, j, settings...)
	c := newCluster(t, j, 2, append(settings, "cluster.zero=1")...)
	c.mirror = true
	c.keeping(c.places...)
	c.mustPrepare()
	var now, opened atomic.Bool
	c.openDevice = func(class string) (device.Device, error) {
		path, _, _ := strings.Cut(class, " ")
		d, err := cpu.New(cpu.Options{Path: path, Threads: 1})
		if err != nil || opened.Swap(true) {
			return d, err
		}
		return wrong{d, &now, func(a device.AdamWArgs) device.Tensor { return a.Master }}, nil
	}
	var once sync.Once
	c.onStep = func(_ string, p *skeinv1.Progress) {
		if p.Step == 2 {
			once.Do(func() { now.Store(true) })
		}
	}
	errs := c.run(c.places, c.always)
	var found []*skeinv1.Divergence
	for i, err := range errs {
		broken, ok := errors.AsType[*worker.BrokenError](err)
		if !ok {
			t.Fatalf("%s ended with %v", c.places[i].name, err)
		}
		if broken.Diverged == nil {
			continue
		}
		found = append(found, broken.Diverged)
		if broken.Sealed != nil || !strings.Contains(broken.Reason, "w1") || !strings.Contains(broken.Reason, "w2") {
			t.Errorf("%s keeps %v and says %q", c.places[i].name, broken.Sealed, broken.Reason)
		}
	}
	if len(found) != 1 || found[0].Step < 2 || found[0].Bucket == "" || found[0].Owner == found[0].Mirror {
		t.Fatalf("diverged: %v, errors %v", found, errs)
	}
	c.openDevice, c.onStep = nil, nil
	for _, p := range c.places {
		p.keep.Drop() // what ran on the wrong machine
	}
	c.mustRun(c.places)
	if got := c.newest(); got.Weights != want || got.Step != 12 {
		t.Errorf("step %d has weights %s, want step 12 with %s", got.Step, got.Weights, want)
	}
}

// TestACheckpointWhoseCopiesDifferIsNotPublished has a moment change in the very step of the
// first checkpoint, where no comparison of weights can see it.
func TestACheckpointWhoseCopiesDifferIsNotPublished(t *testing.T) {
	j := workertest.New(t)
	settings := []string{"cluster.worldSize=4", "train.steps=8", "checkpoint.every=4 steps"}
	want := trainedHash(t, j, settings...)
	for name, x := range map[string]struct {
		zero   string
		moment func(device.AdamWArgs) device.Tensor
		yields bool // all stop after that step, and the next generation makes up for the checkpoint
	}{
		"replicas":           {"cluster.zero=0", func(a device.AdamWArgs) device.Tensor { return a.M }, false},
		"mirrors":            {"cluster.zero=1", func(a device.AdamWArgs) device.Tensor { return a.V }, false},
		"in another's place": {"cluster.zero=1", func(a device.AdamWArgs) device.Tensor { return a.M }, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, j.Copy(t), 3, append(slices.Clone(settings), x.zero)...)
			c.mirror = true
			c.keeping(c.places...)
			c.mustPrepare()
			var now atomic.Bool
			c.openDevice = func(class string) (device.Device, error) {
				path, _, _ := strings.Cut(class, " ")
				d, err := cpu.New(cpu.Options{Path: path, Threads: 1})
				return wrong{d, &now, x.moment}, err
			}
			var taken atomic.Int64
			c.onStep = func(worker string, p *skeinv1.Progress) {
				if p.Step != 3 {
					return
				}
				if x.yields && worker == "w1" {
					c.places[0].yield <- struct{}{}
				}
				if taken.Add(1) == 2 { // who is last has not voted for step 4 yet
					now.Store(true)
				}
			}
			use := c.places[:2]
			errs := c.run(use, c.always)
			if x.yields {
				c.recover(use, errs)
				if c.live.Target != 4 {
					t.Fatalf("on from step %d", c.live.Target)
				}
				use = []*place{c.places[0], c.places[2], c.places[1]} // so that mirrors are elsewhere
				errs = c.run(use, c.always)
			}
			said := 0
			for i, err := range errs {
				broken, ok := errors.AsType[*worker.BrokenError](err)
				if !ok {
					t.Fatalf("%s ended with %v", use[i].name, err)
				}
				if d := broken.Diverged; d != nil {
					said++
					if broken.Sealed != nil || d.Step < 4 || use[i].name != d.Owner && use[i].name != d.Mirror {
						t.Errorf("%s keeps %v and says %v", use[i].name, broken.Sealed, d)
					}
				}
			}
			if said == 0 || len(c.published) != 1 {
				t.Fatalf("%d say that copies differ, %d checkpoints are published: %v", said, len(c.published), errs)
			}
			c.openDevice, c.onStep = nil, nil
			for _, p := range c.places {
				p.keep.Drop()
			}
			c.mustRun(c.places)
			if got := c.newest(); got.Weights != want || got.Step != 8 {
				t.Errorf("step %d has weights %s, want step 8 with %s", got.Step, got.Weights, want)
			}
		})
	}
}

func TestAWorkerThatLosesANeighbourAccusesItAtOnce(t *testing.T) {
	c := newCluster(t, workertest.New(t), 3, "cluster.worldSize=4")
	c.mirror = true
	c.keeping(c.places...)
	c.mustPrepare()
	var mu sync.Mutex
	accused := map[string]string{}
	c.onAccuse = func(by, whom string) {
		mu.Lock()
		defer mu.Unlock()
		accused[by] += whom
	}
	c.onStep = func(name string, p *skeinv1.Progress) {
		if name == "w2" && p.Step == 3 { // its process dies
			c.places[1].conns.cut()
			c.places[2].conns.cut()
		}
	}
	for i, err := range c.run(c.places, c.always) {
		broken, ok := errors.AsType[*worker.BrokenError](err)
		if !ok || broken.Sealed == nil {
			t.Fatalf("%s ended with %v, and keeps %v", c.places[i].name, err, broken)
		}
		if name := c.places[i].name; accused[name] != broken.Accused || name != "w2" && broken.Accused != "w2" {
			t.Errorf("%s accuses %q at once, and %q in the end", name, accused[name], broken.Accused)
		}
	}
}
