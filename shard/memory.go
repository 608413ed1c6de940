package shard

import (
	"fmt"
	"strings"
)

// Family selects the formula for activations.
type Family int

// The families with a formula of their own.
const (
	FamilyLlama Family = iota // RMS norms, gated MLP: Llama, Mistral, Qwen2
	FamilyQwen3               // Llama and norms on q and k
	FamilyGPT2                // LayerNorms, an MLP without a gate
)

// Shape is what the memory of activations depends on.
type Shape struct {
	Family                  Family
	Layers, Hidden, MLP     int
	Heads, KVHeads, HeadDim int
	Vocab                   int
}

// Precision is the arithmetic of a job.
type Precision int

// The precisions. High keeps two BF16 parts of each value, as many bytes as FP32.
const (
	BF16 Precision = iota
	FP32
	High
)

// bytes of one weight or activation.
func (p Precision) bytes() int64 {
	if p == BF16 {
		return 2
	}
	return 4
}

// Checkpointing says which activations are kept for the backward pass, and which
// are computed again.
type Checkpointing int

// The modes. Selective drops gate and up; full keeps only the input of each layer.
const (
	KeepAll Checkpointing = iota
	KeepSome
	KeepInputs
)

// MemoryInput is what the memory of a worker depends on. All counts are positive.
type MemoryInput struct {
	Table          Table
	GradOrder      []int // the buckets in the order of the backward
	Shape          Shape
	Precision      Precision
	Stage          Stage
	Mirror         bool // protect: mirror
	WorkersMin     int  // fewest and most workers that the job may run on
	WorkersMax     int
	MicroBatch     int // sequences of one forward and backward
	MicroBatches   int // of a rank in one step
	SequenceTokens int
	Checkpointing  Checkpointing
	HeadChunk      int // tokens whose logits exist at once, in fp32
	SparseRows     int // most distinct ids that a rank reads in a step: rows of the embedding's sparse gradient
	WireBF16       bool
	WeightForms    int   // how often each weight is held: flat, and the device's packed copies
	FlatOnly       int64 // parameters that are held flat alone: an embedding that is not the head too, a table of positions
}

// weightSlots is how many layers' working weights a worker has room for in stage 3.
const weightSlots = 2

// Memory is bytes on one worker, by part.
type Memory struct {
	Workers int // workers of the placement that these numbers are for
	Ranks   int // ranks that the worker hosts

	Weights     int64 // working weights, packed; in stage 3 of two layers and the ends of the model
	Gradients   int64 // local gradients of each hosted rank: all, or from stage 2 on two buckets
	Reduced     int64 // reduced gradients of the pieces held, until they are applied
	Optimizer   int64 // fp32 master weights and two moments
	Mirrors     int64 // the same for mirrored ranks, with their reduced gradients
	Staging     int64 // two buckets on their way round the ring
	Head        int64 // logits of a chunk
	Activations int64 // kept from forward to backward
	Backward    int64 // gradients inside the one layer at work
}

// Part is one line of a memory table.
type Part struct {
	Name  string
	Bytes int64
}

// Parts lists the parts in a fixed order, for people.
func (m Memory) Parts() []Part {
	return []Part{
		{"weights", m.Weights}, {"gradients", m.Gradients}, {"reduced gradients", m.Reduced},
		{"optimizer", m.Optimizer}, {"mirrors", m.Mirrors}, {"ring staging", m.Staging},
		{"LM head", m.Head}, {"activations", m.Activations}, {"backward", m.Backward},
	}
}

// Total is the sum of all parts.
func (m Memory) Total() int64 {
	var n int64
	for _, p := range m.Parts() {
		n += p.Bytes
	}
	return n
}

// ModelState is the part of the total that does not depend on how many tokens are
// at work: weights, gradients, optimizer and mirrors.
func (m Memory) ModelState() int64 {
	return m.Weights + m.Gradients + m.Reduced + m.Optimizer + m.Mirrors
}

// WorstMemory is the memory of the fullest worker under the worst allowed
// placement, between WorkersMin and WorkersMax workers.
func WorstMemory(in MemoryInput) Memory {
	worst := MemoryOn(in, in.WorkersMin)
	for workers := in.WorkersMin + 1; workers <= min(in.WorkersMax, in.Table.WorldSize()); workers++ {
		if m := MemoryOn(in, workers); m.Total() > worst.Total() {
			worst = m
		}
	}
	return worst
}

