package trainer

import (
	"context"
	"fmt"
	"testing"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/shard"
)

// steady serves what it has read before, without allocating.
type steady struct{ read map[int64]*data.Batch }

func (s steady) Batch(_ context.Context, indices []int64, dst *data.Batch) error {
	dst.Rows, dst.TargetCount = len(indices), 0
	dst.Tokens, dst.Targets, dst.CuDocs = dst.Tokens[:0], dst.Targets[:0], append(dst.CuDocs[:0], 0)
	for i, index := range indices {
		one := s.read[index]
		dst.SeqLen = one.SeqLen
		dst.TargetCount += one.TargetCount
		dst.Tokens, dst.Targets = append(dst.Tokens, one.Tokens...), append(dst.Targets, one.Targets...)
		for _, d := range one.CuDocs[1:] {
			dst.CuDocs = append(dst.CuDocs, d+int32(i*one.SeqLen))
		}
	}
	return nil
}

func TestASteadyStepAllocatesNothing(t *testing.T) {
	for _, x := range []struct {
		golden    string
		worldSize int
		wire      allreduce.Wire
		keep      model.Checkpointing
		stage     shard.Stage
	}{
		{"llama-tied-gqa", 1, allreduce.WireFP32, model.CheckpointNone, shard.StageOptimizer},
		{"llama-untied-bias", 2, allreduce.WireFP32, model.CheckpointSelective, shard.StageOptimizer},
		{"gpt2-tanh", 2, allreduce.WireBF16, model.CheckpointFull, shard.StageOptimizer},
		{"llama-untied-bias", 2, allreduce.WireFP32, model.CheckpointSelective, shard.StageGradients},
	} {
		t.Run(fmt.Sprintf("%s on %d ranks, ZeRO-%d", x.golden, x.worldSize, x.stage), func(t *testing.T) {
			g := golden{modeltest.Load(t, x.golden)}
			c := g.config(x.worldSize, 2)
			c.Precision, c.Wire, c.Checkpointing, c.Stage = device.BF16, x.wire, x.keep, x.stage
			tr := newTrainer(t, newDevice(t, "", 2), g, c)
			read := steady{map[int64]*data.Batch{}}
			for i := range int64(len(g.IDs) / g.SeqLen) {
				read.read[i] = &data.Batch{}
				if err := g.Batch(t.Context(), []int64{i}, read.read[i]); err != nil {
					t.Fatal(err)
				}
			}
			tr.samples = read
			steps(t, tr, 4) // whose slices grow to what they need
			ctx := context.Background()
			if n := testing.AllocsPerRun(8, func() {
				if _, err := tr.Step(ctx); err != nil {
					t.Fatal(err)
				}
			}); n != 0 {
				t.Errorf("%v allocations a step", n)
			}
		})
	}
}
