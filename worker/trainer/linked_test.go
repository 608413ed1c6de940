package trainer

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/device/opaque"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/shard"
)

// stages are the ZeRO stages.
var stages = []shard.Stage{shard.StageReplicated, shard.StageOptimizer, shard.StageGradients, shard.StageWeights}

// team is the trainers of one job on several workers, linked over loopback.
type team struct {
	trainers []*Trainer
	links    []*allreduce.Link
}

// newTeam makes a team at step 0. open opens a worker's device.
func newTeam(t testing.TB, open func(worker int) device.Device, g golden, c Config, workers int) *team {
	t.Helper()
	m := newLinkedTeam(t, open, g, c, workers)
	m.each(t, func(_ int, tr *Trainer) error { return tr.Import(modeltest.Weights{Model: g.Config}) })
	return m
}

// newLinkedTeam is newTeam before anything is in the trainers.
func newLinkedTeam(t testing.TB, open func(worker int) device.Device, g golden, c Config, workers int) *team {
	t.Helper()
	placement, err := shard.EvenPlacement(c.WorldSize, workers)
	if err != nil {
		t.Fatal(err)
	}
	m := &team{links: make([]*allreduce.Link, workers)}
	var listeners []*allreduce.Listener
	for w := range workers {
		c := c
		c.Placement, c.Worker = placement, w
		tr, err := New(open(w), c, g)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(tr.Close)
		m.trainers = append(m.trainers, tr)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listener := allreduce.Listen(l, allreduce.ListenerConfig{})
		t.Cleanup(func() { listener.Close() })
		listeners = append(listeners, listener)
	}
	m.each(t, func(w int, tr *Trainer) error {
		if workers == 1 {
			return nil
		}
		mem, err := tr.LinkMemory()
		if err != nil {
			return err
		}
		names := []string{"w1", "w2", "w3", "w4"}[:workers]
		m.links[w], err = allreduce.Connect(t.Context(), listeners[w], allreduce.LinkConfig{
			Key: allreduce.Key{Job: "job", Generation: 1, SpecHash: "spec", Class: "class"}, Table: tr.Table(), Placement: placement, Worker: w,
			Names: names, Next: listeners[(w+1)%workers].Addr(), Wire: c.Wire, Arithmetic: tr.Arithmetic(), Memory: mem, Decide: tr.Decide,
			ChunkBytes: 1000, Mirror: tr.cfg.Mirror, GatherFirst: tr.replicated(), OnDemand: tr.OnDemand(),
		})
		if err != nil {
			return err
		}
		t.Cleanup(func() { m.links[w].Close() })
		tr.Join(m.links[w])
		return nil
	})
	return m
}

