package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/skein-ml/skein/internal/strictjson"
)

// fileBytesMax bounds config.json; the largest published ones are a few KiB.
const fileBytesMax = 4 << 20

// family holds what a model_type implies where its config.json is silent.
type family struct {
	architecture string
	kvHeads      int // 0: as many as query heads
	headDim      int // 0: hidden_size / num_attention_heads
	maxPositions int
	bos, eos     int32 // -1: none
}

var families = map[string]family{
	gpt2:      {architecture: "GPT2LMHeadModel", maxPositions: 1024, bos: 50256, eos: 50256},
	"llama":   {architecture: "LlamaForCausalLM", maxPositions: 2048, bos: 1, eos: 2},
	"mistral": {architecture: "MistralForCausalLM", kvHeads: 8, maxPositions: 131072, bos: 1, eos: 2},
	"qwen2":   {architecture: "Qwen2ForCausalLM", kvHeads: 32, maxPositions: 32768, bos: -1, eos: -1},
	"qwen3":   {architecture: "Qwen3ForCausalLM", kvHeads: 32, headDim: 128, maxPositions: 32768, bos: -1, eos: -1},
}

// Parse resolves the bytes of a config.json as written by transformers 4 or 5. An
// unknown key becomes a notice, a line to show to the user. A key that asks for
// arithmetic which is not done here is an error that names it, and so are two keys
// that contradict each other where transformers would silently choose one.
func Parse(configJSON []byte) (Config, []string, error) {
	if len(configJSON) > fileBytesMax {
		return Config{}, nil, fmt.Errorf("config.json has %d bytes, more than %d; is it a configuration?", len(configJSON), fileBytesMax)
	}
	keys, err := newObject("config.json", configJSON)
	if err != nil {
		return Config{}, nil, err
	}
	c, err := resolve(keys)
	if err != nil {
		return Config{}, nil, fmt.Errorf("config.json: %w", err)
	}
	keys.noticeUnread()
	return c, *keys.notices, nil
}

