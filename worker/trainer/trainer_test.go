package trainer

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/device/opaque"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/optim"
	"github.com/skein-ml/skein/shard"
)

// golden serves a golden's batch, over and over.
type golden struct {
	modeltest.Golden
}

func (g golden) Batch(_ context.Context, indices []int64, dst *data.Batch) error {
	*dst = data.Batch{Rows: len(indices), SeqLen: g.SeqLen, CuDocs: []int32{0}}
	for i, index := range indices {
		lo := int(index) * g.SeqLen
		dst.Tokens = append(dst.Tokens, g.IDs[lo:lo+g.SeqLen]...)
		for _, id := range g.Targets[lo : lo+g.SeqLen] {
			if id >= 0 {
				dst.TargetCount++
			}
			dst.Targets = append(dst.Targets, id)
		}
		for _, d := range g.CuDocs {
			if int(d) > lo && int(d) <= lo+g.SeqLen {
				dst.CuDocs = append(dst.CuDocs, d-int32(lo)+int32(i*g.SeqLen))
			}
		}
	}
	return nil
}

// config trains a golden as scripts/oracle/model_golden.py does.
func (g golden) config(worldSize, globalBatch int) Config {
	return Config{
		Model: g.Config, WorldSize: worldSize, Precision: device.F32, Stage: shard.StageOptimizer,
		Batch:     Batching{Global: globalBatch, Micro: 1, SeqLen: g.SeqLen},
		Optimizer: optim.AdamW{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, Clip: 1},
		Schedule:  optim.Schedule{Kind: optim.Constant, Peak: 1e-3},
		Order:     shard.Order{Samples: int64(len(g.IDs) / g.SeqLen), GlobalBatch: int64(globalBatch), Sequential: true},
	}
}

func newDevice(t testing.TB, path string, threads int) device.Device {
	t.Helper()
	dev, err := cpu.New(cpu.Options{Path: path, Threads: threads})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

// newTrainer makes a trainer at step 0 with the golden's loud weights.
func newTrainer(t testing.TB, dev device.Device, g golden, c Config) *Trainer {
	t.Helper()
	tr, err := New(dev, c, g)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.Close)
	if err := tr.Import(modeltest.Weights{Model: g.Config}); err != nil {
		t.Fatal(err)
	}
	return tr
}

