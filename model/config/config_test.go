package config

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

const smolLM2 = `{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
  "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152
}`

func mustParse(t *testing.T, file string) (Config, []string) {
	t.Helper()
	c, notices, err := Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	return c, notices
}

func TestSmolLM2IsResolvedAndCounted(t *testing.T) {
	c, notices := mustParse(t, smolLM2)
	want := Config{Family: "llama", Layers: 30, Hidden: 576, MLP: 1536, Heads: 9, KVHeads: 3, HeadDim: 64, Vocab: 49152,
		MaxPositions: 8192, NormEps: 1e-5, RopeTheta: 1e5, Rope: RopeScaling{Kind: "default"}, Tied: true,
		EOS: []int32{2}, BOS: 1, Pad: 2, InitStd: 0.041666666666666664}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	if c.Params() != 134_515_008 {
		t.Errorf("Params() = %d", c.Params())
	}
	if len(notices) != 1 || !strings.Contains(notices[0], "is_llama_config") {
		t.Errorf("notices: %q", notices)
	}
}

// tiny returns a config.json of the family with extra members.
func tiny(family, extra string) string {
	arch := families[family].architecture
	return `{"model_type":"` + family + `","architectures":["` + arch + `"],"vocab_size":100,"hidden_size":24,"intermediate_size":40,
"num_hidden_layers":3,"num_attention_heads":3,"num_key_value_heads":1,"head_dim":8,"max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0` + extra + `}`
}

func TestFamiliesDifferWhereTransformersDoes(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		check      func(Config) bool
	}{
		{"llama biases all four", tiny("llama", `,"attention_bias":true,"mlp_bias":true`), func(c Config) bool { return c.AttentionBias && c.OutputBias && c.MLPBias }},
		{"qwen2 biases qkv only", tiny("qwen2", ``), func(c Config) bool { return c.AttentionBias && !c.OutputBias && !c.QKNorm }},
		{"qwen3 has qk norms", tiny("qwen3", ``), func(c Config) bool { return !c.AttentionBias && c.QKNorm && c.BOS == -1 && c.EOS == nil }},
		{"mistral window 4096 if silent", tiny("mistral", ``), func(c Config) bool { return reflect.DeepEqual(c.Window, []int{4096, 4096, 4096}) }},
		{"mistral null window", tiny("mistral", `,"sliding_window":null`), func(c Config) bool { return c.Window == nil }},
		{"qwen2 window off", tiny("qwen2", `,"sliding_window":16,"max_window_layers":1`), func(c Config) bool { return c.Window == nil }},
		{"qwen2 window on", tiny("qwen2", `,"sliding_window":16,"max_window_layers":1,"use_sliding_window":true`), func(c Config) bool { return reflect.DeepEqual(c.Window, []int{0, 16, 16}) }},
		{"qwen3 layer_types", tiny("qwen3", `,"sliding_window":16,"use_sliding_window":true,"layer_types":["sliding_attention","full_attention","full_attention"]`), func(c Config) bool { return reflect.DeepEqual(c.Window, []int{16, 0, 0}) }},
		{"eos list", tiny("llama", `,"eos_token_id":[5,7],"pad_token_id":-1`), func(c Config) bool { return reflect.DeepEqual(c.EOS, []int32{5, 7}) && c.Pad == -1 }},
		{"llama defaults of ids", tiny("llama", ``), func(c Config) bool { return reflect.DeepEqual(c.EOS, []int32{2}) && c.BOS == 1 && c.Pad == -1 }},
		{"null head_dim", strings.Replace(tiny("llama", ``), `"head_dim":8`, `"head_dim":null`, 1), func(c Config) bool { return c.HeadDim == 8 }},
		{"rope_parameters", strings.Replace(tiny("llama", `,"rope_parameters":{"rope_type":"linear","factor":2,"rope_theta":5e5}`), `,"rope_theta":10000.0`, ``, 1),
			func(c Config) bool { return c.RopeTheta == 5e5 && c.Rope == RopeScaling{Kind: "linear", Factor: 2} }},
		{"old rope_scaling", tiny("llama", `,"rope_scaling":{"type":"linear","factor":2.0}`), func(c Config) bool { return c.Rope.Kind == "linear" }},
		{"both alike", tiny("llama", `,"rope_scaling":{"type":"linear","factor":2.0},"rope_parameters":{"rope_type":"linear","factor":2,"rope_theta":10000}`), func(c Config) bool { return c.Rope.Factor == 2 }},
	} {
		c, _ := mustParse(t, tc.file)
		if !tc.check(c) {
			t.Errorf("%s: %+v", tc.name, c)
		}
	}
}

