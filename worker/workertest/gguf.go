package workertest

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/skein-ml/skein/tokenizer/chat"
)

// WriteGGUF writes the model as a GGUF file of fp32 weights, as llama.cpp's converter
// would: importing it gives the folder of [Model.Write] back.
func (m Model) WriteGGUF(t testing.TB, path string) {
	t.Helper()
	c := m.Config()
	var g ggufFile
	g.text("general.architecture", "llama")
	for key, n := range map[string]int{
		"block_count": c.Layers, "embedding_length": c.Hidden, "feed_forward_length": c.MLP, "context_length": c.MaxPositions,
		"attention.head_count": c.Heads, "attention.head_count_kv": c.KVHeads, "attention.key_length": c.HeadDim,
		"attention.value_length": c.HeadDim, "rope.dimension_count": c.HeadDim,
	} {
		g.key("llama."+key, ggufU32, uint32(n))
	}
	g.key("llama.attention.layer_norm_rms_epsilon", ggufF32, c.NormEps)
	g.key("llama.rope.freq_base", ggufF32, float32(c.RopeTheta))
	g.vocabulary()
	for _, x := range c.Tensors() {
		values := make([]float32, x.Elements())
		if err := (Weights{m}).ReadRange(x.Name, 0, values); err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.Contains(x.Name, ".q_proj."):
			values = interleave(values, c.Heads, c.HeadDim, c.Hidden)
		case strings.Contains(x.Name, ".k_proj."):
			values = interleave(values, c.KVHeads, c.HeadDim, c.Hidden)
		}
		g.tensor(ggufName(x.Name), x.Shape(), values)
	}
	if err := os.WriteFile(path, g.bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// interleave stores the rows of each head as the converter does: row j of the first
// half, then row j of the second.
func interleave(rows []float32, heads, headDim, cols int) []float32 {
	out := make([]float32, 0, len(rows))
	for h := range heads {
		for j := range headDim / 2 {
			for _, row := range []int{h*headDim + j, h*headDim + j + headDim/2} {
				out = append(out, rows[row*cols:(row+1)*cols]...)
			}
		}
	}
	return out
}

var ggufNames = strings.NewReplacer(
	"model.embed_tokens", "token_embd", "model.layers", "blk", "input_layernorm", "attn_norm", "self_attn.q_proj", "attn_q",
	"self_attn.k_proj", "attn_k", "self_attn.v_proj", "attn_v", "self_attn.o_proj", "attn_output",
	"post_attention_layernorm", "ffn_norm", "mlp.gate_proj", "ffn_gate", "mlp.up_proj", "ffn_up", "mlp.down_proj", "ffn_down",
	"model.norm", "output_norm",
)

func ggufName(name string) string { return ggufNames.Replace(name) }

// Types of values in a GGUF file.
const (
	ggufU32    = 4
	ggufI32    = 5
	ggufF32    = 6
	ggufBool   = 7
	ggufString = 8
	ggufArray  = 9
)

// ggufFile collects the parts of a file.
type ggufFile struct {
	keys, tensors       uint64
	meta, infos, values bytes.Buffer
}

func put(b *bytes.Buffer, v any) {
	if err := binary.Write(b, binary.LittleEndian, v); err != nil {
		panic(err) // of a type without a fixed size
	}
}

func putText(b *bytes.Buffer, s string) {
	put(b, uint64(len(s)))
	b.WriteString(s)
}

func (g *ggufFile) key(name string, kind uint32, value any) {
	g.keys++
	putText(&g.meta, name)
	put(&g.meta, kind)
	put(&g.meta, value)
}

func (g *ggufFile) text(name, value string) {
	g.keys++
	putText(&g.meta, name)
	put(&g.meta, uint32(ggufString))
	putText(&g.meta, value)
}

func (g *ggufFile) texts(name string, list []string) {
	g.keys++
	putText(&g.meta, name)
	put(&g.meta, []uint32{ggufArray, ggufString})
	put(&g.meta, uint64(len(list)))
	for _, s := range list {
		putText(&g.meta, s)
	}
}

func (g *ggufFile) vocabulary() {
	const prefix, normal, control = "tokenizer.ggml.", int32(1), int32(3)
	tokens := Tokens()
	types := make([]int32, len(tokens))
	for id := range types {
		types[id] = normal
		if int32(id) >= idText {
			types[id] = control
		}
	}
	g.text(prefix+"model", "gpt2")
	g.text(prefix+"pre", "gpt-2")
	g.texts(prefix+"tokens", tokens)
	g.texts(prefix+"merges", merges)
	g.keys++
	putText(&g.meta, prefix+"token_type")
	put(&g.meta, []uint32{ggufArray, ggufI32})
	put(&g.meta, uint64(len(types)))
	put(&g.meta, types)
	for name, id := range map[string]int32{"bos": idStart, "eos": idEnd, "padding": idText} {
		g.key(prefix+name+"_token_id", ggufU32, uint32(id))
	}
	g.key(prefix+"add_bos_token", ggufBool, false)
	g.text("tokenizer.chat_template", chat.ChatML)
}

// ggufAlignment is what tensors' data begins at multiples of.
const ggufAlignment = 32

// tensor adds fp32 values; shape is outermost first, and stored innermost first.
func (g *ggufFile) tensor(name string, shape []int64, values []float32) {
	g.tensors++
	putText(&g.infos, name)
	put(&g.infos, uint32(len(shape)))
	for i := range shape {
		put(&g.infos, uint64(shape[len(shape)-1-i]))
	}
	put(&g.infos, uint32(0)) // F32
	put(&g.infos, uint64(g.values.Len()))
	put(&g.values, values)
	pad(&g.values)
}

func pad(b *bytes.Buffer) {
	for b.Len()%ggufAlignment != 0 {
		b.WriteByte(0)
	}
}

func (g *ggufFile) bytes() []byte {
	var b bytes.Buffer
	b.WriteString("GGUF")
	put(&b, uint32(3)) // version
	put(&b, []uint64{g.tensors, g.keys})
	b.Write(g.meta.Bytes())
	b.Write(g.infos.Bytes())
	pad(&b)
	b.Write(g.values.Bytes())
	return b.Bytes()
}
