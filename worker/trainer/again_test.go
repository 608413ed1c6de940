package trainer

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/shard"
)

// brittle are samples that fail once, at the batch that fails counts down to.
type brittle struct {
	golden
	fails int // 0: they do not
}

var errBrittle = errors.New("these samples cannot be had now")

func (s *brittle) Batch(ctx context.Context, indices []int64, dst *data.Batch) error {
	if s.fails--; s.fails == 0 {
		return errBrittle
	}
	return s.golden.Batch(ctx, indices, dst)
}

func TestAStepThatIsRunAgainCountsAllItsTokensAndTellsWhatItKept(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	c := g.config(4, 4)
	alone := newTrainer(t, newDevice(t, "generic", 1), g, c)
	samples := &brittle{golden: g}
	tr, err := New(newDevice(t, "generic", 1), c, samples)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if err := tr.Import(modeltest.Weights{Model: g.Config}); err != nil {
		t.Fatal(err)
	}
	for k := int64(1); k <= 3; k++ {
		want, err := alone.Step(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if k == 2 {
			samples.fails = 3
			if _, err := tr.Step(t.Context()); !errors.Is(err, errBrittle) {
				t.Fatalf("step 2: %v", err)
			}
			held, err := tr.Seal()
			if err != nil {
				t.Fatal(err)
			}
			if held.Step != 1 || !slices.Equal(held.Computed, []shard.Rank{0, 1}) || held.Took <= 0 {
				t.Errorf("it keeps the gradients of ranks %v, computed in %s, after step %d", held.Computed, held.Took, held.Step)
			}
			if err := errors.Join(tr.Place(shard.Placement{}, 0, false), tr.Spread()); err != nil {
				t.Fatal(err)
			}
			if held, err = tr.Seal(); err != nil || len(held.Computed) > 0 {
				t.Errorf("in the next generation it has computed %v: %v", held.Computed, err)
			}
			if err := errors.Join(tr.Place(shard.Placement{}, 0, false), tr.Spread()); err != nil {
				t.Fatal(err)
			}
		}
		got, err := tr.Step(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got.Tokens != want.Tokens || tr.StepTokens() != want.Tokens || got.Decision.Tokens != want.Decision.Tokens {
			t.Errorf("step %d counts %d tokens (%d) and %d targets, undisturbed %d and %d", k, got.Tokens, tr.StepTokens(), got.Decision.Tokens, want.Tokens, want.Decision.Tokens)
		}
	}
	if hash(t, tr) != hash(t, alone) {
		t.Error("other weights")
	}
}
