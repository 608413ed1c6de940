package config

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// gpt2Small is the config.json of the smallest published model of the family.
const gpt2Small = `{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
  "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024,
  "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null,
  "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
  "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257}`

// tinyGPT2 returns a config.json of the family with extra members.
func tinyGPT2(extra string) string {
	return `{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"vocab_size":100,"n_embd":27,"n_layer":3,"n_head":3,"n_positions":64` + extra + `}`
}

func TestGPT2IsResolvedAndCounted(t *testing.T) {
	c, notices := mustParse(t, gpt2Small)
	want := Config{Family: "gpt2", Layers: 12, Hidden: 768, MLP: 3072, Heads: 12, KVHeads: 12, HeadDim: 64, Vocab: 50257, MaxPositions: 1024,
		NormEps: 1e-5, GELU: GELUTanh, Tied: true, AttentionBias: true, OutputBias: true, MLPBias: true,
		EOS: []int32{50256}, BOS: 50256, Pad: -1, InitStd: 0.02}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	if c.Params() != 124_439_808 {
		t.Errorf("Params() = %d", c.Params())
	}
	if got := strings.Join(notices, "\n"); len(notices) != 3 || strings.Count(got, "no dropout") != 3 {
		t.Errorf("notices:\n%s\nwant three about dropout", got)
	}
}

func TestGPT2IsReadInEverySpelling(t *testing.T) {
	for _, tc := range []struct {
		file  string
		check func(Config) bool
	}{
		{tinyGPT2(``), func(c Config) bool {
			return c.MLP == 108 && c.HeadDim == 9 && c.Tied && c.GELU == GELUTanh && c.EOS == nil && c.BOS == -1
		}},
		{tinyGPT2(`,"n_inner":null,"activation_function":"gelu_pytorch_tanh"`), func(c Config) bool { return c.MLP == 108 && c.GELU == GELUTanh }},
		{tinyGPT2(`,"n_inner":50,"activation_function":"gelu"`), func(c Config) bool { return c.MLP == 50 && c.GELU == GELUErf }},
		{tinyGPT2(`,"tie_word_embeddings":false,"eos_token_id":[3,4]`), func(c Config) bool { return !c.Tied && len(c.EOS) == 2 }},
		{tinyGPT2(`,"scale_attn_weights":true,"reorder_and_upcast_attn":false,"scale_attn_by_inverse_layer_idx":false,"add_cross_attention":false`),
			func(c Config) bool { return c.Hidden == 27 }},
		{strings.Replace(tinyGPT2(``), "n_embd", "hidden_size", 1), func(c Config) bool { return c.Hidden == 27 }},
		{tinyGPT2(`,"hidden_size":27,"num_attention_heads":3`), func(c Config) bool { return c.Hidden == 27 }},
	} {
		c, notices := mustParse(t, tc.file)
		if !tc.check(c) || len(notices) != 0 {
			t.Errorf("%s: %+v, notices %q", tc.file, c, notices)
		}
	}
}

func TestWhatGPT2CannotComputeIsRefusedByName(t *testing.T) {
	for _, tc := range []struct {
		extra, want string
		unsupported bool
	}{
		{`,"scale_attn_weights":false`, "scale_attn_weights is false", true},
		{`,"scale_attn_by_inverse_layer_idx":true`, "scale_attn_by_inverse_layer_idx is true", true},
		{`,"reorder_and_upcast_attn":true`, "reorder_and_upcast_attn is true", true},
		{`,"add_cross_attention":true`, "add_cross_attention is true", true},
		{`,"activation_function":"relu"`, `activation_function is "relu"`, true},
		{`,"activation_function":"gelu_fast"`, `activation_function is "gelu_fast"`, true},
		{`,"hidden_size":28`, "n_embd is 27 but hidden_size is 28", false},
		{`,"layer_norm_epsilon":0`, "layer_norm_epsilon is 0", false},
		{`,"n_inner":0`, "n_inner is 0", false},
		{`,"n_inner":"x"`, "n_inner is", false},
		{`,"eos_token_id":100`, "outside the vocabulary", false},
	} {
		_, _, err := Parse([]byte(tinyGPT2(tc.extra)))
		if err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, ErrUnsupported) != tc.unsupported {
			t.Errorf("%s: error %v, want one with %q", tc.extra, err, tc.want)
		}
	}
	for from, to := range map[string]string{`"n_embd":27`: `"n_embd":28`, `"n_head":3`: `"n_head":0`, `"n_layer":3`: `"n_layer":-1`,
		`,"n_positions":64`: ``, "GPT2LMHeadModel": "GPT2DoubleHeadsModel"} {
		if _, _, err := Parse([]byte(strings.Replace(tinyGPT2(""), from, to, 1))); err == nil {
			t.Errorf("%s is accepted", to)
		}
	}
}

func TestPartsThatGPT2LacksAreRefused(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"3 heads of 7 make 21":  func(c *Config) { c.HeadDim = 7 },
		"as many key heads":     func(c *Config) { c.KVHeads = 1 },
		"biases on all":         func(c *Config) { c.MLPBias = false },
		"no rotary positions":   func(c *Config) { c.RopeTheta = 1e4 },
		"no attention window":   func(c *Config) { c.Window = []int{4, 4, 4} },
		"a gpt2 model has none": func(c *Config) { c.QKNorm = true },
		`GELU of a gpt2 model`:  func(c *Config) { c.GELU = "" },
	} {
		c, _ := mustParse(t, tinyGPT2(""))
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	c, _ := mustParse(t, tiny("llama", ""))
	c.GELU = GELUErf
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "gated") {
		t.Errorf("a llama model with GELU: error %v", err)
	}
}

func TestGPT2sGroupsEndWithItsPositions(t *testing.T) {
	c, _ := mustParse(t, tinyGPT2(`,"n_inner":50`))
	var names []string
	for _, g := range c.Groups() {
		names = append(names, g.Name)
		for _, x := range g.Tensors {
			if x.Decay == x.Vector || x.Transposed != (strings.HasPrefix(g.Name, "layer") && !x.Vector) {
				t.Errorf("%+v", x)
			}
		}
	}
	if got := strings.Join(names, " "); got != "embedding layer.0 layer.1 layer.2 norm positions" {
		t.Errorf("groups: %s", got)
	}
	fc := c.Groups()[1].Tensors[8]
	if fc.Name != "transformer.h.0.mlp.c_fc.weight" || !reflect.DeepEqual(fc.Shape(), []int64{50, 27}) || !reflect.DeepEqual(fc.FileShape(), []int64{27, 50}) {
		t.Errorf("%+v: shape %v, in files %v", fc, fc.Shape(), fc.FileShape())
	}
}