// MemoryOn is the memory of the fullest worker when the job runs on a number of
// workers, at most the world size.
func MemoryOn(in MemoryInput, workers int) Memory {
	worldSize := in.Table.WorldSize()
	ranks := int64(ceilDiv(worldSize, workers))
	padded, segment := in.Table.Padded(), in.Table.SegmentElems()
	m := Memory{Workers: workers, Ranks: int(ranks)}
	m.Weights = in.Precision.bytes() * (padded*int64(in.WeightForms) - in.FlatOnly*int64(in.WeightForms-1))
	sparse := 4 * int64(in.SparseRows) * int64(in.Shape.Hidden+1) * ranks // rows and their ids
	m.Gradients = 4*padded*ranks + sparse
	m.Reduced, m.Optimizer = 4*segment*ranks, 12*segment*ranks
	if in.Stage == StageReplicated {
		m.Reduced, m.Optimizer = 4*padded, 12*padded
	} else if in.Mirror && workers > 1 {
		m.Mirrors = m.Optimizer + m.Reduced // half a block of each neighbour
	}
	if worldSize == 1 {
		m.Reduced = 0 // the gradients themselves
	}
	if in.Stage >= StageWeights && worldSize > 1 {
		layers := max(0, int64(in.Shape.Layers)-weightSlots)
		m.Weights -= layers * in.Table.Bucket(1).Padded * in.Precision.bytes() * int64(in.WeightForms)
	}
	lanes := int64(1) // micro-batches that run together
	if in.Stage >= StageGradients && worldSize > 1 {
		m.Gradients = 4*in.Table.Window(in.GradOrder)*ranks + sparse
		lanes = ranks * int64(in.MicroBatches)
	}
	if workers > 1 {
		m.Staging = 2 * 4 * in.Table.BucketMax()
	}
	if in.WireBF16 {
		m.Staging += 2 * in.Table.BucketMax() / int64(worldSize)
	}
	chunk := int64(in.HeadChunk)
	m.Head = 4*chunk*int64(in.Shape.Vocab) + 2*in.Precision.bytes()*chunk*int64(in.Shape.Hidden)
	m.Activations, m.Backward = activations(in, lanes)
	return m
}

// activations are the bytes kept from forward to backward, and those of one
// layer's backward, for as many micro-batches as run together. What is computed again, and
// what is inside the backward but the residual stream, is there for one of them at a time.
func activations(in MemoryInput, lanes int64) (kept, backward int64) {
	s, e := in.Shape, in.Precision.bytes()
	d, f, h, hk := int64(s.Hidden), int64(s.MLP), int64(s.Heads), int64(s.KVHeads)
	q, kv := h*int64(s.HeadDim), hk*int64(s.HeadDim)
	layer := e*(2*d+2*q+2*kv+2*f) + 4*h + 8 // 4h: log-sum-exp of attention; 8: two norms' scales
	again := e * 2 * f                      // what selective checkpointing computes again
	switch s.Family {
	case FamilyLlama:
	case FamilyQwen3:
		layer += e*(q+kv) + 4*(h+hk)
	case FamilyGPT2:
		layer, again = e*(2*d+2*q+2*kv+f)+4*h+16, e*f // 16: mean and scale of two norms
	}
	tokens, layers := int64(in.MicroBatch)*int64(in.SequenceTokens), int64(s.Layers)
	backward = tokens * e * (2*d + 2*q + 2*kv + 3*f)
	if s.Family == FamilyGPT2 {
		backward = tokens * e * (4*d + 2*q + 2*kv + f) // one inner width, and the last layer's output
	}
	backward += (lanes - 1) * tokens * e * 2 * d
	switch in.Checkpointing {
	case KeepAll:
	case KeepSome:
		return tokens * (lanes*layers*(layer-again) + again), backward
	case KeepInputs:
		return tokens * (lanes*layers*e*d + layer), backward
	}
	return tokens * lanes * layers * layer, backward
}

// CheckMemory refuses a job whose worst placement needs more than budget bytes on
// a worker. The error says what is large and which single change would fit.
func CheckMemory(in MemoryInput, budget int64) error {
	m := WorstMemory(in)
	if m.Total() <= budget {
		return nil
	}
	largest := m.Parts()[0]
	for _, p := range m.Parts() {
		if p.Bytes > largest.Bytes {
			largest = p
		}
	}
	return fmt.Errorf("a worker needs %s and has %s (largest part: %s, %s; %d of %d ranks on one worker): %s",
		gib(m.Total()), gib(budget), largest.Name, gib(largest.Bytes), m.Ranks, in.Table.WorldSize(), remedy(in, budget))
}

// remedy names the changes that, each alone, would make the job fit.
func remedy(in MemoryInput, budget int64) string {
	var fit []string
	try := func(advice string, change func(*MemoryInput)) {
		with := in
		change(&with)
		if WorstMemory(with).Total() <= budget {
			fit = append(fit, advice)
		}
	}
	if in.Stage == StageReplicated {
		try("set cluster.zero to 1", func(c *MemoryInput) { c.Stage = StageOptimizer })
	}
	if in.Stage < StageGradients {
		try("set cluster.zero to 2", func(c *MemoryInput) { c.Stage = StageGradients })
	}
	if in.Stage < StageWeights {
		try("set cluster.zero to 3", func(c *MemoryInput) { c.Stage = StageWeights })
	}
	if in.MicroBatch > 1 {
		try("set train.microBatch to 1", func(c *MemoryInput) { c.MicroBatch = 1 })
	}
	if in.Checkpointing == KeepAll {
		try("set train.activationCheckpointing to selective", func(c *MemoryInput) { c.Checkpointing = KeepSome })
	}
	if in.Checkpointing != KeepInputs {
		try("set train.activationCheckpointing to full", func(c *MemoryInput) { c.Checkpointing = KeepInputs })
	}
	for workers := in.WorkersMin + 1; workers <= in.WorkersMax; workers++ {
		if len(fit) > 0 {
			break
		}
		try(fmt.Sprintf("set cluster.workers.min to %d", workers), func(c *MemoryInput) { c.WorkersMin = workers })
	}
	if len(fit) == 0 {
		return "use a smaller model, a shorter data.sequenceLength, or machines with more memory"
	}
	return strings.Join(fit, ", or ")
}

func gib(n int64) string { return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30)) }