func resolve(o *object) (Config, error) {
	fam, err := readFamily(o)
	if err != nil {
		return Config{}, err
	}
	if err := refuseForeignArithmetic(o); err != nil {
		return Config{}, err
	}
	if fam == gpt2 {
		return resolveGPT2(o)
	}
	c := Config{
		Family:  fam,
		Layers:  o.need("num_hidden_layers"),
		Hidden:  o.need("hidden_size"),
		MLP:     o.need("intermediate_size"),
		Heads:   o.need("num_attention_heads"),
		Vocab:   o.need("vocab_size"),
		NormEps: float32(o.number("rms_norm_eps", 1e-6)),
		InitStd: o.number("initializer_range", 0.02),
		Tied:    o.boolean("tie_word_embeddings", false),
	}
	c.readHeads(o)
	if o.present("max_position_embeddings") {
		c.MaxPositions = o.need("max_position_embeddings")
	} else {
		c.MaxPositions = families[fam].maxPositions
		o.notice("max_position_embeddings is absent; the family's %d is used", c.MaxPositions)
	}
	c.readBiases(o)
	c.readTokens(o)
	c.readWindow(o)
	if o.err != nil {
		return Config{}, o.err
	}
	if err := c.readRope(o); err != nil {
		return Config{}, err
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// readFamily takes model_type, and holds architectures to it: a classifier or a bare
// trunk has other tensors than the language model of the same type.
func readFamily(o *object) (string, error) {
	name := o.text("model_type", "")
	var architectures []string
	if raw, ok := o.take("architectures"); ok {
		if err := json.Unmarshal(raw, &architectures); err != nil {
			return "", fmt.Errorf("architectures must be a list of names")
		}
	}
	if o.err != nil {
		return "", o.err
	}
	if name == "" {
		return "", fmt.Errorf("model_type is missing; this is no model that transformers could load")
	}
	fam, ok := families[name]
	if !ok {
		return "", unknownFamily(name)
	}
	if len(architectures) > 0 && !slices.Contains(architectures, fam.architecture) {
		return "", fmt.Errorf("%w: architectures is %q; only %s can be trained here", ErrUnsupported,
			strings.Join(architectures, ", "), fam.architecture)
	}
	return name, nil
}

func (c *Config) readHeads(o *object) {
	fam := families[c.Family]
	c.KVHeads = c.Heads
	if o.present("num_key_value_heads") {
		c.KVHeads = o.need("num_key_value_heads")
	} else if _, null := o.take("num_key_value_heads"); !null && fam.kvHeads != 0 {
		c.KVHeads = fam.kvHeads
		o.notice("num_key_value_heads is absent; the family's %d is used", fam.kvHeads)
	}
	switch {
	case o.present("head_dim"):
		c.HeadDim = o.need("head_dim")
	case fam.headDim != 0:
		c.HeadDim = fam.headDim
		o.notice("head_dim is absent; the family's %d is used", fam.headDim)
	case c.Heads > 0:
		if c.Hidden%c.Heads != 0 {
			o.fail("hidden_size (%d) is not a multiple of num_attention_heads (%d), and head_dim is not given", c.Hidden, c.Heads)
		}
		c.HeadDim = c.Hidden / c.Heads
	}
}

// readBiases resolves which projections carry a bias. Llama and Qwen3 ask with
// attention_bias for all four, Qwen2 always has q, k and v, Mistral has none.
func (c *Config) readBiases(o *object) {
	attention, mlp := o.boolean("attention_bias", false), o.boolean("mlp_bias", false)
	switch c.Family {
	case "llama":
		c.AttentionBias, c.OutputBias, c.MLPBias = attention, attention, mlp
		return
	case "qwen3":
		c.AttentionBias, c.OutputBias = attention, attention
	case "qwen2":
		c.AttentionBias = true
	case "mistral":
		if attention {
			o.fail("attention_bias is true, but %s has no attention biases; correct config.json", c.Family)
		}
	}
	c.QKNorm = c.Family == "qwen3"
	if mlp {
		o.fail("mlp_bias is true, but %s has no MLP biases; correct config.json", c.Family)
	}
}

func (c *Config) readTokens(o *object) {
	fam := families[c.Family]
	inside := func(id int32) bool { return id >= 0 && int(id) < c.Vocab }
	c.BOS, c.Pad = -1, -1
	if inside(fam.bos) {
		c.BOS = fam.bos
	}
	if ids, given := o.ids("bos_token_id"); given {
		c.BOS = oneID(o, "bos_token_id", ids)
	}
	if ids, given := o.ids("pad_token_id"); given {
		c.Pad = oneID(o, "pad_token_id", ids)
	}
	if ids, given := o.ids("eos_token_id"); given {
		c.EOS = ids
	} else if inside(fam.eos) {
		c.EOS = []int32{fam.eos}
	}
}

func oneID(o *object, key string, ids []int32) int32 {
	switch len(ids) {
	case 0:
		return -1
	case 1:
		return ids[0]
	}
	o.fail("%s lists %d ids; it must be one", key, len(ids))
	return -1
}

// readWindow resolves sliding_window to one entry per layer.
func (c *Config) readWindow(o *object) {
	var types []string
	if raw, ok := o.take("layer_types"); ok && !isNull(raw) {
		if err := json.Unmarshal(raw, &types); err != nil {
			o.fail("layer_types must be a list of names")
		}
	}
	window := 0
	switch c.Family {
	case "mistral":
		window = 4096
		if raw, given := o.take("sliding_window"); given && isNull(raw) {
			window = 0
		} else if given {
			window = o.need("sliding_window")
		}
	case "qwen2", "qwen3":
		used := o.boolean("use_sliding_window", false)
		if !o.present("sliding_window") {
			if raw, given := o.take("sliding_window"); used && !(given && isNull(raw)) {
				window = 4096
			}
		} else if w := o.need("sliding_window"); used {
			window = w
		}
	}
	first := 0 // the first layer with a window
	if strings.HasPrefix(c.Family, "qwen") {
		first = o.integer("max_window_layers", 28)
	}
	if o.err != nil || c.Layers < 1 || c.Layers > layersMax {
		return // Validate names the number of layers
	}
	windows := make([]int, c.Layers)
	for i := range windows {
		if i >= first {
			windows[i] = window
		}
	}
	if types != nil {
		c.applyLayerTypes(o, types, windows, window)
	}
	if slices.ContainsFunc(windows, func(w int) bool { return w != 0 }) {
		c.Window = windows
	}
}

// applyLayerTypes lets layer_types decide which layers have the window, where the
// family honours it, and otherwise checks that it says what the other keys say.
func (c *Config) applyLayerTypes(o *object, types []string, windows []int, window int) {
	if len(types) != c.Layers {
		o.fail("layer_types has %d entries, but num_hidden_layers is %d", len(types), c.Layers)
		return
	}
	for i, kind := range types {
		want := 0
		switch kind {
		case "full_attention":
		case "sliding_attention":
			if window == 0 {
				o.fail("layer_types asks for sliding_attention in layer %d, but the other keys give %s no window; correct config.json", i, c.Family)
				return
			}
			want = window
		default:
			o.fail("%w: layer_types has %q in layer %d; only full_attention and sliding_attention are computed here", ErrUnsupported, kind, i)
			return
		}
		if c.Family == "mistral" && want != windows[i] {
			o.fail("layer_types says %s in layer %d, against sliding_window; correct config.json", kind, i)
			return
		}
		windows[i] = want
	}
}

// neutral lists keys that change arithmetic, with the values that leave it as it is.
var neutral = map[string][]string{
	"quantization_config":             nil,
	"compression_config":              nil,
	"partial_rotary_factor":           {"1", "1.0"},
	"rotary_pct":                      {"1", "1.0"},
	"rope_interleaved":                {"false"},
	"rope_interleave":                 {"false"},
	"attn_logit_softcapping":          nil,
	"final_logit_softcapping":         nil,
	"query_pre_attn_scalar":           nil,
	"logit_scale":                     {"1", "1.0"},
	"logits_scaling":                  {"1", "1.0"},
	"embedding_multiplier":            {"1", "1.0"},
	"residual_multiplier":             {"1", "1.0"},
	"attention_multiplier":            nil,
	"scale_emb":                       {"1", "1.0"},
	"scale_depth":                     nil,
	"dim_model_base":                  nil,
	"no_rope_layers":                  {"[]"},
	"no_rope_layer_interval":          nil,
	"num_experts":                     {"0"},
	"num_local_experts":               {"0"},
	"n_routed_experts":                {"0"},
	"clip_qkv":                        nil,
	"use_qk_norm":                     {"false"},
	"qk_layernorm":                    {"false"},
	"parallel_residual":               {"false"},
	"use_parallel_residual":           {"false"},
	"is_encoder_decoder":              {"false"},
	"add_cross_attention":             {"false"},
	"use_bidirectional_attention":     {"false"},
	"scale_attn_weights":              {"true"},
	"scale_attn_by_inverse_layer_idx": {"false"},
	"reorder_and_upcast_attn":         {"false"},
	"is_causal":                       {"true"},
	"hidden_act":                      {`"silu"`, `"swish"`},
	"hidden_activation":               {`"silu"`, `"swish"`},
	"text_config":                     nil,
	"vision_config":                   nil,
	"audio_config":                    nil,
}

// refuseForeignArithmetic refuses keys that transformers honours and we do not.
func refuseForeignArithmetic(o *object) error {
	for _, m := range o.members {
		allowed, listed := neutral[m.Key]
		if !listed {
			continue
		}
		o.take(m.Key)
		value := string(bytes.TrimSpace(m.Value))
		if value == "null" || slices.Contains(allowed, value) {
			continue
		}
		if m.Key == "quantization_config" || m.Key == "compression_config" {
			return fmt.Errorf("%w: %s is set; choose the model's unquantized folder", ErrUnsupported, m.Key)
		}
		return fmt.Errorf("%w: %s is %s, which is not computed here; choose another model", ErrUnsupported, m.Key, abbreviate(value))
	}
	return nil
}

// Keys that are understood and change nothing here.
var silent = []string{
	"transformers_version", "torch_dtype", "dtype", "use_cache", "_name_or_path", "_attn_implementation",
	"pretraining_tp", "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "auto_map", "sliding_window", "use_sliding_window", "max_window_layers",
	"n_ctx", "task_specific_params", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
}

var dropouts = []string{"attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"}

// noticeUnread turns every key that nothing has read into a notice.
func (o *object) noticeUnread() {
	for _, m := range o.members {
		if o.read[m.Key] || isNull(m.Value) {
			continue
		}
		value := strings.TrimSpace(string(m.Value))
		switch {
		case slices.Contains(dropouts, m.Key) && value != "0" && value != "0.0":
			o.notice("%s %s is ignored: training here uses no dropout", m.Key, abbreviate(value))
		case m.Key == "pretraining_tp" && value != "1":
			o.notice("pretraining_tp %s is ignored, as transformers 5 does", abbreviate(value))
		case slices.Contains(silent, m.Key):
		default:
			o.notice("key %q is unknown and ignored", m.Key)
		}
	}
}

// newObject reads data as an object whose complaints name the file.
func newObject(file string, data []byte) (*object, error) {
	members, err := strictjson.Object(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &object{prefix: file + ": ", members: members, read: map[string]bool{}, notices: new([]string)}, nil
}
