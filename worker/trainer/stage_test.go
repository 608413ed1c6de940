package trainer

import (
	"testing"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/shard"
)

// From stage 2 on all micro-batches run together. Each way of keeping activations, each wire, both
// precisions, worlds of one to four ranks and models of every layout meet each other here.
func TestEveryStageTrainsToTheSameBitsOnOneWorker(t *testing.T) {
	goldens := []string{"llama-tied-gqa", "gpt2-tanh", "llama-untied-bias", "gpt2-erf-untied"}
	for _, path := range []string{"generic", ""} {
		if path == "" && cpu.Paths()[0].Name == "generic" && len(cpu.Paths()) == 1 {
			t.Skip("this machine has the generic path only")
		}
		i := 0
		for _, precision := range []device.DType{device.F32, device.BF16} {
			for _, wire := range []allreduce.Wire{allreduce.WireFP32, allreduce.WireBF16} {
				for _, keep := range []model.Checkpointing{model.CheckpointNone, model.CheckpointSelective, model.CheckpointFull} {
					g := golden{modeltest.Load(t, goldens[i%len(goldens)])}
					c := g.config([]int{2, 4, 1}[i%3], 8)
					c.Precision, c.Wire, c.Checkpointing = precision, wire, keep
					i++
					run := func(stage shard.Stage, micro, threads int) shard.Digest {
						c := c
						c.Stage, c.Batch.Micro = stage, micro
						tr := newTrainer(t, newDevice(t, path, threads), g, c)
						steps(t, tr, 4)
						return hash(t, tr)
					}
					want := run(shard.StageOptimizer, 1, 1)
					for _, stage := range stages[2:] {
						if got := run(stage, 1+i%2, 2); got != want {
							t.Errorf("%s, %v, wire %v, checkpointing %v, %d ranks, ZeRO-%d: weights %v, want %v",
								path, precision, wire, keep, c.WorldSize, stage, got, want)
						}
					}
				}
			}
		}
	}
}
