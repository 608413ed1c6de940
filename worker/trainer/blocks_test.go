package trainer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/shard"
)

// random serves packs of random tokens in documents of random lengths, which cross
// the 512-row blocks that sums are cut into.
type random struct {
	seqLen, vocab int
}

func (r random) Batch(_ context.Context, indices []int64, dst *data.Batch) error {
	*dst = data.Batch{Rows: len(indices), SeqLen: r.seqLen, CuDocs: []int32{0}}
	for i, index := range indices {
		rng := rand.New(rand.NewPCG(uint64(index), 7))
		for left := r.seqLen; left > 0; {
			n := 1 + rng.IntN(left)
			left -= n
			dst.CuDocs = append(dst.CuDocs, int32((i+1)*r.seqLen-left))
			for j := range n {
				dst.Tokens = append(dst.Tokens, int32(rng.IntN(r.vocab)))
				target := int32(-100)
				if j+1 < n && rng.IntN(4) > 0 {
					target = int32(rng.IntN(r.vocab))
					dst.TargetCount++
				}
				dst.Targets = append(dst.Targets, target)
			}
		}
	}
	return nil
}

// longer makes a golden one layer with room for long sequences.
var longer = map[string]map[string]any{
	"llama-tied-gqa": {"max_position_embeddings": 1024, "num_hidden_layers": 1},
	"gpt2-tanh":      {"n_positions": 1024, "n_layer": 1},
}

func TestMicroBatchesGiveTheSameBitsWhereSequencesCrossBlocks(t *testing.T) {
	for _, p := range cpu.Paths() {
		for _, x := range []struct {
			golden string
			seqLen int
		}{{"llama-tied-gqa", 300}, {"llama-tied-gqa", 512}, {"llama-tied-gqa", 700}, {"gpt2-tanh", 300}, {"gpt2-tanh", 700}} {
			t.Run(fmt.Sprintf("%s/%s T=%d", p.Name, x.golden, x.seqLen), func(t *testing.T) {
				if !p.Available {
					t.Skipf("path %s: %s", p.Name, p.Why)
				}
				g, seqLen := golden{modeltest.Load(t, x.golden)}, x.seqLen
				g.Config = g.Mutate(t, longer[x.golden])
				g.SeqLen = seqLen
				run := func(micro, threads int) shard.Digest {
					c := g.config(2, 8)
					c.Precision, c.Batch.Micro = device.BF16, micro
					c.Order = shard.Order{Samples: 1000, GlobalBatch: 8, Seed: 3}
					tr, err := New(newDevice(t, p.Name, threads), c, random{seqLen, g.Config.Vocab})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(tr.Close)
					if err := tr.Import(modeltest.Weights{Model: g.Config}); err != nil {
						t.Fatal(err)
					}
					steps(t, tr, 1)
					return hash(t, tr)
				}
				want := run(1, 1)
				for _, micro := range []int{2, 4} {
					if got := run(micro, 2); got != want {
						t.Errorf("micro-batch %d: weights %v, want %v", micro, got, want)
					}
				}
			})
		}
	}
}
