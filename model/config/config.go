// Package config says what a model is, resolved from its config.json: its sizes,
// its position embedding, which biases and norms it has, and the table of its
// tensors in the order that gradient buckets, pieces and checkpoints are cut from.
//
// A Config has no unresolved part: every default of the family has been filled in,
// so that no other package asks what an absent key means. Parse refuses, by name,
// whatever would make our arithmetic differ from the model's own.
package config

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// ErrUnsupported is wrapped by errors that say: this is a valid model, but not one
// that can be trained faithfully here.
var ErrUnsupported = errors.New("unsupported model")

// Weights is a model's configuration and tensors wherever they are stored. Tensor
// names are those of Hugging Face and are exactly the names in Config().Groups().
// Methods may be called from several goroutines, Close last and once.
type Weights interface {
	Config() Config
	// Shape is the shape of the named tensor as [Tensor.Shape] has it, or nil if there is
	// no such tensor.
	Shape(name string) []int64
	// ReadRange fills dst with the len(dst) elements of the named tensor that
	// begin at element elemOff, in row-major order, converted to fp32. Every
	// value is finite, or the error names the tensor and the element.
	ReadRange(name string, elemOff int64, dst []float32) error
	Close() error
}

// Config describes one decoder-only transformer.
type Config struct {
	Family string // "llama", "mistral", "qwen2", "qwen3" or "gpt2"

	Layers       int
	Hidden       int // width of the residual stream, d
	MLP          int // inner width of the MLP, f
	Heads        int // query heads, H
	KVHeads      int // key and value heads, K; Heads is a multiple of it
	HeadDim      int // D; Heads·HeadDim need not be Hidden
	Vocab        int // rows of the embedding and of the head
	MaxPositions int // longest sequence

	NormEps   float32 // ε of every norm
	RopeTheta float64 // base of the rotary frequencies; 0 without them
	Rope      RopeScaling
	GELU      string // the activation of an MLP without a gate, GELUTanh or GELUErf; "" with one

	Tied          bool // the head is the embedding; there is no lm_head.weight
	AttentionBias bool // biases on q, k and v
	OutputBias    bool // bias on o
	MLPBias       bool // biases on all products of the MLP
	QKNorm        bool // RMSNorm over HeadDim on q and k before the rotation

	// Window holds for each layer how many positions a query attends to, itself
	// included (i−w < j ≤ i), or 0 for all. It is nil if no layer has a window.
	Window []int

	// EOS ends an answer: the ids of config.json, then those that only
	// generation_config.json names. Its ids, BOS and Pad lie in [0, Vocab);
	// -1 stands for a BOS or Pad that the model lacks.
	EOS      []int32
	BOS, Pad int32

	InitStd float64 // standard deviation of random initial weights
}

// The forms of GELU: by tanh, and by the normal distribution function.
const (
	GELUTanh = "tanh"
	GELUErf  = "erf"
)

// The GPT-2 family differs from all others in three ways.

// Rotary tells whether queries and keys are rotated by their positions. Otherwise a learned
// table of positions is added to the embedding.
func (c Config) Rotary() bool { return c.Family != gpt2 }

// Gated tells whether MLPs are down(silu(gate) ⊙ up) with RMSNorms before them and
// attention. Otherwise they are down(gelu(up)), and norms are LayerNorms with biases.
func (c Config) Gated() bool { return c.Family != gpt2 }

// RopeScaling says how rotary frequencies are stretched beyond the length that the
// model was first trained on. Fields that the kind does not use are zero.
type RopeScaling struct {
	Kind   string  // "default", "linear", "dynamic", "llama3" or "yarn"
	Factor float64 // all kinds but default; at least 1

	LowFreqFactor, HighFreqFactor float64 // llama3

	OriginalMaxPositions int // llama3, yarn

	BetaFast, BetaSlow    float64 // yarn: rotations at the two ends of the ramp
	AttentionFactor       float64 // yarn: multiplies cos and sin; 0 = derived from Factor
	MScale, MScaleAllDim  float64 // yarn: used to derive AttentionFactor; 0 = absent
	ExactCorrectionBounds bool    // yarn: "truncate": false, the ramp's ends are not whole numbers
}

// WindowAt returns the attention window of a layer in positions, 0 for none.
func (c Config) WindowAt(layer int) int {
	if c.Window == nil {
		return 0
	}
	return c.Window[layer]
}

