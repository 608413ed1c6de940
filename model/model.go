// Package model runs transformers forward and backward on a [device.Device], layer
// by layer: each layer's forward and backward stand side by side in one file.
//
// The model is single-device code. It knows nothing of ranks, rings or pieces: it
// reads working weights from flat buckets, adds gradients to flat buckets, and
// tells its [Hooks] when it needs a bucket and when a bucket's gradient is complete.
package model

// Names of axes in this package:
// N rows of a micro-batch (sequences times T), T tokens of a sequence, C hidden size,
// Q = heads·D, K = kvHeads·D, D head size, F MLP width, V vocabulary, U columns of the MLP's
// first product (2F with a gate, else F), S numbers that a norm keeps of a row.

import (
	"fmt"
	"slices"
	"strings"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/config"
)

// Checkpointing says which activations of a layer are kept for its backward.
type Checkpointing uint8

// The modes. None keeps a layer's input, its projections and what the MLP's activation is
// of; Selective computes the latter again, which is more than half of the bytes for one
// of the forward's products; Full keeps only the layer's input and runs its forward again. All give the same bits.
const (
	CheckpointNone Checkpointing = iota
	CheckpointSelective
	CheckpointFull
)

// Options size a model's buffers.
type Options struct {
	DType         device.DType // of weights and activations: F32 or BF16
	SeqLen        int          // T, tokens of one sequence
	Sequences     int          // most sequences in one micro-batch
	Checkpointing Checkpointing
	ForwardOnly   bool // no backward will be run: no gradient buffers
	SlotsMax      int  // most distinct ids that a rank reads in one step; 0: tokens of a micro-batch
	BucketAlign   int  // each bucket's flat weights are padded to a multiple of so many elements; 0: not at all
	// LayerSlots is how many layers' weights there is room for: layer i's are where those of
	// layers i ± LayerSlots, … are at other times. 0: all of them.
	LayerSlots int
}

// Hooks are what a trainer hears from a running model, in fixed order, from the
// goroutine that called it. An error ends the run there, between two layers.
type Hooks interface {
	// NeedWeights is called before a bucket's weights are used in a forward or a backward;
	// on return they are packed and current. next is the bucket that comes after it, or -1:
	// what shares the memory of next is not needed any more.
	NeedWeights(bucket, next int) error
	// NeedGrad is called before a run adds to a bucket's gradients.
	NeedGrad(bucket int) error
	// GradReady is called when a bucket's gradient has its last contribution of the run's
	// micro-batch at. The sparse part of the embedding comes after all of them.
	GradReady(bucket, at int) error
}

// Model is one set of weights on one device with the buffers to run them.
type Model struct {
	cfg config.Config
	dev device.Device
	opt Options
	mem arena

	layout  layout
	names   names
	weights Weights
	lanes   []*lane // of micro-batches that run together
	now     *lane   // the one at work
	scratch scratch
	ws      device.Buf
	rope    device.Tensor // [positions, D] F32, cos then sin
	one     [1]Work       // of Train

	afterAttention func(layer int, k, v device.Tensor) // a decoder fills its caches, else nil
}

// New allocates a model. Its weights are undefined until each bucket's flat weights
// were filled and [Model.Repack] was called.
func New(dev device.Device, cfg config.Config, opt Options) (_ *Model, err error) {
	if err := Supported(cfg); err != nil {
		return nil, err
	}
	if opt.SeqLen < 1 || opt.Sequences < 1 {
		return nil, fmt.Errorf("model: %d sequences of %d tokens cannot be run", opt.Sequences, opt.SeqLen)
	}
	if opt.SeqLen > cfg.MaxPositions {
		return nil, fmt.Errorf("sequence length %d is beyond the model's %d positions: lower data.sequenceLength", opt.SeqLen, cfg.MaxPositions)
	}
	if opt.SlotsMax == 0 {
		opt.SlotsMax = opt.SeqLen * opt.Sequences
	}
	m := &Model{cfg: cfg, dev: dev, opt: opt, mem: arena{dev: dev}, layout: newLayout(cfg), names: newNames(cfg)}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	for _, build := range []func() error{m.newWeights, m.newScratch, m.newWorkspace, m.newRope, func() error { return m.SetLanes(1) }} {
		if err := build(); err != nil {
			return nil, fmt.Errorf("model: %w", err)
		}
	}
	return m, nil
}

// families are those whose parity with PyTorch the tests prove.
var families = []string{"gpt2", "llama", "mistral", "qwen2"}

// Supported refuses, by name, a configuration whose arithmetic this package has no
// proof of parity for.
func Supported(cfg config.Config) error {
	if !slices.Contains(families, cfg.Family) {
		return fmt.Errorf("model family %q cannot be trained by this release, only %s", cfg.Family, strings.Join(families, ", "))
	}
	if cfg.QKNorm {
		return fmt.Errorf("norms on queries and keys cannot be trained by this release")
	}
	if cfg.HeadDim > device.HeadDimMax {
		return fmt.Errorf("head_dim is %d, this release trains heads of up to %d", cfg.HeadDim, device.HeadDimMax)
	}
	return cfg.Validate()
}

// Config is the model's configuration.
func (m *Model) Config() config.Config { return m.cfg }

// Close gives back the model's memory.
func (m *Model) Close() {
	for _, w := range m.weights.all {
		m.dev.FreeWeight(w)
	}
	m.weights.all = nil
	for _, l := range m.lanes {
		l.mem.free()
	}
	m.lanes = nil
	m.mem.free()
}

// rows is N of the largest micro-batch.
func (m *Model) rows() int { return m.opt.SeqLen * m.opt.Sequences }

// arena remembers what was allocated, so that one call frees it all.
type arena struct {
	dev  device.Device
	bufs []device.Buf
}

func (a *arena) tensor(k device.Kind, dt device.DType, rows, cols int) (device.Tensor, error) {
	b, err := a.dev.Alloc(int64(rows)*int64(cols)*dt.Size(), k)
	if err != nil {
		return device.Tensor{}, err
	}
	a.bufs = append(a.bufs, b)
	return device.Make(b, dt, rows, cols), nil
}

// tensors allocates one tensor per destination, all of one kind.
func (a *arena) tensors(k device.Kind, list []tensorSpec) error {
	for _, t := range list {
		x, err := a.tensor(k, t.dt, t.rows, t.cols)
		if err != nil {
			return err
		}
		*t.dst = x
	}
	return nil
}

type tensorSpec struct {
	dst        *device.Tensor
	dt         device.DType
	rows, cols int
}

func (a *arena) free() {
	for _, b := range a.bufs {
		a.dev.Free(b)
	}
	a.bufs = nil
}
