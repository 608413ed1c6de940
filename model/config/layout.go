package config

import "fmt"

// Tensor is one parameter tensor of the model.
type Tensor struct {
	Name string // its Hugging Face name
	// Rows and Cols are [out, in], row-major; a vector has Rows = 1.
	Rows, Cols int
	Vector     bool // stored with one dimension in files
	Decay      bool // weight decay applies: all but norms and biases
	Transposed bool // stored as [in, out] in files of Hugging Face, and nowhere else
}

// Elements is the number of parameters in t.
func (t Tensor) Elements() int64 { return int64(t.Rows) * int64(t.Cols) }

// Shape is [Rows, Cols], or [Cols] for a vector.
func (t Tensor) Shape() []int64 {
	if t.Vector {
		return []int64{int64(t.Cols)}
	}
	return []int64{int64(t.Rows), int64(t.Cols)}
}

// FileShape is the tensor's shape in files of Hugging Face.
func (t Tensor) FileShape() []int64 {
	if t.Transposed {
		return []int64{int64(t.Cols), int64(t.Rows)}
	}
	return t.Shape()
}

// Group is the tensors whose gradients become complete together and are reduced
// together: one gradient bucket. They lie one after another without gaps.
type Group struct {
	Name    string // "embedding", "layer.7", "norm" (tied head) or "head", "positions"
	Tensors []Tensor
}

// Elements is the number of parameters in g.
func (g Group) Elements() int64 {
	var n int64
	for _, t := range g.Tensors {
		n += t.Elements()
	}
	return n
}

// Groups is the layout of record, from which pieces, moments, mirrors and checkpoint
// ranges are all cut: changing it changes every golden hash. Order: the embedding,
// the layers, then the final norm, followed by the head unless it is tied. In a layer
// q|k|v lie side by side, so that they multiply as one matrix, and so do gate|up. A learned
// table of positions comes last.
func (c Config) Groups() []Group {
	if c.Family == gpt2 {
		return c.gpt2Groups()
	}
	groups := make([]Group, 0, c.Layers+2)
	groups = append(groups, Group{Name: "embedding", Tensors: []Tensor{
		matrix(c.EmbeddingName(), c.Vocab, c.Hidden),
	}})
	for i := range c.Layers {
		groups = append(groups, Group{Name: fmt.Sprintf("layer.%d", i), Tensors: c.layer(i)})
	}
	last := Group{Name: "norm", Tensors: []Tensor{vector(c.FinalNormName(), c.Hidden)}}
	if !c.Tied {
		last.Name = "head"
		last.Tensors = append(last.Tensors, matrix(c.HeadName(), c.Vocab, c.Hidden))
	}
	return append(groups, last)
}

// EmbeddingName is the name of the embedding's tensor.
func (c Config) EmbeddingName() string {
	if c.Family == gpt2 {
		return "transformer.wte.weight"
	}
	return "model.embed_tokens.weight"
}

// FinalNormName is the name of the weight of the norm before the head.
func (c Config) FinalNormName() string {
	if c.Family == gpt2 {
		return "transformer.ln_f.weight"
	}
	return "model.norm.weight"
}

// PositionsName is the name of a learned table of positions, "" without one.
func (c Config) PositionsName() string {
	if c.Family == gpt2 {
		return "transformer.wpe.weight"
	}
	return ""
}

// HeadName is the name of the head's tensor: the embedding's where they are tied.
func (c Config) HeadName() string {
	if c.Tied {
		return c.EmbeddingName()
	}
	return UntiedHead
}

// UntiedHead is the name that every family's head has unless it is tied.
const UntiedHead = "lm_head.weight"

// layer lists the tensors of layer i in the order of record.
func (c Config) layer(i int) []Tensor {
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	prefix := fmt.Sprintf("model.layers.%d.", i)
	var ts []Tensor
	mat := func(name string, out, in int) { ts = append(ts, matrix(prefix+name+".weight", out, in)) }
	norm := func(name string, n int) { ts = append(ts, vector(prefix+name+".weight", n)) }
	bias := func(present bool, name string, n int) {
		if present {
			ts = append(ts, vector(prefix+name+".bias", n))
		}
	}

	norm("input_layernorm", c.Hidden)
	mat("self_attn.q_proj", q, c.Hidden)
	mat("self_attn.k_proj", kv, c.Hidden)
	mat("self_attn.v_proj", kv, c.Hidden)
	bias(c.AttentionBias, "self_attn.q_proj", q)
	bias(c.AttentionBias, "self_attn.k_proj", kv)
	bias(c.AttentionBias, "self_attn.v_proj", kv)
	if c.QKNorm {
		norm("self_attn.q_norm", c.HeadDim)
		norm("self_attn.k_norm", c.HeadDim)
	}
	mat("self_attn.o_proj", c.Hidden, q)
	bias(c.OutputBias, "self_attn.o_proj", c.Hidden)
	norm("post_attention_layernorm", c.Hidden)
	mat("mlp.gate_proj", c.MLP, c.Hidden)
	mat("mlp.up_proj", c.MLP, c.Hidden)
	bias(c.MLPBias, "mlp.gate_proj", c.MLP)
	bias(c.MLPBias, "mlp.up_proj", c.MLP)
	mat("mlp.down_proj", c.Hidden, c.MLP)
	bias(c.MLPBias, "mlp.down_proj", c.Hidden)
	return ts
}

// Tensors lists every tensor of the model in the order of Groups.
func (c Config) Tensors() []Tensor {
	var ts []Tensor
	for _, g := range c.Groups() {
		ts = append(ts, g.Tensors...)
	}
	return ts
}

// Params is the number of trained parameters; a tied head counts once.
func (c Config) Params() int64 {
	if c.Family == gpt2 {
		return c.gpt2Params()
	}
	d, q, kv := int64(c.Hidden), int64(c.Heads*c.HeadDim), int64(c.KVHeads*c.HeadDim)
	f := int64(c.MLP)
	layer := 2*d + d*(2*q+2*kv) + 3*d*f
	if c.AttentionBias {
		layer += q + 2*kv
	}
	if c.OutputBias {
		layer += d
	}
	if c.QKNorm {
		layer += 2 * int64(c.HeadDim)
	}
	if c.MLPBias {
		layer += 2*f + d
	}
	n := int64(c.Vocab)*d + int64(c.Layers)*layer + d
	if !c.Tied {
		n += int64(c.Vocab) * d
	}
	return n
}

func matrix(name string, out, in int) Tensor {
	return Tensor{Name: name, Rows: out, Cols: in, Decay: true}
}

func vector(name string, n int) Tensor {
	return Tensor{Name: name, Rows: 1, Cols: n, Vector: true}
}