// each runs f for all workers at once.
func (m *team) each(t testing.TB, f func(worker int, tr *Trainer) error) {
	t.Helper()
	var all errgroup.Group
	for w, tr := range m.trainers {
		all.Go(func() error { return f(w, tr) })
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
}

// steps takes n steps and returns the last result of rank 0's worker.
func (m *team) steps(t testing.TB, n int) Result {
	t.Helper()
	var last Result
	m.each(t, func(w int, tr *Trainer) error {
		for range n {
			res, err := tr.Step(t.Context())
			if err != nil {
				return err
			}
			if w == 0 {
				last = res
			}
		}
		return nil
	})
	return last
}

// hash is the hash of the master weights, each piece from its owner.
func (m *team) hash(t testing.TB) shard.Digest {
	t.Helper()
	table := m.trainers[0].Table()
	h := shard.NewWeightsHash(table)
	for _, tr := range m.trainers {
		for b := range table.Buckets() {
			own := tr.owns(b)
			le := make([]byte, own.Len()*4)
			if err := tr.ReadState(checkpoint.Master, b, own.Lo, le); err != nil {
				t.Fatal(err)
			}
			if err := h.Write(b, own.Lo, le); err != nil {
				t.Fatal(err)
			}
		}
	}
	sum, err := h.Sum()
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestEveryPlacementAndStageTrainsToTheSameBits(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	for _, p := range cpu.Paths() {
		for _, how := range []struct {
			precision device.DType
			wire      allreduce.Wire
		}{{device.F32, allreduce.WireFP32}, {device.BF16, allreduce.WireBF16}, {device.BF16, allreduce.WireFP32}} {
			t.Run(fmt.Sprintf("%s/%v/wire %v", p.Name, how.precision, how.wire), func(t *testing.T) {
				if !p.Available {
					t.Skipf("path %s: %s", p.Name, p.Why)
				}
				if p.Name == "generic" && how.precision == device.BF16 && how.wire == allreduce.WireFP32 {
					t.Skip("the faster paths cover it")
				}
				c := g.config(4, 8)
				c.Precision, c.Wire = how.precision, how.wire
				alone := newTrainer(t, newDevice(t, p.Name, 2), g, c)
				steps(t, alone, 3)
				want := hash(t, alone)
				for workers := 1; workers <= 4; workers++ {
					for _, stage := range stages {
						c.Stage, c.Batch.Micro, c.Mirror = stage, 1+workers%2, workers != 2
						m := newTeam(t, func(int) device.Device { return newDevice(t, p.Name, 1) }, g, c, workers)
						m.steps(t, 3)
						if got := m.hash(t); got != want {
							t.Errorf("%d workers, ZeRO-%d: weights %v, want %v", workers, stage, got, want)
						}
					}
				}
			})
		}
	}
}

func TestAnUntiedModelAndTheOpaqueDeviceMeetOverLinks(t *testing.T) {
	for _, name := range []string{"llama-untied-bias", "llama-tied-gqa"} {
		for _, stage := range stages {
			g := golden{modeltest.Load(t, name)}
			c := g.config(2, 4)
			c.Precision, c.Stage, c.Checkpointing = device.BF16, stage, model.CheckpointFull
			alone := newTrainer(t, newDevice(t, "generic", 2), g, c)
			steps(t, alone, 3)
			m := newTeam(t, func(w int) device.Device {
				if w == 0 {
					return newDevice(t, "generic", 1)
				}
				hidden, err := opaque.New(opaque.Options{Seed: 5, DelayMax: 20 * time.Microsecond})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { hidden.Close() })
				return hidden
			}, g, c, 2)
			m.steps(t, 3)
			if got, want := m.hash(t), hash(t, alone); got != want {
				t.Errorf("%s, ZeRO-%d: weights %v on a mixed team, %v alone", name, stage, got, want)
			}
		}
	}
}

func TestACheckpointOfATeamGoesOnAnywhere(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	c := g.config(4, 4)
	c.Precision = device.BF16
	alone := newTrainer(t, newDevice(t, "generic", 2), g, c)
	steps(t, alone, 3)
	states := statesOf(t, alone)
	steps(t, alone, 3)
	want := hash(t, alone)
	for workers := 1; workers <= 3; workers++ {
		c.Stage = stages[workers-1] // the checkpoint is that of stage 1
		m := newLinkedTeam(t, func(int) device.Device { return newDevice(t, "generic", 1) }, g, c, workers)
		m.each(t, func(_ int, tr *Trainer) error { return tr.Restore(states, 3, 3) })
		m.steps(t, 3)
		if got := m.hash(t); got != want {
			t.Errorf("%d workers from step 3: weights %v, want %v", workers, got, want)
		}
	}
}

// savedStates is a copy of a trainer's state.
type savedStates map[string][]float32

func statesOf(t testing.TB, tr *Trainer) savedStates {
	t.Helper()
	s := savedStates{}
	for kind := range checkpoint.Kind(states) {
		for b := range tr.table.Buckets() {
			for _, x := range tr.table.Bucket(b).Tensors() {
				values := make([]float32, x.Bucket.Len())
				if err := tr.ReadState(kind, b, x.Bucket.Lo, device.HostBytes(values)); err != nil {
					t.Fatal(err)
				}
				s[fmt.Sprint(kind, x.Tensor)] = values
			}
		}
	}
	return s
}

func (s savedStates) ReadRange(tensor string, kind checkpoint.Kind, elemOff int64, dst []float32) error {
	copy(dst, s[fmt.Sprint(kind, tensor)][elemOff:])
	return nil
}

func TestAHeldStateIsNotChangedUntilItIsReleased(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	tr := newTrainer(t, newDevice(t, "generic", 1), g, g.config(2, 2))
	before := hash(t, tr)
	held := make(chan struct{})
	tr.Hold(held)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := tr.Step(ctx); err == nil {
		t.Fatal("a step was applied to a state that is held")
	}
	if hash(t, tr) != before || tr.StepsDone() != 0 {
		t.Error("the weights have changed")
	}
}

func TestARequestReachesEveryWorkerInTheSameStep(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	m := newTeam(t, func(int) device.Device { return newDevice(t, "generic", 1) }, g, g.config(4, 4), 3)
	m.trainers[2].Request(allreduce.RequestCheckpoint)
	for step, want := range []allreduce.Requests{allreduce.RequestCheckpoint, 0} {
		m.each(t, func(w int, tr *Trainer) error {
			res, err := tr.Step(t.Context())
			if err == nil && res.Decision.Requests != want {
				err = fmt.Errorf("step %d, worker %d: requests %b, want %b", step+1, w, res.Decision.Requests, want)
			}
			return err
		})
	}
}
