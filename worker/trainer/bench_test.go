package trainer

import (
	"context"
	"os"
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/gguf"
	"github.com/skein-ml/skein/optim"
	"github.com/skein-ml/skein/shard"
)

// BenchmarkStepSmolLM2 takes steps of the demo's shape: four sequences of 512 tokens
// over four ranks. It needs the model of `make fetch`.
func BenchmarkStepSmolLM2(b *testing.B) {
	const path = "../../.cache/testdata/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
	if _, err := os.Stat(path); err != nil {
		b.Skipf("no model: %v; make fetch brings it", err)
	}
	base, err := gguf.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer base.Close()
	c := Config{
		Model: base.Config(), WorldSize: 4, Precision: device.BF16, Stage: shard.StageOptimizer,
		Batch:     Batching{Global: 4, Micro: 1, SeqLen: 512},
		Optimizer: optim.AdamW{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, Clip: 1},
		Schedule:  optim.Schedule{Kind: optim.Constant, Peak: 3e-4, WarmupSteps: 5},
		Order:     shard.Order{Samples: 1 << 20, GlobalBatch: 4},
	}
	tr, err := New(newDevice(b, "", 2), c, random{512, c.Model.Vocab})
	if err != nil {
		b.Fatal(err)
	}
	defer tr.Close()
	if err := tr.Import(base); err != nil {
		b.Fatal(err)
	}
	b.Logf("%s", tr.dev.Info().Name)
	for b.Loop() {
		res, err := tr.Step(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		b.Logf("%v; data %v compute %v reduce %v apply %v", res.Decision, res.Timing.Data, res.Timing.Compute, res.Timing.Reduce, res.Timing.Apply)
		b.ReportMetric(float64(c.Batch.Global*c.Batch.SeqLen)/res.Timing.Total().Seconds(), "tokens/s")
	}
}
