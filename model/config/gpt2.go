package config

import (
	"encoding/json"
	"errors"
	"fmt"
)

// gpt2 is the family's model_type.
const gpt2 = "gpt2"

// gpt2Keys are the family's own words for sizes.
var gpt2Keys = map[string]string{
	"num_hidden_layers":       "n_layer",
	"hidden_size":             "n_embd",
	"intermediate_size":       "n_inner",
	"num_attention_heads":     "n_head",
	"max_position_embeddings": "n_positions",
	"rms_norm_eps":            "layer_norm_epsilon",
}

// key is the word that the family's config.json has for a key of the others.
func (c Config) key(name string) string {
	if own, ok := gpt2Keys[name]; ok && c.Family == gpt2 {
		return own
	}
	return name
}

// resolveGPT2 reads a config.json of the GPT-2 family.
func resolveGPT2(o *object) (Config, error) {
	need := func(name string) int { return o.needEither(gpt2Keys[name], name) }
	c := Config{
		Family:        gpt2,
		Layers:        need("num_hidden_layers"),
		Hidden:        need("hidden_size"),
		Heads:         need("num_attention_heads"),
		Vocab:         o.need("vocab_size"),
		MaxPositions:  need("max_position_embeddings"),
		NormEps:       float32(o.number("layer_norm_epsilon", 1e-5)),
		InitStd:       o.number("initializer_range", 0.02),
		Tied:          o.boolean("tie_word_embeddings", true),
		AttentionBias: true, OutputBias: true, MLPBias: true,
	}
	c.KVHeads = c.Heads
	if c.Heads > 0 {
		if c.Hidden%c.Heads != 0 {
			o.fail("n_embd (%d) is not a multiple of n_head (%d)", c.Hidden, c.Heads)
		}
		c.HeadDim = c.Hidden / c.Heads
	}
	c.MLP = o.integer("n_inner", 4*c.Hidden)
	switch name := o.text("activation_function", "gelu_new"); name {
	case "gelu_new", "gelu_pytorch_tanh":
		c.GELU = GELUTanh
	case "gelu":
		c.GELU = GELUErf
	default:
		o.fail("%w: activation_function is %q; gelu_new, gelu_pytorch_tanh and gelu are computed here", ErrUnsupported, name)
	}
	c.readTokens(o)
	if o.err != nil {
		return Config{}, o.err
	}
	return c, c.Validate()
}

// writeGPT2 writes the family's keys.
func (c Config) writeGPT2(w *writer) {
	activation := "gelu_new"
	if c.GELU == GELUErf {
		activation = "gelu"
	}
	w.put("n_embd", c.Hidden)
	w.put("n_inner", c.MLP)
	w.put("n_layer", c.Layers)
	w.put("n_head", c.Heads)
	w.put("n_positions", c.MaxPositions)
	w.put("activation_function", activation)
	w.put("layer_norm_epsilon", json.RawMessage(decimal(float64(c.NormEps), 32)))
	for _, key := range []string{"attn_pdrop", "embd_pdrop", "resid_pdrop"} {
		w.put(key, json.RawMessage("0.0"))
	}
	w.put("scale_attn_weights", true)
	w.put("scale_attn_by_inverse_layer_idx", false)
	w.put("reorder_and_upcast_attn", false)
}

func (c Config) validateGPT2() error {
	switch {
	case c.Heads*c.HeadDim != c.Hidden:
		return fmt.Errorf("n_embd is %d, but %d heads of %d make %d", c.Hidden, c.Heads, c.HeadDim, c.Heads*c.HeadDim)
	case c.KVHeads != c.Heads:
		return errors.New("a gpt2 model has as many key heads as query heads")
	case !c.AttentionBias || !c.OutputBias || !c.MLPBias:
		return errors.New("a gpt2 model has biases on all products")
	case c.GELU != GELUTanh && c.GELU != GELUErf:
		return fmt.Errorf("the GELU of a gpt2 model is %q; it must be %s or %s", c.GELU, GELUTanh, GELUErf)
	case c.QKNorm:
		return errors.New("norms on q and k: a gpt2 model has none")
	case c.Window != nil:
		return errors.New("a gpt2 model has no attention window")
	}
	return nil
}

// gpt2Groups is the layout of record of the family. The table of positions is the last group: its
// gradient is complete after that of the first layer, dense, and by then the head's
// part of a tied embedding is long on its way.
func (c Config) gpt2Groups() []Group {
	groups := []Group{{Name: "embedding", Tensors: []Tensor{matrix(c.EmbeddingName(), c.Vocab, c.Hidden)}}}
	for i := range c.Layers {
		prefix := fmt.Sprintf("transformer.h.%d.", i)
		groups = append(groups, Group{Name: fmt.Sprintf("layer.%d", i), Tensors: []Tensor{
			vector(prefix+"ln_1.weight", c.Hidden), vector(prefix+"ln_1.bias", c.Hidden),
			conv1D(prefix+"attn.c_attn.weight", 3*c.Hidden, c.Hidden), vector(prefix+"attn.c_attn.bias", 3*c.Hidden),
			conv1D(prefix+"attn.c_proj.weight", c.Hidden, c.Hidden), vector(prefix+"attn.c_proj.bias", c.Hidden),
			vector(prefix+"ln_2.weight", c.Hidden), vector(prefix+"ln_2.bias", c.Hidden),
			conv1D(prefix+"mlp.c_fc.weight", c.MLP, c.Hidden), vector(prefix+"mlp.c_fc.bias", c.MLP),
			conv1D(prefix+"mlp.c_proj.weight", c.Hidden, c.MLP), vector(prefix+"mlp.c_proj.bias", c.Hidden),
		}})
	}
	last := Group{Name: "norm", Tensors: []Tensor{
		vector(c.FinalNormName(), c.Hidden), vector("transformer.ln_f.bias", c.Hidden),
	}}
	if !c.Tied {
		last.Name = "head"
		last.Tensors = append(last.Tensors, matrix(c.HeadName(), c.Vocab, c.Hidden))
	}
	return append(groups, last, Group{Name: "positions", Tensors: []Tensor{matrix(c.PositionsName(), c.MaxPositions, c.Hidden)}})
}

func (c Config) gpt2Params() int64 {
	d, f := int64(c.Hidden), int64(c.MLP)
	layer := 4*d + d*3*d + 3*d + d*d + d + 2*d*f + f + d
	n := (int64(c.Vocab)+int64(c.MaxPositions))*d + int64(c.Layers)*layer + 2*d
	if !c.Tied {
		n += int64(c.Vocab) * d
	}
	return n
}

// conv1D is a matrix that files of the family hold the other way round.
func conv1D(name string, out, in int) Tensor {
	return Tensor{Name: name, Rows: out, Cols: in, Decay: true, Transposed: true}
}
