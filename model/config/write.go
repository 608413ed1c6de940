package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// JSON returns the config.json of c for weights stored as dtype ("float32",
// "bfloat16" or "float16"). Every key is written, none left to a default; what
// transformers 4 and 5 spell differently is there in both spellings. Parse reads
// it back to an equal Config.
func (c Config) JSON(dtype string) ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	w := writer{}
	w.put("architectures", []string{families[c.Family].architecture})
	w.put("model_type", c.Family)
	w.put("dtype", dtype)
	w.put("torch_dtype", dtype)
	w.put("vocab_size", c.Vocab)
	w.put("initializer_range", json.RawMessage(decimal(c.InitStd, 64)))
	w.put("tie_word_embeddings", c.Tied)
	w.put("use_cache", true)
	w.put("bos_token_id", idOrNull(c.BOS))
	w.put("pad_token_id", idOrNull(c.Pad))
	w.put("eos_token_id", eosValue(c.EOS))
	if c.Family == gpt2 {
		c.writeGPT2(&w)
	} else {
		c.writeGated(&w)
	}
	return w.bytes()
}

// writeGated writes what the families with gated MLPs and rotary positions share.
func (c Config) writeGated(w *writer) {
	w.put("hidden_size", c.Hidden)
	w.put("intermediate_size", c.MLP)
	w.put("num_hidden_layers", c.Layers)
	w.put("num_attention_heads", c.Heads)
	w.put("num_key_value_heads", c.KVHeads)
	if c.Family != "qwen2" || c.HeadDim*c.Heads != c.Hidden {
		w.put("head_dim", c.HeadDim)
	}
	w.put("max_position_embeddings", c.MaxPositions)
	w.put("hidden_act", "silu")
	w.put("rms_norm_eps", json.RawMessage(decimal(float64(c.NormEps), 32)))
	w.put("attention_dropout", json.RawMessage("0.0"))
	c.writeFamily(w)
	w.put("rope_theta", json.RawMessage(decimal(c.RopeTheta, 64)))
	rope := c.ropeObject()
	w.put("rope_parameters", rope)
	if c.Rope.Kind == "default" {
		rope = json.RawMessage("null")
	}
	w.put("rope_scaling", rope)
}

// writeFamily writes the keys that only some families have.
func (c Config) writeFamily(w *writer) {
	window := 0
	for _, v := range c.Window {
		window = max(window, v)
	}
	switch c.Family {
	case "llama":
		w.put("attention_bias", c.AttentionBias)
		w.put("mlp_bias", c.MLPBias)
		w.put("pretraining_tp", 1)
	case "mistral":
		if window == 0 {
			w.put("sliding_window", nil)
		} else {
			w.put("sliding_window", window)
		}
	case "qwen2", "qwen3":
		if c.Family == "qwen3" {
			w.put("attention_bias", c.AttentionBias)
		}
		w.put("use_sliding_window", window != 0)
		if window == 0 {
			w.put("sliding_window", nil)
		} else {
			w.put("sliding_window", window)
		}
		types, first := make([]string, c.Layers), c.Layers
		for i := range types {
			types[i] = "full_attention"
			if c.WindowAt(i) != 0 {
				types[i] = "sliding_attention"
				first = min(first, i)
			}
		}
		w.put("max_window_layers", first)
		w.put("layer_types", types)
	}
}

// ropeObject is the dictionary that transformers 5 calls rope_parameters and
// transformers 4, without the base, rope_scaling. "type" is the oldest spelling.
func (c Config) ropeObject() json.RawMessage {
	r := c.Rope
	w := writer{}
	number := func(key string, x float64) { w.put(key, json.RawMessage(decimal(x, 64))) }
	positive := func(key string, x float64) {
		if x > 0 {
			number(key, x)
		}
	}
	w.put("rope_type", r.Kind)
	number("rope_theta", c.RopeTheta)
	if r.Kind != "default" {
		w.put("type", r.Kind)
		number("factor", r.Factor)
	}
	switch r.Kind {
	case "llama3":
		number("low_freq_factor", r.LowFreqFactor)
		number("high_freq_factor", r.HighFreqFactor)
		w.put("original_max_position_embeddings", r.OriginalMaxPositions)
	case "yarn":
		number("beta_fast", r.BetaFast)
		number("beta_slow", r.BetaSlow)
		positive("attention_factor", r.AttentionFactor)
		positive("mscale", r.MScale)
		positive("mscale_all_dim", r.MScaleAllDim)
		w.put("truncate", !r.ExactCorrectionBounds)
		w.put("original_max_position_embeddings", r.OriginalMaxPositions)
	}
	raw, err := w.bytes()
	if err != nil {
		panic("config: " + err.Error()) // numbers, strings and bools always encode
	}
	return raw
}

// writer collects the members of an object and writes them sorted by key.
type writer struct {
	keys   []string
	values map[string]any
}

func (w *writer) put(key string, value any) {
	if w.values == nil {
		w.values = map[string]any{}
	}
	w.keys = append(w.keys, key)
	w.values[key] = value
}

func (w *writer) bytes() ([]byte, error) {
	slices.Sort(w.keys)
	var b bytes.Buffer
	b.WriteByte('{')
	for i, key := range w.keys {
		if i > 0 {
			b.WriteByte(',')
		}
		value, err := json.Marshal(w.values[key])
		if err != nil {
			return nil, fmt.Errorf("config.json: %s: %w", key, err)
		}
		fmt.Fprintf(&b, "%q:%s", key, value)
	}
	b.WriteByte('}')
	var out bytes.Buffer
	if err := json.Indent(&out, b.Bytes(), "", "  "); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// decimal writes x with a decimal point even where it is whole: transformers 5
// checks types, and to it 1 is no float.
func decimal(x float64, bits int) string {
	s := strconv.FormatFloat(x, 'g', -1, bits)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return s
}

func idOrNull(id int32) any {
	if id < 0 {
		return nil
	}
	return id
}

func eosValue(ids []int32) any {
	switch len(ids) {
	case 0:
		return nil
	case 1:
		return ids[0]
	}
	return ids
}