func TestSilentChoicesOfTransformersAreNotices(t *testing.T) {
	for extra, want := range map[string]string{
		`,"attention_dropout":0.1`: "no dropout",
		`,"shiny":1`:               `"shiny" is unknown`,
		`,"rope_scaling":{"rope_type":"dynamic","factor":2}`:    "dynamic",
		`,"rope_scaling":{"rope_type":"yarn","factor":4}`:       "original_max_position_embeddings is absent",
		`,"rope_scaling":null,"rope_parameters":{},"shiny":[1]`: "shiny",
	} {
		_, notices := mustParse(t, tiny("llama", extra))
		if len(notices) != 1 || !strings.Contains(notices[0], want) {
			t.Errorf("%s: notices %q, want one with %q", extra, notices, want)
		}
	}
	_, notices := mustParse(t, strings.Replace(tiny("llama", ""), `,"rope_theta":10000.0`, "", 1))
	if len(notices) != 1 || !strings.Contains(notices[0], "10,000") {
		t.Errorf("no θ: notices %q", notices)
	}
}

func TestWhatWouldChangeArithmeticIsRefusedByName(t *testing.T) {
	for _, tc := range []struct {
		family, extra, want string
		unsupported         bool
	}{
		{"llama", `,"quantization_config":{"bits":4}`, "quantization_config is set", true},
		{"llama", `,"partial_rotary_factor":0.5`, "partial_rotary_factor", true},
		{"llama", `,"rope_interleaved":true`, "rope_interleaved is true", true},
		{"llama", `,"final_logit_softcapping":30.0`, "final_logit_softcapping", true},
		{"llama", `,"hidden_act":"gelu"`, `hidden_act is "gelu"`, true},
		{"llama", `,"num_local_experts":8`, "num_local_experts", true},
		{"llama", `,"rope_scaling":{"rope_type":"longrope","factor":4}`, `rope_type "longrope"`, true},
		{"llama", `,"rope_scaling":{"rope_type":"mrope"}`, `rope_type "mrope"`, true},
		{"llama", `,"rope_scaling":{"rope_type":"linear","factor":4,"mystery":1}`, `"mystery"`, true},
		{"llama", `,"rope_parameters":{"full_attention":{"rope_type":"default"}}`, `"full_attention"`, true},
		{"llama", `,"rope_parameters":{"rope_theta":5e5}`, "rope_theta is 10000 but rope_parameters.rope_theta is 500000", false},
		{"llama", `,"rope_parameters":{"rope_type":"default"},"rope_scaling":{"type":"linear","factor":2}`, "differ", false},
		{"llama", `,"rope_scaling":{"rope_type":"linear","type":"yarn","factor":2}`, `rope_type is "linear" but type is "yarn"`, false},
		{"llama", `,"rope_scaling":{"rope_type":"linear"}`, "factor is missing", false},
		{"llama", `,"rope_scaling":{"rope_type":"linear","factor":0.5}`, "factor is 0.5", false},
		{"llama", `,"rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":1,"original_max_position_embeddings":32}`, "low_freq_factor", false},
		{"llama", `,"original_max_position_embeddings":16,"rope_scaling":{"rope_type":"yarn","factor":8,"original_max_position_embeddings":32}`, "original_max_position_embeddings is 32 here but 16", false},
		{"llama", `,"layer_types":["full_attention","full_attention","linear_attention"]`, "linear_attention", true},
		{"llama", `,"layer_types":["full_attention"]`, "layer_types has 1 entries", false},
		{"qwen2", `,"sliding_window":8,"layer_types":["full_attention","full_attention","sliding_attention"]`, "no window", false},
		{"mistral", `,"sliding_window":8,"layer_types":["full_attention","full_attention","sliding_attention"]`, "against sliding_window", false},
		{"mistral", `,"attention_bias":true`, "attention_bias", false},
		{"qwen3", `,"mlp_bias":true`, "mlp_bias", false},
		{"llama", `,"eos_token_id":100`, "outside the vocabulary", false},
		{"llama", `,"bos_token_id":[1,2]`, "must be one", false},
		{"llama", `,"vocab_size":100`, `"vocab_size" appears twice`, false},
		{"llama", `,"tie_word_embeddings":"yes"`, "must be true or false", false},
		{"llama", `,"rope_theta_":1,"initializer_range":0`, "initializer_range", false},
	} {
		_, _, err := Parse([]byte(tiny(tc.family, tc.extra)))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %s: error %v, want %q", tc.family, tc.extra, err, tc.want)
		} else if errors.Is(err, ErrUnsupported) != tc.unsupported {
			t.Errorf("%s %s: ErrUnsupported is %v in %v", tc.family, tc.extra, !tc.unsupported, err)
		} else if strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "config.json: ") {
			t.Errorf("not one line about config.json: %q", err)
		}
	}
}

