// Package bench measures: whole training steps of known models with random weights and
// data, single products of those steps, and what the machine itself can do, beside which
// the rest is put. It needs no files and keeps none.
//
// A figure means something next to another of the same run only: machines that share
// their cores differ by a quarter from minute to minute. So workloads are taken round by
// round, and whoever compares lets the rounds of both sides take turns.
package bench

import (
	"fmt"
	"slices"
	"strings"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/config"
)

// Names of axes in this package:
// B sequences of a step, T tokens of a sequence, C hidden size, V vocabulary.

// Workload is a training step: of which model, in which precision, on how much data.
type Workload struct {
	Name      string
	Model     config.Config
	Precision device.DType
	Batch     int  // sequences of a step
	SeqLen    int  // tokens of a sequence, one document
	High      bool // F32 whose products are three of BF16, on a path of that precision
}

// PrecisionName is the precision in a job file's words, but for f32.
func (w Workload) PrecisionName() string {
	if w.High {
		return "high"
	}
	return w.Precision.String()
}

// Tokens is how many tokens a step has.
func (w Workload) Tokens() int { return w.Batch * w.SeqLen }

// Flop is what a step's products ask for: six for each weight of a matrix and token, and
// attention's two products forward and four backward over pairs of tokens that see each
// other. What is computed again to save memory does not count.
func (w Workload) Flop() float64 {
	var weights float64
	for _, t := range w.Model.Tensors() {
		if !t.Vector && t.Name != w.Model.PositionsName() && (w.Model.Tied || t.Name != w.Model.EmbeddingName()) {
			weights += float64(t.Elements())
		}
	}
	t := float64(w.SeqLen)
	pairs := float64(w.Batch) * t * (t + 1) / 2
	attention := 6 * 2 * pairs * float64(w.Model.Heads*w.Model.HeadDim*w.Model.Layers)
	return 6*weights*float64(w.Tokens()) + attention
}

// Workloads lists the training steps. The quick ones are the same on little data, for
// seeing that they run.
func Workloads(quick bool) []Workload {
	gpt2, smol := GPT2(), SmolLM2()
	list := []Workload{
		{Name: "gpt2-bf16-step", Model: gpt2, Precision: device.BF16, Batch: 4, SeqLen: 512},
		{Name: "gpt2-f32-step", Model: gpt2, Precision: device.F32, Batch: 4, SeqLen: 512},
		{Name: "gpt2-high-step", Model: gpt2, Precision: device.F32, Batch: 4, SeqLen: 512, High: true},
		{Name: "smollm2-bf16-step", Model: smol, Precision: device.BF16, Batch: 4, SeqLen: 512},
		{Name: "smollm2-f32-step", Model: smol, Precision: device.F32, Batch: 4, SeqLen: 512},
		{Name: "smollm2-high-step", Model: smol, Precision: device.F32, Batch: 4, SeqLen: 512, High: true},
		{Name: "smollm2-bf16-long", Model: smol, Precision: device.BF16, Batch: 1, SeqLen: 4096},
	}
	if quick {
		for i := range list {
			list[i].Batch, list[i].SeqLen = 1, list[i].SeqLen/8
		}
	}
	return list
}

// Find is the workload called name.
func Find(name string, quick bool) (Workload, error) {
	var names []string
	for _, w := range Workloads(quick) {
		if w.Name == name {
			return w, nil
		}
		names = append(names, w.Name)
	}
	return Workload{}, fmt.Errorf("there is no workload %q; there are %s, products, allocations and peak", name, strings.Join(names, ", "))
}

// GPT2 is the configuration of GPT-2 with 124M parameters.
func GPT2() config.Config {
	return parse(`{"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
		"vocab_size": 50257, "activation_function": "gelu_new", "bos_token_id": 50256, "eos_token_id": 50256}`)
}

// SmolLM2 is the configuration of SmolLM2-135M.
func SmolLM2() config.Config {
	return parse(`{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
		"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192,
		"rms_norm_eps": 1e-5, "rope_theta": 100000, "hidden_act": "silu", "initializer_range": 0.02, "tie_word_embeddings": true,
		"attention_bias": false, "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2}`)
}

func parse(description string) config.Config {
	c, _, err := config.Parse([]byte(description))
	if err != nil {
		panic(err) // the texts above
	}
	return c
}

// Best is the smallest of a list, 0 of none.
func Best(seconds []float64) float64 {
	if len(seconds) == 0 {
		return 0
	}
	return slices.Min(seconds)
}