// Supported lists the families that Parse resolves, sorted. Whether a family's
// forward pass is proven is for package model to say.
func Supported() []string {
	var names []string
	for name := range families {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Limits on sizes. They are far above any published model and keep every product
// of two sizes, and the parameter count, inside an int64.
const (
	layersMax    = 1 << 12
	widthMax     = 1 << 22 // Hidden, MLP
	headsMax     = 1 << 14
	headDimMax   = 1 << 12
	vocabMax     = 1 << 26
	positionsMax = 1 << 30
)

// Validate reports the first contradiction in c, in the words of config.json.
func (c Config) Validate() error {
	if _, ok := families[c.Family]; !ok {
		return unknownFamily(c.Family)
	}
	for _, f := range []struct {
		key        string
		value, max int
	}{
		{"num_hidden_layers", c.Layers, layersMax},
		{"hidden_size", c.Hidden, widthMax},
		{"intermediate_size", c.MLP, widthMax},
		{"num_attention_heads", c.Heads, headsMax},
		{"num_key_value_heads", c.KVHeads, headsMax},
		{"head_dim", c.HeadDim, headDimMax},
		{"vocab_size", c.Vocab, vocabMax},
		{"max_position_embeddings", c.MaxPositions, positionsMax},
	} {
		if f.value < 1 || f.value > f.max {
			return fmt.Errorf("%s is %d; it must be from 1 to %d", c.key(f.key), f.value, f.max)
		}
	}
	if c.Heads%c.KVHeads != 0 {
		return fmt.Errorf("num_attention_heads (%d) is not a multiple of num_key_value_heads (%d)", c.Heads, c.KVHeads)
	}
	if !(c.NormEps > 0) || c.NormEps >= 1 {
		return fmt.Errorf("%s is %g; it must lie between 0 and 1", c.key("rms_norm_eps"), c.NormEps)
	}
	if !(c.InitStd > 0) || c.InitStd > 1 {
		return fmt.Errorf("initializer_range is %g; it must lie between 0 and 1", c.InitStd)
	}
	if err := c.validateRope(); err != nil {
		return err
	}
	if err := c.validateFamily(); err != nil {
		return err
	}
	if err := c.validateWindow(); err != nil {
		return err
	}
	return c.validateTokens()
}

func (c Config) validateRope() error {
	switch {
	case !c.Rotary() && (c.RopeTheta != 0 || c.Rope != RopeScaling{}):
		return fmt.Errorf("a %s model has no rotary positions", c.Family)
	case !c.Rotary():
		return nil
	case c.HeadDim%2 != 0:
		return fmt.Errorf("head_dim is %d; rotary positions need an even number", c.HeadDim)
	case !(c.RopeTheta > 1) || c.RopeTheta > math.MaxFloat32:
		return fmt.Errorf("rope_theta is %g; it must be greater than 1", c.RopeTheta)
	}
	return c.Rope.validate()
}

// validateFamily refuses parts that the family lacks, which its config.json could
// not say: such a model would change when it is written and read back.
func (c Config) validateFamily() error {
	if c.Family == gpt2 {
		return c.validateGPT2()
	}
	llama, qwen2, qwen3 := c.Family == "llama", c.Family == "qwen2", c.Family == "qwen3"
	switch {
	case (llama || qwen3) && c.AttentionBias != c.OutputBias:
		return fmt.Errorf("a %s model has biases on q, k and v, but not on o (or the reverse); the family has all four or none", c.Family)
	case qwen2 && (!c.AttentionBias || c.OutputBias):
		return errors.New("a qwen2 model has biases on q, k and v, and none on o")
	case c.Family == "mistral" && (c.AttentionBias || c.OutputBias):
		return errors.New("a mistral model has no attention biases")
	case c.MLPBias && !llama:
		return fmt.Errorf("a %s model has no MLP biases", c.Family)
	case c.QKNorm != qwen3:
		return errors.New("norms on q and k: a qwen3 model has them, no other family does")
	case c.GELU != "":
		return fmt.Errorf("a %s model has gated MLPs, without GELU", c.Family)
	case llama && c.Window != nil:
		return errors.New("a llama model has no attention window")
	}
	return nil
}

func (c Config) validateWindow() error {
	if c.Window != nil && len(c.Window) != c.Layers {
		return fmt.Errorf("layer_types has %d entries, but num_hidden_layers is %d", len(c.Window), c.Layers)
	}
	window := 0
	for i, w := range c.Window {
		if w < 0 || w > positionsMax {
			return fmt.Errorf("sliding_window is %d in layer %d; it must be from 1 to %d", w, i, positionsMax)
		}
		if c.Family == "mistral" && w != c.Window[0] {
			return fmt.Errorf("sliding_window is %d in layer %d; in a mistral model all layers have the same", w, i)
		}
		if w > 0 && window > 0 && w != window {
			return fmt.Errorf("sliding_window is %d in layer %d but %d before; one model has one window", w, i, window)
		}
		window = max(window, w)
	}
	if c.Window != nil && window == 0 {
		return errors.New("the attention window of every layer is 0; Window must be nil then")
	}
	return nil
}

func (c Config) validateTokens() error {
	check := func(key string, id int32, absentIsFine bool) error {
		if absentIsFine && id == -1 {
			return nil
		}
		if id < 0 || int(id) >= c.Vocab {
			return fmt.Errorf("%s is %d, outside the vocabulary of %d tokens", key, id, c.Vocab)
		}
		return nil
	}
	for _, id := range c.EOS {
		if err := check("eos_token_id", id, false); err != nil {
			return err
		}
	}
	if err := check("bos_token_id", c.BOS, true); err != nil {
		return err
	}
	return check("pad_token_id", c.Pad, true)
}

func unknownFamily(name string) error {
	return fmt.Errorf("%w: model_type %q is not one that can be trained here; choose a model of %s",
		ErrUnsupported, name, strings.Join(Supported(), ", "))
}