func TestImpossibleSizesAreRefused(t *testing.T) {
	for from, to := range map[string]string{
		`"hidden_size":24`:             `"hidden_size":0`,
		`"vocab_size":100`:             `"vocab_size":-1`,
		`"intermediate_size":40`:       `"intermediate_size":1e3`,
		`"num_hidden_layers":3`:        `"num_hidden_layers":9999999999999999999`,
		`"num_key_value_heads":1`:      `"num_key_value_heads":2`,
		`"head_dim":8`:                 `"head_dim":7`,
		`"max_position_embeddings":64`: `"max_position_embeddings":"64"`,
		`"rms_norm_eps":1e-5`:          `"rms_norm_eps":0`,
		`"rope_theta":10000.0`:         `"rope_theta":0`,
		`"model_type":"llama"`:         `"model_type":"bert"`,
		`"LlamaForCausalLM"`:           `"LlamaForSequenceClassification"`,
		`"num_attention_heads":3,`:     ``,
		`"model_type":"llama",`:        ``,
	} {
		file := strings.Replace(tiny("llama", ""), from, to, 1)
		if _, _, err := Parse([]byte(file)); err == nil {
			t.Errorf("%s is accepted", to)
		}
	}
	for _, file := range []string{"", "[]", "{", `{"model_type":"llama"} x`} {
		if _, _, err := Parse([]byte(file)); err == nil {
			t.Errorf("%q is accepted", file)
		}
	}
}

// A model that its family's config.json cannot describe would change when it is
// exported and read back.
func TestPartsThatTheFamilyLacksAreRefused(t *testing.T) {
	for _, tc := range []struct {
		family string
		change func(*Config)
		want   string
	}{
		{"llama", func(c *Config) { c.AttentionBias = true }, "but not on o"},
		{"llama", func(c *Config) { c.QKNorm = true }, "norms on q and k"},
		{"llama", func(c *Config) { c.Window = []int{4, 4, 4} }, "no attention window"},
		{"qwen2", func(c *Config) { c.AttentionBias = false }, "none on o"},
		{"qwen2", func(c *Config) { c.Window = []int{0, 0, 0} }, "must be nil"},
		{"qwen2", func(c *Config) { c.Window = []int{0, 4, 8} }, "one model has one window"},
		{"qwen2", func(c *Config) { c.Window = []int{0, 4} }, "layer_types has 2 entries"},
		{"qwen3", func(c *Config) { c.QKNorm = false }, "norms on q and k"},
		{"qwen3", func(c *Config) { c.MLPBias = true }, "no MLP biases"},
		{"mistral", func(c *Config) { c.AttentionBias = true }, "no attention biases"},
		{"mistral", func(c *Config) { c.Window = []int{4, 4, 0} }, "all layers have the same"},
	} {
		c, _ := mustParse(t, tiny(tc.family, ""))
		tc.change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", tc.family, err, tc.want)
		}
		if _, err := c.JSON("float32"); err == nil {
			t.Errorf("%s, %s: a config.json was written", tc.family, tc.want)
		}
	}
}

func TestGroupsAreTheLayoutOfRecord(t *testing.T) {
	c, _ := mustParse(t, tiny("llama", `,"attention_bias":true,"mlp_bias":true`))
	groups := c.Groups()
	var names []string
	for _, g := range groups {
		names = append(names, g.Name)
	}
	if got := strings.Join(names, " "); got != "embedding layer.0 layer.1 layer.2 head" {
		t.Errorf("groups: %s", got)
	}
	var layer []string
	for _, x := range groups[2].Tensors {
		layer = append(layer, strings.TrimPrefix(x.Name, "model.layers.1."))
		if x.Decay == x.Vector {
			t.Errorf("%s: decay %v", x.Name, x.Decay)
		}
	}
	const want = "input_layernorm.weight self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight " +
		"self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias self_attn.o_proj.weight self_attn.o_proj.bias " +
		"post_attention_layernorm.weight mlp.gate_proj.weight mlp.up_proj.weight mlp.gate_proj.bias mlp.up_proj.bias " +
		"mlp.down_proj.weight mlp.down_proj.bias"
	if got := strings.Join(layer, " "); got != want {
		t.Errorf("layer:\n%s\nwant\n%s", got, want)
	}
	c.Tied = true
	if last := c.Groups()[4]; last.Name != "norm" || len(last.Tensors) != 1 {
		t.Errorf("tied: last group %+v", last)
	}
}

