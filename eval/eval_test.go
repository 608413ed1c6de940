package eval_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/eval"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/model/modeltest"
)

// load makes a golden's model, ready for forward passes.
func load(t *testing.T, g modeltest.Golden) (*model.Model, device.Stream) {
	t.Helper()
	dev, err := cpu.New(cpu.Options{Path: "generic", Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	s := dev.Stream(device.StreamCompute)
	m, err := model.New(dev, g.Config, model.Options{DType: device.F32, SeqLen: g.SeqLen, Sequences: 1, ForwardOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	if err := m.LoadWeights(s, modeltest.Weights{Model: g.Config}); err != nil {
		t.Fatal(err)
	}
	return m, s
}

// sequences yields a golden's sequences one by one.
func sequences(g modeltest.Golden) func() (model.Batch, bool, error) {
	next := 0
	return func() (model.Batch, bool, error) {
		lo := next * g.SeqLen
		if next++; lo >= len(g.IDs) {
			return model.Batch{}, false, nil
		}
		b := model.Batch{IDs: g.IDs[lo : lo+g.SeqLen], Targets: g.Targets[lo : lo+g.SeqLen]}
		for _, d := range g.CuDocs {
			if int(d) >= lo && int(d) <= lo+g.SeqLen {
				b.CuDocs = append(b.CuDocs, d-int32(lo))
			}
		}
		return b, true, nil
	}
}

func TestLossIsTheMeanOverTargetsThatPyTorchFinds(t *testing.T) {
	for _, name := range modeltest.Names(t) {
		g := modeltest.Load(t, name)
		m, s := load(t, g)
		got, err := eval.Loss(context.Background(), m, s, eval.Resident{}, sequences(g))
		if err != nil {
			t.Fatal(err)
		}
		var want int64
		for _, id := range g.Targets {
			if id >= 0 {
				want++
			}
		}
		if math.Abs(got.Loss-g.Losses[0]) > 1e-5 || got.Targets != want {
			t.Errorf("%s: loss %.6f over %d targets, PyTorch %.6f over %d", name, got.Loss, got.Targets, g.Losses[0], want)
		}
	}
}

func TestLossRefusesDataWithoutTargets(t *testing.T) {
	g := modeltest.Load(t, "llama-tied-gqa")
	for i := range g.Targets {
		g.Targets[i] = -100
	}
	m, s := load(t, g)
	if r, err := eval.Loss(context.Background(), m, s, eval.Resident{}, sequences(g)); err == nil {
		t.Errorf("a loss over nothing: %+v", r)
	}
}

// generate answers a prompt of a golden's model.
func generate(ctx context.Context, t *testing.T, o eval.Sampling, prompt []int32) ([]int32, error) {
	t.Helper()
	g := modeltest.Load(t, "llama-tied-gqa")
	m, s := load(t, g)
	d, err := m.NewDecoder(g.SeqLen)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var told []int32
	ids, err := eval.Generate(ctx, d, s, eval.Resident{}, prompt, o, func(id int32) { told = append(told, id) })
	if !slices.Equal(ids, told) {
		t.Errorf("returned %v and told %v", ids, told)
	}
	return ids, err
}

func must(t *testing.T, o eval.Sampling) []int32 {
	t.Helper()
	ids, err := generate(context.Background(), t, o, []int32{3, 1, 4})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestGreedyAnswersAreReproducibleAndStop(t *testing.T) {
	free := must(t, eval.Sampling{TokensMax: 12})
	if len(free) != 12 || !slices.Equal(free, must(t, eval.Sampling{TokensMax: 12})) {
		t.Fatalf("greedy answer %v is not the same twice", free)
	}
	stopped := must(t, eval.Sampling{TokensMax: 12, Stop: []int32{free[4]}})
	if first := slices.Index(free, free[4]); !slices.Equal(stopped, free[:first+1]) {
		t.Errorf("with stop id %d the answer is %v, want %v", free[4], stopped, free[:first+1])
	}
	full := must(t, eval.Sampling{TokensMax: 1000})
	if want := modeltest.Load(t, "llama-tied-gqa").SeqLen - 3 + 1; len(full) != want {
		t.Errorf("%d tokens until the cache is full, want %d", len(full), want)
	}
}

func TestSamplingFollowsItsSeedAndItsLimits(t *testing.T) {
	hot := eval.Sampling{TokensMax: 30, Temperature: 5, Seed: 1}
	first := must(t, hot)
	if !slices.Equal(first, must(t, hot)) {
		t.Error("one seed gave two answers")
	}
	hot.Seed = 2
	if slices.Equal(first, must(t, hot)) {
		t.Error("two seeds gave one answer of 30 hot tokens")
	}
	greedy := must(t, eval.Sampling{TokensMax: 30})
	for name, o := range map[string]eval.Sampling{
		"top 1":     {TokensMax: 30, Temperature: 5, TopK: 1},
		"top share": {TokensMax: 30, Temperature: 5, TopP: 1e-9},
	} {
		if got := must(t, o); !slices.Equal(got, greedy) {
			t.Errorf("%s: %v, want the greedy answer %v", name, got, greedy)
		}
	}
	hot.IDsMax = 5
	if got := must(t, hot); slices.Max(got) >= 5 {
		t.Errorf("ids up to %d although only 5 are allowed", slices.Max(got))
	}
}

func TestGenerateEndsWithItsContextAndRefusesNonsense(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := generate(ctx, t, eval.Sampling{TokensMax: 5}, []int32{1}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	for name, c := range map[string]struct {
		tokens int
		prompt []int32
	}{"no new tokens": {0, []int32{1}}, "an empty prompt": {5, nil}, "an unknown id": {5, []int32{1 << 20}}} {
		if _, err := generate(context.Background(), t, eval.Sampling{TokensMax: c.tokens}, c.prompt); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