// steps takes n steps and returns the last result.
func steps(t testing.TB, tr *Trainer, n int) Result {
	t.Helper()
	var last Result
	for range n {
		var err error
		if last, err = tr.Step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	return last
}

func hash(t testing.TB, tr *Trainer) shard.Digest {
	t.Helper()
	h, err := tr.WeightsHash()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// lossTol is what ten fp32 losses may differ from PyTorch's. Adam divides by the
// root of the second moment, so noise in tiny gradients moves weights by up to lr.
const lossTol = 1e-5

func TestTenStepsFollowPyTorch(t *testing.T) {
	for _, p := range cpu.Paths() {
		t.Run(p.Name, func(t *testing.T) {
			if !p.Available {
				t.Skipf("path %s: %s", p.Name, p.Why)
			}
			dev := newDevice(t, p.Name, 2)
			for _, name := range modeltest.Names(t) {
				t.Run(name, func(t *testing.T) {
					g := golden{modeltest.Load(t, name)}
					tr := newTrainer(t, dev, g, g.config(2, 2))
					for i, want := range g.Losses {
						got := steps(t, tr, 1).Decision
						if d := math.Abs(got.Loss - want); d > lossTol*want {
							t.Errorf("step %d: loss %.7f, PyTorch %.7f", i+1, got.Loss, want)
						}
					}
				})
			}
		})
	}
}

// variant is a change that must not change a bit.
type variant struct {
	name    string
	threads int
	change  func(*Config)
}

var variants = []variant{
	{"one thread", 1, func(*Config) {}},
	{"four threads", 4, func(*Config) {}},
	{"ZeRO-0", 2, func(c *Config) { c.Stage = shard.StageReplicated }},
	{"micro-batch 2", 2, func(c *Config) { c.Batch.Micro = 2 }},
	{"micro-batch 4", 2, func(c *Config) { c.Batch.Micro = 4 }},
	{"selective checkpointing, micro-batch 2", 2, func(c *Config) { c.Checkpointing, c.Batch.Micro = model.CheckpointSelective, 2 }},
	{"full checkpointing", 2, func(c *Config) { c.Checkpointing = model.CheckpointFull }},
	{"full checkpointing, micro-batch 4, ZeRO-0", 4, func(c *Config) {
		c.Checkpointing, c.Batch.Micro, c.Stage = model.CheckpointFull, 4, shard.StageReplicated
	}},
}

func TestTwentyStepsGiveTheSameBitsInEveryVariant(t *testing.T) {
	for _, p := range cpu.Paths() {
		for _, x := range []struct {
			golden    string
			precision device.DType
			wire      allreduce.Wire
		}{
			{"llama-tied-gqa", device.F32, allreduce.WireFP32}, {"llama-tied-gqa", device.F32, allreduce.WireBF16},
			{"llama-tied-gqa", device.BF16, allreduce.WireFP32}, {"llama-tied-gqa", device.BF16, allreduce.WireBF16},
			{"gpt2-tanh", device.BF16, allreduce.WireFP32},
		} {
			t.Run(fmt.Sprintf("%s/%s/%v/wire %v", p.Name, x.golden, x.precision, x.wire), func(t *testing.T) {
				if !p.Available {
					t.Skipf("path %s: %s", p.Name, p.Why)
				}
				g := golden{modeltest.Load(t, x.golden)}
				run := func(threads int, change func(*Config)) shard.Digest {
					c := g.config(2, 8)
					c.Precision, c.Wire = x.precision, x.wire
					change(&c)
					tr := newTrainer(t, newDevice(t, p.Name, threads), g, c)
					steps(t, tr, 20)
					return hash(t, tr)
				}
				want := run(2, func(*Config) {})
				for _, v := range variants {
					if got := run(v.threads, v.change); got != want {
						t.Errorf("%s: weights %v after 20 steps, want %v", v.name, got, want)
					}
				}
			})
		}
	}
}

func TestAStepWithoutTargetsChangesNothingButTheCount(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	for i := range g.Targets {
		g.Targets[i] = -100
	}
	tr := newTrainer(t, newDevice(t, "generic", 2), g, g.config(2, 2))
	before := hash(t, tr)
	d := steps(t, tr, 1).Decision
	if d.Action != allreduce.Skip || d.Cause != allreduce.CauseNoTokens || tr.StepsDone() != 1 || tr.taken != 0 {
		t.Errorf("decision %v, %d steps done, %d taken", d, tr.StepsDone(), tr.taken)
	}
	if hash(t, tr) != before {
		t.Error("the weights have changed")
	}
}

func TestAnInfiniteWeightSkipsTheStepAndNamesTheRank(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	tr := newTrainer(t, newDevice(t, "generic", 2), g, g.config(2, 2))
	inf := []float32{float32(math.Inf(1))}
	tr.dev.Upload(tr.stream, tr.segments[0].state[checkpoint.Master][2].ColRange(5, 6).Buf, device.HostBytes(inf))
	if err := tr.refresh(); err != nil {
		t.Fatal(err)
	}
	d := steps(t, tr, 1).Decision
	if d.Action != allreduce.Skip || d.Cause != allreduce.CauseNotFinite || d.Culprit != 0 || tr.taken != 0 {
		t.Errorf("decision %+v, %d steps taken", d, tr.taken)
	}
}

func TestAGradientThatIsNotFiniteNamesTheLayer(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	tr := newTrainer(t, newDevice(t, "generic", 2), g, g.config(2, 2))
	votes := make([]allreduce.Vote, 2)
	for r := range votes {
		votes[r] = allreduce.Vote{Step: 1, Rank: shard.Rank(r), SqNorms: make([]float64, tr.table.Buckets()), Loss: 1, Tokens: 1, Finite: true}
	}
	votes[1].SqNorms[0], votes[1].SqNorms[2], votes[1].Finite = math.NaN(), math.Inf(1), false
	d, err := tr.Decide(votes)
	if want := tr.table.Bucket(2).Name; err != nil || d.Culprit != 1 || tr.layer != want {
		t.Errorf("rank %d, layer %q, %v; want rank 1 and %q", d.Culprit, tr.layer, err, want)
	}
	votes[0].Loss = math.NaN()
	if _, err := tr.Decide(votes); err != nil || tr.layer != "" {
		t.Errorf("layer %q, %v; the forward of rank 0 was not finite already, so no layer's backward is to blame", tr.layer, err)
	}
}

func TestWorldSizeOneIsAsGoodAsPyTorch(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-untied-bias")}
	tr := newTrainer(t, newDevice(t, "generic", 2), g, g.config(1, 2))
	for i, want := range g.Losses {
		if got := steps(t, tr, 1).Decision.Loss; math.Abs(got-want) > lossTol*want {
			t.Errorf("step %d: loss %.7f, PyTorch %.7f", i+1, got, want)
		}
	}
}

func TestTheOpaqueDeviceTrainsToTheGenericPathsHash(t *testing.T) {
	for _, precision := range []device.DType{device.F32, device.BF16} {
		g := golden{modeltest.Load(t, "llama-tied-gqa")}
		c := g.config(2, 4)
		c.Precision, c.Wire, c.Checkpointing = precision, allreduce.WireBF16, model.CheckpointFull
		run := func(dev device.Device) shard.Digest {
			tr := newTrainer(t, dev, g, c)
			steps(t, tr, 5)
			return hash(t, tr)
		}
		hidden, err := opaque.New(opaque.Options{Seed: 11, DelayMax: 50 * time.Microsecond})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { hidden.Close() })
		if got, want := run(hidden), run(newDevice(t, "generic", 2)); got != want {
			t.Errorf("%v: weights %v on memory that Go cannot address, %v on the host's", precision, got, want)
		}
	}
}