func TestParamsIsTheSumOfGroups(t *testing.T) {
	for _, extra := range []string{``, `,"tie_word_embeddings":false`, `,"n_inner":50`} {
		c, _ := mustParse(t, tinyGPT2(extra))
		var n int64
		for _, g := range c.Groups() {
			n += g.Elements()
		}
		if n != c.Params() {
			t.Errorf("gpt2 %s: groups hold %d parameters, Params() says %d", extra, n, c.Params())
		}
	}
	for family, extra := range map[string]string{"llama": `,"attention_bias":true,"mlp_bias":true`, "mistral": `,"tie_word_embeddings":true`, "qwen2": ``, "qwen3": `,"attention_bias":true`} {
		c, _ := mustParse(t, tiny(family, extra))
		var n int64
		for _, g := range c.Groups() {
			n += g.Elements()
		}
		if n != c.Params() {
			t.Errorf("%s: groups hold %d parameters, Params() says %d", family, n, c.Params())
		}
	}
}

func TestWrittenConfigReadsBackEqualWithoutNotices(t *testing.T) {
	files := []string{
		smolLM2, tiny("llama", ``), tiny("mistral", `,"sliding_window":16`), tiny("mistral", `,"sliding_window":null`), tiny("qwen2", ``),
		tiny("qwen3", `,"sliding_window":16,"use_sliding_window":true,"layer_types":["sliding_attention","full_attention","sliding_attention"],"eos_token_id":[3,4]`),
		tiny("llama", `,"rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":32},"eos_token_id":null`),
		tiny("qwen2", `,"rope_scaling":{"rope_type":"yarn","factor":2.5,"original_max_position_embeddings":32,"beta_fast":20,"mscale":0.7,"mscale_all_dim":0.9,"truncate":false}`),
		tiny("qwen2", `,"rope_scaling":{"rope_type":"yarn","factor":2,"attention_factor":1.25}`),
		tiny("llama", `,"rope_scaling":{"rope_type":"linear","factor":3}`),
		tinyGPT2(``), tinyGPT2(`,"activation_function":"gelu","n_inner":50,"tie_word_embeddings":false,"pad_token_id":3,"layer_norm_epsilon":0.01`),
	}
	for _, file := range files {
		c, _ := mustParse(t, file)
		out, err := c.JSON("bfloat16")
		if err != nil {
			t.Fatal(err)
		}
		back, notices, err := Parse(out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if !reflect.DeepEqual(back, c) {
			t.Errorf("read back %+v\nwant      %+v", back, c)
		}
		for _, n := range notices {
			if !strings.Contains(n, "dynamic") {
				t.Errorf("notice on our own file: %s", n)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(smolLM2))
	f.Add([]byte(tiny("qwen3", `,"sliding_window":16,"use_sliding_window":true,"layer_types":["sliding_attention","full_attention","sliding_attention"]`)))
	f.Add([]byte(tiny("llama", `,"rope_scaling":{"rope_type":"yarn","factor":2.5,"original_max_position_embeddings":32}`)))
	f.Add([]byte(tiny("llama", `,"rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":32}`)))
	f.Add([]byte(tinyGPT2(`,"activation_function":"gelu","n_inner":50,"tie_word_embeddings":false`)))
	f.Fuzz(func(t *testing.T, file []byte) {
		c, _, err := Parse(file)
		if err != nil {
			return
		}
		if c.Params() <= 0 {
			t.Fatalf("Params() = %d for %+v", c.Params(), c)
		}
		if c.Rotary() && c.HeadDim < 1024 {
			if freq, _ := c.InvFreq(); len(freq) != c.HeadDim/2 {
				t.Fatalf("%d frequencies for head_dim %d", len(freq), c.HeadDim)
			}
		}
		out, err := c.JSON("float32")
		if err != nil {
			t.Fatal(err)
		}
		if back, _, err := Parse(out); err != nil || !reflect.DeepEqual(back, c) {
			t.Fatalf("read back %+v (%v)\nwant %+v\n%s", back, err, c, out)
		}
	})
}
