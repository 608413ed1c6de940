package shard

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// smolLM2 is the table of SmolLM2-135M by its published shapes.
func smolLM2(t testing.TB, worldSize int) Table {
	const d, q, kv, f, vocab = 576, 576, 192, 1536, 49152
	groups := []Group{{"embedding", []Tensor{{"embed", vocab * d, true}}}}
	for i := range 30 {
		groups = append(groups, Group{fmt.Sprintf("layer.%d", i), []Tensor{
			{fmt.Sprintf("%d.attn", i), d*(q+2*kv) + q*d, true}, {fmt.Sprintf("%d.mlp", i), 3 * d * f, true},
			{fmt.Sprintf("%d.norms", i), 2 * d, false}}})
	}
	table, err := NewTable(append(groups, Group{"norm", []Tensor{{"norm", d, false}}}), worldSize)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func smolLM2Input(t testing.TB, worldSize int) MemoryInput {
	var order []int // tied: the head first, then the norm
	for b := range 31 {
		order = append(order, 31-b)
	}
	return MemoryInput{
		Table: smolLM2(t, worldSize), GradOrder: append([]int{0}, order...), Precision: BF16, Stage: StageOptimizer, Mirror: true,
		Shape:      Shape{FamilyLlama, 30, 576, 1536, 9, 3, 64, 49152},
		WorkersMin: worldSize, WorkersMax: worldSize, MicroBatch: 1, MicroBatches: 1, SequenceTokens: 512,
		HeadChunk: 512, WeightForms: 2,
	}
}

func TestSmolLM2OnFourWorkersNeedsWhatTheDesignSays(t *testing.T) {
	in := smolLM2Input(t, 4)
	if in.Table.Params() != 134_515_008 {
		t.Fatalf("the table has %d parameters", in.Table.Params())
	}
	// The design's 2.4 GB leave out reduced gradients, its own and the mirrored.
	m := WorstMemory(in)
	if got := float64(m.Total()-2*m.Reduced) / 1e9; math.Abs(got-2.4) > 0.1 {
		t.Errorf("%.2f GB on a worker, the design says 2.4: %+v", got, m)
	}
}

// TestStagesFollowTheZeROPaper compares with 4 + 12/N bytes of a parameter (plus
// our fp32 gradients and packed forms) as far as the formulas overlap.
func TestStagesFollowTheZeROPaper(t *testing.T) {
	in := smolLM2Input(t, 8)
	in.Mirror, in.WeightForms = false, 1
	padded := in.Table.Padded()
	for _, c := range []struct {
		stage     Stage
		optimizer int64
	}{{StageReplicated, 12 * padded}, {StageOptimizer, 12 * padded / 8}} {
		in.Stage = c.stage
		m := MemoryOn(in, 8)
		if m.Optimizer != c.optimizer || m.Weights != 2*padded || m.Gradients != 4*padded {
			t.Errorf("stage %d: %+v", c.stage, m)
		}
	}
}

// Two neighbours in the order of the backward, whatever the number of ranks: the head and the norm.
func TestFromStageTwoOnARanksGradientsAreTwoBuckets(t *testing.T) {
	in := smolLM2Input(t, 8)
	in.Stage, in.MicroBatches = StageGradients, 3
	want := 4 * (in.Table.Bucket(0).Padded + in.Table.Bucket(31).Padded)
	for workers, ranks := range map[int]int64{8: 1, 4: 2, 1: 8} {
		if got := MemoryOn(in, workers).Gradients; got != ranks*want {
			t.Errorf("%d workers: %d bytes of gradients, want %d", workers, got, ranks*want)
		}
	}
	one, all := MemoryOn(in, 8), MemoryOn(in, 1)
	if one.Activations*8 != all.Activations {
		t.Errorf("the micro-batches of all ranks run together: activations of one rank %d, of eight %d", one.Activations, all.Activations)
	}
	in.Table, in.Stage = smolLM2(t, 1), StageGradients
	if got, want := MemoryOn(in, 1).Gradients, 4*in.Table.Padded(); got != want {
		t.Errorf("a world of one: gradients of %d bytes, want %d", got, want)
	}
}

func TestFewerWorkersMeanMoreMemoryEach(t *testing.T) {
	in := smolLM2Input(t, 8)
	in.WorkersMin = 1
	for workers := 2; workers <= 8; workers++ {
		if fewer, more := MemoryOn(in, workers-1).Gradients, MemoryOn(in, workers).Gradients; fewer < more {
			t.Errorf("gradients: %d bytes on %d workers, %d on %d", fewer, workers-1, more, workers)
		}
	}
	if worst := WorstMemory(in); worst.Ranks != 8 || worst.Workers != 1 {
		t.Errorf("the worst placement has %d ranks on one of %d workers", worst.Ranks, worst.Workers)
	}
}

func TestCheckpointingModesOrderActivations(t *testing.T) {
	in := smolLM2Input(t, 4)
	for _, family := range []Family{FamilyLlama, FamilyQwen3, FamilyGPT2} {
		in.Shape.Family = family
		var bytes [3]int64
		for mode := KeepAll; mode <= KeepInputs; mode++ {
			in.Checkpointing = mode
			bytes[mode] = WorstMemory(in).Activations
		}
		if !(bytes[KeepAll] > bytes[KeepSome] && bytes[KeepSome] > bytes[KeepInputs]) {
			t.Errorf("family %d: activations %v", family, bytes)
		}
	}
	// By hand: 512 tokens, 30 layers, 2(2·576+2·576+2·192+2·1536)+4·9+8 = 11,564 bytes a token and layer.
	in.Shape.Family, in.Checkpointing = FamilyLlama, KeepAll
	if got := WorstMemory(in).Activations; got != 512*30*11564 {
		t.Errorf("activations %d, by hand %d", got, 512*30*11564)
	}
	// GPT-2 by the design: 20·768+4·12+16 = 15,424 bytes a token and layer.
	in.Shape = Shape{FamilyGPT2, 12, 768, 3072, 12, 12, 64, 50257}
	if got := WorstMemory(in).Activations; got != 512*12*15424 {
		t.Errorf("GPT-2: activations %d, by hand %d", got, 512*12*15424)
	}
}

func TestAJobThatCannotFitIsToldWhatWould(t *testing.T) {
	in := smolLM2Input(t, 4)
	in.Mirror, in.WorkersMin = false, 1
	need := WorstMemory(in).Total()
	if err := CheckMemory(in, need); err != nil {
		t.Errorf("a budget of exactly what is needed was refused: %v", err)
	}
	err := CheckMemory(in, need/2)
	if err == nil || !strings.Contains(err.Error(), "cluster.workers.min") || !strings.Contains(err.Error(), "gradients") {
		t.Errorf("half of what is needed: %v", err)
	}
	in.Stage = StageReplicated
	if err := CheckMemory(in, need); err != nil {
		t.Errorf("one worker holds the same state at stage 0: %v", err)
	}
	if err := CheckMemory(in, 1<<20); err == nil || !strings.Contains(err.Error(), "smaller model") {
		t.Errorf("a budget of 1 MiB: %v", err)
	}
}

func TestPartsAddUpToTheTotal(t *testing.T) {
	in := smolLM2Input(t, 4)
	m := WorstMemory(in)
	sum := m.Weights + m.Gradients + m.Reduced + m.Optimizer + m.Mirrors + m.Staging + m.Head + m.Activations + m.Backward
	if m.Total() != sum {
		t.Errorf("total %d, fields %d", m.Total(), sum)
	}
	for _, p := range m.Parts() {
		if p.Bytes <= 0 {
			t.Errorf("part %q of a mirrored job is %d bytes", p.Name, p.Bytes)
		}
	}
}
